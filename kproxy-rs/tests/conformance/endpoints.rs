//! Which endpoints count: what their conditions say, and how several slices add up.

use serde_json::{Value, json};

use crate::support::objects::{endpoint, endpoint_on, terminating, unready};
use crate::support::program::{TOO_MUCH, is_ours_only};
use crate::support::traffic::{answer, ask, count, is_dropped, is_refused, serve_tcp, serve_tcp_as};
use crate::support::{Lab, OUTSIDE_IP, WORKER_IP, eventually};
use crate::{HTTP, VIP, is_done};

fn ports() -> [Value; 1] {
    [json!({"name": "http", "port": 8080, "protocol": "TCP"})]
}

/// A worker with three servers and a client, pod 4, and a Service without slices.
fn lab(spec: &Value) -> Lab {
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let mut whole = json!({"clusterIP": VIP, "ports": [{"name": "http", "port": 80}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    lab.put_service("web", &whole);
    lab
}

#[test]
fn an_endpoint_takes_connections_once_it_is_ready() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    let put = |endpoints: &[Value]| lab.put_endpoints("web-1", "web", &ports(), endpoints);
    put(&[unready(1)]);
    eventually("nobody is ready", || is_refused(lab.pod(4), HTTP));
    put(&[unready(1), endpoint(2)]);
    eventually("the ready one answers", || answer(lab.pod(4), HTTP, &[2]));
    // What publishNotReadyAddresses asks of the controller that writes slices: it says ready of pods that are not.
    put(&[endpoint(1), endpoint(2)]);
    eventually("both answer", || answer(lab.pod(4), HTTP, &[1, 2]));
    // A slice that says nothing of it means ready.
    put(&[json!({"addresses": ["11.0.0.3"], "nodeName": "w1"})]);
    eventually("the third answers", || answer(lab.pod(4), HTTP, &[3]));
}

#[test]
fn endpoints_that_terminate_serve_while_no_other_is_ready() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    let put = |endpoints: &[Value]| lab.put_endpoints("web-1", "web", &ports(), endpoints);
    put(&[endpoint(1), terminating(2, "w1")]);
    eventually("the ready one alone", || answer(lab.pod(4), HTTP, &[1]));
    put(&[terminating(1, "w1"), terminating(2, "w1"), unready(3)]);
    eventually("those that still answer", || answer(lab.pod(4), HTTP, &[1, 2]));
    put(&[terminating(1, "w1"), terminating(2, "w1"), endpoint(3)]);
    eventually("the one that came", || answer(lab.pod(4), HTTP, &[3]));
    let gone = json!({"addresses": ["11.0.0.1"], "nodeName": "w1", "conditions": {"ready": false, "serving": false, "terminating": true}});
    put(&[gone]);
    eventually("nobody", || is_refused(lab.pod(4), HTTP));
}

#[test]
fn with_policy_local_the_last_endpoint_here_serves_until_it_has_gone() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({"type": "NodePort", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}));
    let node_port = format!("{WORKER_IP}:30080");
    let put = |endpoints: &[Value]| lab.put_endpoints("web-1", "web", &ports(), endpoints);
    // Ready is only one of another worker, which is of no use to this policy.
    put(&[terminating(1, "w1"), endpoint_on(2, "w2")]);
    for (from, to) in [(&lab.outside, node_port.as_str()), (lab.pod(4), HTTP)] {
        eventually("the terminating one answers", || answer(from, to, &[1]));
    }
    assert_eq!(ask(&lab.outside, &node_port).unwrap().1, OUTSIDE_IP);
    eventually("for a pod, what is ready anywhere answers", || answer(lab.pod(4), &node_port, &[2]));
    put(&[terminating(1, "w1"), endpoint(3), endpoint_on(2, "w2")]);
    for (from, to) in [(&lab.outside, node_port.as_str()), (lab.pod(4), HTTP)] {
        eventually("the ready one here answers", || answer(from, to, &[3]));
    }
    put(&[endpoint_on(2, "w2")]);
    for (from, to) in [(&lab.outside, node_port.as_str()), (lab.pod(4), HTTP)] {
        eventually("nobody here answers", || is_dropped(from, to));
    }
}

#[test]
fn a_hundred_and_twenty_endpoints_of_two_slices_are_one_service() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    // One address with many ports stands for many pods: slices of one Service may differ in their ports.
    let addresses = |from: u8, to: u8| (from..=to).map(endpoint).collect::<Vec<_>>();
    lab.put_endpoints("web-1", "web", &ports(), &addresses(1, 100));
    lab.put_endpoints("web-2", "web", &ports(), &addresses(101, 120));
    eventually("all are there", || {
        let tables = lab.tables();
        tables.contains("11.0.0.100") && tables.contains("11.0.0.120")
    });
    // Three of a hundred and twenty exist.
    lab.put_endpoints("web-1", "web", &ports(), &addresses(1, 2));
    lab.put_endpoints("web-2", "web", &ports(), &addresses(3, 3));
    eventually("the three of both slices answer", || answer(lab.pod(4), HTTP, &[1, 2, 3]));
    lab.delete("endpointslices/shop/web-1");
    eventually("the one of the second slice", || answer(lab.pod(4), HTTP, &[3]));
}

#[test]
fn three_hundred_endpoints_of_a_hundred_slices_all_take_connections() {
    if is_ours_only(TOO_MUCH) || is_done() {
        return;
    }
    let lab = Lab::new(4);
    // Slices of one Service may differ in their ports, so that three pods are enough.
    for slice in 0..100 {
        (1..=3).for_each(|n| serve_tcp_as(format!("p{n}:{slice}"), lab.pod(n), 9000 + slice));
        let port = json!({"name": "http", "port": 9000 + slice, "protocol": "TCP"});
        lab.put_endpoints(&format!("web-{slice}"), "web", &[port], &[1, 2, 3].map(endpoint));
    }
    lab.put_service("web", &json!({"clusterIP": VIP, "ports": [{"name": "http", "port": 80}]}));
    eventually("the last endpoint is there", || lab.tables().contains("11.0.0.3 . 9099"));
    // Expected are 15 each; that one gets none happens once in 10,000 runs, and then once more. That none gets more than 45, three times
    // its share, is wrong once in fifty million.
    let mut answers = count(lab.pod(4), HTTP, 4500);
    if answers.len() < 300 {
        answers.extend(count(lab.pod(4), HTTP, 1500));
    }
    assert_eq!(answers.len(), 300);
    assert!(answers.values().all(|count| *count <= 45), "{answers:?}");
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    lab.put_endpoints("web-1", "web", &ports(), &[endpoint(1), endpoint(2)]);
    lab.put_endpoints("web-2", "web", &ports(), &[endpoint(2)]);
    eventually("both answer", || answer(lab.pod(4), HTTP, &[1, 2]));
    let answers = count(lab.pod(4), HTTP, 300);
    // Expected are 150 with a standard deviation of 8.7, not 200.
    assert!((107..=193).contains(&answers["p2"]), "{answers:?}");
    lab.delete("endpointslices/shop/web-1");
    eventually("one slice still has it", || answer(lab.pod(4), HTTP, &[2]));
}

#[test]
fn slices_of_host_names_and_of_other_services_are_none_of_its_endpoints() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    lab.put(
        "endpointslices/shop/web-names",
        &json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "FQDN",
            "endpoints": [{"addresses": ["web.example.org"]}], "ports": ports()}),
    );
    lab.put_endpoints("web-other", "other", &ports(), &[endpoint(2)]);
    lab.put_endpoints("web-1", "web", &ports(), &[endpoint(1)]);
    eventually("its own answers", || answer(lab.pod(4), HTTP, &[1]));
    // A slice may pass to another Service.
    lab.put_endpoints("web-other", "web", &ports(), &[endpoint(2)]);
    eventually("both answer", || answer(lab.pod(4), HTTP, &[1, 2]));
}

#[test]
fn slices_may_give_one_port_different_numbers() {
    if is_done() {
        return;
    }
    let lab = lab(&json!({}));
    serve_tcp(lab.pod(2), 9090);
    lab.put_endpoints("web-1", "web", &ports(), &[endpoint(1)]);
    lab.put_endpoints("web-2", "web", &[json!({"name": "http", "port": 9090, "protocol": "TCP"})], &[endpoint(2)]);
    eventually("both answer", || answer(lab.pod(4), HTTP, &[1, 2]));
}
