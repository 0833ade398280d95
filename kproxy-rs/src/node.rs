//! This worker, as far as it decides which endpoints are near.

use k8s_openapi::api::core::v1 as api;

/// The label that names the zone of a worker. Source: Kubernetes, "Well-Known Labels".
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// This worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, as slices spell it.
    pub name: String,
    /// The zone it is in, if its Node object says so.
    pub zone: Option<String>,
}

impl Node {
    /// A worker of which nothing but its name is known.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), zone: None }
    }

    /// The zone that a Node object names.
    #[must_use]
    pub fn zone_of(object: &api::Node) -> Option<String> {
        object.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
    }
}
