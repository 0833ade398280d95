//! What the API server fills in where a manifest says nothing.
//!
//! Source: Kubernetes `pkg/apis/core/v1/defaults.go`, `pkg/apis/apps/v1/defaults.go`, `pkg/apis/discovery/v1/defaults.go`;
//! `pkg/registry/core/service/storage/storage.go` for what follows from the type of a Service. Of a pod, only the fields that
//! mean something in the lab are filled in.

use serde_json::{Map, Value, json};

use super::kind::Kind;

/// How long a client stays with its endpoint under session affinity: three hours, as in Kubernetes.
const AFFINITY_SECONDS: u32 = 10_800;
/// How many old templates a Deployment remembers in Kubernetes.
const REVISION_HISTORY: u32 = 10;
/// How long a Deployment may stand still before Kubernetes calls it stuck.
const PROGRESS_SECONDS: u32 = 600;
/// How long a pod has between SIGTERM and SIGKILL.
const GRACE_SECONDS: u32 = 30;

/// Fills in the defaults of an object.
pub fn fill(kind: Kind, object: &mut Value) {
    match kind {
        Kind::Service => service(object),
        Kind::EndpointSlice => slice(object),
        Kind::Pod => pod_spec(field(object, "spec")),
        Kind::Deployment => deployment(object),
        Kind::Namespace => set(field(object, "status"), "phase", "Active"),
        Kind::Node | Kind::Endpoints | Kind::ServiceCidr | Kind::IpAddress => {}
    }
}

/// The field of an object as an object itself; made when it is not there.
fn field<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if object[name].is_null() {
        object[name] = Value::Object(Map::new());
    }
    &mut object[name]
}

/// Sets a field that is not there.
fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if object.is_object() && object[name].is_null() {
        object[name] = value.into();
    }
}

fn each<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

fn service(object: &mut Value) {
    let spec = field(object, "spec");
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    for port in each(spec, "ports") {
        set(port, "protocol", "TCP");
        let target = port["port"].clone();
        if port["targetPort"] == json!(0) || port["targetPort"] == json!("") {
            port["targetPort"] = Value::Null;
        }
        set(port, "targetPort", target);
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set(field(field(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", AFFINITY_SECONDS);
    } else if let Some(spec) = spec.as_object_mut() {
        spec.remove("sessionAffinityConfig");
    }
    let service_type = spec["type"].as_str().unwrap_or_default().to_owned();
    if service_type == "ExternalName" {
        return;
    }
    set(spec, "internalTrafficPolicy", "Cluster");
    set(spec, "ipFamilies", json!(["IPv4"]));
    set(spec, "ipFamilyPolicy", "SingleStack");
    let has_external = spec["externalIPs"].as_array().is_some_and(|addresses| !addresses.is_empty());
    if has_external || matches!(service_type.as_str(), "NodePort" | "LoadBalancer") {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if service_type == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    set(field(object, "status"), "loadBalancer", json!({}));
}

fn slice(object: &mut Value) {
    for port in each(object, "ports") {
        set(port, "protocol", "TCP");
        set(port, "name", "");
    }
    for endpoint in each(object, "endpoints") {
        // An endpoint of which nobody says otherwise is taken as ready.
        set(field(endpoint, "conditions"), "ready", true);
    }
}

fn deployment(object: &mut Value) {
    let spec = field(object, "spec");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", REVISION_HISTORY);
    set(spec, "progressDeadlineSeconds", PROGRESS_SECONDS);
    let strategy = field(spec, "strategy");
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        let rolling = field(strategy, "rollingUpdate");
        set(rolling, "maxSurge", "25%");
        set(rolling, "maxUnavailable", "25%");
    }
    pod_spec(field(field(spec, "template"), "spec"));
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    for container in each(spec, "containers") {
        for port in each(container, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(kind: Kind, mut object: Value) -> Value {
        fill(kind, &mut object);
        object
    }

    #[test]
    fn a_service_gets_what_the_api_server_would_give_it() {
        let service = filled(Kind::Service, json!({ "spec": { "ports": [{ "port": 80 }] } }));
        assert_eq!(
            service,
            json!({
                "spec": {
                    "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
                    "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                    "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                },
                "status": { "loadBalancer": {} },
            })
        );
        assert_eq!(filled(Kind::Service, service.clone()), service);
    }

    #[test]
    fn affinity_lasts_three_hours_and_its_configuration_goes_with_it() {
        let with = filled(Kind::Service, json!({ "spec": { "sessionAffinity": "ClientIP" } }));
        assert_eq!(with["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        let mut without = with;
        without["spec"]["sessionAffinity"] = "None".into();
        assert!(filled(Kind::Service, without)["spec"]["sessionAffinityConfig"].is_null());
    }

    #[test]
    fn only_a_service_that_is_reached_from_outside_has_an_external_policy() {
        let of = |spec: Value| filled(Kind::Service, json!({ "spec": spec }))["spec"]["externalTrafficPolicy"].clone();
        assert_eq!(of(json!({})), Value::Null);
        assert_eq!(of(json!({ "type": "NodePort" })), "Cluster");
        assert_eq!(of(json!({ "externalIPs": ["10.0.0.99"] })), "Cluster");
        assert_eq!(of(json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" })), "Local");
    }
}
