//! Datagrams of one client port while endpoints come and go: conntrack takes them for one connection.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::program::is_ours_only;
use crate::support::traffic::{UdpClient, ask_udp, serve_udp};
use crate::support::{Lab, WORKER_IP, eventually};
use crate::{VIP, is_done};

fn port(number: u16) -> Value {
    json!({"name": "dns", "port": number, "protocol": "UDP", "nodePort": 30053})
}

/// A worker with two servers, and a client in pod 3.
fn lab() -> Lab {
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_udp(lab.pod(n), 8053));
    lab
}

fn serve(lab: &Lab) {
    lab.put_service("dns", &json!({"type": "NodePort", "clusterIP": VIP, "ports": [port(53)]}));
}

fn place(lab: &Lab, endpoints: &[u8]) {
    lab.put_slice("dns", &[port(8053)], endpoints);
}

/// Sends more often than the half minute after which conntrack forgets.
fn client(from: &linux_net::NetNs, to: &str) -> UdpClient {
    UdpClient::new(from, to, Duration::from_millis(100))
}

/// What a client that keeps sending finds, whatever it sends to.
fn follows_its_service(lab: &Lab, client: &UdpClient) {
    place(lab, &[1]);
    eventually("the same socket is answered", || client.pod().as_deref() == Some("p1"));
    place(lab, &[2]);
    eventually("it moves to the new endpoint", || client.pod().as_deref() == Some("p2"));
    if !is_ours_only("a client whose last endpoint goes keeps sending to it (Kubernetes issue 139628)") {
        place(lab, &[]);
        eventually("it is refused", || {
            client.ask().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        });
        place(lab, &[1]);
        eventually("it is answered again", || client.pod().as_deref() == Some("p1"));
    }
}

#[test]
fn a_client_that_began_before_its_service_moves_with_it() {
    if is_done() {
        return;
    }
    let lab = lab();
    let client = client(lab.pod(3), &format!("{VIP}:53"));
    // conntrack remembers that this was not translated.
    assert_eq!(client.pod(), None);
    serve(&lab);
    follows_its_service(&lab, &client);
}

#[test]
fn a_client_of_a_node_port_moves_with_its_service() {
    if is_done() {
        return;
    }
    let lab = lab();
    let client = client(&lab.outside, &format!("{WORKER_IP}:30053"));
    assert_eq!(client.pod(), None);
    serve(&lab);
    follows_its_service(&lab, &client);
}

#[test]
fn a_client_of_a_deleted_service_is_not_served_by_its_endpoint_any_more() {
    if is_ours_only("such a client keeps its endpoint (Kubernetes pull request 141371)") || is_done() {
        return;
    }
    let lab = lab();
    serve(&lab);
    place(&lab, &[1]);
    let client = client(lab.pod(3), &format!("{VIP}:53"));
    eventually("it is answered", || client.pod().as_deref() == Some("p1"));
    lab.delete("services/specs/shop/dns");
    eventually("it is not any more", || client.pod().is_none());
    place(&lab, &[2]);
    serve(&lab);
    eventually("the next Service of this address answers it", || client.pod().as_deref() == Some("p2"));
}

#[test]
fn a_client_stays_where_it_is_while_other_endpoints_come_and_go() {
    if is_done() {
        return;
    }
    let lab = lab();
    serve(&lab);
    place(&lab, &[1]);
    let client = client(lab.pod(3), &format!("{VIP}:53"));
    eventually("it is answered", || client.pod().as_deref() == Some("p1"));
    for _ in 0..3 {
        place(&lab, &[1, 2]);
        eventually("the other is there", || {
            ask_udp(lab.pod(3), &format!("{VIP}:53")).is_ok_and(|(pod, _)| pod == "p2")
        });
        assert_eq!(client.pod().as_deref(), Some("p1"));
        place(&lab, &[1]);
        eventually("the other is gone", || !lab.tables().contains("11.0.0.2"));
        assert_eq!(client.pod().as_deref(), Some("p1"));
    }
}

#[test]
fn what_changed_while_the_proxy_was_away_is_made_up_for() {
    if is_done() {
        return;
    }
    let mut lab = lab();
    serve(&lab);
    place(&lab, &[1]);
    let inside = client(lab.pod(3), &format!("{VIP}:53"));
    let outside = client(&lab.outside, &format!("{WORKER_IP}:30053"));
    for client in [&inside, &outside] {
        eventually("it is answered", || client.pod().as_deref() == Some("p1"));
    }
    lab.kill_proxy();
    place(&lab, &[2]);
    for client in [&inside, &outside] {
        assert_eq!(client.pod().as_deref(), Some("p1"));
    }
    lab.start_proxy();
    for client in [&inside, &outside] {
        eventually("it moves to the new endpoint", || client.pod().as_deref() == Some("p2"));
    }
}
