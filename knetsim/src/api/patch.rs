//! Patches: a part of an object that is laid over the whole.
//!
//! | content type | lists | who sends it |
//! |---|---|---|
//! | `application/merge-patch+json` | replaced | `knetsim apply`, `kubectl patch --type merge`, `kubectl scale` |
//! | `application/strategic-merge-patch+json` | of objects with a key: merged by it | `kubectl apply`, `edit`, `label`, `patch` |
//!
//! Left out are JSON patches (`application/json-patch+json`) and server-side apply, which keeps a record of who owns each field.
//!
//! Source: RFC 7396; Kubernetes `apimachinery/pkg/util/strategicpatch`, and `patchMergeKey` in the types of `k8s.io/api`.

use serde_json::{Map, Value};

/// Lays a patch over an object by RFC 7396: objects are merged, null removes, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in patch {
        if value.is_null() {
            remove(target, name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

/// Lays a strategic patch over an object.
///
/// Beside values it holds directives, by names that begin with `$`: `$patch` says `delete` or `replace` of the object it stands
/// in; `$setElementOrder/LIST` how a list is ordered afterwards; `$deleteFromPrimitiveList/LIST` what goes from a list of
/// words; `$retainKeys` which fields alone stay.
pub fn strategic(target: &mut Value, patch: &Value) {
    merge_object("", target, patch);
}

/// `list` is the list that the object is an element of, or the name of the field it stands in.
fn merge_object(list: &str, target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").is_some_and(|directive| directive == "replace") || !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let (Some(Value::Array(retained)), Some(target)) = (patch.get("$retainKeys"), target.as_object_mut()) {
        target.retain(|name, _| retained.iter().any(|kept| kept == name));
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = elements(value);
            if let Some(words) = target.get_mut(list).and_then(Value::as_array_mut) {
                words.retain(|word| !gone.contains(word));
            }
        } else if name.starts_with('$') {
            // The orders of lists follow when the lists are merged.
        } else if value.is_null() {
            remove(target, name);
        } else {
            merge_field(list, name, &mut target[name], value);
        }
    }
    for (name, order) in patch {
        if let Some(name) = name.strip_prefix("$setElementOrder/")
            && let Some(list_value) = target.get_mut(name).and_then(Value::as_array_mut)
        {
            reorder(merge_key(list, name), list_value, elements(order));
        }
    }
}

fn merge_field(list: &str, name: &str, target: &mut Value, patch: &Value) {
    match (patch, merge_key(list, name)) {
        (Value::Array(patches), Some(key)) => merge_list(name, key, target, patches),
        (Value::Array(words), None) if name == "finalizers" => {
            let mut merged = elements(target).to_vec();
            merged.extend(words.iter().filter(|word| !elements(target).contains(word)).cloned());
            *target = Value::Array(merged);
        }
        (Value::Object(_), _) => merge_object(name, target, patch),
        _ => *target = patch.clone(),
    }
}

fn merge_list(name: &str, key: &str, target: &mut Value, patches: &[Value]) {
    let mut merged = elements(target).to_vec();
    if patches.iter().any(|patch| patch["$patch"] == "replace" && patch[key].is_null()) {
        merged.clear();
    }
    for patch in patches.iter().filter(|patch| !patch[key].is_null()) {
        let place = merged.iter().position(|element| element[key] == patch[key]);
        match (patch["$patch"] == "delete", place) {
            (true, Some(place)) => _ = merged.remove(place),
            (true, None) => {}
            (false, Some(place)) => merge_object(name, &mut merged[place], patch),
            (false, None) => {
                let mut element = Value::Null;
                merge_object(name, &mut element, patch);
                merged.push(element);
            }
        }
    }
    *target = Value::Array(merged);
}

/// Sorts elements as `order` names them; those that it does not name stay behind, in their own order.
fn reorder(key: Option<&str>, list: &mut [Value], order: &[Value]) {
    let identity = |element: &Value| key.map_or_else(|| element.clone(), |key| element[key].clone());
    list.sort_by_key(|element| {
        order.iter().position(|named| identity(named) == identity(element)).unwrap_or(order.len())
    });
}

/// The field by which the elements of a list are told apart; none for a list that is replaced as a whole.
fn merge_key(list: &str, name: &str) -> Option<&'static str> {
    match (list, name) {
        ("containers" | "initContainers", "ports") => Some("containerPort"),
        ("spec", "ports") => Some("port"), // of a Service: the ports of an EndpointSlice stand at its top
        (_, "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets") => Some("name"),
        (_, "volumeMounts") => Some("mountPath"),
        (_, "conditions" | "addresses") => Some("type"),
        (_, "ownerReferences") => Some("uid"),
        (_, "podIPs" | "hostIPs" | "hostAliases") => Some("ip"),
        (_, "taints") => Some("key"),
        _ => None,
    }
}

fn elements(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn remove(object: &mut Value, name: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_are_those_of_rfc_7396() {
        // RFC 7396: Section 3, and rows of Appendix A
        let table = [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
            (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
        ];
        for (mut target, patch, expected) in table {
            merge(&mut target, &patch);
            assert_eq!(target, expected, "{patch}");
        }
    }

    fn patched(mut target: Value, patch: &Value) -> Value {
        strategic(&mut target, patch);
        target
    }

    #[test]
    fn ports_of_a_service_are_merged_by_their_numbers() {
        let service = json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30_000 }, { "port": 81 }] } });
        let patch = json!({ "spec": {
            "$setElementOrder/ports": [{ "port": 82 }, { "port": 80 }],
            "ports": [{ "port": 80, "targetPort": 8080 }, { "port": 82 }, { "$patch": "delete", "port": 81 }],
        } });
        let expected =
            json!({ "spec": { "ports": [{ "port": 82 }, { "port": 80, "nodePort": 30_000, "targetPort": 8080 }] } });
        assert_eq!(patched(service, &patch), expected);
    }

    #[test]
    fn the_ports_of_a_slice_are_replaced() {
        let slice = json!({ "ports": [{ "port": 80 }, { "port": 81 }] });
        assert_eq!(patched(slice, &json!({ "ports": [{ "port": 82 }] })), json!({ "ports": [{ "port": 82 }] }));
    }

    #[test]
    fn containers_and_their_ports_are_merged_in_depth() {
        let pod = json!({ "spec": { "containers": [{ "name": "a", "image": "x", "ports": [{ "containerPort": 80 }] }, { "name": "b" }] } });
        let patch =
            json!({ "spec": { "containers": [{ "name": "a", "image": "y", "ports": [{ "containerPort": 81 }] }] } });
        let expected = json!({ "spec": { "containers": [
            { "name": "a", "image": "y", "ports": [{ "containerPort": 80 }, { "containerPort": 81 }] }, { "name": "b" },
        ] } });
        assert_eq!(patched(pod, &patch), expected);
    }

    #[test]
    fn the_other_directives_do_what_they_say() {
        let strategy = json!({ "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } });
        let recreate = json!({ "strategy": { "$retainKeys": ["type"], "type": "Recreate" } });
        assert_eq!(patched(strategy, &recreate), json!({ "strategy": { "type": "Recreate" } }));
        let finalizers = json!({ "finalizers": ["a", "b"] });
        let patch = json!({ "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"] });
        assert_eq!(patched(finalizers, &patch), json!({ "finalizers": ["b", "c"] }));
        let replaced = json!({ "selector": { "$patch": "replace", "b": "2" } });
        assert_eq!(patched(json!({ "selector": { "a": "1" } }), &replaced)["selector"]["a"], Value::Null);
    }
}
