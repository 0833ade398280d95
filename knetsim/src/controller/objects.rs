//! Everything in the cluster as it was last seen, and which of it must be looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use etcd_client::{Event, EventType};
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    serde::de::DeserializeOwned,
};
use serde::Deserialize as _;
use serde_json::Value;

use super::endpoints::SERVICE_NAME;
use crate::api::{kind::Kind, registry, selector::Labels};

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Reference {
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn of(kind: Kind, object: &Value) -> Self {
        let word = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        Self::new(kind, word("namespace"), word("name"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The objects, and those that are dirty.
#[derive(Debug, Default)]
pub(super) struct Objects {
    known: BTreeMap<Reference, Value>,
    dirty: BTreeSet<Reference>,
}

impl Objects {
    /// Takes in what etcd says. What is older than what is known, an echo of our own writes, is passed over.
    pub(super) fn handle_event(&mut self, event: &Event) {
        let Some(pair) = event.kv() else { return };
        let Some((kind, namespace, name)) = std::str::from_utf8(pair.key()).ok().and_then(Kind::read_key) else {
            return;
        };
        let reference = Reference { kind, namespace, name };
        match event.event_type() {
            EventType::Put => {
                if let Some(object) = registry::read(kind, pair) {
                    self.put(kind, object);
                }
            }
            EventType::Delete
                if self.known.get(&reference).is_some_and(|known| version(known) < pair.mod_revision()) =>
            {
                self.forget(&reference);
            }
            EventType::Delete => {}
        }
    }

    /// Takes an object in.
    pub(super) fn put(&mut self, kind: Kind, object: Value) {
        let reference = Reference::of(kind, &object);
        let before = self.known.get(&reference);
        if before.is_some_and(|known| version(known) >= version(&object)) {
            return;
        }
        let mut touched = self.touched(&reference, &object);
        touched.extend(before.map(|before| self.touched(&reference, before)).unwrap_or_default());
        self.dirty.extend(touched);
        self.known.insert(reference, object);
    }

    /// Takes an object out.
    pub(super) fn forget(&mut self, reference: &Reference) {
        if let Some(object) = self.known.remove(reference) {
            let touched = self.touched(reference, &object);
            self.dirty.extend(touched);
        }
    }

    /// What must be looked at when this object is there, changes, or goes.
    fn touched(&self, reference: &Reference, object: &Value) -> Vec<Reference> {
        let Reference { kind, namespace, name } = reference;
        let mut touched = match kind {
            Kind::Service | Kind::Deployment | Kind::Namespace => vec![reference.clone()],
            Kind::EndpointSlice => {
                let service = object["metadata"]["labels"][SERVICE_NAME].as_str();
                service.map(|service| Reference::new(Kind::Service, namespace, service)).into_iter().collect()
            }
            Kind::Pod => {
                let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
                let owners =
                    owners.filter(|owner| owner["kind"] == "Deployment").filter_map(|owner| owner["name"].as_str());
                let owners = owners.map(|owner| Reference::new(Kind::Deployment, namespace, owner));
                let mut touched: Vec<Reference> = owners.chain([Reference::new(Kind::Pod, namespace, name)]).collect();
                touched.extend(self.of_kind(Kind::Service, Some(namespace)).filter_map(|(service, spec)| {
                    let selects = selector(spec).is_some_and(|labels| labels.matches(&object["metadata"]["labels"]));
                    selects.then(|| service.clone())
                }));
                touched
            }
            Kind::Node => {
                let waits = |pod: &Value| pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
                self.of_kind(Kind::Pod, None).filter(|(_, pod)| waits(pod)).map(|(pod, _)| pod.clone()).collect()
            }
            // Somebody may have removed it.
            Kind::Endpoints => vec![Reference::new(Kind::Service, namespace, name)],
            Kind::ServiceCidr | Kind::IpAddress => Vec::new(),
        };
        if !namespace.is_empty() {
            let home = Reference::new(Kind::Namespace, "", namespace);
            let is_leaving = |home: &Value| !home["metadata"]["deletionTimestamp"].is_null();
            touched.extend(self.known.get(&home).filter(|home| is_leaving(home)).map(|_| home.clone()));
        }
        touched
    }

    /// The next object that must be looked at.
    pub(super) fn take_dirty(&mut self) -> Option<Reference> {
        self.dirty.pop_first()
    }

    /// Marks objects to be looked at again.
    pub(super) fn mark_all(&mut self, references: Vec<Reference>) {
        self.dirty.extend(references);
    }

    /// An object as it stands in etcd.
    pub(super) fn get(&self, reference: &Reference) -> Option<&Value> {
        self.known.get(reference)
    }

    /// An object as its type; none when it is not there, or not of the type.
    pub(super) fn typed<T: DeserializeOwned>(&self, reference: &Reference) -> Option<T> {
        self.known.get(reference).and_then(|object| T::deserialize(object).ok())
    }

    fn of_kind<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Reference, &'a Value)> {
        let first = Reference::new(kind, namespace.unwrap_or_default(), "");
        let all = self.known.range(first..);
        all.take_while(move |(reference, _)| {
            reference.kind == kind && namespace.is_none_or(|wanted| wanted == reference.namespace)
        })
    }

    fn all<T: DeserializeOwned>(&self, kind: Kind, namespace: Option<&str>) -> Vec<T> {
        self.of_kind(kind, namespace).filter_map(|(_, object)| T::deserialize(object).ok()).collect()
    }

    /// The workers.
    pub(super) fn nodes(&self) -> Vec<Node> {
        self.all(Kind::Node, None)
    }

    /// All pods.
    pub(super) fn all_pods(&self) -> Vec<Pod> {
        self.all(Kind::Pod, None)
    }

    /// The slices of a Service, whoever keeps them.
    pub(super) fn slices_of(&self, service: &Reference) -> Vec<EndpointSlice> {
        let slices = self.of_kind(Kind::EndpointSlice, Some(&service.namespace));
        let of_service = slices.filter(|(_, slice)| slice["metadata"]["labels"][SERVICE_NAME] == *service.name);
        of_service.filter_map(|(_, slice)| EndpointSlice::deserialize(slice).ok()).collect()
    }

    /// The pods that a Service selects.
    pub(super) fn selected_by(&self, service: &Service) -> Vec<Pod> {
        let Some(map) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return Vec::new() };
        let labels = Labels::of_map(map);
        let pods = self.of_kind(Kind::Pod, service.metadata.namespace.as_deref());
        let selected = pods.filter(|(_, pod)| labels.matches(&pod["metadata"]["labels"]));
        selected.filter_map(|(_, pod)| Pod::deserialize(pod).ok()).collect()
    }

    /// The pods that name a Deployment as their owner.
    pub(super) fn owned_by(&self, deployment: &Reference) -> Vec<Pod> {
        let is_owner = |owner: &Value| owner["kind"] == "Deployment" && owner["name"] == *deployment.name;
        let pods = self.of_kind(Kind::Pod, Some(&deployment.namespace));
        let owned =
            pods.filter(|(_, pod)| pod["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(is_owner));
        owned.filter_map(|(_, pod)| Pod::deserialize(pod).ok()).collect()
    }

    /// Whatever is in a namespace. Deployments come before their pods, or they would make new ones.
    pub(super) fn inside(&self, namespace: &str) -> Vec<Reference> {
        let mut inside: Vec<Reference> =
            self.known.keys().filter(|reference| reference.namespace == namespace).cloned().collect();
        inside.sort_by_key(|reference| reference.kind != Kind::Deployment);
        inside
    }
}

fn selector(service: &Value) -> Option<Labels> {
    let map = service["spec"]["selector"].as_object().filter(|map| !map.is_empty())?;
    let pairs: BTreeMap<String, String> =
        map.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    Some(Labels::of_map(&pairs))
}

/// The revision at which an object was written.
fn version(object: &Value) -> i64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u32, rest: &Value) -> Value {
        let mut object =
            json!({ "metadata": { "namespace": "shop", "name": name, "resourceVersion": version.to_string() } });
        crate::api::patch::merge(&mut object, rest);
        object
    }

    fn dirty(objects: &mut Objects) -> Vec<String> {
        std::iter::from_fn(|| objects.take_dirty()).map(|reference| reference.to_string()).collect()
    }

    fn example() -> Objects {
        let mut objects = Objects::default();
        objects.put(Kind::Service, object("web", 1, &json!({ "spec": { "selector": { "app": "web" } } })));
        objects.put(Kind::Service, object("db", 2, &json!({ "spec": { "selector": { "app": "db" } } })));
        dirty(&mut objects);
        objects
    }

    #[test]
    fn a_pod_touches_the_services_that_select_it_before_and_after() {
        let mut objects = example();
        objects.put(Kind::Pod, object("p", 3, &json!({ "metadata": { "labels": { "app": "web" } } })));
        assert_eq!(dirty(&mut objects), ["Pod shop/p", "Service shop/web"]);
        objects.put(Kind::Pod, object("p", 4, &json!({ "metadata": { "labels": { "app": "db" } } })));
        assert_eq!(dirty(&mut objects), ["Pod shop/p", "Service shop/db", "Service shop/web"]);
        objects.forget(&Reference::new(Kind::Pod, "shop", "p"));
        assert_eq!(dirty(&mut objects), ["Pod shop/p", "Service shop/db"]);
    }

    #[test]
    fn an_echo_of_what_is_known_touches_nothing() {
        let mut objects = example();
        objects.put(Kind::Service, object("web", 1, &json!({ "spec": { "selector": { "app": "web" } } })));
        assert!(dirty(&mut objects).is_empty());
    }

    #[test]
    fn a_slice_touches_its_service_and_a_pod_its_deployment() {
        let mut objects = Objects::default();
        objects.put(
            Kind::EndpointSlice,
            object("web-1", 1, &json!({ "metadata": { "labels": { SERVICE_NAME: "web" } } })),
        );
        assert_eq!(dirty(&mut objects), ["Service shop/web"]);
        let owner = json!({ "metadata": { "ownerReferences": [{ "kind": "Deployment", "name": "web" }] } });
        objects.put(Kind::Pod, object("web-x", 2, &owner));
        assert_eq!(dirty(&mut objects), ["Pod shop/web-x", "Deployment shop/web"]);
        assert_eq!(objects.owned_by(&Reference::new(Kind::Deployment, "shop", "web")).len(), 1);
    }
}
