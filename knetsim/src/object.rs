//! Kubernetes objects that the lab makes: a Service with its EndpointSlice, as JSON in etcd under Kubernetes' own keys.
//!
//! Source: Kubernetes API reference, `Service` v1 and `EndpointSlice` discovery.k8s.io/v1; key layout of kube-apiserver,
//! `pkg/registry/core/rest/storage_core.go`.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::{
    api::{claim::Claim, kind::Kind, prepare},
    lab::{Node, Service},
    store::KeyValue,
};

/// The namespace of everything the lab makes.
pub const NAMESPACE: &str = "default";
/// A Service with this annotation takes every protocol and every port, ping included.
pub const ALL_PROTOCOLS: &str = "knetsim.io/all-protocols";

/// The key of a Service.
#[must_use]
pub fn service_key(name: &str) -> String {
    format!("/registry/services/specs/{NAMESPACE}/{name}")
}

/// The key of the one EndpointSlice that the lab keeps for a Service.
#[must_use]
pub fn slice_key(service: &str) -> String {
    format!("/registry/endpointslices/{NAMESPACE}/{service}-lab")
}

/// The label by which the lab's own containers can be selected.
pub const CONTAINER: &str = "knetsim.io/container";

/// The key of a pod.
#[must_use]
pub fn pod_key(namespace: &str, name: &str) -> String {
    Kind::Pod.key(namespace, name)
}

/// A container of the lab as a Pod, with its key: so that `get pods` shows it and a Service can select it.
#[must_use]
pub fn pod(container: &str, worker: &Node, address: Ipv4Addr) -> KeyValue {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": container, "namespace": NAMESPACE, "labels": { CONTAINER: container },
            "uid": prepare::random_uid(), "creationTimestamp": prepare::now(),
        },
        "spec": { "nodeName": worker.name, "containers": [{ "name": container }], "terminationGracePeriodSeconds": 0 },
        "status": running_status(&[container], worker, address),
    });
    (pod_key(NAMESPACE, container), object.to_string().into_bytes())
}

/// The status of a pod whose containers run.
#[must_use]
pub fn running_status(containers: &[&str], worker: &Node, address: Ipv4Addr) -> Value {
    let now = prepare::now();
    let holds = |name: &str| json!({ "type": name, "status": "True", "lastTransitionTime": now });
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(holds);
    let container = |name: &&str| {
        json!({ "name": name, "ready": true, "started": true, "restartCount": 0, "image": "", "imageID": "",
            "state": { "running": { "startedAt": now } } })
    };
    json!({
        "phase": "Running",
        "podIP": address, "podIPs": [{ "ip": address }],
        "hostIP": worker.address, "hostIPs": [{ "ip": worker.address }],
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": containers.iter().map(container).collect::<Vec<_>>(),
    })
}

/// A worker as a Node, with its key. `pods` is the subnet of its pods, where the overlay agent has one.
#[must_use]
pub fn node(worker: &Node, pods: Option<&str>) -> KeyValue {
    let now = prepare::now();
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": worker.name, "uid": prepare::random_uid(), "creationTimestamp": now,
            "labels": { "kubernetes.io/hostname": worker.name, "kubernetes.io/os": "linux" },
        },
        "spec": {},
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": worker.address },
                { "type": "Hostname", "address": worker.name },
            ],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now,
                "lastTransitionTime": now, "message": "the worker's overlay agent and service proxy are ready" }],
        },
    });
    if let Some(pods) = pods {
        object["spec"] = json!({ "podCIDR": pods, "podCIDRs": [pods] });
    }
    (Kind::Node.key("", &worker.name), object.to_string().into_bytes())
}

/// What keeps the address of a service from being given to another, with its key.
#[must_use]
pub fn address_claim(service: &Service) -> KeyValue {
    let claim = Claim::Address(service.address);
    (claim.key(), claim.value(NAMESPACE, &service.name).to_string().into_bytes())
}

/// A container as an endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The container's name.
    pub container: String,
    /// Full name of its worker.
    pub worker: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The Service object with its key.
#[must_use]
pub fn service(service: &Service) -> KeyValue {
    let ports: Vec<Value> = service.ports.iter().map(|port| port_object(*port, "targetPort")).collect();
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service.name, "namespace": NAMESPACE,
            "uid": prepare::random_uid(), "creationTimestamp": prepare::now(),
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service.address,
            "clusterIPs": [service.address],
            "ipFamilies": ["IPv4"],
            "ports": ports,
        },
    });
    if service.ports.is_empty() {
        object["metadata"]["annotations"] = json!({ ALL_PROTOCOLS: "true" });
    }
    (service_key(&service.name), object.to_string().into_bytes())
}

/// The EndpointSlice object of a service with its key.
#[must_use]
pub fn slice(service: &Service, endpoints: &[Endpoint]) -> KeyValue {
    let ports: Vec<Value> = service.ports.iter().map(|port| port_object(*port, "")).collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.address],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": endpoint.worker,
                "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": endpoint.container },
            })
        })
        .collect();
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-lab", service.name),
            "namespace": NAMESPACE,
            "uid": prepare::random_uid(),
            "creationTimestamp": prepare::now(),
            "labels": {
                "kubernetes.io/service-name": service.name,
                "endpointslice.kubernetes.io/managed-by": "knetsim",
            },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    });
    (slice_key(&service.name), object.to_string().into_bytes())
}

/// A port of a Service or, without `target`, of a slice. The name joins the two.
fn port_object(port: u16, target: &str) -> Value {
    let mut object = json!({ "name": format!("tcp-{port}"), "protocol": "TCP", "port": port });
    if !target.is_empty() {
        object[target] = json!(port);
    }
    object
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::Service as ServiceObject, discovery::v1::EndpointSlice};

    use super::*;
    use crate::lab::Endpoints;

    fn example(ports: Vec<u16>) -> Service {
        Service {
            name: "vip-100-64-10-1".to_owned(),
            address: Ipv4Addr::new(100, 64, 10, 1),
            containers: vec!["c2".to_owned()],
            endpoints: Endpoints::Static,
            ports,
        }
    }

    #[test]
    fn a_service_without_ports_takes_every_protocol() {
        let (key, value) = service(&example(Vec::new()));
        assert_eq!(key, "/registry/services/specs/default/vip-100-64-10-1");
        let object: ServiceObject = serde_json::from_slice(&value).unwrap();
        assert_eq!(object.metadata.annotations.unwrap()[ALL_PROTOCOLS], "true");
        assert_eq!(object.spec.unwrap().cluster_ip.as_deref(), Some("100.64.10.1"));
    }

    #[test]
    fn a_slice_names_its_service_and_its_ports() {
        let endpoint =
            Endpoint { container: "c2".to_owned(), worker: "C0w2".to_owned(), address: Ipv4Addr::new(11, 10, 16, 2) };
        let (key, value) = slice(&example(vec![80]), &[endpoint]);
        assert_eq!(key, "/registry/endpointslices/default/vip-100-64-10-1-lab");
        let object: EndpointSlice = serde_json::from_slice(&value).unwrap();
        assert_eq!(object.metadata.labels.unwrap()["kubernetes.io/service-name"], "vip-100-64-10-1");
        assert_eq!(object.endpoints[0].addresses, ["11.10.16.2"]);
        assert_eq!(object.ports.unwrap()[0].name.as_deref(), Some("tcp-80"));
    }
}
