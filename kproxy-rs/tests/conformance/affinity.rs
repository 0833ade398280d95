//! Session affinity: clients that are remembered.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::support::traffic::{ask, count, serve_tcp};
use crate::support::{Lab, WORKER_IP, eventually};
use crate::{HTTP, VIP, is_done};

/// Makes the Service `shop/web`; `None` is one without affinity.
fn serve(lab: &Lab, seconds: Option<u32>) {
    let mut spec =
        json!({"clusterIP": VIP, "type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    if let Some(seconds) = seconds {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    lab.put_service("web", &spec);
}

fn place(lab: &Lab, endpoints: &[u8]) {
    lab.put_slice("web", &[json!({"name": "http", "port": 8080, "protocol": "TCP"})], endpoints);
}

/// A worker with three servers and a client, pod 4.
fn lab() -> Lab {
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    place(&lab, &[1, 2, 3]);
    lab
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_goes() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, Some(100));
    eventually("the Service is served", || ask(lab.pod(4), HTTP).is_ok());
    let first = ask(lab.pod(4), HTTP).unwrap().0;
    // By chance alone, once in 3^25 runs.
    assert_eq!(count(lab.pod(4), HTTP, 25), [(first.clone(), 25)].into());
    let number: u8 = first.trim_start_matches('p').parse().unwrap();
    place(&lab, &(1..=3).filter(|n| *n != number).collect::<Vec<_>>());
    eventually("the endpoint that went is forgotten", || ask(lab.pod(4), HTTP).is_ok_and(|(pod, _)| pod != first));
    let second = ask(lab.pod(4), HTTP).unwrap().0;
    assert_eq!(count(lab.pod(4), HTTP, 15), [(second, 15)].into());
}

#[test]
fn a_client_is_forgotten_after_the_time_that_the_service_says() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, Some(2));
    eventually("the Service is served", || ask(lab.pod(4), HTTP).is_ok());
    let first = ask(lab.pod(4), HTTP).unwrap().0;
    // Each connection begins the time anew.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(ask(lab.pod(4), HTTP).unwrap().0, first);
    }
    // After it another endpoint is drawn, or the same again: in one of three times.
    let forgotten = (0..12).any(|_| {
        std::thread::sleep(Duration::from_millis(2500));
        ask(lab.pod(4), HTTP).unwrap().0 != first
    });
    assert!(forgotten, "by chance alone, once in half a million runs");
}

#[test]
fn a_client_is_remembered_whichever_address_of_the_service_it_uses() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, Some(100));
    let node_port = format!("{WORKER_IP}:30080");
    eventually("the NodePort is served", || ask(&lab.outside, &node_port).is_ok());
    for from in [&lab.outside, &lab.worker, lab.pod(4), lab.pod(1)] {
        let answers = count(from, HTTP, 15);
        assert!(answers.len() == 1 && answers == count(from, &node_port, 15), "{}: {answers:?}", from.name());
    }
}

#[test]
fn each_client_is_remembered_by_itself() {
    if is_done() {
        return;
    }
    let lab = lab();
    // Of four clients who draw from three endpoints all get the same one in 1 of 27 runs; then the Service is made anew, and they draw again.
    eventually("not all have the same endpoint", || {
        serve(&lab, Some(100));
        eventually("the Service is served", || ask(lab.pod(4), HTTP).is_ok());
        let answers = (1..=4).map(|client| count(lab.pod(client), HTTP, 10));
        let chosen: Vec<String> =
            answers.inspect(|found| assert_eq!(found.len(), 1)).flat_map(BTreeMap::into_keys).collect();
        lab.delete("services/specs/shop/web");
        eventually("it is gone", || !lab.tables().contains(VIP));
        chosen.iter().any(|pod| *pod != chosen[0])
    });
}

#[test]
fn affinity_is_switched_on_and_off_while_clients_ask() {
    if is_done() {
        return;
    }
    let lab = lab();
    // Of three endpoints, twelve connections hit one alone in 1 of 177,147 runs.
    let spreads = || ask(lab.pod(4), HTTP).is_ok() && count(lab.pod(4), HTTP, 12).len() > 1;
    for _ in 0..2 {
        serve(&lab, None);
        eventually("connections spread", spreads);
        serve(&lab, Some(100));
        eventually("they stay with one endpoint", || !spreads());
        assert!((0..3).all(|_| !spreads()));
    }
}

#[test]
fn an_endpoint_that_went_while_the_proxy_was_away_is_forgotten() {
    if is_done() {
        return;
    }
    let mut lab = lab();
    serve(&lab, Some(100));
    eventually("the Service is served", || ask(lab.pod(4), HTTP).is_ok());
    let first = ask(lab.pod(4), HTTP).unwrap().0;
    lab.kill_proxy();
    let number: u8 = first.trim_start_matches('p').parse().unwrap();
    place(&lab, &(1..=3).filter(|n| *n != number).collect::<Vec<_>>());
    assert_eq!(ask(lab.pod(4), HTTP).unwrap().0, first, "nobody has told the kernel");
    lab.start_proxy();
    eventually("another endpoint is drawn", || ask(lab.pod(4), HTTP).is_ok_and(|(pod, _)| pod != first));
    let second = ask(lab.pod(4), HTTP).unwrap().0;
    assert_eq!(count(lab.pod(4), HTTP, 15), [(second, 15)].into());
}

#[test]
fn a_client_is_still_remembered_after_a_restart() {
    if is_done() {
        return;
    }
    let mut lab = lab();
    serve(&lab, Some(100));
    eventually("the Service is served", || ask(lab.pod(4), HTTP).is_ok());
    let before = ask(lab.pod(4), HTTP).unwrap().0;
    for _ in 0..4 {
        lab.kill_proxy();
        lab.start_proxy();
        assert_eq!(ask(lab.pod(4), HTTP).unwrap().0, before);
    }
}
