//! What a Service promises to clients outside of the cluster, and how it chooses, with real traffic through the real program.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Lab, PATIENCE, ask, connect, eventually, serve_tcp, serve_udp};

const VIP: &str = "100.64.0.1";
const EXTERNAL: &str = "203.0.113.7";
const BALANCER: &str = "203.0.113.8";
/// The worker's address for the outside, and the one on the bridge, which it masquerades with.
const WORKER: &str = "10.0.0.1";
const GATEWAY: &str = "11.0.0.254";

/// Makes the Service `shop/web`, from port 80 to port 8080, with further fields.
fn serve(lab: &Lab, spec: &Value, annotations: &Value) {
    let mut whole = json!({"clusterIP": VIP, "type": "LoadBalancer", "externalIPs": [EXTERNAL],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    lab.put(
        "services/specs/shop/web",
        &json!({"metadata": {"annotations": annotations}, "spec": whole,
            "status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}),
    );
}

/// Makes its slice, of pods that are said to be on these workers.
fn place(lab: &Lab, endpoints: &[(u8, &str)]) {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(n, node)| json!({"addresses": [format!("11.0.0.{n}")], "nodeName": node})).collect();
    lab.put(
        "endpointslices/shop/web-1",
        &json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]}),
    );
}

fn is_dropped(result: std::io::Result<(String, String)>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

#[test]
fn every_address_for_the_outside_leads_to_the_endpoints() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(2);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({}), &json!({}));
    place(&lab, &[(1, "w1")]);
    let node_port = format!("{WORKER}:30080");
    eventually("the NodePort is served", || ask(&lab.outside, &node_port).is_ok());
    for to in [node_port.clone(), format!("{EXTERNAL}:80"), format!("{BALANCER}:80")] {
        // The answer has to come back through this worker, so a stranger is masqueraded and a pod is not.
        assert_eq!(ask(&lab.outside, &to).unwrap(), ("p1".to_owned(), GATEWAY.to_owned()), "{to}");
        assert_eq!(ask(&lab.worker, &to).unwrap().0, "p1", "{to}");
        assert_eq!(ask(lab.pod(2), &to).unwrap().0, "p1", "{to}");
    }
    assert!(ask(&lab.outside, &format!("{WORKER}:30081")).is_err(), "no Service has this port");
    // Nobody there: refused, not silent.
    place(&lab, &[]);
    eventually("the NodePort is refused", || {
        ask(&lab.outside, &node_port).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    lab.delete("services/specs/shop/web");
    eventually("nothing is left of it", || !lab.nft("list map ip kproxy nodeports").contains("30080"));
}

#[test]
fn external_policy_local_keeps_the_client_s_address_and_sends_it_nowhere_else() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}), &json!({}));
    place(&lab, &[(1, "w1"), (2, "w2")]);
    let node_port = format!("{WORKER}:30080");
    eventually("the NodePort is served", || ask(&lab.outside, &node_port).is_ok());
    for to in [&node_port, &format!("{EXTERNAL}:80"), &format!("{BALANCER}:80")] {
        for _ in 0..8 {
            let answer = ask(&lab.outside, to).unwrap();
            assert_eq!(answer, ("p1".to_owned(), "10.0.0.9".to_owned()), "{to}: the endpoint of this worker alone");
        }
    }
    let answers: BTreeSet<String> = (0..40).map(|_| ask(lab.pod(3), &node_port).unwrap().0).collect();
    assert_eq!(answers.len(), 2, "for a pod the address means all endpoints");
    assert!(lab.http(30999, "/").unwrap().starts_with("HTTP/1.1 200"));
    place(&lab, &[(2, "w2")]);
    eventually("the load balancer hears of it", || {
        lab.http(30999, "/").is_some_and(|answer| answer.starts_with("HTTP/1.1 503"))
    });
    assert!(is_dropped(ask(&lab.outside, &node_port)), "there are endpoints, but not here");
    assert_eq!(ask(lab.pod(3), &node_port).unwrap().0, "p2");
    assert_eq!(ask(&lab.worker, &node_port).unwrap().0, "p2");
}

#[test]
fn internal_policy_local_uses_the_endpoints_of_this_worker_or_none() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({"internalTrafficPolicy": "Local"}), &json!({}));
    place(&lab, &[(1, "w1"), (2, "w2")]);
    let to = format!("{VIP}:80");
    eventually("the ClusterIP is served", || ask(lab.pod(3), &to).is_ok());
    (0..20).for_each(|_| assert_eq!(ask(lab.pod(3), &to).unwrap().0, "p1"));
    place(&lab, &[(2, "w2")]);
    eventually("nobody answers", || is_dropped(ask(lab.pod(3), &to)));
    assert_eq!(ask(lab.pod(3), &format!("{WORKER}:30080")).unwrap().0, "p2", "another policy holds for this address");
}

#[test]
fn a_load_balancer_s_source_ranges_let_in_whom_they_name() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(1);
    serve_tcp(lab.pod(1), 8080);
    place(&lab, &[(1, "w1")]);
    let balancer = format!("{BALANCER}:80");
    serve(&lab, &json!({"loadBalancerSourceRanges": ["10.0.0.8/31"]}), &json!({}));
    eventually("a client in the range is served", || ask(&lab.outside, &balancer).is_ok());
    serve(&lab, &json!({"loadBalancerSourceRanges": ["10.0.0.10/31", "192.0.2.0/24"]}), &json!({}));
    eventually("a client outside of it is not", || is_dropped(ask(&lab.outside, &balancer)));
    for to in [format!("{WORKER}:30080"), format!("{EXTERNAL}:80")] {
        assert!(ask(&lab.outside, &to).is_ok(), "the ranges hold for the load balancer alone: {to}");
    }
    serve(&lab, &json!({}), &json!({}));
    eventually("without ranges everybody is", || ask(&lab.outside, &balancer).is_ok());
}

#[test]
fn a_sticky_service_remembers_its_clients_for_as_long_as_it_says() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let sticky = |seconds: u32| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    serve(&lab, &sticky(100), &json!({}));
    place(&lab, &[(1, "w1"), (2, "w1"), (3, "w1")]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(4), &to).is_ok());
    let first = ask(lab.pod(4), &to).unwrap().0;
    // By chance alone, once in 3^25 runs.
    (0..25).for_each(|_| assert_eq!(ask(lab.pod(4), &to).unwrap().0, first));
    let number: u8 = first.trim_start_matches('p').parse().unwrap();
    let others: Vec<(u8, &str)> = (1..=3).filter(|n| *n != number).map(|n| (n, "w1")).collect();
    place(&lab, &others);
    eventually("the endpoint that went is forgotten", || ask(lab.pod(4), &to).is_ok_and(|answer| answer.0 != first));
    let second = ask(lab.pod(4), &to).unwrap().0;
    (0..15).for_each(|_| assert_eq!(ask(lab.pod(4), &to).unwrap().0, second));
    // Each connection begins the time anew; after it, another endpoint is drawn sooner or later.
    serve(&lab, &sticky(1), &json!({}));
    eventually("after its time a client is forgotten", || {
        std::thread::sleep(Duration::from_millis(1300));
        ask(lab.pod(4), &to).is_ok_and(|answer| answer.0 != second)
    });
}

#[test]
fn a_service_says_how_it_chooses() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    place(&lab, &[(1, "w1"), (2, "w1"), (3, "w1")]);
    let to = format!("{VIP}:80");
    let in_order = || -> Vec<String> { (0..9).map(|_| ask(lab.pod(4), &to).unwrap().0).collect() };
    serve(&lab, &json!({}), &json!({"knetsim.io/load-balancing": "round-robin"}));
    eventually("one after the other is chosen", || {
        ask(lab.pod(4), &to).is_ok() && {
            let answers = in_order();
            let mut counts = BTreeMap::<&String, u32>::new();
            for answer in &answers {
                *counts.entry(answer).or_default() += 1;
            }
            counts.len() == 3 && counts.values().all(|count| *count == 3) && answers[..6] == answers[3..]
        }
    });
    let distinct = || in_order().into_iter().collect::<BTreeSet<_>>().len();
    serve(&lab, &json!({}), &json!({"knetsim.io/load-balancing": "source-hash"}));
    eventually("a client's address chooses", || distinct() == 1);
    (0..3).for_each(|_| assert_eq!(distinct(), 1));
    // The original's: the IP checksum chooses, which differs from packet to packet.
    serve(&lab, &json!({}), &json!({"knetsim.io/load-balancing": "jhash"}));
    eventually("the packet's checksum chooses", || {
        lab.nft("list map ip kproxy class").contains("lb-3-jhash") && distinct() == 3
    });
}

#[test]
fn a_udp_client_that_keeps_sending_moves_with_its_service() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_udp(lab.pod(n), 8053));
    let ports = [json!({"name": "dns", "port": 8053, "protocol": "UDP"})];
    let client = lab.pod(3).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap();
    client.connect((VIP, 53)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let asked = || -> Option<String> {
        let mut buffer = [0; 16];
        client.send(b"who?").ok()?;
        let length = client.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    // It begins before there is a Service, which conntrack remembers.
    assert_eq!(asked(), None);
    let spec = json!({"clusterIP": VIP, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    lab.put("services/specs/shop/dns", &json!({"spec": spec}));
    lab.put_slice("dns", &ports, &[1]);
    eventually("the same socket is answered", || asked().as_deref() == Some("p1"));
    lab.put_slice("dns", &ports, &[2]);
    eventually("it moves to the new endpoint", || asked().as_deref() == Some("p2"));
}

#[test]
fn connections_live_on_while_the_other_endpoints_come_and_go() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    serve(&lab, &json!({}), &json!({}));
    place(&lab, &[(1, "w1")]);
    let to = format!("{WORKER}:30080");
    eventually("the NodePort is served", || ask(&lab.outside, &to).is_ok());
    let stream = connect(&lab.outside, &to).unwrap();
    assert_eq!(support::greeting(&stream).unwrap().0, "p1");
    for _ in 0..5 {
        place(&lab, &[(2, "w1")]);
        eventually("p2 alone", || ask(&lab.outside, &to).is_ok_and(|answer| answer.0 == "p2"));
        place(&lab, &[(1, "w1"), (2, "w1")]);
        eventually("p1 too", || ask(&lab.outside, &to).is_ok_and(|answer| answer.0 == "p1"));
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Write::write_all(&mut &stream, b"still").unwrap();
    let mut echo = [0; 5];
    std::io::Read::read_exact(&mut &stream, &mut echo).unwrap();
    assert_eq!(&echo, b"still");
}
