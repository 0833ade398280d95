//! Where the pods of a Service are: from the Service and the pods it selects to EndpointSlices.
//!
//! A slice holds endpoints that serve the same ports. A port that a Service names by word (`targetPort: http`) may be another
//! number in each pod, so pods are grouped by the ports they come to have. A slice takes at most [`MAX_ENDPOINTS`]; a change of
//! one pod shall change one slice, so whatever is in a slice already stays where it is.
//!
//! Source: Kubernetes `endpointslice/reconciler.go`, `endpointslice/utils.go` (`podToEndpoint`, `findPort`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        core::{
            self,
            v1::{EndpointAddress, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort},
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};
use kproxy_rs::objects::TRIGGER_TIME_ANNOTATION;

use super::pods::{is_finished, is_ready};

/// Endpoints in a slice, as in Kubernetes.
pub const MAX_ENDPOINTS: usize = 100;
/// The label that says which Service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who keeps a slice, and its value for those that this controller keeps. All others are left alone.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// See [`MANAGED_BY`].
pub const OURS: &str = "endpointslice-controller.k8s.io";
/// The label of the slices of a headless Service, by which kube-proxy passes them over.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A slice that is missing.
    Create(EndpointSlice),
    /// A slice that is other than it should be.
    Update(EndpointSlice),
    /// A slice that is not needed, by name.
    Delete(String),
}

/// The ports of a group of endpoints, in an order that makes equal sets equal.
type Ports = BTreeSet<(String, String, i32)>;

/// Notes in a slice when its change was seen, by which a service proxy measures how late it is itself.
pub fn set_trigger_time(slice: &mut EndpointSlice, seen: Timestamp) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    annotations.insert(TRIGGER_TIME_ANNOTATION.to_owned(), seen.to_string());
}

/// Whether this controller keeps a slice.
#[must_use]
pub fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|manager| manager == OURS))
}

/// Whether this controller has anything to do for a Service: one without a selector has slices by hand, or none.
#[must_use]
pub fn is_followed(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()) && spec.type_.as_deref() != Some("ExternalName")
}

/// What turns `existing`, the slices that this controller keeps for a Service, into those for `pods`, the pods that it selects.
#[must_use]
pub fn plan(service: &Service, pods: &[&Pod], existing: &[EndpointSlice]) -> Vec<Change> {
    let mut desired: BTreeMap<Ports, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for pod in pods {
        if let Some((address, endpoint)) = endpoint(service, pod) {
            desired.entry(ports(service, pod)).or_default().insert(address, endpoint);
        }
    }
    let mut changes = Vec::new();
    let mut kept = 0;
    // What is in a slice stays there, before what is in none goes where there is room.
    let stay = |slice: &EndpointSlice, desired: &mut BTreeMap<Ports, BTreeMap<String, Endpoint>>| -> Vec<Endpoint> {
        let Some(wanted) = desired.get_mut(&ports_of(slice)) else { return Vec::new() };
        slice.endpoints.iter().filter_map(|old| wanted.remove(old.addresses.first()?)).collect()
    };
    let staying: Vec<Vec<Endpoint>> = existing.iter().map(|slice| stay(slice, &mut desired)).collect();
    for (slice, mut endpoints) in existing.iter().zip(staying) {
        if let Some(missing) = desired.get_mut(&ports_of(slice)) {
            let room = MAX_ENDPOINTS.saturating_sub(endpoints.len());
            let coming: Vec<String> = missing.keys().take(room).cloned().collect();
            endpoints.extend(coming.iter().filter_map(|address| missing.remove(address)));
        }
        if endpoints.is_empty() {
            changes.push(Change::Delete(slice.metadata.name.clone().unwrap_or_default()));
            continue;
        }
        kept += 1;
        let mut wanted = slice.clone();
        wanted.endpoints = endpoints;
        wanted.metadata.labels = Some(labels(service));
        if wanted != *slice {
            changes.push(Change::Update(wanted));
        }
    }
    for (ports, endpoints) in desired {
        let endpoints: Vec<Endpoint> = endpoints.into_values().collect();
        for chunk in endpoints.chunks(MAX_ENDPOINTS) {
            kept += 1;
            changes.push(Change::Create(new_slice(service, &ports, chunk.to_vec())));
        }
    }
    if kept == 0 {
        keep_one(service, existing, &mut changes);
    }
    changes
}

/// The same as an Endpoints object: the form before `EndpointSlice`, which `kubectl get endpoints` and old programs read. The
/// service proxies do not.
#[must_use]
pub fn older_form(service: &Service, pods: &[Pod]) -> Endpoints {
    let mut subsets: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods {
        let Some((ip, endpoint)) = endpoint(service, pod) else { continue };
        let is_ready = endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(false);
        let (ready, waiting) = subsets.entry(ports(service, pod)).or_default();
        let address =
            EndpointAddress { ip, node_name: endpoint.node_name, target_ref: endpoint.target_ref, hostname: None };
        if is_ready { ready.push(address) } else { waiting.push(address) }
    }
    let some = |addresses: Vec<EndpointAddress>| (!addresses.is_empty()).then_some(addresses);
    let subset = |(ports, (ready, waiting)): (Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>))| {
        let named = |name: String| (!name.is_empty()).then_some(name);
        let ports = ports.into_iter().map(|(name, protocol, port)| core::v1::EndpointPort {
            name: named(name),
            protocol: Some(protocol),
            port,
            app_protocol: None,
        });
        EndpointSubset { addresses: some(ready), not_ready_addresses: some(waiting), ports: Some(ports.collect()) }
    };
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: service.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets.into_iter().map(subset).collect()),
    }
}

/// A Service without endpoints has one slice, an empty one, so that everybody sees that somebody has looked.
fn keep_one(service: &Service, existing: &[EndpointSlice], changes: &mut Vec<Change>) {
    let Some(slice) = existing.first() else {
        changes.push(Change::Create(new_slice(service, &Ports::new(), Vec::new())));
        return;
    };
    changes.retain(|change| !matches!(change, Change::Delete(name) if Some(name) == slice.metadata.name.as_ref()));
    if !slice.endpoints.is_empty() {
        let mut emptied = slice.clone();
        emptied.endpoints.clear();
        changes.insert(0, Change::Update(emptied));
    }
}

/// A pod as an endpoint, with its address; none while it has no address or when it has ended.
fn endpoint(service: &Service, pod: &Pod) -> Option<(String, Endpoint)> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.clone().filter(|address| !address.is_empty())?;
    if is_finished(pod) {
        return None;
    }
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    let publishes = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let endpoint = Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    };
    Some((address, endpoint))
}

/// The ports that a Service comes to have in a pod. One that the pod does not name is left out.
fn ports(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), protocol(port), number(port, pod)?))).collect()
}

fn protocol(port: &ServicePort) -> String {
    port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())
}

fn number(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        Some(IntOrString::Int(number)) => Some(*number),
        None => Some(port.port),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut named = containers.flat_map(|container| container.ports.iter().flatten());
            let found = named.find(|known| {
                known.name.as_ref() == Some(name) && known.protocol.as_deref().unwrap_or("TCP") == protocol(port)
            });
            found.map(|known| known.container_port)
        }
    }
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let ports = slice.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some((port.name.clone().unwrap_or_default(), port.protocol.clone().unwrap_or_default(), port.port?))
        })
        .collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), OURS.to_owned());
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn new_slice(service: &Service, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let ports = ports.iter().map(|(name, protocol, port)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        ..EndpointPort::default()
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name,
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints,
        ports: Some(ports.collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: &Value) -> Service {
        let mut whole =
            json!({ "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] });
        crate::api::patch::merge(&mut whole, spec);
        serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "shop", "uid": "u" }, "spec": whole }))
            .unwrap()
    }

    fn pod(number: usize, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": format!("web-{number}"), "namespace": "shop" },
            "spec": { "nodeName": "C0w1", "containers": [{ "name": "web", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            "status": { "phase": "Running", "podIP": format!("11.10.{}.{}", number / 250, number % 250 + 2),
                "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn plan_for(service: &Service, pods: &[Pod], existing: &[EndpointSlice]) -> Vec<Change> {
        plan(service, &pods.iter().collect::<Vec<_>>(), existing)
    }

    /// Carries changes out, as etcd would; new slices get names.
    fn applied(mut slices: Vec<EndpointSlice>, changes: Vec<Change>) -> Vec<EndpointSlice> {
        for change in changes {
            match change {
                Change::Create(mut slice) => {
                    slice.metadata.name = Some(format!("web-{}", slices.len()));
                    slices.push(slice);
                }
                Change::Update(slice) => {
                    let place = slices.iter().position(|old| old.metadata.name == slice.metadata.name).unwrap();
                    slices[place] = slice;
                }
                Change::Delete(name) => slices.retain(|slice| slice.metadata.name.as_ref() != Some(&name)),
            }
        }
        slices
    }

    fn conditions(slice: &EndpointSlice) -> Vec<(bool, bool, bool)> {
        let of = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
        };
        slice.endpoints.iter().map(of).collect()
    }

    #[test]
    fn named_ports_are_resolved_and_conditions_follow_the_pod() {
        let mut leaving = pod(2, "True");
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-21T12:00:00Z")).unwrap();
        let slices =
            applied(Vec::new(), plan_for(&service(&json!({})), &[pod(0, "True"), pod(1, "False"), leaving], &[]));
        assert_eq!(slices.len(), 1);
        assert_eq!(conditions(&slices[0]), [(true, true, false), (false, false, false), (false, true, true)]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(slices[0].endpoints[0].node_name.as_deref(), Some("C0w1"));
        assert_eq!(slices[0].metadata.labels.as_ref().unwrap()[SERVICE_NAME], "web");
    }

    #[test]
    fn a_second_run_plans_nothing() {
        let service = service(&json!({}));
        for count in [0, 1, 100, 250] {
            let pods: Vec<Pod> = (0..count).map(|number| pod(number, "True")).collect();
            let slices = applied(Vec::new(), plan_for(&service, &pods, &[]));
            assert_eq!(slices.len(), count.div_ceil(MAX_ENDPOINTS).max(1));
            assert_eq!(plan_for(&service, &pods, &slices), []);
        }
    }

    #[test]
    fn one_pod_that_goes_changes_one_slice_and_the_next_takes_its_place() {
        let service = service(&json!({}));
        let mut pods: Vec<Pod> = (0..250).map(|number| pod(number, "True")).collect();
        let slices = applied(Vec::new(), plan_for(&service, &pods, &[]));
        pods.remove(120);
        let changes = plan_for(&service, &pods, &slices);
        assert!(matches!(changes[..], [Change::Update(_)]), "{changes:?}");
        let slices = applied(slices, changes);
        pods.push(pod(300, "True"));
        let changes = plan_for(&service, &pods, &slices);
        assert!(matches!(changes[..], [Change::Update(_)]), "{changes:?}");
    }

    #[test]
    fn the_last_slice_stays_empty_and_further_ones_go() {
        let service = service(&json!({}));
        let pods: Vec<Pod> = (0..150).map(|number| pod(number, "True")).collect();
        let slices = applied(Vec::new(), plan_for(&service, &pods, &[]));
        let slices = applied(slices.clone(), plan_for(&service, &[], &slices));
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [0]);
        assert_eq!(plan_for(&service, &[], &slices), []);
    }

    #[test]
    fn pods_with_other_numbers_for_a_named_port_are_in_slices_of_their_own() {
        let mut other = pod(1, "True");
        other.spec.as_mut().unwrap().containers[0].ports.as_mut().unwrap()[0].container_port = 9090;
        let slices = applied(Vec::new(), plan_for(&service(&json!({})), &[pod(0, "True"), other], &[]));
        let mut ports: Vec<_> = slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [Some(8080), Some(9090)]);
    }

    #[test]
    fn the_older_form_says_the_same() {
        let endpoints = older_form(&service(&json!({})), &[pod(0, "True"), pod(1, "False")]);
        let subsets = endpoints.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "11.10.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "11.10.0.3");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    }

    #[test]
    fn addresses_are_published_before_they_are_ready_only_on_request() {
        let publishing = service(&json!({ "publishNotReadyAddresses": true }));
        let slices = applied(Vec::new(), plan_for(&publishing, &[pod(0, "False")], &[]));
        assert_eq!(conditions(&slices[0]), [(true, false, false)]);
        assert!(!is_followed(&service(&json!({ "selector": null }))));
    }
}
