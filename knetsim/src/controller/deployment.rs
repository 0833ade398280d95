//! A Deployment: so many equal pods, also while their template changes.
//!
//! A pod bears a hash of the template it was made from. Pods of another template are *old*: a rolling update makes new ones
//! before it takes old ones away, so that never fewer than `replicas - maxUnavailable` are ready and never more than `replicas +
//! maxSurge` are there. Each step follows from what there is, so an update that was interrupted goes on where it stood.
//!
//! Kubernetes puts a `ReplicaSet` for each template between the Deployment and its pods, and can go back to an earlier one.
//!
//! Source: Kubernetes `pkg/controller/deployment/rolling.go`, `recreate.go`, `sync.go`; `util/deployment_util.go` for rounding.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use sha2::{Digest as _, Sha256};

use super::pods::{is_finished, is_ready, is_terminating};

/// The label that bears the hash of the template.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// What to do for a Deployment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// How many pods of its template to make.
    pub create: usize,
    /// Which pods to delete, by name.
    pub delete: Vec<String>,
    /// What its status shall say.
    pub status: DeploymentStatus,
}

/// Decides. `pods` are those that the Deployment owns.
#[must_use]
pub fn plan(deployment: &Deployment, pods: &[&Pod]) -> Plan {
    let Some(spec) = &deployment.spec else { return Plan::default() };
    let replicas = count(spec.replicas.unwrap_or(1));
    let hash = template_hash(spec);
    let is_new = |pod: &&Pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH)) == Some(&hash);
    let finished = pods.iter().filter(|pod| is_finished(pod) && !is_terminating(pod));
    let mut delete: Vec<String> = finished.filter_map(|pod| pod.metadata.name.clone()).collect();
    let alive: Vec<&Pod> = pods.iter().copied().filter(|pod| !is_finished(pod) && !is_terminating(pod)).collect();
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = alive.iter().partition(|pod| is_new(pod));
    let status = status(deployment, replicas, &alive, new.len());

    let recreates = spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
    let (surge, unavailable) = limits(spec, replicas);
    let is_leaving = pods.iter().any(|pod| is_terminating(pod) && !is_new(pod));
    let room = match recreates {
        true if !old.is_empty() || is_leaving => 0,
        true => replicas,
        false => (replicas + surge).saturating_sub(alive.len()),
    };
    let create = replicas.saturating_sub(new.len()).min(room);
    let surplus = new.len().saturating_sub(replicas);
    delete.extend(names(by_use(new).into_iter().take(surplus).collect()));
    if recreates {
        delete.extend(names(old));
    } else {
        let ready = alive.iter().filter(|pod| is_ready(pod)).count();
        let mut spare = ready.saturating_sub(replicas.saturating_sub(unavailable));
        let may_go = |pod: &&Pod| {
            let serves = is_ready(pod);
            let goes = !serves || spare > 0;
            spare -= usize::from(serves && goes);
            goes
        };
        delete.extend(names(by_use(old).into_iter().filter(may_go).collect()));
    }
    Plan { create, delete, status }
}

/// Pods in the order in which they may go: those that serve nobody first, then the youngest.
fn by_use(mut pods: Vec<&Pod>) -> Vec<&Pod> {
    pods.sort_by_key(|pod| {
        let age = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (is_ready(pod), std::cmp::Reverse(age), pod.metadata.name.clone())
    });
    pods
}

fn names(pods: Vec<&Pod>) -> Vec<String> {
    pods.into_iter().filter_map(|pod| pod.metadata.name.clone()).collect()
}

/// A new pod of a Deployment.
#[must_use]
pub fn new_pod(deployment: &Deployment) -> Pod {
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let Some(spec) = &deployment.spec else { return Pod::default() };
    let template = spec.template.metadata.clone().unwrap_or_default();
    let hash = template_hash(spec);
    let mut labels = template.labels.unwrap_or_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-{hash}-")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: template.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
                name,
                uid: deployment.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: spec.template.spec.clone(),
        status: None,
    }
}

fn template_hash(spec: &DeploymentSpec) -> String {
    let template = serde_json::to_vec(&spec.template).unwrap_or_default();
    Sha256::digest(&template).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// How many pods there may be more than wanted, and how many fewer may be ready. A share of `replicas` is rounded up for the
/// first and down for the second; one of them is above zero, or nothing could ever change.
fn limits(spec: &DeploymentSpec, replicas: usize) -> (usize, usize) {
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let resolve = |value: Option<IntOrString>, up: bool| match value {
        Some(IntOrString::Int(number)) => count(number),
        Some(IntOrString::String(share)) => {
            let percent: usize = share.trim_end_matches('%').parse().unwrap_or(0);
            if up { (replicas * percent).div_ceil(100) } else { replicas * percent / 100 }
        }
        None => 0,
    };
    match (resolve(rolling.max_surge, true), resolve(rolling.max_unavailable, false)) {
        (0, 0) => (0, 1),
        limits => limits,
    }
}

fn status(deployment: &Deployment, replicas: usize, alive: &[&Pod], updated: usize) -> DeploymentStatus {
    let number = |count: usize| i32::try_from(count).ok();
    let ready = alive.iter().filter(|pod| is_ready(pod)).count();
    let condition = |type_: &str, holds: bool, reason: &str, message: &str| DeploymentCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..DeploymentCondition::default()
    };
    let is_available = ready >= replicas;
    let (reason, message) = match is_available {
        true => ("MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    let is_done = is_available && updated == replicas && alive.len() == replicas;
    let progress = if is_done { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" };
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: number(alive.len()),
        updated_replicas: number(updated),
        ready_replicas: number(ready),
        available_replicas: number(ready),
        unavailable_replicas: number(replicas.saturating_sub(ready)),
        conditions: Some(vec![
            condition("Available", is_available, reason, message),
            condition("Progressing", true, progress, "Pods follow the template."),
        ]),
        ..DeploymentStatus::default()
    }
}

fn count(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(replicas: i32, strategy: &Value, image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": "u", "generation": 3 },
            "spec": {
                "replicas": replicas, "strategy": strategy, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "web", "image": image }] } },
            },
        }))
        .unwrap()
    }

    fn rolling() -> Value {
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } })
    }

    /// Plays an update to its end: pods that are made are ready one step later, deleted ones are gone. Returns the fewest ready
    /// and the most alive that there were.
    fn play(deployment: &Deployment, pods: &mut Vec<Pod>) -> (usize, usize) {
        let (mut fewest, mut most) = (usize::MAX, 0);
        for step in 0..50 {
            let decided = plan(deployment, &pods.iter().collect::<Vec<_>>());
            if decided.create == 0 && decided.delete.is_empty() && pods.iter().all(is_ready) {
                return (fewest, most);
            }
            pods.retain(|pod| !decided.delete.contains(pod.metadata.name.as_ref().unwrap()));
            fewest = fewest.min(pods.iter().filter(|pod| is_ready(pod)).count());
            for number in 0..decided.create {
                let mut pod = new_pod(deployment);
                let beginning = pod.metadata.generate_name.clone().unwrap();
                pod.metadata.name = Some(format!("{beginning}{step}-{number}"));
                pods.push(pod);
            }
            most = most.max(pods.len());
            // What was made before this step is ready by now.
            for pod in pods.iter_mut() {
                pod.status =
                    serde_json::from_value(json!({ "conditions": [{ "type": "Ready", "status": "True" }] })).unwrap();
            }
        }
        panic!("the update does not end: {pods:?}");
    }

    #[test]
    fn pods_are_made_and_taken_away_as_replicas_say() {
        let mut pods = Vec::new();
        play(&deployment(3, &rolling(), "a"), &mut pods);
        assert_eq!(pods.len(), 3);
        play(&deployment(1, &rolling(), "a"), &mut pods);
        assert_eq!(pods.len(), 1);
        play(&deployment(0, &rolling(), "a"), &mut pods);
        assert!(pods.is_empty());
    }

    #[test]
    fn a_rolling_update_keeps_within_its_limits() {
        for (strategy, fewest_ready, most_alive) in [
            (rolling(), 3, 5),
            (json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } }), 4, 5),
            (json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } }), 3, 4),
        ] {
            let mut pods = Vec::new();
            play(&deployment(4, &strategy, "a"), &mut pods);
            let next = deployment(4, &strategy, "b");
            let (fewest, most) = play(&next, &mut pods);
            assert!(fewest >= fewest_ready && most <= most_alive, "{strategy}: {fewest} {most}");
            let hash = template_hash(next.spec.as_ref().unwrap());
            assert!(
                pods.len() == 4 && pods.iter().all(|pod| pod.metadata.labels.as_ref().unwrap()[TEMPLATE_HASH] == hash)
            );
        }
    }

    #[test]
    fn recreating_waits_until_the_old_ones_are_gone() {
        let mut pods = Vec::new();
        let strategy = json!({ "type": "Recreate" });
        play(&deployment(2, &strategy, "a"), &mut pods);
        let next = deployment(2, &strategy, "b");
        let first = plan(&next, &pods.iter().collect::<Vec<_>>());
        assert_eq!((first.create, first.delete.len()), (0, 2));
        pods[0].metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-21T12:00:00Z")).unwrap();
        pods.truncate(1);
        assert_eq!(plan(&next, &pods.iter().collect::<Vec<_>>()).create, 0);
        assert_eq!(plan(&next, &[]).create, 2);
    }

    #[test]
    fn the_status_says_how_far_it_is() {
        let status = plan(&deployment(2, &rolling(), "a"), &[]).status;
        assert_eq!(
            (status.observed_generation, status.ready_replicas, status.unavailable_replicas),
            (Some(3), Some(0), Some(2))
        );
        assert_eq!(status.conditions.unwrap()[0].status, "False");
    }
}
