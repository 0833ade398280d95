//! The controllers: each compares what is wanted with what is, and writes what is missing.
//!
//! ```text
//!                    ┌──────────────────────────── etcd ◀────────────────────────────┐
//!                    │ one watch of /registry/                                       │ writes
//!                    ▼                                                               │
//!   Objects: everything as last seen ──▶ dirty: which objects must be looked at ──▶ reconcile one
//!
//!   a pod changed        ──▶ the Services that select it, the Deployment that owns it, itself while it has no worker
//!   a Service changed    ──▶ itself                                      endpoints.rs    Service + pods ──▶ EndpointSlices
//!   a Deployment changed ──▶ itself                                      deployment.rs   Deployment + pods ──▶ pods
//!   a worker changed     ──▶ the pods that wait for one                  pods.rs         pod + workers ──▶ nodeName
//!   a Namespace is being deleted ──▶ whatever is left in it
//! ```
//!
//! A controller never asks what happened, only what there is: *level-triggered*. An event says where to look and nothing else;
//! so one that is missed, doubled or late does no harm, and after a restart everything is looked at once.
//!
//! Our own writes are taken into `Objects` at once, without waiting for the watch to bring them: or a Deployment that is looked
//! at twice in a row would make its pods twice. kube-controller-manager keeps *expectations* for that.
//!
//! In Kubernetes each controller is a loop of its own in kube-controller-manager, and the scheduler a program of its own.

pub mod deployment;
pub mod endpoints;
mod objects;
pub mod pods;

use std::{future::Future, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use self::{
    endpoints::Change,
    objects::{Objects, Reference},
};
use crate::api::{
    failure::Failure,
    kind::{KINDS, Kind},
    prepare::clock,
    registry::{Part, Precondition, Registry},
};

/// The pause after etcd was away.
const PAUSE: Duration = Duration::from_millis(200);
/// The pause before an object that could not be brought in order is looked at again, if nothing else happens.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Runs all controllers until `shutdown`.
pub async fn run(registry: Registry, shutdown: impl Future<Output = ()>) {
    tokio::select! {
        () = async {
            loop {
                let Err(failure) = follow(&registry).await;
                warn!(%failure, "the controllers begin anew");
                tokio::time::sleep(PAUSE).await;
            }
        } => {}
        () = shutdown => {}
    }
}

/// Lists everything, and then looks at whatever each change touches. Ends when etcd is away or has forgotten where we were.
async fn follow(registry: &Registry) -> Result<std::convert::Infallible, Failure> {
    let mut objects = Objects::default();
    let mut oldest = i64::MAX;
    for kind in KINDS {
        let listing = registry.list(kind, None).await?;
        // From the first listing on, so that nothing falls between two of them; what is seen twice is the same twice.
        oldest = oldest.min(listing.revision);
        for object in listing.objects {
            objects.put(kind, object);
        }
    }
    let mut watch = registry.watch("/registry/".to_owned(), oldest + 1).await?;
    info!(revision = oldest, "the controllers follow the cluster");
    loop {
        let failed = reconcile_all(registry, &mut objects).await;
        let response = tokio::select! {
            response = watch.message() => response.map_err(|error| Failure::Unavailable(error.to_string()))?,
            () = tokio::time::sleep(RETRY_PAUSE), if failed => continue,
        };
        let response = response.ok_or_else(|| Failure::Unavailable("the watch was closed".to_owned()))?;
        if response.canceled() {
            return Err(Failure::Unavailable(format!("etcd ended the watch: {}", response.cancel_reason())));
        }
        for event in response.events() {
            objects.handle_event(event);
        }
    }
}

/// Looks at all that is dirty; whether something is left for later.
async fn reconcile_all(registry: &Registry, objects: &mut Objects) -> bool {
    let mut failed = Vec::new();
    while let Some(reference) = objects.take_dirty() {
        let result = match reference.kind {
            Kind::Service => service(registry, objects, &reference).await,
            Kind::Deployment => deployment(registry, objects, &reference).await,
            Kind::Pod => pod(registry, objects, &reference).await,
            Kind::Namespace => namespace(registry, objects, &reference).await,
            Kind::Node | Kind::EndpointSlice | Kind::Endpoints | Kind::ServiceCidr | Kind::IpAddress => Ok(()),
        };
        match result {
            // Gone, or changed by somebody else: the watch will tell, and then it is looked at again.
            Ok(()) | Err(Failure::NotFound { .. } | Failure::Conflict { .. }) => {}
            Err(failure) => {
                warn!(object = %reference, %failure, "not done; it is tried again");
                failed.push(reference);
            }
        }
    }
    let has_failed = !failed.is_empty();
    objects.mark_all(failed);
    has_failed
}

/// Brings the EndpointSlices of a Service up to date.
async fn service(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    let existing: Vec<EndpointSlice> = objects.slices_of(reference).into_iter().filter(endpoints::is_ours).collect();
    let older = Reference::new(Kind::Endpoints, &reference.namespace, &reference.name);
    let Some(service) = objects.typed::<Service>(reference) else {
        if objects.get(&older).is_some() {
            remove(registry, objects, &older).await?;
        }
        for name in existing.into_iter().filter_map(|slice| slice.metadata.name) {
            remove(registry, objects, &Reference::new(Kind::EndpointSlice, &reference.namespace, &name)).await?;
        }
        return Ok(());
    };
    if !endpoints::is_followed(&service) {
        return Ok(());
    }
    let seen = clock();
    let pods = objects.selected_by(&service);
    keep_endpoints(registry, objects, &older, &endpoints::older_form(&service, &pods)).await?;
    for change in endpoints::plan(&service, &pods.iter().collect::<Vec<_>>(), &existing) {
        match change {
            Change::Create(mut slice) => {
                endpoints::set_trigger_time(&mut slice, seen);
                let slice = value(&slice)?;
                let made = registry.create(Kind::EndpointSlice, &reference.namespace, slice).await?;
                debug!(service = %reference, slice = %made["metadata"]["name"], "slice created");
                objects.put(Kind::EndpointSlice, made);
            }
            Change::Update(mut slice) => {
                endpoints::set_trigger_time(&mut slice, seen);
                let name = slice.metadata.name.clone().unwrap_or_default();
                let slice = value(&slice)?;
                let change = |_| Ok(slice.clone());
                let changed =
                    registry.update(Kind::EndpointSlice, &reference.namespace, &name, Part::Spec, change).await?;
                objects.put(Kind::EndpointSlice, changed);
            }
            Change::Delete(name) => {
                remove(registry, objects, &Reference::new(Kind::EndpointSlice, &reference.namespace, &name)).await?;
            }
        }
    }
    Ok(())
}

/// Keeps the Endpoints object of a Service.
async fn keep_endpoints(
    registry: &Registry,
    objects: &mut Objects,
    reference: &Reference,
    wanted: &Endpoints,
) -> Result<(), Failure> {
    let Reference { kind, namespace, name } = reference;
    let object = value(wanted)?;
    let written = match objects.typed::<Endpoints>(reference) {
        Some(known) if known.subsets == wanted.subsets => return Ok(()),
        Some(_) => registry.update(*kind, namespace, name, Part::Spec, |_| Ok(object.clone())).await?,
        None => registry.create(*kind, namespace, object).await?,
    };
    objects.put(*kind, written);
    Ok(())
}

/// Makes and deletes the pods of a Deployment, and writes its status.
async fn deployment(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    let found = objects.typed::<Deployment>(reference);
    let uid = found.as_ref().and_then(|deployment| deployment.metadata.uid.clone()).unwrap_or_default();
    let owned = objects.owned_by(reference);
    let is_own = |pod: &&k8s_openapi::api::core::v1::Pod| {
        pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
    };
    let (own, orphans): (Vec<_>, Vec<_>) = owned.iter().partition(is_own);
    // Their Deployment was deleted, and perhaps another one of its name was made since.
    for name in orphans.iter().filter(|pod| !pods::is_terminating(pod)).filter_map(|pod| pod.metadata.name.clone()) {
        delete(registry, objects, &Reference::new(Kind::Pod, &reference.namespace, &name)).await?;
    }
    let Some(deployment) = found else { return Ok(()) };
    let plan = deployment::plan(&deployment, &own);
    for name in &plan.delete {
        delete(registry, objects, &Reference::new(Kind::Pod, &reference.namespace, name)).await?;
    }
    let new = value(&deployment::new_pod(&deployment))?;
    for _ in 0..plan.create {
        let made = registry.create(Kind::Pod, &reference.namespace, new.clone()).await?;
        debug!(deployment = %reference, pod = %made["metadata"]["name"], "pod created");
        objects.put(Kind::Pod, made);
    }
    if deployment.status.as_ref() != Some(&plan.status) {
        let status = value(&plan.status)?;
        let change = |mut object: Value| {
            object["status"] = status.clone();
            Ok(object)
        };
        let changed =
            registry.update(Kind::Deployment, &reference.namespace, &reference.name, Part::Status, change).await?;
        objects.put(Kind::Deployment, changed);
    }
    Ok(())
}

/// Finds a worker for a pod that has none.
async fn pod(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    let Some(pod) = objects.typed(reference) else { return Ok(()) };
    if pods::node_of(&pod).is_some() {
        return Ok(());
    }
    let all = objects.all_pods();
    let nodes = objects.nodes();
    let Some(worker) = pods::schedule(&pod, nodes.iter(), &all.iter().collect::<Vec<_>>()) else {
        debug!(pod = %reference, "no worker may take it; it waits");
        return Ok(());
    };
    let change = |mut object: Value| {
        object["spec"]["nodeName"] = json!(worker);
        Ok(object)
    };
    let bound = registry.update(Kind::Pod, &reference.namespace, &reference.name, Part::Spec, change).await?;
    debug!(pod = %reference, %worker, "scheduled");
    objects.put(Kind::Pod, bound);
    Ok(())
}

/// Empties a Namespace that is being deleted, and removes it when it is empty.
async fn namespace(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    let is_leaving = objects.get(reference).is_some_and(|object| !object["metadata"]["deletionTimestamp"].is_null());
    if !is_leaving {
        return Ok(());
    }
    let inside = objects.inside(&reference.name);
    for inner in &inside {
        let is_leaving = objects.get(inner).is_some_and(|object| !object["metadata"]["deletionTimestamp"].is_null());
        if !is_leaving {
            match delete(registry, objects, inner).await {
                Ok(()) | Err(Failure::NotFound { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    if objects.inside(&reference.name).is_empty() {
        remove(registry, objects, reference).await?;
    }
    Ok(())
}

/// Deletes as a client would: a pod that runs is marked first.
async fn delete(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    let Reference { kind, namespace, name } = reference;
    let left = registry.delete(*kind, namespace, name, None, &Precondition::default()).await?;
    match left["metadata"]["deletionTimestamp"].is_null() {
        true => objects.forget(reference),
        false => objects.put(*kind, left),
    }
    Ok(())
}

async fn remove(registry: &Registry, objects: &mut Objects, reference: &Reference) -> Result<(), Failure> {
    registry.remove(reference.kind, &reference.namespace, &reference.name, &Precondition::default()).await?;
    objects.forget(reference);
    Ok(())
}

fn value<T: serde::Serialize>(object: &T) -> Result<Value, Failure> {
    serde_json::to_value(object).map_err(|error| Failure::Internal(error.to_string()))
}
