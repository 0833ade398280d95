//! What several controllers ask about a pod.

use k8s_openapi::api::core::v1::{Node, Pod};

/// Whether its `Ready` condition holds.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether it has ended and will not start again.
#[must_use]
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether it is on its way out.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The worker it is bound to.
#[must_use]
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty())
}

/// The worker for a pod that is bound to none: of those that may take it the one with the fewest pods of the same owner, so
/// that a Deployment is spread; then the one with the fewest pods; then the first by name. None when no worker may take it.
///
/// A worker may take it when it has the labels of the pod's `nodeSelector` and is not cordoned. kube-scheduler weighs many
/// things more.
#[must_use]
pub fn schedule<'a>(pod: &Pod, nodes: impl Iterator<Item = &'a Node>, pods: &[&Pod]) -> Option<String> {
    let wanted = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    let fits = |node: &&Node| {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        !is_cordoned && wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
    };
    let key = |name: &String| {
        let there =
            pods.iter().filter(|other| node_of(other) == Some(name) && !is_finished(other) && !is_terminating(other));
        let kin = there.clone().filter(|other| owner(other).is_some() && owner(other) == owner(pod)).count();
        (kin, there.count(), name.clone())
    };
    nodes.filter(fits).filter_map(|node| node.metadata.name.clone()).min_by_key(key)
}

/// The uid of the object that a pod was made for.
fn owner(pod: &Pod) -> Option<&str> {
    pod.metadata.owner_references.iter().flatten().next().map(|owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: &Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    fn node(name: &str, unschedulable: bool) -> Node {
        let labels = json!({ "kubernetes.io/hostname": name });
        serde_json::from_value(
            json!({ "metadata": { "name": name, "labels": labels }, "spec": { "unschedulable": unschedulable } }),
        )
        .unwrap()
    }

    #[test]
    fn a_pod_goes_where_the_fewest_are_and_where_it_may() {
        let nodes = [node("C0w1", false), node("C0w2", false), node("C0w3", true)];
        let running = [pod(&json!({ "containers": [], "nodeName": "C0w1" }))];
        let running: Vec<&Pod> = running.iter().collect();
        let new = pod(&json!({ "containers": [] }));
        assert_eq!(schedule(&new, nodes.iter(), &running).as_deref(), Some("C0w2"));
        assert_eq!(schedule(&new, nodes.iter(), &[]).as_deref(), Some("C0w1"));
        let picky = pod(&json!({ "containers": [], "nodeSelector": { "kubernetes.io/hostname": "C0w1" } }));
        assert_eq!(schedule(&picky, nodes.iter(), &running).as_deref(), Some("C0w1"));
        let nowhere = pod(&json!({ "containers": [], "nodeSelector": { "kubernetes.io/hostname": "C0w3" } }));
        assert_eq!(schedule(&nowhere, nodes.iter(), &running), None);
    }
}
