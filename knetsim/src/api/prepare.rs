//! From what a client sends to what is stored: metadata, defaults, and what of the old object stays.
//!
//! Source: Kubernetes `apiserver/pkg/registry/rest/create.go` and `update.go` (`BeforeCreate`, `BeforeUpdate`), and the
//! `strategy.go` of each kind.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    claim, defaults,
    failure::{Cause, Failure},
    kind::Kind,
    registry::Part,
    schema,
    validate::{self, Ranges},
};

/// The time, as Kubernetes writes it: `2026-11-21T13:00:00Z`.
#[must_use]
pub fn now() -> String {
    Timestamp::from_second(clock().as_second()).unwrap_or_default().to_string()
}

/// The time.
#[must_use]
pub fn clock() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = i128::try_from(since_1970.as_nanos()).unwrap_or(i128::MAX);
    Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::MAX)
}

/// A random UUID; the kernel makes them.
#[must_use]
pub fn random_uid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").map(|uuid| uuid.trim().to_owned()).unwrap_or_default()
}

/// Random letters and digits for a generated name; without vowels and look-alikes, as in Kubernetes, so that no words arise.
#[must_use]
pub fn random_suffix() -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let uuid = random_uid().replace('-', "");
    let digits = uuid.as_bytes().chunks_exact(3).take(5);
    let numbers = digits.filter_map(|three| usize::from_str_radix(std::str::from_utf8(three).ok()?, 16).ok());
    numbers.map(|number| char::from(ALPHABET[number % ALPHABET.len()])).collect()
}

/// The uid of an object that was written to etcd without one: the same whenever it is read, and another one when the
/// object is made anew.
#[must_use]
pub fn derived_uid(key: &[u8], create_revision: i64) -> String {
    let hash = Sha256::new().chain_update(key).chain_update(create_revision.to_be_bytes()).finalize();
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The name of an object.
#[must_use]
pub fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn invalid(kind: Kind, object: &Value, causes: Vec<Cause>) -> Result<(), Failure> {
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Failure::Invalid { kind, name: name(object), causes }),
    }
}

/// A new object as it is stored, but for what is allocated to it.
///
/// # Errors
///
/// [`Failure::BadRequest`] when it is not of this kind or namespace, [`Failure::Invalid`] with every wrong field.
pub fn for_create(kind: Kind, namespace: &str, mut object: Value, ranges: Ranges) -> Result<Value, Failure> {
    identify(kind, namespace, &mut object)?;
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().is_none_or(str::is_empty)
        && let Some(beginning) = metadata["generateName"].as_str().filter(|beginning| !beginning.is_empty())
    {
        metadata["name"] = json!(format!("{beginning}{}", random_suffix()));
    }
    for name in ["resourceVersion", "managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        remove(metadata, name);
    }
    metadata["uid"] = json!(random_uid());
    metadata["creationTimestamp"] = json!(now());
    match kind {
        Kind::Deployment | Kind::Pod => {
            if kind == Kind::Deployment {
                metadata["generation"] = json!(1);
            }
            remove(&mut object, "status");
            if kind == Kind::Pod {
                object["status"] = json!({ "phase": "Pending" });
            }
        }
        Kind::EndpointSlice => metadata["generation"] = json!(1),
        Kind::Namespace => {
            let name = metadata["name"].clone();
            if !metadata["labels"].is_object() {
                metadata["labels"] = json!({});
            }
            metadata["labels"]["kubernetes.io/metadata.name"] = name;
        }
        Kind::Service | Kind::Node | Kind::Endpoints | Kind::ServiceCidr | Kind::IpAddress => {}
    }
    finish(kind, None, &mut object, ranges)?;
    Ok(object)
}

/// A changed object as it is stored. Of the old one stay its identity and, as `part` says, its status or all but its status.
///
/// # Errors
///
/// As [`for_create`], and when something is changed that never changes.
pub fn for_update(kind: Kind, old: &Value, mut new: Value, part: Part, ranges: Ranges) -> Result<Value, Failure> {
    let namespace = old["metadata"]["namespace"].as_str().unwrap_or_default();
    identify(kind, namespace, &mut new)?;
    if name(&new) != name(old) {
        return Err(Failure::BadRequest(format!("the object is named {:?}, its URL says {:?}", name(&new), name(old))));
    }
    let mut object = match part {
        Part::Spec => {
            let mut object = new;
            keep(&mut object, old, "status");
            for name in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
                keep(&mut object["metadata"], &old["metadata"], name);
            }
            object
        }
        Part::Status => {
            let mut object = old.clone();
            keep(&mut object, &new, "status");
            for name in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
                keep(&mut object["metadata"], &new["metadata"], name);
            }
            object
        }
    };
    for name in ["resourceVersion", "managedFields", "selfLink"] {
        remove(&mut object["metadata"], name);
    }
    finish(kind, Some(old), &mut object, ranges)?;
    invalid(kind, &object, unchangeable(kind, old, &object))?;
    if object["spec"] != old["spec"] && old["metadata"]["generation"].is_i64() {
        object["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
    }
    Ok(object)
}

/// Checks that an object is of the kind and namespace that its URL says; what it does not say is filled in.
fn identify(kind: Kind, namespace: &str, object: &mut Value) -> Result<(), Failure> {
    if !object.is_object() {
        return Err(Failure::BadRequest("the body must be a JSON object".to_owned()));
    }
    let wanted = [("apiVersion", kind.api_version()), ("kind", kind.describe().kind.to_owned())];
    for (field, wanted) in wanted {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(wanted),
            Some(said) if said == wanted => {}
            Some(said) => return Err(Failure::BadRequest(format!("{field} is {said:?}, the URL is that of {wanted}"))),
        }
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if kind.describe().namespaced {
        match metadata["namespace"].as_str() {
            None | Some("") => metadata["namespace"] = json!(namespace),
            Some(said) if said == namespace => {}
            Some(said) => {
                return Err(Failure::BadRequest(format!(
                    "the namespace of the object is {said:?}, the URL says {namespace:?}"
                )));
            }
        }
    } else {
        remove(metadata, "namespace");
    }
    Ok(())
}

/// Fields of the right types, defaults, what is kept of an old Service, validation.
fn finish(kind: Kind, old: Option<&Value>, object: &mut Value, ranges: Ranges) -> Result<(), Failure> {
    schema::check(kind, object).map(drop).or_else(|cause| invalid(kind, object, vec![cause]))?;
    defaults::fill(kind, object);
    if let (Kind::Service, Some(old)) = (kind, old) {
        claim::carry_over(old, object);
    }
    invalid(kind, object, validate::validate(kind, object, ranges))
}

fn unchangeable(kind: Kind, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (old, new) = (&old["spec"], &new["spec"]);
    match kind {
        Kind::Service => {
            let has_address = |spec: &Value| {
                spec["type"] != "ExternalName" && spec["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty())
            };
            if has_address(old) && has_address(new) && old["clusterIP"] != new["clusterIP"] {
                let message = format!("the address of a Service never changes; it is {}", old["clusterIP"]);
                causes.push(Cause::new("spec.clusterIP", message));
            }
        }
        Kind::Deployment if old["selector"] != new["selector"] => {
            causes.push(Cause::new(
                "spec.selector",
                "the selector of a Deployment never changes; delete it and make it anew",
            ));
        }
        Kind::Pod => {
            let bound = old["nodeName"].as_str().is_some_and(|node| !node.is_empty());
            if bound && old["nodeName"] != new["nodeName"] {
                causes
                    .push(Cause::new("spec.nodeName", format!("the pod runs on {} and cannot move", old["nodeName"])));
            }
            if old["containers"] != new["containers"] {
                causes.push(Cause::new(
                    "spec.containers",
                    "the containers of a pod never change; delete the pod and make it anew",
                ));
            }
        }
        Kind::Namespace
        | Kind::Node
        | Kind::Deployment
        | Kind::EndpointSlice
        | Kind::Endpoints
        | Kind::ServiceCidr
        | Kind::IpAddress => {}
    }
    causes
}

fn remove(object: &mut Value, name: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(name);
    }
}

/// Makes a field of `object` what it is in `of`, absent if it is absent there.
fn keep(object: &mut Value, of: &Value, name: &str) {
    match of.get(name) {
        Some(value) => object[name] = value.clone(),
        None => remove(object, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges { services: "100.64.0.0/16".parse().unwrap() }
    }

    fn service() -> Value {
        let given = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }] } });
        let mut made = for_create(Kind::Service, "shop", given, ranges()).unwrap();
        made["spec"]["clusterIP"] = json!("100.64.0.7");
        made
    }

    #[test]
    fn a_new_object_gets_its_identity() {
        let made = service();
        assert_eq!((&made["kind"], &made["metadata"]["namespace"]), (&json!("Service"), &json!("shop")));
        assert_eq!(made["metadata"]["uid"].as_str().unwrap().len(), 36);
        assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
        let generated = json!({ "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "a" }] } });
        let name = name(&for_create(Kind::Pod, "shop", generated, ranges()).unwrap());
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    }

    #[test]
    fn an_object_of_another_kind_or_namespace_is_refused() {
        for given in [json!({ "kind": "Pod" }), json!({ "metadata": { "name": "a", "namespace": "other" } }), json!([])]
        {
            assert!(matches!(for_create(Kind::Service, "shop", given, ranges()), Err(Failure::BadRequest(_))));
        }
    }

    #[test]
    fn a_change_keeps_identity_status_and_address() {
        let old = service();
        let wanted = json!({ "metadata": { "name": "web", "uid": "forged" }, "spec": { "ports": [{ "port": 81 }] }, "status": { "x": 1 } });
        let new = for_update(Kind::Service, &old, wanted, Part::Spec, ranges()).unwrap();
        assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"]);
        assert_eq!(new["status"], old["status"]);
        assert_eq!(
            (&new["spec"]["clusterIP"], &new["spec"]["ports"][0]["targetPort"]),
            (&json!("100.64.0.7"), &json!(81))
        );
        let mut moved = old.clone();
        moved["spec"]["clusterIP"] = json!("100.64.0.8");
        assert!(matches!(for_update(Kind::Service, &old, moved, Part::Spec, ranges()), Err(Failure::Invalid { .. })));
    }

    #[test]
    fn a_port_keeps_its_node_port_although_the_manifest_names_neither_it_nor_the_protocol() {
        let given = json!({ "metadata": { "name": "web" }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
        let mut old = for_create(Kind::Service, "shop", given.clone(), ranges()).unwrap();
        old["spec"]["ports"][0]["nodePort"] = json!(30_007);
        let new = for_update(Kind::Service, &old, given, Part::Spec, ranges()).unwrap();
        assert_eq!(new["spec"]["ports"], old["spec"]["ports"]);
    }

    #[test]
    fn the_status_changes_alone() {
        let old = service();
        let mut wanted = old.clone();
        wanted["spec"]["ports"][0]["port"] = json!(81);
        wanted["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "10.0.0.99" }] } });
        let new = for_update(Kind::Service, &old, wanted.clone(), Part::Status, ranges()).unwrap();
        assert_eq!((&new["spec"], &new["status"]), (&old["spec"], &wanted["status"]));
    }

    #[test]
    fn a_derived_uid_is_one_and_the_same() {
        let uid = derived_uid(b"/registry/pods/default/c1", 7);
        assert_eq!(uid, derived_uid(b"/registry/pods/default/c1", 7));
        assert_ne!(uid, derived_uid(b"/registry/pods/default/c1", 8));
        assert_eq!(uid.len(), 36);
    }
}
