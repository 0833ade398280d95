//! The objects: all Services and EndpointSlices that etcd has, as far as they can be used.
//!
//! A poisoned object, one that cannot be read, counts as absent and is named in the log; the others are not touched by
//! it. That makes the table a function of what stands in etcd now: a proxy that has just started decides as one that
//! has run for a year.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Node as NodeObject, Service as ServiceObject};
use k8s_openapi::api::discovery::v1::EndpointSlice as SliceObject;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::claims::Claims;
use crate::endpoint::Slice;
use crate::error::ObjectError;
use crate::few::FewMap;
use crate::node::Node;
use crate::service::{Service, ServiceName};

/// Which object. Prints as the end of its key in etcd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice {
        /// The Kubernetes namespace.
        namespace: String,
        /// The name, unique in the namespace.
        name: String,
    },
    /// A worker, by its name.
    Node(String),
}

/// What happened to the objects in etcd. The values are as they stand there, unread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// These are all objects that there are; whatever else was known is gone.
    Listed(Vec<(Key, Vec<u8>)>),
    /// An object was created or changed.
    Put(Key, Vec<u8>),
    /// An object was deleted.
    Deleted(Key),
}

/// All objects, and which Services have to be planned anew.
#[derive(Debug, Default)]
pub struct Objects {
    /// In boxes, as a tree keeps room for twice as many values as it has.
    services: BTreeMap<ServiceName, Box<Service>>,
    /// The slices of each Service, by their own names. They may be there before their Service is.
    slices: BTreeMap<ServiceName, FewMap<SliceName, Slice>>,
    /// Which Service each slice belongs to.
    owners: BTreeMap<SliceName, ServiceName>,
    /// Who claims an address; it is served for the first, in the order of names.
    claims: Claims<IpAddr>,
    /// The zones of workers, as far as their objects name one.
    zones: BTreeMap<String, Option<String>>,
    poisoned: BTreeSet<Key>,
    dirty: BTreeSet<ServiceName>,
    changes: Changes,
}

/// `namespace/name` of a slice.
type SliceName = Arc<str>;

/// What a slice says of when the change began that it tells of: when a pod became ready, say.
///
/// Source: Kubernetes `k8s.io/api/core/v1`, `EndpointsLastChangeTriggerTime`.
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was seen of changes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// How many there were of Services.
    pub services: u64,
    /// How many there were of EndpointSlices.
    pub slices: u64,
    /// When those of EndpointSlices began that say so.
    pub began: Vec<SystemTime>,
}

impl Objects {
    /// Takes in what happened.
    pub fn handle_event(&mut self, event: Event) {
        match event {
            Event::Listed(pairs) => {
                let listed: BTreeSet<&Key> = pairs.iter().map(|(key, _)| key).collect();
                let gone: Vec<Key> = self.keys().filter(|key| !listed.contains(key)).collect();
                for key in &gone {
                    self.remove(key);
                }
                // Each value is dropped once it is read: all of them in JSON are larger than all objects.
                for (key, value) in pairs {
                    self.put(&key, &value);
                }
                // They began at any time, before this program perhaps.
                self.changes.began.clear();
            }
            Event::Put(key, value) => self.put(&key, &value),
            Event::Deleted(key) => self.remove(&key),
        }
    }

    /// Takes the names of the Services that must be planned anew.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.dirty)
    }

    /// Takes what was seen of changes since this was called last.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The Service, if it is there, can be served, and nobody else has its address.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        let service = self.services.get(name)?;
        for address in &service.cluster_ips {
            let holder = self.claims.holder(*address);
            if let Some(holder) = holder.filter(|holder| *holder != name) {
                warn!(service = %name, %address, %holder, "the ClusterIP belongs to another Service; this one is not served");
                return None;
            }
        }
        Some(service)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> + Clone {
        self.slices.get(name).into_iter().flat_map(FewMap::values)
    }

    /// The zone of a worker, if its object names one.
    #[must_use]
    pub fn zone(&self, node: &str) -> Option<&str> {
        self.zones.get(node)?.as_deref()
    }

    /// The objects that cannot be used.
    #[must_use]
    pub fn poisoned(&self) -> &BTreeSet<Key> {
        &self.poisoned
    }

    fn put(&mut self, key: &Key, value: &[u8]) {
        self.changes.count(key);
        let result = match key {
            Key::Service(name) => read::<ServiceObject>("Service", value)
                .and_then(|object| Service::from_object(&object))
                .map(|service| self.set_service(name, service)),
            Key::Slice { namespace, name } => read::<SliceObject>("EndpointSlice", value).and_then(|object| {
                let slice = Slice::from_object(namespace, &object)?;
                if self.set_slice(namespace, name, slice) {
                    self.changes.began.extend(began(&object));
                }
                Ok(())
            }),
            Key::Node(name) => read::<NodeObject>("Node", value).map(|node| {
                self.zones.insert(name.clone(), Node::zone_of(&node));
            }),
        };
        match result {
            Ok(()) => _ = self.poisoned.remove(key),
            Err(error) => {
                warn!(object = %key, %error, "this object cannot be used and is skipped; all others are kept");
                self.forget(key);
                self.poisoned.insert(key.clone());
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        self.changes.count(key);
        self.poisoned.remove(key);
        self.forget(key);
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Service(name) => self.set_service(name, None),
            Key::Slice { namespace, name } => _ = self.set_slice(namespace, name, None),
            Key::Node(name) => _ = self.zones.remove(name),
        }
    }

    fn set_service(&mut self, name: &ServiceName, service: Option<Service>) {
        if self.services.get(name).map(Box::as_ref) == service.as_ref() {
            return;
        }
        self.dirty.insert(name.clone());
        let addresses = service.as_ref().map(|service| service.cluster_ips.clone()).unwrap_or_default();
        let former = match service {
            Some(service) => self.services.insert(name.clone(), Box::new(service)),
            None => self.services.remove(name),
        };
        let former = former.map(|service| service.cluster_ips).unwrap_or_default();
        self.dirty.extend(self.claims.change(name, &former, &addresses));
    }

    /// Returns whether it is another one than before.
    fn set_slice(&mut self, namespace: &str, name: &str, slice: Option<Slice>) -> bool {
        let key: SliceName = [namespace, "/", name].concat().into();
        let former = self.owners.get(&key).and_then(|owner| self.slices.get(owner)?.get(&key));
        if former == slice.as_ref() {
            return false;
        }
        if let Some(owner) = self.owners.remove(&key) {
            if let Some(slices) = self.slices.get_mut(&owner) {
                slices.remove(&key);
                if slices.is_empty() {
                    self.slices.remove(&owner);
                }
            }
            self.dirty.insert(owner);
        }
        if let Some(slice) = slice {
            self.dirty.insert(slice.service.clone());
            self.owners.insert(Arc::clone(&key), slice.service.clone());
            self.slices.entry(slice.service.clone()).or_default().insert(key, slice);
        }
        true
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let services = self.services.keys().cloned().map(Key::Service);
        let slices = self.owners.keys().filter_map(|name| {
            let (namespace, name) = name.split_once('/')?;
            Some(Key::Slice { namespace: namespace.to_owned(), name: name.to_owned() })
        });
        let nodes = self.zones.keys().cloned().map(Key::Node);
        services.chain(slices).chain(nodes).chain(self.poisoned.iter().cloned())
    }
}

impl Changes {
    fn count(&mut self, key: &Key) {
        match key {
            Key::Service(_) => self.services += 1,
            Key::Slice { .. } => self.slices += 1,
            Key::Node(_) => {}
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "services/specs/{name}"),
            Self::Slice { namespace, name } => write!(f, "endpointslices/{namespace}/{name}"),
            Self::Node(name) => write!(f, "minions/{name}"),
        }
    }
}

/// When the change began, if the slice says so and it can be read.
fn began(slice: &SliceObject) -> Option<SystemTime> {
    let time: Timestamp = slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME_ANNOTATION)?.parse().ok()?;
    UNIX_EPOCH.checked_add(time.as_duration().try_into().ok()?)
}

fn read<T: DeserializeOwned>(kind: &'static str, value: &[u8]) -> Result<T, ObjectError> {
    serde_json::from_slice(value).map_err(|source| ObjectError::Json { kind, source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use serde_json::{Value, json};

    fn service(name: &str, address: &str) -> (Key, Vec<u8>) {
        let object =
            json!({"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
        (Key::Service(ServiceName::new("shop", name)), object.to_string().into_bytes())
    }

    fn slice(name: &str, service: &str) -> (Key, Vec<u8>) {
        let object = json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["11.0.0.1"]}], "ports": [{"port": 8080}]});
        (Key::Slice { namespace: "shop".to_owned(), name: name.to_owned() }, object.to_string().into_bytes())
    }

    fn put(objects: &mut Objects, (key, value): (Key, Vec<u8>)) -> Vec<String> {
        objects.handle_event(Event::Put(key, value));
        objects.take_dirty().iter().map(|name| name.name().to_owned()).collect()
    }

    #[test]
    fn only_what_changed_is_planned_anew() {
        let mut objects = Objects::default();
        assert_eq!(put(&mut objects, service("web", "100.64.0.1")), ["web"]);
        assert_eq!(put(&mut objects, service("web", "100.64.0.1")), [""; 0]);
        assert_eq!(put(&mut objects, slice("web-1", "web")), ["web"]);
        assert_eq!(put(&mut objects, slice("web-1", "cart")), ["cart", "web"]);
        assert_eq!(objects.slices(&ServiceName::new("shop", "web")).count(), 0);
    }

    #[test]
    fn a_poisoned_object_is_absent_until_it_is_repaired() {
        let mut objects = Objects::default();
        let web = ServiceName::new("shop", "web");
        put(&mut objects, service("web", "100.64.0.1"));
        put(&mut objects, service("cart", "100.64.0.2"));
        let key = Key::Service(web.clone());
        assert_eq!(put(&mut objects, (key.clone(), b"{".to_vec())), ["web"]);
        assert!(objects.service(&web).is_none() && objects.poisoned().contains(&key));
        assert!(objects.service(&ServiceName::new("shop", "cart")).is_some());
        put(&mut objects, service("web", "100.64.0.1"));
        assert!(objects.service(&web).is_some() && objects.poisoned().is_empty());
    }

    #[test]
    fn an_address_is_served_for_the_first_that_claims_it() {
        let mut objects = Objects::default();
        let [cart, web] = ["cart", "web"].map(|name| ServiceName::new("shop", name));
        put(&mut objects, service("web", "100.64.0.1"));
        assert_eq!(put(&mut objects, service("cart", "100.64.0.1")), ["cart", "web"]);
        assert!(objects.service(&cart).is_some() && objects.service(&web).is_none());
        objects.handle_event(Event::Deleted(Key::Service(cart)));
        assert!(objects.take_dirty().contains(&web));
        assert!(objects.service(&web).is_some());
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let mut objects = Objects::default();
        let listed = vec![service("web", "100.64.0.1"), slice("web-1", "web"), (service("bad", "").0, b"?".to_vec())];
        objects.handle_event(Event::Listed(listed));
        objects.take_dirty();
        objects.handle_event(Event::Listed(vec![service("web", "100.64.0.1")]));
        assert_eq!(objects.take_dirty().len(), 1);
        assert_eq!(objects.slices(&ServiceName::new("shop", "web")).count(), 0);
        assert!(objects.poisoned().is_empty() && objects.owners.is_empty() && objects.slices.is_empty());
    }

    #[test]
    fn a_change_tells_when_it_began_but_what_was_there_at_the_start_does_not() {
        let mut objects = Objects::default();
        let at = |time: &str| {
            let (key, value) = slice("web-1", "web");
            let mut value: serde_json::Value = serde_json::from_slice(&value).unwrap();
            value["metadata"]["annotations"] = serde_json::json!({TRIGGER_TIME_ANNOTATION: time});
            value["ports"] = serde_json::json!([{"port": time.len()}]);
            (key, value.to_string().into_bytes())
        };
        objects.handle_event(Event::Listed(vec![at("2026-11-21T12:00:00Z")]));
        assert_eq!(objects.take_changes(), Changes { slices: 1, ..Changes::default() });
        put(&mut objects, at("2026-11-21T12:00:00.5Z"));
        put(&mut objects, at("2026-11-21T12:00:07.5Z")); // the same slice again
        put(&mut objects, at("some time ago"));
        let changes = objects.take_changes();
        assert_eq!((changes.slices, changes.began), (3, vec![UNIX_EPOCH + Duration::from_millis(1_795_262_400_500)]));
    }

    #[test]
    fn an_object_of_another_kind_is_poisoned() {
        let mut objects = Objects::default();
        let value: Value = json!({"apiVersion": "v1", "kind": "Pod", "spec": {}});
        put(&mut objects, (Key::Service(ServiceName::new("shop", "web")), value.to_string().into_bytes()));
        assert_eq!(objects.poisoned().len(), 1);
    }
}
