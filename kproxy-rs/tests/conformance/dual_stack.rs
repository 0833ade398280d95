//! A Service with an address of each family: each has its own endpoints.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::traffic::{UdpClient, ask, ask_udp, count, is_refused, serve_tcp, serve_udp};
use crate::support::{GATEWAY6, Lab, OUTSIDE_IP6, WORKER_IP6, eventually};
use crate::{HTTP, VIP, is_done};

const VIP6: &str = "fd00:64::1";
const HTTP6: &str = "[fd00:64::1]:80";

/// Makes the Service `shop/web` with these addresses, on TCP and UDP port 80.
fn serve(lab: &Lab, addresses: &[&str]) {
    let ports = [("http", "TCP"), ("dns", "UDP")]
        .map(|(name, protocol)| json!({"name": name, "port": 80, "nodePort": 30080, "protocol": protocol}));
    lab.put_service(
        "web",
        &json!({"type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses, "ports": ports}),
    );
}

/// Makes the slice of one family.
fn place(lab: &Lab, family: &str, endpoints: &[u8]) {
    let prefix = if family == "IPv4" { "11.0.0." } else { "fd00:11::" };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|n| json!({"addresses": [format!("{prefix}{n}")], "nodeName": "w1", "conditions": {"ready": true}}))
        .collect();
    let ports = [("http", "TCP"), ("dns", "UDP")]
        .map(|(name, protocol)| json!({"name": name, "port": 8080, "protocol": protocol}));
    lab.put(
        &format!("endpointslices/shop/web-{}", family.to_lowercase()),
        &json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": family,
            "endpoints": endpoints, "ports": ports}),
    );
}

fn lab() -> Lab {
    let lab = Lab::new(4);
    for n in 1..=3 {
        serve_tcp(lab.pod(n), 8080);
        serve_udp(lab.pod(n), 8080);
    }
    lab
}

#[test]
fn each_family_is_served_by_its_own_endpoints() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, &[VIP, VIP6]);
    place(&lab, "IPv4", &[1]);
    place(&lab, "IPv6", &[2, 3]);
    eventually("IPv4 is served", || ask(lab.pod(4), HTTP).is_ok());
    eventually("IPv6 is served", || ask(lab.pod(4), HTTP6).is_ok());
    for ask in [ask, ask_udp] {
        assert_eq!(ask(lab.pod(4), HTTP).unwrap(), ("p1".to_owned(), "11.0.0.4".to_owned()));
        assert_eq!(ask(lab.pod(4), HTTP6).unwrap().1, "fd00:11::4");
        assert_eq!(ask(&lab.outside, HTTP6).unwrap().1, GATEWAY6, "a stranger is masqueraded");
        assert_eq!(ask(&lab.worker, HTTP6).unwrap().1, GATEWAY6);
    }
    let answers = count(lab.pod(4), HTTP6, 200);
    // Expected are 100 each with a standard deviation of 7.1.
    assert!(answers.len() == 2 && answers.values().all(|count| (65..=135).contains(count)), "{answers:?}");
}

#[test]
fn a_node_port_is_there_for_both_families() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, &[VIP6, VIP]);
    place(&lab, "IPv4", &[1]);
    place(&lab, "IPv6", &[2]);
    let node_port6 = format!("[{WORKER_IP6}]:30080");
    eventually("it is served", || ask(&lab.outside, &node_port6).is_ok());
    for ask in [ask, ask_udp] {
        assert_eq!(ask(&lab.outside, &node_port6).unwrap(), ("p2".to_owned(), GATEWAY6.to_owned()));
        eventually("and for IPv4", || ask(&lab.outside, "10.0.0.1:30080").is_ok_and(|(pod, _)| pod == "p1"));
    }
}

#[test]
fn a_service_gets_a_second_family_and_loses_it() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, &[VIP]);
    place(&lab, "IPv4", &[1]);
    for _ in 0..2 {
        eventually("one family is served", || ask(lab.pod(4), HTTP).is_ok() && !lab.tables().contains(VIP6));
        serve(&lab, &[VIP, VIP6]);
        eventually("the second has no endpoints", || is_refused(lab.pod(4), HTTP6));
        place(&lab, "IPv6", &[2]);
        eventually("both are served", || ask(lab.pod(4), HTTP6).is_ok_and(|(pod, _)| pod == "p2"));
        assert_eq!(ask(lab.pod(4), HTTP).unwrap().0, "p1");
        serve(&lab, &[VIP]);
        lab.delete("endpointslices/shop/web-ipv6");
    }
    eventually("one family is left", || ask(lab.pod(4), HTTP).is_ok() && !lab.tables().contains(VIP6));
}

#[test]
fn what_ipv4_promises_ipv6_does_too() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab, &[VIP6]);
    place(&lab, "IPv6", &[1]);
    eventually("it is served", || ask(lab.pod(4), HTTP6).is_ok());
    assert!(is_refused(lab.pod(4), "[fd00:64::1]:81"), "a wrong port");
    for ask in [ask, ask_udp] {
        assert_eq!(ask(lab.pod(1), HTTP6).unwrap(), ("p1".to_owned(), GATEWAY6.to_owned()), "hairpin");
    }
    place(&lab, "IPv6", &[]);
    for from in [lab.pod(4), &lab.worker, &lab.outside] {
        eventually("no endpoints", || is_refused(from, HTTP6));
    }
}

#[test]
fn sticky_clients_and_policies_are_known_to_ipv6_too() {
    if is_done() {
        return;
    }
    let lab = lab();
    let put = |more: &Value| {
        let mut spec = json!({"type": "NodePort", "clusterIP": VIP6,
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 80, "nodePort": 30080, "protocol": "UDP"}]});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        lab.put_service("web", &spec);
    };
    put(&json!({"sessionAffinity": "ClientIP"}));
    place(&lab, "IPv6", &[1, 2, 3]);
    eventually("it is served", || ask(lab.pod(4), HTTP6).is_ok());
    assert_eq!(count(lab.pod(4), HTTP6, 20).len(), 1);
    put(&json!({}));
    eventually("without affinity, connections spread", || count(lab.pod(4), HTTP6, 20).len() == 3);
    put(&json!({"externalTrafficPolicy": "Local"}));
    let node_port = format!("[{WORKER_IP6}]:30080");
    eventually("the client's address is kept", || {
        [ask, ask_udp].iter().all(|ask| ask(&lab.outside, &node_port).is_ok_and(|(_, client)| client == OUTSIDE_IP6))
    });
}

#[test]
fn a_udp_client_of_ipv6_moves_with_its_service() {
    if is_done() {
        return;
    }
    let lab = lab();
    let client = UdpClient::new(lab.pod(4), HTTP6, Duration::from_millis(100));
    assert_eq!(client.pod(), None, "it begins before there is a Service, which conntrack remembers");
    serve(&lab, &[VIP6]);
    place(&lab, "IPv6", &[1]);
    eventually("the same socket is answered", || client.pod().as_deref() == Some("p1"));
    place(&lab, "IPv6", &[2]);
    eventually("it moves to the new endpoint", || client.pod().as_deref() == Some("p2"));
}
