//! Kubernetes objects as they stand in etcd: with everything that an API server puts in where a manifest says nothing.

use serde_json::{Value, json};

use super::WORKER;

/// An endpoint: pod `n`, ready, on this worker.
pub(crate) fn endpoint(n: u8) -> Value {
    endpoint_on(n, WORKER)
}

/// An endpoint: pod `n`, ready, said to be on the worker `node`.
pub(crate) fn endpoint_on(n: u8, node: &str) -> Value {
    json!({"addresses": [format!("11.0.0.{n}")], "nodeName": node, "conditions": {"ready": true}})
}

/// An endpoint: pod `n`, which is shutting down but still answers, on the worker `node`.
pub(crate) fn terminating(n: u8, node: &str) -> Value {
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    json!({"addresses": [format!("11.0.0.{n}")], "nodeName": node, "conditions": conditions})
}

/// An endpoint: pod `n`, which does not answer yet, on this worker.
pub(crate) fn unready(n: u8) -> Value {
    let conditions = json!({"ready": false, "serving": false, "terminating": false});
    json!({"addresses": [format!("11.0.0.{n}")], "nodeName": WORKER, "conditions": conditions})
}

/// Adds to the object of `key` what is not said, by the defaults of Kubernetes (`pkg/apis/core/v1/defaults.go`).
pub(crate) fn whole(key: &str, mut object: Value) -> Value {
    let (kind, names) = match key.strip_prefix("services/specs/") {
        Some(names) => ("Service", names),
        None => key
            .split_once('/')
            .map(|(kind, names)| (if kind == "minions" { "Node" } else { "EndpointSlice" }, names))
            .unwrap(),
    };
    let api = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
    fill(
        &mut object,
        &json!({"apiVersion": api, "kind": kind, "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    match names.split_once('/') {
        Some((namespace, name)) => fill(&mut object, &json!({"metadata": {"namespace": namespace, "name": name}})),
        None => fill(&mut object, &json!({"metadata": {"name": names}})),
    }
    match kind {
        "Service" => complete_service(&mut object),
        _ => object["ports"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .for_each(|port| fill(port, &json!({"name": "", "protocol": "TCP"}))),
    }
    object
}

fn complete_service(service: &mut Value) {
    let spec = &mut service["spec"];
    fill(spec, &json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}));
    if spec["type"] == "ExternalName" {
        return;
    }
    if spec["type"] != "ClusterIP" || spec["externalIPs"].is_array() {
        fill(spec, &json!({"externalTrafficPolicy": "Cluster"}));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        fill(spec, &json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}));
    }
    let first = spec["clusterIP"].clone();
    fill(spec, &json!({ "clusterIPs": [first] }));
    let addresses = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
    let family =
        |address: &Value| if address.as_str().is_some_and(|text| text.contains(':')) { "IPv6" } else { "IPv4" };
    let families: Vec<&str> = addresses.iter().map(family).collect();
    let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    fill(spec, &json!({"ipFamilies": families, "ipFamilyPolicy": policy}));
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let target = port["port"].clone();
        fill(port, &json!({"protocol": "TCP", "targetPort": target}));
    }
}

/// Adds the fields of `more` that are not there.
fn fill(object: &mut Value, more: &Value) {
    for (name, value) in more.as_object().into_iter().flatten() {
        match &mut object[name.as_str()] {
            found @ Value::Null => *found = value.clone(),
            found => fill(found, value),
        }
    }
}
