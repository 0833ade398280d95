//! On which of the worker's addresses a NodePort is.

use serde_json::json;

use crate::support::program::{Settings, is_ours_only};
use crate::support::traffic::{ask, ask_udp, serve_tcp, serve_udp};
use crate::support::{GATEWAY, Lab, WORKER_IP, eventually};
use crate::{VIP, is_done};

/// A worker with one server, whose Service has TCP and UDP NodePort 30080.
fn lab(settings: Settings) -> Lab {
    let lab = Lab::with(2, settings);
    serve_tcp(lab.pod(1), 8080);
    serve_udp(lab.pod(1), 8080);
    let listed = |port: u16| {
        ["TCP", "UDP"].map(
            |protocol| json!({"name": protocol.to_lowercase(), "port": port, "nodePort": 30080, "protocol": protocol}),
        )
    };
    lab.put_service("web", &json!({"type": "NodePort", "clusterIP": VIP, "ports": listed(80)}));
    lab.put_slice("web", &listed(8080), &[1]);
    eventually("the Service is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    lab
}

#[test]
fn a_node_port_is_on_every_address_of_the_worker_but_loopback() {
    if is_ours_only("nodePortAddresses are the node's primary address of each family unless set") || is_done() {
        return;
    }
    let lab = lab(Settings::default());
    for from in [&lab.outside, &lab.worker, lab.pod(2)] {
        for address in [WORKER_IP, GATEWAY] {
            assert!(ask(from, &format!("{address}:30080")).is_ok(), "{} to {address}", from.name());
            assert!(ask_udp(from, &format!("{address}:30080")).is_ok(), "{} to {address}", from.name());
        }
    }
    assert!(ask(&lab.worker, "127.0.0.1:30080").is_err());
}

#[test]
fn a_node_port_is_on_the_addresses_that_the_proxy_is_told() {
    if is_done() {
        return;
    }
    let lab = lab(Settings { node_port_addresses: vec!["10.0.0.0/24", "fd00:10::/64"], ..Settings::default() });
    for from in [&lab.outside, &lab.worker, lab.pod(2)] {
        assert!(ask(from, &format!("{WORKER_IP}:30080")).is_ok(), "{}", from.name());
        assert!(ask_udp(from, &format!("{WORKER_IP}:30080")).is_ok(), "{}", from.name());
        assert!(ask(from, &format!("{GATEWAY}:30080")).is_err(), "{}", from.name());
    }
}
