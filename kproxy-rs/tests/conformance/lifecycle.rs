//! Services that are made, changed and deleted while clients ask for them.

use serde_json::json;

use crate::support::traffic::{answer, ask, is_dropped, is_refused, serve_tcp};
use crate::support::{Lab, WORKER_IP, eventually, program};
use crate::{VIP, is_done};

#[test]
fn a_service_changes_its_type_and_its_addresses_follow() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.put_slice("web", &[json!({"port": 8080, "protocol": "TCP", "name": ""})], &[1]);
    let (inside, outside) = (format!("{VIP}:80"), format!("{WORKER_IP}:30080"));
    let is_inside = || ask(lab.pod(2), &inside).is_ok();
    let is_outside = || ask(&lab.outside, &outside).is_ok();
    let cluster_ip = json!({"clusterIP": VIP, "ports": [{"port": 80}]});
    let node_port = json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 80, "nodePort": 30080}]});
    let external_name = json!({"type": "ExternalName", "externalName": "web.example.org"});
    for _ in 0..2 {
        lab.put_service("web", &cluster_ip);
        eventually("ClusterIP: served inside alone", || is_inside() && !is_outside());
        lab.put_service("web", &node_port);
        eventually("NodePort: served inside and outside", || is_inside() && is_outside());
        lab.put_service("web", &external_name);
        eventually("ExternalName: nothing is served", || !lab.tables().contains(VIP) && !is_outside());
    }
    lab.put_service("web", &node_port);
    eventually("ExternalName to NodePort", || is_inside() && is_outside());
}

#[test]
fn a_headless_service_and_its_slices_are_left_alone() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.put_service("headless", &json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    lab.put(
        "endpointslices/shop/headless-1",
        &json!({"metadata": {"labels": {"kubernetes.io/service-name": "headless", "service.kubernetes.io/headless": ""}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["11.0.0.1"]}], "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]}),
    );
    lab.serve("web", VIP, &[80], &[1]);
    eventually("another Service is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    assert!(!lab.tables().contains("headless"));
    if program::tested() == program::Program::Ours {
        assert!(lab.http(10256, "/healthz").unwrap().contains("\"skippedObjects\":[]"), "it is no mistake either");
    }
}

#[test]
fn a_service_is_handed_to_another_proxy_and_taken_back() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    let to = format!("{VIP}:80");
    let put = |labels: serde_json::Value| {
        let spec = json!({"clusterIP": VIP, "ports": [{"name": "p80", "port": 80}]});
        lab.put("services/specs/shop/web", &json!({"metadata": {"labels": labels}, "spec": spec}));
    };
    for _ in 0..2 {
        eventually("it is served", || ask(lab.pod(2), &to).is_ok());
        put(json!({"service.kubernetes.io/service-proxy-name": "other"}));
        eventually("it is somebody else's", || !lab.tables().contains(VIP));
        assert!(is_dropped(lab.pod(2), &to), "it is not refused either");
        put(json!({}));
    }
    eventually("it is served again", || ask(lab.pod(2), &to).is_ok());
}

#[test]
fn slices_of_a_headless_service_count_once_they_are_none() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[]);
    let to = format!("{VIP}:80");
    let put = |labels: serde_json::Value| {
        lab.put(
            "endpointslices/shop/web-2",
            &json!({"metadata": {"labels": labels}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["11.0.0.1"]}], "ports": [{"name": "p80", "port": 8080, "protocol": "TCP"}]}),
        );
    };
    for _ in 0..2 {
        put(json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}));
        eventually("no slice counts", || is_refused(lab.pod(2), &to));
        put(json!({"kubernetes.io/service-name": "web"}));
        eventually("it counts", || ask(lab.pod(2), &to).is_ok());
    }
}

#[test]
fn an_address_passes_to_the_next_service() {
    if is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let to = format!("{VIP}:80");
    lab.serve("first", VIP, &[80], &[1]);
    eventually("the first is served", || answer(lab.pod(3), &to, &[1]));
    lab.delete("services/specs/shop/first");
    lab.serve("second", VIP, &[80], &[2]);
    eventually("the second is served", || answer(lab.pod(3), &to, &[2]));
    // And so it does when one of the same name is made anew.
    lab.delete("services/specs/shop/second");
    lab.serve("second", VIP, &[80], &[1]);
    eventually("the new one is served", || answer(lab.pod(3), &to, &[1]));
}

#[test]
fn a_hundred_services_that_appear_at_once_are_all_served() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    for n in 1..=100 {
        lab.serve(&format!("s{n}"), &format!("100.64.1.{n}"), &[80], &[1]);
    }
    for n in 1..=100 {
        eventually("each of them", || ask(lab.pod(2), &format!("100.64.1.{n}:80")).is_ok());
    }
    (1..=100).for_each(|n| lab.delete(&format!("services/specs/shop/s{n}")));
    eventually("nothing is left of them", || !lab.tables().contains("100.64.1."));
}
