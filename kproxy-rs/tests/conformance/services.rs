//! A ClusterIP.

use std::io::ErrorKind;

use serde_json::json;

use crate::support::program::is_ours_only;
use crate::support::traffic::{
    answer, ask, ask_udp, count, is_dropped, is_refused, is_refused_udp, pings, serve_tcp, serve_udp,
};
use crate::support::{GATEWAY, Lab, eventually};
use crate::{VIP, is_done, web};

#[test]
fn connections_spread_evenly_and_pods_keep_their_address() {
    if is_done() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2, 3]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(4), &to).is_ok());
    let answers = count(lab.pod(4), &to, 300);
    // Expected are 100 each with a standard deviation of 8.2; five of them to each side fail once in half a million runs.
    assert!(answers.len() == 3 && answers.values().all(|count| (59..=141).contains(count)), "{answers:?}");
    assert_eq!(ask(lab.pod(4), &to).unwrap().1, "11.0.0.4");
    // The worker's own processes are served too, and appear with its address on the bridge; so do strangers.
    assert_eq!(ask(&lab.worker, &to).unwrap().1, GATEWAY);
    assert_eq!(ask(&lab.outside, &to).unwrap().1, GATEWAY);
}

#[test]
fn datagrams_spread_and_pods_keep_their_address() {
    if is_done() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_udp(lab.pod(n), 8053));
    let port = |number: u16| json!({"name": "dns", "port": number, "protocol": "UDP"});
    lab.put_service("dns", &json!({"clusterIP": VIP, "ports": [port(53)]}));
    lab.put_slice("dns", &[port(8053)], &[1, 2, 3]);
    let to = format!("{VIP}:53");
    eventually("the Service is served", || ask_udp(lab.pod(4), &to).is_ok());
    let mut pods = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let (pod, client) = ask_udp(lab.pod(4), &to).unwrap();
        assert_eq!(client, "11.0.0.4");
        pods.insert(pod);
    }
    assert_eq!(pods.len(), 3, "by chance alone, once in three million runs");
    assert_eq!(ask_udp(&lab.worker, &to).unwrap().1, GATEWAY);
    assert_eq!(ask_udp(&lab.outside, &to).unwrap().1, GATEWAY);
}

#[test]
fn ports_and_protocols_of_a_service_are_kept_apart() {
    if is_done() {
        return;
    }
    let lab = Lab::new(3);
    serve_tcp(lab.pod(1), 8053);
    serve_udp(lab.pod(1), 8053);
    serve_tcp(lab.pod(1), 8080);
    lab.put_service(
        "dns",
        &json!({"clusterIP": VIP, "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}, {"name": "http", "port": 80}]}),
    );
    let ports = [
        json!({"name": "dns", "port": 8053, "protocol": "UDP"}),
        json!({"name": "http", "port": 8080, "protocol": "TCP"}),
    ];
    lab.put_slice("dns", &ports, &[1]);
    eventually("port 80 is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    assert_eq!(ask_udp(lab.pod(2), &format!("{VIP}:53")).unwrap().0, "p1");
    assert_eq!(ask_udp(&lab.worker, &format!("{VIP}:53")).unwrap().0, "p1");
    assert!(is_refused(lab.pod(2), &format!("{VIP}:53")), "no slice has an endpoint for TCP");
    eventually("no port 80 is of UDP", || is_refused_udp(lab.pod(2), &format!("{VIP}:80")));
}

#[test]
fn one_port_of_two_protocols_loses_either_alone() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8053);
    serve_udp(lab.pod(1), 8053);
    let (tcp, udp) = (
        |port: u16| json!({"name": "dns-tcp", "port": port, "protocol": "TCP"}),
        |port: u16| json!({"name": "dns", "port": port, "protocol": "UDP"}),
    );
    lab.put_slice("dns", &[tcp(8053), udp(8053)], &[1]);
    let (from, to) = (lab.pod(2), format!("{VIP}:53"));
    let put = |ports: &[serde_json::Value]| lab.put_service("dns", &json!({"clusterIP": VIP, "ports": ports}));
    put(&[tcp(53), udp(53)]);
    eventually("both are served", || ask(from, &to).is_ok() && ask_udp(from, &to).is_ok());
    put(&[udp(53)]);
    eventually("TCP is not", || is_refused(from, &to));
    assert!(ask_udp(from, &to).is_ok());
    put(&[tcp(53)]);
    eventually("UDP is not", || is_refused_udp(from, &to));
    assert!(ask(from, &to).is_ok());
}

#[test]
fn a_service_without_endpoints_and_a_wrong_port_are_refused_at_once() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    lab.serve("empty", "100.64.0.2", &[80], &[]);
    eventually("the Service is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    for from in [lab.pod(2), &lab.worker, &lab.outside] {
        for to in [format!("{VIP}:81"), "100.64.0.2:80".to_owned()] {
            eventually("it is refused", || is_refused(from, &to));
        }
    }
    for from in [lab.pod(2), &lab.outside] {
        for to in [format!("{VIP}:81"), "100.64.0.2:80".to_owned()] {
            // By ICMP, of which the kernel sends one a second to a client.
            eventually("a datagram is refused", || is_refused_udp(from, &to));
        }
    }
    // What the worker sends itself never becomes a packet: the kernel refuses the system call.
    assert_eq!(ask_udp(&lab.worker, "100.64.0.2:80").unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn an_address_that_no_service_has_is_not_answered() {
    if is_done() {
        return;
    }
    let lab = web();
    assert!(is_dropped(lab.pod(2), "100.64.0.99:80"));
}

#[test]
fn the_endpoints_that_are_reached_follow_each_change() {
    if is_done() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let to = format!("{VIP}:80");
    for endpoints in [&[1][..], &[1, 2], &[2, 3], &[3], &[], &[1]] {
        lab.serve("web", VIP, &[80], endpoints);
        eventually("exactly these endpoints answer", || answer(lab.pod(4), &to, endpoints));
    }
    lab.delete("services/specs/shop/web");
    eventually("nothing is left of it", || !lab.tables().contains(VIP));
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    serve_udp(lab.pod(1), 8080);
    let ports = |number: u16| {
        ["TCP", "UDP"].map(|protocol| json!({"name": protocol.to_lowercase(), "port": number, "protocol": protocol}))
    };
    lab.put_service("web", &json!({"clusterIP": VIP, "ports": ports(80)}));
    lab.put_slice("web", &ports(8080), &[1]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(2), &to).is_ok());
    for ask in [ask, ask_udp] {
        assert_eq!(ask(lab.pod(1), &to).unwrap(), ("p1".to_owned(), GATEWAY.to_owned()));
        assert_eq!(ask(lab.pod(2), &to).unwrap().1, "11.0.0.2");
    }
}

#[test]
fn a_vip_for_all_protocols_answers_ping_and_every_port() {
    if is_ours_only("such addresses are ours alone") || is_done() {
        return;
    }
    let lab = Lab::new(3);
    serve_tcp(lab.pod(1), 8000);
    serve_tcp(lab.pod(1), 9000);
    serve_udp(lab.pod(1), 9000);
    lab.put(
        "services/specs/shop/vip",
        &json!({"metadata": {"annotations": {"knetsim.io/all-protocols": "true"}}, "spec": {"clusterIP": VIP}}),
    );
    lab.put_slice("vip", &[], &[1]);
    for from in [lab.pod(2), lab.pod(1), &lab.worker] {
        eventually("the VIP answers ping", || pings(from, VIP));
        for port in [8000, 9000] {
            assert_eq!(ask(from, &format!("{VIP}:{port}")).unwrap().0, "p1");
        }
        assert_eq!(ask_udp(from, &format!("{VIP}:9000")).unwrap().0, "p1");
    }
    // A second endpoint that does not exist: about every second ping fails, as a lesson shows.
    lab.put_slice("vip", &[], &[1, 99]);
    eventually("some pings fail", || !pings(lab.pod(2), VIP));
    eventually("some pings are answered", || pings(lab.pod(2), VIP));
    lab.put_slice("vip", &[], &[]);
    eventually("it is refused", || is_refused(lab.pod(2), &format!("{VIP}:8000")));
    assert!(!pings(lab.pod(2), VIP));
}
