//! What must hold of an object beyond the types of its fields.
//!
//! Source: Kubernetes `pkg/apis/core/validation/validation.go`, `pkg/apis/apps/validation`, `pkg/apis/discovery/validation`. The
//! rules kept here are those that a student can break in the lab; those about volumes, resources or security are not.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{failure::Cause, kind::Kind, selector};

/// The ports that a NodePort may have, as in Kubernetes.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// An EndpointSlice holds at most so many endpoints, as in Kubernetes.
const MAX_ENDPOINTS: usize = 1000;
/// The longest name of a pod: its container is known by it, in the names of files too.
const MAX_POD_NAME: usize = 100;
/// The longest name of a Deployment: that of its pods is 15 longer, `-` and a hash of 8, `-` and 5 letters.
const MAX_DEPLOYMENT_NAME: usize = MAX_POD_NAME - 15;

/// What the lab's addresses are.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// Where service addresses come from.
    pub services: Ipv4Net,
}

/// Everything that is wrong with an object whose defaults are filled in.
#[must_use]
pub fn validate(kind: Kind, object: &Value, ranges: Ranges) -> Vec<Cause> {
    let mut causes = Vec::new();
    name(kind, object, &mut causes);
    match kind {
        Kind::Service => service(object, ranges, &mut causes),
        Kind::EndpointSlice => slice(object, &mut causes),
        Kind::Pod => pod_spec("spec", &object["spec"], &mut causes),
        Kind::Deployment => deployment(object, &mut causes),
        Kind::Namespace | Kind::Node | Kind::Endpoints | Kind::ServiceCidr | Kind::IpAddress => {}
    }
    causes
}

/// Whether a text is a label of a domain name (RFC 1123, section 2.1).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn name(kind: Kind, object: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "metadata.name";
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match kind {
        Kind::Service if !is_dns_label(name) || name.starts_with(|first: char| first.is_ascii_digit()) => causes.push(Cause::new(
            FIELD,
            format!("{name:?} must be 1 to 63 lower-case letters, digits or '-', a letter first, like my-service (RFC 1035)"),
        )),
        Kind::Namespace if !is_dns_label(name) => {
            causes.push(Cause::new(FIELD, format!("{name:?} must be 1 to 63 lower-case letters, digits or '-' (RFC 1123)")));
        }
        Kind::Pod if name.len() > MAX_POD_NAME => causes.push(too_long(name, MAX_POD_NAME)),
        Kind::Deployment if name.len() > MAX_DEPLOYMENT_NAME => causes.push(too_long(name, MAX_DEPLOYMENT_NAME)),
        // Workers bear the lab's names, C0w1, which are no names of Kubernetes.
        Kind::Node | Kind::Service | Kind::Endpoints | Kind::Namespace => {}
        Kind::Pod | Kind::Deployment | Kind::EndpointSlice | Kind::ServiceCidr | Kind::IpAddress => {
            if !is_dns_subdomain(name) {
                causes.push(Cause::new(
                    FIELD,
                    format!("{name:?} must be lower-case letters, digits, '-' or '.', like web-1 (RFC 1123)"),
                ));
            }
        }
    }
}

fn too_long(name: &str, most: usize) -> Cause {
    Cause::new("metadata.name", format!("{name:?} is longer than {most} characters; the lab names files after it"))
}

fn items<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map_or(&[], Vec::as_slice)
}

fn port_number(field: &str, value: &Value, causes: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|port| (1..=65_535).contains(&port)) {
        causes.push(Cause::new(field, format!("{value} must be a port, 1 to 65535")));
    }
}

fn one_of(field: &str, value: &Value, choices: &[&str], causes: &mut Vec<Cause>) {
    if !value.as_str().is_some_and(|value| choices.contains(&value)) {
        causes.push(Cause::new(field, format!("{value} is none of {}", choices.join(", "))));
    }
}

fn service(object: &Value, ranges: Ranges, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    one_of("spec.type", &spec["type"], &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"], causes);
    if spec["type"] == "ExternalName" {
        if !spec["externalName"].as_str().is_some_and(is_dns_subdomain) {
            causes.push(Cause::new(
                "spec.externalName",
                "a Service of type ExternalName needs the DNS name it stands for",
            ));
        }
        if spec["clusterIP"].as_str().is_some_and(|address| !address.is_empty()) {
            causes.push(Cause::new("spec.clusterIP", "a Service of type ExternalName has no address; leave it out"));
        }
        return;
    }
    let is_headless = spec["clusterIP"] == "None";
    if is_headless && spec["type"] != "ClusterIP" {
        causes.push(Cause::new("spec.clusterIP", "only a Service of type ClusterIP can be headless (None)"));
    }
    let all_protocols = object["metadata"]["annotations"][crate::object::ALL_PROTOCOLS] == "true";
    if items(spec, "ports").is_empty() && !is_headless && !all_protocols {
        causes.push(Cause::new("spec.ports", "a Service needs at least one port"));
    }
    service_ports(spec, causes);
    if let Some(address) = spec["clusterIP"].as_str().filter(|address| !address.is_empty() && *address != "None") {
        match address.parse() {
            Ok(IpAddr::V4(ip)) if ranges.services.contains(&ip) => {}
            _ => causes.push(Cause::new(
                "spec.clusterIP",
                format!("{address:?} is no address in the service range {}", ranges.services),
            )),
        }
    }
    for (index, family) in items(spec, "ipFamilies").iter().enumerate() {
        if family != "IPv4" {
            causes.push(Cause::new(
                format!("spec.ipFamilies[{index}]"),
                format!("{family}: the lab's service range is IPv4 only"),
            ));
        }
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        causes.push(Cause::new("spec.ipFamilyPolicy", "RequireDualStack: the lab's service range is IPv4 only"));
    }
    one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["None", "ClientIP"], causes);
    one_of("spec.internalTrafficPolicy", &spec["internalTrafficPolicy"], &["Cluster", "Local"], causes);
    if !spec["externalTrafficPolicy"].is_null() {
        one_of("spec.externalTrafficPolicy", &spec["externalTrafficPolicy"], &["Cluster", "Local"], causes);
        if spec["type"] == "ClusterIP" && items(spec, "externalIPs").is_empty() {
            causes.push(Cause::new(
                "spec.externalTrafficPolicy",
                "only a Service that is reached from outside (NodePort, LoadBalancer, externalIPs) has one",
            ));
        }
    }
    if let Some(seconds) = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_i64()
        && !(1..=86_400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::new(field, format!("{seconds} must be 1 to 86400 (a day)")));
    }
    for (index, range) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
        if range.as_str().is_none_or(|range| range.trim().parse::<ipnet::IpNet>().is_err()) {
            causes.push(Cause::new(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!("{range} is no network like 10.0.0.0/8"),
            ));
        }
    }
    for (index, address) in items(spec, "externalIPs").iter().enumerate() {
        if address.as_str().is_none_or(|address| address.parse::<IpAddr>().is_err()) {
            causes.push(Cause::new(format!("spec.externalIPs[{index}]"), format!("{address} is no IP address")));
        }
    }
}

fn service_ports(spec: &Value, causes: &mut Vec<Cause>) {
    let ports = items(spec, "ports");
    let mut names = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let name = port["name"].as_str().unwrap_or_default();
        if ports.len() > 1 && name.is_empty() {
            causes.push(Cause::new(field("name"), "with several ports, each needs a name"));
        } else if !name.is_empty() && !is_dns_label(name) {
            causes.push(Cause::new(field("name"), format!("{name:?} must be lower-case letters, digits or '-'")));
        } else if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::new(field("name"), format!("{name:?} is the name of another port too")));
        }
        port_number(&field("port"), &port["port"], causes);
        one_of(&field("protocol"), &port["protocol"], &["TCP", "UDP", "SCTP"], causes);
        if !seen.insert((port["protocol"].to_string(), port["port"].to_string())) {
            causes.push(Cause::new(field("port"), "another port has the same number and protocol"));
        }
        match &port["targetPort"] {
            Value::String(name) if is_dns_label(name) && name.len() <= 15 => {}
            Value::String(name) => {
                causes.push(Cause::new(
                    field("targetPort"),
                    format!(
                        "{name:?} must be a port's number, or its name of at most 15 lower-case letters, digits or '-'"
                    ),
                ));
            }
            number => port_number(&field("targetPort"), number, causes),
        }
        let has_node_ports = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        match port["nodePort"].as_u64() {
            None | Some(0) => {}
            Some(_) if !has_node_ports => {
                causes.push(Cause::new(field("nodePort"), "only a Service of type NodePort or LoadBalancer has one"));
            }
            Some(number) if u16::try_from(number).is_ok_and(|number| NODE_PORTS.contains(&number)) => {}
            Some(number) => causes.push(Cause::new(
                field("nodePort"),
                format!("{number} must be {} to {}", NODE_PORTS.start(), NODE_PORTS.end()),
            )),
        }
    }
}

fn slice(object: &Value, causes: &mut Vec<Cause>) {
    one_of("addressType", &object["addressType"], &["IPv4", "IPv6", "FQDN"], causes);
    let endpoints = items(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        causes.push(Cause::new(
            "endpoints",
            format!("{} endpoints; a slice holds at most {MAX_ENDPOINTS}", endpoints.len()),
        ));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            causes.push(Cause::new(format!("endpoints[{index}].addresses"), "an endpoint needs an address"));
        }
        for (number, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let fits = match object["addressType"].as_str() {
                Some("IPv4") => text.parse::<std::net::Ipv4Addr>().is_ok(),
                Some("IPv6") => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !fits {
                let field = format!("endpoints[{index}].addresses[{number}]");
                causes.push(Cause::new(field, format!("{address} is no {} address", object["addressType"])));
            }
        }
    }
    for (index, port) in items(object, "ports").iter().enumerate() {
        if !port["port"].is_null() {
            port_number(&format!("ports[{index}].port"), &port["port"], causes);
        }
        one_of(&format!("ports[{index}].protocol"), &port["protocol"], &["TCP", "UDP", "SCTP"], causes);
    }
}

fn deployment(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if spec["replicas"].as_i64().is_none_or(|replicas| replicas < 0) {
        causes.push(Cause::new("spec.replicas", format!("{} must be 0 or more", spec["replicas"])));
    }
    one_of("spec.strategy.type", &spec["strategy"]["type"], &["RollingUpdate", "Recreate"], causes);
    for name in ["maxSurge", "maxUnavailable"] {
        let value = &spec["strategy"]["rollingUpdate"][name];
        let is_share = |text: &str| {
            text.strip_suffix('%').is_some_and(|number| number.parse::<u8>().is_ok_and(|share| share <= 100))
        };
        let fits =
            value.is_null() || value.as_i64().is_some_and(|count| count >= 0) || value.as_str().is_some_and(is_share);
        if !fits {
            causes.push(Cause::new(
                format!("spec.strategy.rollingUpdate.{name}"),
                format!("{value} must be a number or a share like \"25%\""),
            ));
        }
    }
    let selector = &spec["selector"];
    if selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty)
        && items(selector, "matchExpressions").is_empty()
    {
        causes.push(Cause::new("spec.selector", "it needs matchLabels: those of the template"));
    } else {
        match selector::Labels::of_object(selector) {
            Ok(wanted) if !wanted.matches(&spec["template"]["metadata"]["labels"]) => causes.push(Cause::new(
                "spec.template.metadata.labels",
                "they do not match spec.selector: the Deployment would not find its own pods",
            )),
            Ok(_) => {}
            Err(message) => causes.push(Cause::new("spec.selector", message)),
        }
    }
    pod_spec("spec.template.spec", &spec["template"]["spec"], causes);
}

fn pod_spec(path: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let containers = items(spec, "containers");
    if containers.is_empty() {
        causes.push(Cause::new(format!("{path}.containers"), "a pod needs a container"));
    }
    if spec["hostNetwork"] == true {
        causes.push(Cause::new(
            format!("{path}.hostNetwork"),
            "a pod of the lab is a network namespace of its own; run such a program on the worker: `C0w1 COMMAND`",
        ));
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let field = |name: &str| format!("{path}.containers[{index}].{name}");
        let name = container["name"].as_str().unwrap_or_default();
        if !is_dns_label(name) {
            causes
                .push(Cause::new(field("name"), format!("{name:?} must be 1 to 63 lower-case letters, digits or '-'")));
        } else if !names.insert(name) {
            causes.push(Cause::new(field("name"), format!("{name:?} is the name of another container too")));
        }
        for (number, port) in items(container, "ports").iter().enumerate() {
            port_number(&field(&format!("ports[{number}].containerPort")), &port["containerPort"], causes);
            one_of(&field(&format!("ports[{number}].protocol")), &port["protocol"], &["TCP", "UDP", "SCTP"], causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::defaults;

    fn fields(kind: Kind, mut object: Value) -> Vec<String> {
        defaults::fill(kind, &mut object);
        let ranges = Ranges { services: "100.64.0.0/16".parse().unwrap() };
        validate(kind, &object, ranges).into_iter().map(|cause| cause.field).collect()
    }

    fn service(spec: &Value) -> Vec<String> {
        fields(Kind::Service, json!({ "metadata": { "name": "web" }, "spec": spec }))
    }

    #[test]
    fn usual_services_are_in_order() {
        for spec in [
            json!({ "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "None" }),
            json!({ "type": "ExternalName", "externalName": "example.org" }),
            json!({ "type": "NodePort", "ports": [{ "name": "a", "port": 80, "nodePort": 30_080 }, { "name": "b", "port": 80, "protocol": "UDP", "targetPort": "dns" }] }),
        ] {
            assert_eq!(service(&spec), Vec::<String>::new(), "{spec}");
        }
    }

    #[test]
    fn each_mistake_of_a_service_is_found_at_its_field() {
        let table = [
            (json!({}), "spec.ports"),
            (json!({ "ports": [{ "port": 0 }] }), "spec.ports[0].port"),
            (json!({ "ports": [{ "port": 80 }, { "name": "b", "port": 81 }] }), "spec.ports[0].name"),
            (json!({ "ports": [{ "port": 80, "nodePort": 30_080 }] }), "spec.ports[0].nodePort"),
            (json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }), "spec.ports[0].nodePort"),
            (json!({ "ports": [{ "port": 80, "targetPort": "Not_a_name" }] }), "spec.ports[0].targetPort"),
            (json!({ "ports": [{ "port": 80 }], "clusterIP": "10.0.0.1" }), "spec.clusterIP"),
            (json!({ "ports": [{ "port": 80 }], "externalTrafficPolicy": "Local" }), "spec.externalTrafficPolicy"),
            (json!({ "ports": [{ "port": 80 }], "type": "Loadbalancer" }), "spec.type"),
        ];
        for (spec, field) in table {
            assert!(service(&spec).contains(&field.to_owned()), "{spec}: {:?}", service(&spec));
        }
    }

    #[test]
    fn a_deployment_must_find_its_own_pods() {
        let deployment = |label: &str| {
            json!({ "metadata": { "name": "web" }, "spec": {
                "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": label } }, "spec": { "containers": [{ "name": "web" }] } },
            } })
        };
        assert_eq!(fields(Kind::Deployment, deployment("web")), Vec::<String>::new());
        assert_eq!(fields(Kind::Deployment, deployment("other")), ["spec.template.metadata.labels"]);
    }
}
