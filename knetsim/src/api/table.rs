//! Objects as tables: the columns that `kubectl get` and `knetsim get` print. The server decides what is in them, so that a
//! client can show kinds that it does not know.
//!
//! Source: Kubernetes API concepts, "Receiving resources as Tables"; `pkg/printers/internalversion/printers.go` for the columns.

use std::time::Duration;

use k8s_openapi::jiff;
use serde_json::{Value, json};

use super::kind::Kind;

/// A column: its head, and whether only `-o wide` shows it.
type Column = (&'static str, bool);

fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Namespace => &[("Name", false), ("Status", false), ("Age", false)],
        Kind::Node => &[
            ("Name", false),
            ("Status", false),
            ("Roles", false),
            ("Age", false),
            ("Internal-IP", true),
            ("Pod-CIDR", true),
        ],
        Kind::Pod => &[
            ("Name", false),
            ("Ready", false),
            ("Status", false),
            ("Restarts", false),
            ("Age", false),
            ("IP", true),
            ("Node", true),
        ],
        Kind::Deployment => &[
            ("Name", false),
            ("Ready", false),
            ("Up-to-date", false),
            ("Available", false),
            ("Age", false),
            ("Containers", true),
            ("Images", true),
            ("Selector", true),
        ],
        Kind::Service => &[
            ("Name", false),
            ("Type", false),
            ("Cluster-IP", false),
            ("External-IP", false),
            ("Port(s)", false),
            ("Age", false),
            ("Selector", true),
        ],
        Kind::EndpointSlice => {
            &[("Name", false), ("AddressType", false), ("Ports", false), ("Endpoints", false), ("Age", false)]
        }
        Kind::Endpoints => &[("Name", false), ("Endpoints", false), ("Age", false)],
        Kind::ServiceCidr => &[("Name", false), ("CIDRs", false), ("Age", false)],
        Kind::IpAddress => &[("Name", false), ("ParentRef", false), ("Age", false)],
    }
}

/// A `Table` of objects. `include` says what each row bears beside its cells: `Object`, `None`, or else its metadata.
#[must_use]
pub fn table(kind: Kind, objects: &[Value], include: &str, list_metadata: &Value, now: jiff::Timestamp) -> Value {
    let columns: Vec<Value> = columns(kind)
        .iter()
        .map(|(name, wide)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({ "name": name, "type": "string", "format": format, "description": "", "priority": i32::from(*wide) })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let shown = match include {
                "Object" => object.clone(),
                "None" => Value::Null,
                _ => json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] }),
            };
            json!({ "cells": cells(kind, object, now), "object": shown })
        })
        .collect();
    json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": columns, "rows": rows })
}

fn cells(kind: Kind, object: &Value, now: jiff::Timestamp) -> Vec<String> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let name = text(&object["metadata"]["name"]);
    let age = age(&object["metadata"]["creationTimestamp"], now);
    match kind {
        Kind::Namespace => vec![name, text(&status["phase"]), age],
        Kind::Node => {
            let address = list(&status["addresses"]).iter().find(|address| address["type"] == "InternalIP");
            let ready = if is_true(status, "Ready") { "Ready" } else { "NotReady" };
            let address = address.map_or("<none>".to_owned(), |address| text(&address["address"]));
            vec![name, ready.to_owned(), "worker".to_owned(), age, address, or_none(text(&spec["podCIDR"]))]
        }
        Kind::Pod => {
            let containers = list(&status["containerStatuses"]);
            let ready = containers.iter().filter(|container| container["ready"] == true).count();
            let restarts: u64 = containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum();
            let waiting = containers.iter().find_map(|container| container["state"]["waiting"]["reason"].as_str());
            let phase = match object["metadata"]["deletionTimestamp"].is_null() {
                true => waiting.map_or_else(|| text(&status["phase"]), str::to_owned),
                false => "Terminating".to_owned(),
            };
            let ready = format!("{ready}/{}", list(&spec["containers"]).len());
            vec![
                name,
                ready,
                phase,
                restarts.to_string(),
                age,
                or_none(text(&status["podIP"])),
                or_none(text(&spec["nodeName"])),
            ]
        }
        Kind::Deployment => {
            let number = |field: &str| status[field].as_u64().unwrap_or(0).to_string();
            let of = |field: &str| {
                let containers = list(&spec["template"]["spec"]["containers"]);
                containers.iter().map(|container| text(&container[field])).collect::<Vec<_>>().join(",")
            };
            let ready = format!("{}/{}", number("readyReplicas"), spec["replicas"].as_u64().unwrap_or(0));
            let selector = map(&spec["selector"]["matchLabels"]);
            vec![
                name,
                ready,
                number("updatedReplicas"),
                number("availableReplicas"),
                age,
                of("name"),
                of("image"),
                selector,
            ]
        }
        Kind::Service => {
            let external = match text(&spec["externalName"]) {
                name if !name.is_empty() => name,
                _ => {
                    let balanced = list(&status["loadBalancer"]["ingress"]).iter().map(|ingress| text(&ingress["ip"]));
                    let addresses =
                        balanced.chain(list(&spec["externalIPs"]).iter().map(text)).collect::<Vec<_>>().join(",");
                    match spec["type"] == "LoadBalancer" && addresses.is_empty() {
                        true => "<pending>".to_owned(),
                        false => or_none(addresses),
                    }
                }
            };
            let ports = list(&spec["ports"]).iter().map(|port| {
                let node = port["nodePort"].as_u64().map(|node| format!(":{node}")).unwrap_or_default();
                format!("{}{node}/{}", text(&port["port"]), text(&port["protocol"]))
            });
            let ports = or_none(ports.collect::<Vec<_>>().join(","));
            vec![
                name,
                text(&spec["type"]),
                or_none(text(&spec["clusterIP"])),
                external,
                ports,
                age,
                map(&spec["selector"]),
            ]
        }
        Kind::EndpointSlice => {
            let ports: Vec<String> = list(&object["ports"]).iter().map(|port| text(&port["port"])).collect();
            let addresses = list(&object["endpoints"]).iter().flat_map(|endpoint| list(&endpoint["addresses"]));
            let addresses: Vec<String> = addresses.map(text).collect();
            vec![name, text(&object["addressType"]), or_unset(&few(&ports)), or_unset(&few(&addresses)), age]
        }
        Kind::Endpoints => vec![name, or_none(few(&sockets(&object["subsets"]))), age],
        Kind::ServiceCidr => vec![name, list(&spec["cidrs"]).iter().map(text).collect::<Vec<_>>().join(","), age],
        Kind::IpAddress => {
            let parent = &spec["parentRef"];
            let parent = ["resource", "namespace", "name"].map(|field| text(&parent[field])).join("/");
            vec![name, parent, age]
        }
    }
}

/// Every address of an Endpoints object with every port: `11.10.0.2:8080`.
fn sockets(subsets: &Value) -> Vec<String> {
    let mut sockets = Vec::new();
    for subset in list(subsets) {
        for address in list(&subset["addresses"]) {
            let ip = text(&address["ip"]);
            let ports = list(&subset["ports"]).iter().map(|port| format!("{ip}:{}", text(&port["port"])));
            sockets.extend(ports);
            if list(&subset["ports"]).is_empty() {
                sockets.push(ip);
            }
        }
    }
    sockets
}

/// The first three of a list, and how many more there are.
fn few(items: &[String]) -> String {
    const SHOWN: usize = 3;
    match items.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} + {more} more...", items[..SHOWN].join(",")),
        _ => items.join(","),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn or_unset(text: &str) -> String {
    if text.is_empty() { "<unset>".to_owned() } else { text.to_owned() }
}

fn map(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value)));
    or_none(pairs.collect::<Vec<_>>().join(","))
}

fn is_true(status: &Value, condition: &str) -> bool {
    list(&status["conditions"]).iter().any(|known| known["type"] == condition && known["status"] == "True")
}

/// How long ago: `5s`, `3m12s`, `4h`, `12d`.
fn age(since: &Value, now: jiff::Timestamp) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let Some(since) = since.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) else {
        return "<unknown>".to_owned();
    };
    let seconds = Duration::try_from(now.duration_since(since)).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % MINUTE != 0 => format!("{}m{}s", seconds / MINUTE, seconds % MINUTE),
        120..10_800 => format!("{}m", seconds / MINUTE),
        10_800..172_800 => format!("{}h", seconds / HOUR),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells_of(kind: Kind, object: &Value) -> Vec<String> {
        cells(kind, object, "2026-11-21T12:10:00Z".parse().unwrap())
    }

    #[test]
    fn services_are_shown_as_kubectl_shows_them() {
        let service = json!({
            "metadata": { "name": "web", "creationTimestamp": "2026-11-21T12:05:48Z" },
            "spec": { "type": "NodePort", "clusterIP": "100.64.0.1", "selector": { "app": "web" }, "ports": [
                { "port": 80, "nodePort": 30_080, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" },
            ] },
        });
        let expected = ["web", "NodePort", "100.64.0.1", "<none>", "80:30080/TCP,53/UDP", "4m12s", "app=web"];
        assert_eq!(cells_of(Kind::Service, &service), expected);
    }

    #[test]
    fn a_pod_that_waits_says_for_what() {
        let pod = json!({ "metadata": { "name": "web-1" }, "spec": { "containers": [{}], "nodeName": "C0w1" },
            "status": { "phase": "Pending", "containerStatuses": [{ "ready": false, "state": { "waiting": { "reason": "ContainerCreating" } } }] } });
        assert_eq!(cells_of(Kind::Pod, &pod)[1..4], ["0/1", "ContainerCreating", "0"]);
    }

    #[test]
    fn long_lists_of_endpoints_are_cut() {
        let endpoints: Vec<Value> = (1..=5).map(|last| json!({ "addresses": [format!("11.10.0.{last}")] })).collect();
        let slice = json!({ "metadata": { "name": "web-1" }, "addressType": "IPv4", "ports": [{ "port": 80 }], "endpoints": endpoints });
        assert_eq!(cells_of(Kind::EndpointSlice, &slice)[3], "11.10.0.1,11.10.0.2,11.10.0.3 + 2 more...");
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for kind in super::super::kind::KINDS {
            assert_eq!(cells_of(kind, &json!({})).len(), columns(kind).len(), "{kind}");
        }
    }
}
