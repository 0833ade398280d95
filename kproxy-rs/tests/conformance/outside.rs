//! NodePort, external IP and load balancer: what clients outside of the cluster use, and what pods find there.

use serde_json::{Value, json};

use crate::support::objects::endpoint_on;
use crate::support::traffic::{answer, ask, count, is_dropped, is_refused, serve_tcp};
use crate::support::{GATEWAY, Lab, OUTSIDE_IP, WORKER_IP, eventually};
use crate::{VIP, is_done};

const EXTERNAL: &str = "203.0.113.7";
const BALANCER: &str = "203.0.113.8";

/// Makes the Service `shop/web`, from port 80 to port 8080, with further fields.
fn serve(lab: &Lab, spec: &Value) {
    let mut whole = json!({"clusterIP": VIP, "type": "LoadBalancer", "externalIPs": [EXTERNAL],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    let status = json!({"loadBalancer": {"ingress": [{"ip": BALANCER, "ipMode": "VIP"}]}});
    lab.put("services/specs/shop/web", &json!({"spec": whole, "status": status}));
}

/// Makes its slice, of pods that are said to be on these workers.
fn place(lab: &Lab, endpoints: &[(u8, &str)]) {
    let endpoints: Vec<Value> = endpoints.iter().map(|(n, node)| endpoint_on(*n, node)).collect();
    lab.put_endpoints("web-1", "web", &[json!({"name": "http", "port": 8080, "protocol": "TCP"})], &endpoints);
}

#[test]
fn every_address_for_the_outside_leads_to_the_endpoints() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({}));
    place(&lab, &[(1, "w1")]);
    let node_port = format!("{WORKER_IP}:30080");
    let all = [node_port.clone(), format!("{EXTERNAL}:80"), format!("{BALANCER}:80")];
    eventually("the NodePort is served", || ask(&lab.outside, &node_port).is_ok());
    for to in &all {
        // The answer has to come back through this worker, so a stranger is masqueraded.
        assert_eq!(ask(&lab.outside, to).unwrap(), ("p1".to_owned(), GATEWAY.to_owned()), "{to}");
        assert_eq!(ask(&lab.worker, to).unwrap().0, "p1", "{to}");
        assert_eq!(ask(lab.pod(2), to).unwrap().0, "p1", "{to}");
    }
    assert!(ask(&lab.outside, &format!("{WORKER_IP}:30081")).is_err(), "no Service has this port");
    // Nobody there: refused, not silent, for whoever asks.
    place(&lab, &[]);
    for from in [&lab.outside, &lab.worker, lab.pod(2)] {
        for to in &all {
            eventually("it is refused", || is_refused(from, to));
        }
    }
    lab.delete("services/specs/shop/web");
    eventually("nothing is left of it", || !lab.tables().contains("30080"));
}

#[test]
fn external_policy_local_keeps_the_client_s_address_and_sends_it_nowhere_else() {
    if is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}));
    place(&lab, &[(1, "w1"), (2, "w2")]);
    let node_port = format!("{WORKER_IP}:30080");
    eventually("the NodePort is served", || ask(&lab.outside, &node_port).is_ok());
    for to in [&node_port, &format!("{EXTERNAL}:80"), &format!("{BALANCER}:80")] {
        for _ in 0..8 {
            let found = ask(&lab.outside, to).unwrap();
            assert_eq!(found, ("p1".to_owned(), OUTSIDE_IP.to_owned()), "{to}: the endpoint of this worker alone");
        }
        eventually("for a pod the address means all endpoints", || answer(lab.pod(3), to, &[1, 2]));
        eventually("and for the worker itself", || answer(&lab.worker, to, &[1, 2]));
    }
    eventually("the load balancer hears of it", || {
        lab.health_check(30999).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    place(&lab, &[(2, "w2")]);
    eventually("the load balancer hears of it", || {
        lab.health_check(30999).is_some_and(|answer| answer.starts_with("HTTP/1.1 503"))
    });
    eventually("there are endpoints, but not here", || is_dropped(&lab.outside, &node_port));
    assert_eq!(ask(lab.pod(3), &node_port).unwrap().0, "p2");
    assert_eq!(ask(&lab.worker, &node_port).unwrap().0, "p2");
}

#[test]
fn the_external_policy_changes_while_clients_ask() {
    if is_done() {
        return;
    }
    let lab = Lab::new(2);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    place(&lab, &[(1, "w1"), (2, "w2")]);
    let to = format!("{BALANCER}:80");
    for _ in 0..2 {
        serve(&lab, &json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}));
        eventually("Local: the endpoint here, and the client's address", || {
            answer(&lab.outside, &to, &[1]) && ask(&lab.outside, &to).is_ok_and(|(_, client)| client == OUTSIDE_IP)
        });
        eventually("load balancers may ask", || lab.health_check(30999).is_some());
        serve(&lab, &json!({"externalTrafficPolicy": "Cluster"}));
        eventually("Cluster: all endpoints, and the worker's address", || {
            answer(&lab.outside, &to, &[1, 2]) && ask(&lab.outside, &to).is_ok_and(|(_, client)| client == GATEWAY)
        });
        eventually("nobody needs to ask any more", || lab.health_check(30999).is_none());
    }
}

#[test]
fn internal_policy_local_uses_the_endpoints_of_this_worker_or_none() {
    if is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({"internalTrafficPolicy": "Local"}));
    place(&lab, &[(1, "w1"), (2, "w2")]);
    let to = format!("{VIP}:80");
    eventually("the ClusterIP is served", || ask(lab.pod(3), &to).is_ok());
    // The worker's own processes, as a pod that lives in its network does, are inside too.
    for from in [lab.pod(3), &lab.worker] {
        assert_eq!(count(from, &to, 20).into_keys().collect::<Vec<_>>(), ["p1"]);
    }
    place(&lab, &[(2, "w2")]);
    for from in [lab.pod(3), &lab.worker] {
        eventually("nobody answers", || is_dropped(from, &to));
    }
    assert_eq!(
        ask(lab.pod(3), &format!("{WORKER_IP}:30080")).unwrap().0,
        "p2",
        "another policy holds for this address"
    );
}

#[test]
fn a_load_balancer_s_source_ranges_let_in_whom_they_name() {
    if is_done() {
        return;
    }
    let lab = Lab::new(1);
    serve_tcp(lab.pod(1), 8080);
    place(&lab, &[(1, "w1")]);
    let balancer = format!("{BALANCER}:80");
    serve(&lab, &json!({"loadBalancerSourceRanges": ["10.0.0.8/31"]}));
    eventually("a client in the range is served", || ask(&lab.outside, &balancer).is_ok());
    serve(&lab, &json!({"loadBalancerSourceRanges": ["10.0.0.10/31", "192.0.2.0/24"]}));
    eventually("a client outside of it is not", || is_dropped(&lab.outside, &balancer));
    assert!(is_dropped(lab.pod(1), &balancer), "a pod is a client like any other here");
    for to in [format!("{WORKER_IP}:30080"), format!("{EXTERNAL}:80")] {
        assert!(ask(&lab.outside, &to).is_ok(), "the ranges hold for the load balancer alone: {to}");
    }
    serve(&lab, &json!({}));
    eventually("without ranges everybody is", || ask(&lab.outside, &balancer).is_ok());
}

#[test]
fn a_load_balancer_that_is_a_proxy_keeps_its_address() {
    if is_done() {
        return;
    }
    let lab = Lab::new(1);
    serve_tcp(lab.pod(1), 8080);
    place(&lab, &[(1, "w1")]);
    let spec =
        json!({"clusterIP": VIP, "type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let put = |mode: &str| {
        let status = json!({"loadBalancer": {"ingress": [{"ip": BALANCER, "ipMode": mode}]}});
        lab.put("services/specs/shop/web", &json!({"spec": spec, "status": status}));
    };
    put("VIP");
    eventually("its packets come as they were sent", || ask(lab.pod(1), &format!("{BALANCER}:80")).is_ok());
    put("Proxy");
    eventually("its clients have to go there", || !lab.tables().contains(BALANCER));
    assert!(ask(&lab.outside, &format!("{WORKER_IP}:30080")).is_ok(), "it sends to the NodePort");
}
