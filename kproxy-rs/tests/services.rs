//! What a Service promises, with real traffic through the real program.

mod support;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};

use serde_json::json;
use support::{Lab, ask, ask_udp, connect, eventually, greeting, is_refused, pings, serve_tcp, serve_udp};

const VIP: &str = "100.64.0.1";

#[test]
fn connections_spread_evenly_and_pods_keep_their_address() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2, 3]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(4), &to).is_ok());
    let mut answers = BTreeMap::<_, u32>::new();
    for _ in 0..300 {
        let (pod, client) = ask(lab.pod(4), &to).unwrap();
        assert_eq!(client, "11.0.0.4");
        *answers.entry(pod).or_default() += 1;
    }
    // Expected are 100 each with a standard deviation of 8.2; five of them to each side fail once in half a million runs.
    assert!(answers.len() == 3 && answers.values().all(|count| (59..=141).contains(count)), "{answers:?}");
    // The worker's own processes are served too, and appear with its address on the bridge; so do strangers.
    assert_eq!(ask(&lab.worker, &to).unwrap().1, "11.0.0.254");
    assert_eq!(ask(&lab.outside, &to).unwrap().1, "11.0.0.254");
}

#[test]
fn ports_and_protocols_of_a_service_are_kept_apart() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    serve_tcp(lab.pod(1), 8053);
    serve_udp(lab.pod(1), 8053);
    serve_tcp(lab.pod(1), 8080);
    lab.put("services/specs/shop/dns", &json!({"spec": {"clusterIP": VIP, "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}, {"name": "http", "port": 80}]}}));
    let ports = [json!({"name": "dns", "port": 8053, "protocol": "UDP"}), json!({"name": "http", "port": 8080})];
    lab.put_slice("dns", &ports, &[1]);
    eventually("port 80 is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    assert_eq!(ask_udp(lab.pod(2), &format!("{VIP}:53")).unwrap(), "p1");
    assert_eq!(ask_udp(&lab.worker, &format!("{VIP}:53")).unwrap(), "p1");
    assert!(is_refused(lab.pod(2), &format!("{VIP}:53")), "no slice has an endpoint for TCP");
    assert_eq!(ask_udp(lab.pod(2), &format!("{VIP}:80")).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_service_without_endpoints_and_a_wrong_port_are_refused_at_once() {
    if !linux_net::testing::enter_sandbox() {
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
        assert_eq!(ask_udp(from, "100.64.0.2:80").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    // What the worker sends itself never becomes a packet: the kernel refuses the system call.
    assert_eq!(ask_udp(&lab.worker, "100.64.0.2:80").unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn the_endpoints_that_are_reached_follow_each_change() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let to = format!("{VIP}:80");
    for endpoints in [&[1][..], &[1, 2], &[2, 3], &[3], &[], &[1]] {
        lab.serve("web", VIP, &[80], endpoints);
        let expected: Vec<String> = endpoints.iter().map(|n| format!("p{n}")).collect();
        // Twenty connections miss one of two endpoints once in half a million times.
        eventually("exactly these endpoints answer", || {
            let mut found: Vec<String> = (0..20).filter_map(|_| Some(ask(lab.pod(4), &to).ok()?.0)).collect();
            found.sort();
            found.dedup();
            found == expected
        });
    }
    lab.delete("services/specs/shop/web");
    eventually("the table is empty", || !lab.nft("list table ip kproxy").contains(VIP));
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(2), &to).is_ok());
    assert_eq!(ask(lab.pod(1), &to).unwrap(), ("p1".to_owned(), "11.0.0.254".to_owned()));
    assert_eq!(ask(lab.pod(2), &to).unwrap().1, "11.0.0.2");
}

#[test]
fn a_vip_for_all_protocols_answers_ping_and_every_port() {
    if !linux_net::testing::enter_sandbox() {
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
        assert_eq!(ask_udp(from, &format!("{VIP}:9000")).unwrap(), "p1");
    }
    // A second endpoint that does not exist: about every second ping fails, as a lesson shows.
    lab.put_slice("vip", &[], &[1, 99]);
    eventually("some pings fail", || !pings(lab.pod(2), VIP));
    eventually("some pings are answered", || pings(lab.pod(2), VIP));
    lab.put_slice("vip", &[], &[]);
    eventually("it is refused", || is_refused(lab.pod(2), &format!("{VIP}:8000")));
    assert!(!pings(lab.pod(2), VIP));
}

#[test]
fn connections_survive_a_restart_and_new_ones_never_fail() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(3), &to).is_ok());
    let mut stream = connect(lab.pod(3), &to).unwrap();
    greeting(&stream).unwrap();
    let (client, target) = (lab.pod(3).clone(), to.clone());
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let clients = std::thread::spawn(move || {
        let mut connections = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            ask(&client, &target).unwrap();
            connections += 1;
        }
        connections
    });
    let before = lab.nft("list map ip kproxy front");
    lab.kill_proxy();
    lab.start_proxy();
    assert!(lab.terminate_proxy());
    assert!(ask(lab.pod(3), &to).is_ok(), "the table serves on its own");
    lab.start_proxy();
    drop(stop);
    assert!(clients.join().unwrap() > 10);
    assert_eq!(lab.nft("list map ip kproxy front"), before, "a Service keeps its id");
    stream.write_all(b"still").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"still");
    lab.kill_proxy();
    assert!(lab.cleanup() && lab.cleanup(), "there may be nothing to clean up");
    assert_eq!(lab.nft("list ruleset"), "");
}

#[test]
fn what_somebody_else_did_to_the_table_is_undone() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(3), &to).is_ok());
    // Without the numbers of rules, which a new table has anew.
    let intact = lab.nft("list table ip kproxy");
    for damage in [
        "delete table ip kproxy",
        "flush chain ip kproxy lb-2",
        "flush map ip kproxy eps",
        "delete element ip kproxy vips { 100.64.0.1 }",
        "add element ip kproxy pods { 10.0.0.0/8 }",
        "add rule ip kproxy services drop",
    ] {
        lab.nft(damage);
        eventually(damage, || {
            lab.worker
                .run(|| std::process::Command::new("nft").args(["list", "table", "ip", "kproxy"]).output())
                .unwrap()
                .is_ok_and(|output| output.stdout == intact.as_bytes())
        });
    }
    assert!(ask(lab.pod(3), &to).is_ok());
    let log = lab.proxy_log();
    assert!(
        log.contains("a table is gone")
            && log.contains("chain lb-2 of ip kproxy was edited")
            && log.contains("the elements of eps were edited"),
        "{log}"
    );
    // Somebody else's own table is none of our business.
    let repairs = || {
        lab.http(10249, "/metrics")
            .unwrap()
            .lines()
            .find(|line| line.starts_with("kubeproxy_table_repairs_total"))
            .unwrap()
            .to_owned()
    };
    let before = repairs();
    lab.nft("add table ip theirs");
    lab.serve("other", "100.64.0.2", &[80], &[1]);
    eventually("the other Service is served", || ask(lab.pod(3), "100.64.0.2:80").is_ok());
    assert_eq!(repairs(), before);
}

#[test]
fn a_poisoned_object_is_named_and_skipped_and_etcd_may_go_away() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.put("services/specs/shop/bad", &"{\"spec\": 7}");
    lab.serve("web", VIP, &[80], &[1]);
    let to = format!("{VIP}:80");
    eventually("the good Service is served", || ask(lab.pod(2), &to).is_ok());
    assert!(lab.http(10256, "/healthz").unwrap().contains("\"skippedObjects\":[\"services/specs/shop/bad\"]"));
    assert!(lab.proxy_log().contains("object=services/specs/shop/bad"));
    lab.stop_etcd();
    eventually("the proxy knows that etcd is away", || {
        lab.http(10256, "/healthz").unwrap().contains("\"etcdConnected\":false")
    });
    assert!(ask(lab.pod(2), &to).is_ok());
    lab.start_etcd();
    lab.serve("late", "100.64.0.2", &[80], &[1]);
    eventually("changes are followed again", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    assert!(lab.http(10256, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn what_etcd_has_forgotten_is_found_by_listing_anew() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    eventually("the Service is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    lab.while_proxy_sleeps(|lab| {
        lab.stop_etcd();
        lab.start_etcd();
        lab.delete("services/specs/shop/web");
        lab.serve("late", "100.64.0.2", &[80], &[1]);
        lab.compact();
    });
    eventually("the new Service is served", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    assert!(!lab.nft("list table ip kproxy").contains(VIP));
    assert!(lab.proxy_log().contains("etcd has compacted what we missed"), "{}", lab.proxy_log());
}
