//! Which endpoints are near: hints of slices for zones and for nodes.

use serde_json::{Value, json};

use crate::support::program::is_ours_only;
use crate::support::traffic::{answer, serve_tcp};
use crate::support::{Lab, eventually};
use crate::{HTTP, VIP, is_done};

/// Pod `n`, somewhere, for clients of a zone or a node.
fn hinted(n: u8, kind: &str, name: &str) -> Value {
    json!({"addresses": [format!("11.0.0.{n}")], "nodeName": "w2", "conditions": {"ready": true}, "hints": {kind: [{"name": name}]}})
}

fn unhinted(n: u8) -> Value {
    json!({"addresses": [format!("11.0.0.{n}")], "nodeName": "w2", "conditions": {"ready": true}})
}

fn lab() -> Lab {
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let spec = json!({"clusterIP": VIP, "trafficDistribution": "PreferClose", "ports": [{"name": "http", "port": 80}]});
    lab.put_service("web", &spec);
    lab
}

fn place(lab: &Lab, endpoints: &[Value]) {
    lab.put_endpoints("web-1", "web", &[json!({"name": "http", "port": 8080, "protocol": "TCP"})], endpoints);
}

fn in_zone(lab: &Lab, zone: &str) {
    lab.put_worker(&json!({"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": "w1"}));
}

#[test]
fn traffic_stays_in_the_zone_while_all_hints_are_there() {
    if is_done() {
        return;
    }
    let lab = lab();
    in_zone(&lab, "east");
    place(&lab, &[hinted(1, "forZones", "east"), hinted(2, "forZones", "west"), hinted(3, "forZones", "east")]);
    eventually("those of the own zone", || answer(lab.pod(4), HTTP, &[1, 3]));
    place(&lab, &[hinted(1, "forZones", "east"), hinted(2, "forZones", "west"), unhinted(3)]);
    eventually("one lacks a hint: all", || answer(lab.pod(4), HTTP, &[1, 2, 3]));
    place(&lab, &[hinted(2, "forZones", "west")]);
    eventually("none is near: those there are", || answer(lab.pod(4), HTTP, &[2]));
}

#[test]
fn the_zone_of_a_worker_may_change() {
    if is_done() {
        return;
    }
    let lab = lab();
    place(&lab, &[hinted(1, "forZones", "east"), hinted(2, "forZones", "west")]);
    eventually("the worker is in no zone: all", || answer(lab.pod(4), HTTP, &[1, 2]));
    in_zone(&lab, "east");
    eventually("those of the first zone", || answer(lab.pod(4), HTTP, &[1]));
    in_zone(&lab, "west");
    eventually("those of the second zone", || answer(lab.pod(4), HTTP, &[2]));
}

#[test]
fn traffic_stays_on_the_node_while_all_hints_are_there() {
    if is_ours_only("up to 1.34 it does the same with the feature gate PreferSameTrafficDistribution alone")
        || is_done()
    {
        return;
    }
    let lab = lab();
    place(&lab, &[hinted(1, "forNodes", "w1"), hinted(2, "forNodes", "w2")]);
    eventually("the one for this node", || answer(lab.pod(4), HTTP, &[1]));
    place(&lab, &[hinted(1, "forNodes", "w1"), hinted(2, "forNodes", "w2"), unhinted(3)]);
    eventually("one lacks a hint: all", || answer(lab.pod(4), HTTP, &[1, 2, 3]));
    place(&lab, &[hinted(2, "forNodes", "w2"), hinted(3, "forNodes", "w3")]);
    eventually("none is for this node: all", || answer(lab.pod(4), HTTP, &[2, 3]));
}
