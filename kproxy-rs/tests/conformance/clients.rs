//! Who counts as a pod: the endpoint sees a pod's own address, and the worker's in the place of anybody else's.

use serde_json::json;

use crate::support::objects::endpoint_on;
use crate::support::program::{Pods, Settings, is_ours_only};
use crate::support::traffic::{answer, ask, ask_udp, serve_tcp, serve_udp};
use crate::support::{GATEWAY, Lab, OUTSIDE_IP, WORKER_IP, eventually};
use crate::{VIP, is_done};

/// Whatever tells pods from others, this must hold.
fn pods_keep_their_address_and_others_do_not(pods: Pods) {
    let lab = Lab::with(3, Settings { pods, ..Settings::default() });
    let listed = |port: u16| {
        ["TCP", "UDP"].map(|protocol| json!({"name": protocol.to_lowercase(), "port": port, "protocol": protocol}))
    };
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    (1..=2).for_each(|n| serve_udp(lab.pod(n), 8080));
    lab.put_service("web", &json!({"clusterIP": VIP, "ports": listed(80)}));
    lab.put_slice("web", &listed(8080), &[1]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(3), &to).is_ok());
    for ask in [ask, ask_udp] {
        assert_eq!(ask(lab.pod(3), &to).unwrap().1, "11.0.0.3", "a pod");
        assert_eq!(ask(lab.pod(1), &to).unwrap().1, GATEWAY, "a pod that reaches itself");
        assert_eq!(ask(&lab.outside, &to).unwrap().1, GATEWAY, "a stranger");
        assert_eq!(ask(&lab.worker, &to).unwrap().1, GATEWAY, "the worker");
    }
    // The short circuit of policy Local is for pods and for the worker.
    let port = json!({"name": "tcp", "port": 80, "nodePort": 30080});
    lab.put_service(
        "web",
        &json!({"type": "NodePort", "clusterIP": VIP, "externalTrafficPolicy": "Local", "ports": [port]}),
    );
    lab.put_endpoints("web-1", "web", &listed(8080), &[endpoint_on(1, "w1"), endpoint_on(2, "w2")]);
    let to = format!("{WORKER_IP}:30080");
    eventually("a pod reaches all endpoints", || answer(lab.pod(3), &to, &[1, 2]));
    eventually("so does the worker", || answer(&lab.worker, &to, &[1, 2]));
    eventually("a stranger reaches the one here", || answer(&lab.outside, &to, &[1]));
    assert_eq!(ask(&lab.outside, &to).unwrap().1, OUTSIDE_IP);
}

#[test]
fn pods_are_known_by_their_addresses() {
    if is_done() {
        return;
    }
    pods_keep_their_address_and_others_do_not(Pods::Networks("11.0.0.0/24,fd00:11::/64"));
}

#[test]
fn pods_are_known_by_their_bridge() {
    if is_done() {
        return;
    }
    pods_keep_their_address_and_others_do_not(Pods::Bridge("cni0"));
}

#[test]
fn pods_are_known_by_the_names_of_their_interfaces() {
    if is_ours_only("it writes `iif != cni*`, and nft looks for an interface of that name; nothing is served then")
        || is_done()
    {
        return;
    }
    // Their packets come in by the bridge that their cables end at.
    pods_keep_their_address_and_others_do_not(Pods::Prefix("cni"));
}
