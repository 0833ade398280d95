//! What a Service holds that no other may have: its address, its node ports, its health-check port.
//!
//! Each is a key in etcd. A Service is created in one transaction that also creates these keys, on the condition that none is
//! there: so nothing is ever given out twice, whoever else is writing at the same moment.
//!
//! Addresses stand where Kubernetes keeps them since 1.33, as `IPAddress` objects under `/registry/ipaddresses/`. Ports stand
//! under `/registry/ranges/servicenodeports/`, a key each, where Kubernetes keeps one bitmap for all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{failure::Cause, kind::Kind, validate::NODE_PORTS};

/// What the keys of ports begin with.
const PORTS: &str = "/registry/ranges/servicenodeports/";
/// The protocol under which a health-check port stands: it is a TCP port of the node.
const TCP: &str = "TCP";

/// Something that one Service has to itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A ClusterIP.
    Address(Ipv4Addr),
    /// A port of every node.
    NodePort {
        /// TCP, UDP or SCTP.
        protocol: String,
        /// The number.
        port: u16,
    },
}

impl Claim {
    /// Its key in etcd.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Claim::Address(address) => Kind::IpAddress.key("", &address.to_string()),
            Claim::NodePort { protocol, port } => format!("{PORTS}{port}-{protocol}"),
        }
    }

    /// What stands there: who holds it.
    #[must_use]
    pub fn value(&self, namespace: &str, service: &str) -> Value {
        let holder = json!({ "group": "", "resource": "services", "namespace": namespace, "name": service });
        match self {
            Claim::Address(address) => json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "IPAddress",
                "metadata": { "name": address, "labels": { "ipaddress.kubernetes.io/managed-by": "ipallocator.knetsim.io" } },
                "spec": { "parentRef": holder },
            }),
            Claim::NodePort { .. } => json!({ "parentRef": holder }),
        }
    }

    /// Says of a claim that is taken, by whom, and in which field of the Service.
    #[must_use]
    pub fn taken(&self, value: &Value, service: &Value) -> Cause {
        let holder = if value["spec"].is_object() { &value["spec"]["parentRef"] } else { &value["parentRef"] };
        let word = |name: &str| holder[name].as_str().unwrap_or("?");
        let holder = format!("service {}/{}", word("namespace"), word("name"));
        match self {
            Claim::Address(address) => Cause::new("spec.clusterIP", format!("{address} is the address of {holder}")),
            Claim::NodePort { protocol, port } => {
                let ports = service["spec"]["ports"].as_array();
                let index = ports
                    .into_iter()
                    .flatten()
                    .position(|known| known["nodePort"] == *port && known["protocol"] == **protocol);
                let field = index
                    .map_or("spec.healthCheckNodePort".to_owned(), |index| format!("spec.ports[{index}].nodePort"));
                Cause::new(field, format!("{port} is a NodePort of {holder}"))
            }
        }
    }
}

/// What a Service claims, by what it says.
#[must_use]
pub fn of(service: &Value) -> BTreeSet<Claim> {
    let spec = &service["spec"];
    let address = spec["clusterIP"].as_str().and_then(|address| address.parse().ok()).map(Claim::Address);
    let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|port| {
        let number = u16::try_from(port["nodePort"].as_u64()?).ok().filter(|number| *number != 0)?;
        Some(Claim::NodePort { protocol: port["protocol"].as_str().unwrap_or(TCP).to_owned(), port: number })
    });
    let health =
        spec["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let health = health.map(|port| Claim::NodePort { protocol: TCP.to_owned(), port });
    address.into_iter().chain(ports).chain(health).collect()
}

/// What is taken already.
#[derive(Debug, Default)]
pub struct Taken {
    /// Addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Ports, with their protocols.
    pub ports: BTreeMap<String, BTreeSet<u16>>,
}

impl Taken {
    /// Notes a Service of the cluster.
    pub fn add(&mut self, service: &Value) {
        for claim in of(service) {
            match claim {
                Claim::Address(address) => _ = self.addresses.insert(address),
                Claim::NodePort { protocol, port } => _ = self.ports.entry(protocol).or_default().insert(port),
            }
        }
    }

    fn port(&mut self, protocol: &str) -> Option<u16> {
        let taken = self.ports.entry(protocol.to_owned()).or_default();
        let free = NODE_PORTS.into_iter().find(|port| !taken.contains(port))?;
        taken.insert(free);
        Some(free)
    }
}

/// Gives a Service what it needs and did not ask for by number: the lowest address and ports that are free. kube-apiserver
/// picks at random; the lowest lets two runs of a lesson look alike.
///
/// # Errors
///
/// When no address or port is left.
pub fn allocate(service: &mut Value, range: Ipv4Net, taken: &mut Taken) -> Result<(), Cause> {
    let spec = &mut service["spec"];
    let service_type = spec["type"].as_str().unwrap_or_default().to_owned();
    if service_type == "ExternalName" {
        return Ok(());
    }
    let address = match spec["clusterIP"].as_str() {
        Some(address) if !address.is_empty() => address.to_owned(),
        _ => {
            let free = range.hosts().find(|address| !taken.addresses.contains(address));
            let free =
                free.ok_or_else(|| Cause::new("spec.clusterIP", format!("every address of {range} is taken")))?;
            taken.addresses.insert(free);
            free.to_string()
        }
    };
    spec["clusterIP"] = json!(address);
    spec["clusterIPs"] = json!([address]);
    let opens_nodes = match service_type.as_str() {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    };
    let all_taken = || Cause::new("spec.ports", "every NodePort is taken");
    // The same number may serve TCP and UDP of one port, as for DNS; whoever wants that says it.
    for port in ports_mut(spec).filter(|_| opens_nodes) {
        if port["nodePort"].as_u64().unwrap_or(0) == 0 {
            let protocol = port["protocol"].as_str().unwrap_or(TCP).to_owned();
            port["nodePort"] = json!(taken.port(&protocol).ok_or_else(all_taken)?);
        }
    }
    let is_checked = service_type == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
    if is_checked && spec["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 {
        spec["healthCheckNodePort"] = json!(taken.port(TCP).ok_or_else(all_taken)?);
    }
    Ok(())
}

/// Keeps for a changed Service what it had and does not name any more, and drops what its new type has not, if the change itself
/// does not say it: a client that turns a NodePort into an `ExternalName` leaves the address where it was.
///
/// Source: Kubernetes `pkg/registry/core/service/strategy.go`, `patchAllocatedValues` and `dropTypeDependentFields`.
pub fn carry_over(old: &Value, new: &mut Value) {
    let (old, new) = (&old["spec"], &mut new["spec"]);
    drop_of_type(old, new);
    let has_address = |spec: &Value| spec["type"] != "ExternalName";
    if has_address(old) && has_address(new) && new["clusterIP"].as_str().is_none_or(str::is_empty) {
        new["clusterIP"] = old["clusterIP"].clone();
    }
    let opens_nodes = |spec: &Value| matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    if opens_nodes(old) && opens_nodes(new) {
        let known: Vec<Value> = old["ports"].as_array().cloned().unwrap_or_default();
        for port in ports_mut(new) {
            let same = known.iter().find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
            if port["nodePort"].as_u64().unwrap_or(0) == 0
                && let Some(same) = same
            {
                port["nodePort"] = same["nodePort"].clone();
            }
        }
    } else if !opens_nodes(new) {
        for port in ports_mut(new).filter_map(Value::as_object_mut) {
            // As when a client goes back from NodePort to ClusterIP and leaves the number where it was.
            port.remove("nodePort");
        }
    }
    let is_checked = new["type"] == "LoadBalancer" && new["externalTrafficPolicy"] == "Local";
    if is_checked && new["healthCheckNodePort"].is_null() && !old["healthCheckNodePort"].is_null() {
        new["healthCheckNodePort"] = old["healthCheckNodePort"].clone();
    } else if !is_checked && let Some(new) = new.as_object_mut() {
        new.remove("healthCheckNodePort");
    }
}

fn ports_mut(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
}

fn drop_of_type(old: &Value, new: &mut Value) {
    let service_type = new["type"].as_str().unwrap_or_default().to_owned();
    let is_outside = matches!(service_type.as_str(), "NodePort" | "LoadBalancer")
        || new["externalIPs"].as_array().is_some_and(|addresses| !addresses.is_empty());
    let mut dropped: Vec<&str> = Vec::new();
    if service_type == "ExternalName" {
        dropped.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    } else {
        dropped.push("externalName");
    }
    if !is_outside {
        dropped.push("externalTrafficPolicy");
    }
    if service_type != "LoadBalancer" {
        dropped.push("allocateLoadBalancerNodePorts");
    }
    if let Some(new) = new.as_object_mut() {
        // What differs from the old one was said on purpose; whether it may be said is for the validation to judge.
        new.retain(|field, value| !dropped.contains(&field.as_str()) || *value != old[field]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::defaults;

    fn allocated(spec: &Value, taken: &mut Taken) -> Value {
        let mut service = json!({ "spec": spec });
        defaults::fill(Kind::Service, &mut service);
        allocate(&mut service, "100.64.0.0/16".parse().unwrap(), taken).unwrap();
        taken.add(&service);
        service["spec"].clone()
    }

    #[test]
    fn addresses_and_ports_are_given_out_once() {
        let mut taken = Taken::default();
        taken.add(&json!({ "spec": { "clusterIP": "100.64.0.1" } }));
        let first = allocated(
            &json!({ "type": "NodePort", "ports": [{ "port": 80 }, { "name": "b", "port": 81 }] }),
            &mut taken,
        );
        assert_eq!(first["clusterIP"], "100.64.0.2");
        assert_eq!((&first["ports"][0]["nodePort"], &first["ports"][1]["nodePort"]), (&json!(30_000), &json!(30_001)));
        let second =
            allocated(&json!({ "type": "NodePort", "ports": [{ "port": 53, "protocol": "UDP" }] }), &mut taken);
        assert_eq!((&second["clusterIP"], &second["ports"][0]["nodePort"]), (&json!("100.64.0.3"), &json!(30_000)));
    }

    #[test]
    fn headless_services_get_nothing() {
        let service = allocated(&json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }), &mut Taken::default());
        assert_eq!(service["clusterIPs"], json!(["None"]));
        assert!(of(&json!({ "spec": service })).is_empty());
    }

    #[test]
    fn a_range_without_a_free_address_is_an_error() {
        let mut service = json!({ "spec": { "type": "ClusterIP" } });
        let mut taken = Taken {
            addresses: ["100.64.0.1", "100.64.0.2"].map(|text| text.parse().unwrap()).into(),
            ..Taken::default()
        };
        let cause = allocate(&mut service, "100.64.0.0/30".parse().unwrap(), &mut taken).unwrap_err();
        assert_eq!(cause.field, "spec.clusterIP");
    }

    #[test]
    fn a_change_keeps_what_was_given_out() {
        let old = json!({ "spec": { "type": "NodePort", "clusterIP": "100.64.0.9",
            "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30_007 }] } });
        let mut new = json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80, "protocol": "TCP" }] } });
        carry_over(&old, &mut new);
        assert_eq!(new, old);
        let mut cluster = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30_007 }] } });
        carry_over(&old, &mut cluster);
        assert_eq!(cluster["spec"]["clusterIP"], "100.64.0.9");
        assert!(cluster["spec"]["ports"][0]["nodePort"].is_null());
    }

    #[test]
    fn a_service_changes_its_type_and_back() {
        let old =
            json!({ "spec": { "type": "NodePort", "clusterIP": "100.64.0.9", "externalTrafficPolicy": "Cluster" } });
        let mut cluster = json!({ "spec": { "type": "ClusterIP", "externalTrafficPolicy": "Cluster" } });
        carry_over(&old, &mut cluster);
        assert_eq!(cluster, json!({ "spec": { "type": "ClusterIP", "clusterIP": "100.64.0.9" } }));
        let mut name =
            json!({ "spec": { "type": "ExternalName", "externalName": "example.org", "clusterIP": "100.64.0.9" } });
        carry_over(&old, &mut name);
        assert_eq!(name, json!({ "spec": { "type": "ExternalName", "externalName": "example.org" } }));
        assert!(of(&name).is_empty());
    }

    #[test]
    fn whoever_finds_a_claim_taken_is_told_by_whom_and_where() {
        let claim = Claim::NodePort { protocol: "TCP".to_owned(), port: 30_080 };
        let service = json!({ "spec": { "ports": [{ "port": 1, "protocol": "TCP", "nodePort": 1 }, { "port": 80, "protocol": "TCP", "nodePort": 30_080 }] } });
        let cause = claim.taken(&claim.value("shop", "web"), &service);
        assert_eq!(cause.to_string(), "spec.ports[1].nodePort: 30080 is a NodePort of service shop/web");
    }
}
