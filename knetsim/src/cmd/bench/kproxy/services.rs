//! The Services that are measured with: as the Kubernetes API writes them, with two endpoints each and one TCP port.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::Node;

/// Where objects stand in etcd.
pub(super) const PREFIX: &str = "/registry/";
/// The Kubernetes namespace of all of them.
const NAMESPACE: &str = "shop";
/// The port of every ClusterIP.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET_PORT: u16 = 8080;
/// The address of the first Service is the one after this.
const SERVICE_BASE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// The addresses of endpoints that do not exist follow this one; pods that exist are below.
const ENDPOINT_BASE: Ipv4Addr = Ipv4Addr::new(11, 1, 0, 0);
/// From here on come addresses that an endpoint has when it is changed: none of them is used twice.
const CHANGED_BASE: Ipv4Addr = Ipv4Addr::new(11, 128, 0, 0);

/// Over how many workers the endpoints are spread. For those of its own worker a proxy does more: they may be sent to themselves.
const WORKERS: u32 = 100;

/// The ClusterIP of Service `number`, from 0.
pub(super) fn address(number: u32) -> Ipv4Addr {
    offset(SERVICE_BASE, number + 1)
}

/// The endpoints of Service `number`, which do not exist.
pub(super) fn endpoints(number: u32) -> [Ipv4Addr; 2] {
    [1, 2].map(|which| offset(ENDPOINT_BASE, 2 * number + which))
}

/// An address that only the change of this number brings.
pub(super) fn changed_endpoint(change: u32) -> Ipv4Addr {
    offset(CHANGED_BASE, change + 1)
}

fn offset(base: Ipv4Addr, by: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base) + by)
}

/// Service `number`: its key in etcd below [`PREFIX`], and its value.
pub(super) fn service(number: u32) -> (String, Value) {
    let name = name(number);
    let address = address(number);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&name, number, &json!({ "app": name })),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
        "status": { "loadBalancer": {} },
    });
    (format!("services/specs/{NAMESPACE}/{name}"), object)
}

/// The one EndpointSlice of Service `number`, with these endpoints: its key in etcd below [`PREFIX`], and its value.
pub(super) fn slice(number: u32, endpoints: &[Ipv4Addr]) -> (String, Value) {
    let service = name(number);
    let slice = format!("{service}-1");
    let endpoint = |address: &Ipv4Addr| {
        json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("C0w{}", 1 + u32::from(*address) % WORKERS),
        })
    };
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(&slice, number, &json!({ "kubernetes.io/service-name": service })),
        "addressType": "IPv4",
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET_PORT }],
    });
    (format!("endpointslices/{NAMESPACE}/{slice}"), object)
}

/// The first `count` Services and their slices.
pub(super) fn all(count: u32) -> impl Iterator<Item = (String, Value)> {
    (0..count).flat_map(|number| [service(number), slice(number, &endpoints(number))])
}

/// The Node of a worker: its key in etcd below [`PREFIX`], and its value.
pub(super) fn node(worker: &Node) -> (String, Value) {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": worker.name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {},
        "status": { "addresses": [{ "type": "InternalIP", "address": worker.address }] },
    });
    (format!("minions/{}", worker.name), object)
}

fn metadata(name: &str, number: u32, labels: &Value) -> Value {
    let uid = format!("00000000-0000-4000-8000-{number:012x}");
    json!({
        "name": name, "namespace": NAMESPACE, "uid": uid, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z",
    })
}

fn name(number: u32) -> String {
    format!("s{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_used_twice() {
        let many = 300_000; // the most that the command line allows, three times
        assert_eq!(address(0), Ipv4Addr::new(100, 64, 0, 1));
        assert!(address(many) < Ipv4Addr::new(100, 128, 0, 0), "beyond 100.64.0.0/10");
        assert_eq!(endpoints(1), [Ipv4Addr::new(11, 1, 0, 3), Ipv4Addr::new(11, 1, 0, 4)]);
        assert!(endpoints(many)[1] < changed_endpoint(0));
    }

    #[test]
    fn a_slice_names_its_service() {
        let (key, slice) = slice(7, &endpoints(7));
        assert_eq!(key, "endpointslices/shop/s7-1");
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "s7");
        assert_eq!(slice["endpoints"][1]["addresses"][0], "11.1.0.16");
    }
}
