//! From objects to `nft` text, and to the kernel and back.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

use kproxy_rs::apply::{Adoption, Finding, Kernel};
use kproxy_rs::config::LocalClients;
use kproxy_rs::diff::{Change, Layouts, replacement};
use kproxy_rs::node::Node;
use kproxy_rs::objects::{Event, Key, Objects};
use kproxy_rs::plan::Planner;
use kproxy_rs::service::ServiceName;
use kproxy_rs::table::Layout;
use linux_net::ip::Family;
use serde_json::{Value, json};

/// Objects and the plan that follows them, as in the proxy's loop.
struct Worker {
    objects: Objects,
    planner: Planner,
}

impl Worker {
    fn new() -> Self {
        Self { objects: Objects::default(), planner: Planner::new(Node::new("w1")) }
    }

    fn put_service(&mut self, name: &str, object: &Value) {
        let key = Key::Service(ServiceName::new("shop", name));
        self.objects.handle_event(Event::Put(key, object.to_string().into_bytes()));
    }

    fn put_slice(&mut self, service: &str, addresses: &[&str], ports: &Value) {
        let endpoints: Vec<Value> =
            addresses.iter().map(|address| json!({"addresses": [address], "nodeName": "w1"})).collect();
        let object = json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": ports});
        let key = Key::Slice { namespace: "shop".to_owned(), name: format!("{service}-1") };
        self.objects.handle_event(Event::Put(key, object.to_string().into_bytes()));
    }

    fn delete_service(&mut self, name: &str) {
        self.objects.handle_event(Event::Deleted(Key::Service(ServiceName::new("shop", name))));
    }

    fn plan(&mut self) {
        self.planner.update_changed(&mut self.objects);
    }

    /// A Service of two ports with two endpoints, one without endpoints, a VIP for all protocols, and a load balancer with everything.
    fn example() -> Self {
        let mut worker = Self::new();
        let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        worker.put_service("web", &json!({"spec": {"clusterIP": "100.64.0.1", "ports": ports}}));
        let ports = json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 8053, "protocol": "UDP"}]);
        worker.put_slice("web", &["11.10.0.2", "11.10.0.3"], &ports);
        worker.put_service("empty", &json!({"spec": {"clusterIP": "100.64.0.2", "ports": [{"port": 80}]}}));
        let annotations = json!({"knetsim.io/all-protocols": "true"});
        worker.put_service(
            "vip",
            &json!({"metadata": {"annotations": annotations}, "spec": {"clusterIP": "100.64.10.1"}}),
        );
        worker.put_slice("vip", &["11.10.0.2", "11.10.0.4"], &json!([]));
        let spec = json!({"type": "LoadBalancer", "clusterIP": "100.64.0.3", "clusterIPs": ["100.64.0.3", "fd00:64::3"],
            "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "ports": [{"port": 443, "nodePort": 30443}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
        let annotations = json!({"knetsim.io/load-balancing": "round-robin"});
        worker.put_service("shop", &json!({"metadata": {"annotations": annotations}, "spec": spec, "status": status}));
        worker.put_slice("shop", &["11.10.0.6"], &json!([{"port": 8443}]));
        worker.plan();
        worker.planner.take_change();
        worker
    }
}

fn layouts() -> Layouts {
    let local =
        LocalClients::Networks(["11.0.0.0/8", "fd00:11::/48"].map(|net| net.parse().expect("a network")).to_vec());
    let layout = |family| Layout::new(family, &local, &[], 14);
    Layouts { ipv4: layout(Family::V4), ipv6: layout(Family::V6) }
}

/// A worker that knows no Service, and the kernel with its tables.
fn started() -> (Worker, Kernel) {
    let mut worker = Worker::new();
    let mut kernel = Kernel::open(layouts()).unwrap();
    kernel.replace(worker.planner.entries()).unwrap();
    worker.planner.take_change();
    (worker, kernel)
}

/// The batches of a change, as text.
fn steps(change: &Change) -> String {
    change.steps(&layouts()).map(|batch| batch.to_string()).join("# then\n")
}

fn nft(words: &str) -> String {
    let output = std::process::Command::new("nft").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_whole_table_is_one_batch() {
    let worker = Worker::example();
    insta::assert_snapshot!(replacement(&layouts(), worker.planner.entries()));
}

#[test]
fn an_endpoint_that_joins_changes_slots_class_and_tag_between_two_steps_for_the_chains() {
    let mut worker = Worker::example();
    worker.planner.take_change();
    worker.put_slice("vip", &["11.10.0.2", "11.10.0.4", "11.10.0.5"], &json!([]));
    worker.plan();
    insta::assert_snapshot!(steps(&worker.planner.take_change()));
}

#[test]
fn an_endpoint_that_is_replaced_changes_its_slot_alone() {
    let mut worker = Worker::example();
    worker.planner.take_change();
    worker.put_slice("vip", &["11.10.0.2", "11.10.0.3"], &json!([]));
    worker.plan();
    insta::assert_snapshot!(steps(&worker.planner.take_change()));
}

#[test]
fn the_kernel_has_after_many_changes_what_a_new_plan_would_write() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let (mut worker, mut kernel) = started();
    // Fixed pseudo-random numbers, so that a failure can be repeated. Source: Knuth, TAOCP 2, 3.3.4.
    let mut state: u64 = 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let addresses = ["11.10.0.2", "11.10.0.3", "11.10.0.4", "11.10.0.5", "11.10.0.6"];
    for step in 0..300 {
        let number = random(8);
        let name = format!("s{number}");
        match random(5) {
            0 => worker.delete_service(&name),
            1 => {
                let annotations = json!({"knetsim.io/all-protocols": if random(2) == 0 { "true" } else { "false" }});
                let policy = ["Cluster", "Local"][random(2)];
                let affinity = ["None", "ClientIP"][random(2)];
                let spec = json!({"type": "LoadBalancer", "clusterIP": format!("100.64.0.{}", 1 + number), "externalTrafficPolicy": policy,
                    "clusterIPs": [format!("100.64.0.{}", 1 + number), format!("fd00:64::{}", 1 + number)],
                    "externalIPs": [format!("198.51.100.{}", random(3))], "sessionAffinity": affinity,
                    "ports": [{"port": 80 + random(2), "nodePort": 30_000 + random(3)}]});
                worker.put_service(&name, &json!({"metadata": {"annotations": annotations}, "spec": spec}));
            }
            _ => {
                let from = random(addresses.len());
                let to = from + random(addresses.len() - from + 1);
                worker.put_slice(&name, &addresses[from..to], &json!([{"port": 8080}]));
            }
        }
        worker.plan();
        let change = worker.planner.take_change();
        if !change.is_empty() {
            kernel.change(&change).unwrap();
        }
        if step % 20 == 0 {
            // Another program's commit makes the inspection read everything.
            let other = std::process::Command::new("nft").arg(format!("add table ip t{step}")).status().unwrap();
            assert!(other.success());
            assert_eq!(kernel.inspect(worker.planner.entries()).unwrap(), Finding::Intact, "after step {step}");
        }
    }
}

#[test]
fn a_restart_goes_on_with_the_tables_and_writes_the_difference_alone() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut worker = Worker::example();
    let start = |worker: &Worker| {
        let mut kernel = Kernel::open(layouts()).unwrap();
        let adoption = kernel.adopt(worker.planner.entries()).unwrap();
        assert_eq!(kernel.inspect(worker.planner.entries()).unwrap(), Finding::Intact);
        adoption
    };
    assert_eq!(start(&worker), Adoption::Replaced);
    let before = nft("-a list ruleset");
    assert_eq!(start(&worker), Adoption::Adopted { changed: 0 });
    assert_eq!(nft("-a list ruleset"), before, "no rule has got another handle");

    // What changed while nobody watched: an endpoint came, a Service went with its chains.
    worker.put_slice("vip", &["11.10.0.2", "11.10.0.4", "11.10.0.5"], &json!([]));
    worker.delete_service("shop");
    worker.plan();
    assert!(matches!(start(&worker), Adoption::Adopted { changed: 1.. }));
    assert!(!nft("list ruleset").contains("lb-1-round-robin-sticky"));

    // Rules of another hand, or of another release, are not trusted.
    nft("add rule ip kproxy services counter");
    assert_eq!(start(&worker), Adoption::Replaced);
    nft("flush chain ip kproxy refuse");
    assert_eq!(start(&worker), Adoption::Replaced);
    assert_eq!(start(&worker), Adoption::Adopted { changed: 0 });
}

#[test]
fn a_network_of_one_address_reads_back_as_it_was_written() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut worker = Worker::new();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "100.64.0.3", "loadBalancerSourceRanges": ["192.0.2.7/32"],
        "ports": [{"port": 443}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    worker.put_service("shop", &json!({"spec": spec, "status": status}));
    worker.put_slice("shop", &["11.10.0.6"], &json!([{"port": 8443}]));
    worker.plan();
    let start = || Kernel::open(layouts()).unwrap().adopt(worker.planner.entries()).unwrap();
    assert_eq!(start(), Adoption::Replaced);
    assert_eq!(start(), Adoption::Adopted { changed: 0 });
}

#[test]
fn a_table_that_is_full_is_written_anew_with_more_room() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let (mut worker, mut kernel) = started();
    assert!(nft("list map ip kproxy front").contains("size 1024"));
    for n in 0..1100 {
        let address = format!("100.64.{}.{}", n / 250, 1 + n % 250);
        worker.put_service(&format!("s{n}"), &json!({"spec": {"clusterIP": address, "ports": [{"port": 80}]}}));
    }
    worker.plan();
    let error = kernel.change(&worker.planner.take_change()).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(!nft("list map ip kproxy front").contains("100.64."), "nothing of the change is there");
    kernel.replace(worker.planner.entries()).unwrap();
    assert_eq!(kernel.inspect(worker.planner.entries()).unwrap(), Finding::Intact);
    assert!(nft("list map ip kproxy front").contains("size 2048"));

    // A run that adopts a table which is too small for what has come since makes a larger one too.
    for n in 1100..2200 {
        let address = format!("100.64.{}.{}", n / 250, 1 + n % 250);
        worker.put_service(&format!("s{n}"), &json!({"spec": {"clusterIP": address, "ports": [{"port": 80}]}}));
    }
    worker.plan();
    let mut next = Kernel::open(layouts()).unwrap();
    assert_eq!(next.adopt(worker.planner.entries()).unwrap(), Adoption::Replaced);
    assert_eq!(next.inspect(worker.planner.entries()).unwrap(), Finding::Intact);
}

#[test]
fn sticky_clients_outlive_the_table_but_not_their_endpoint() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let mut worker = Worker::new();
    worker.put_service(
        "web",
        &json!({"spec": {"clusterIP": "100.64.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
    );
    worker.put_slice("web", &["11.10.0.2", "11.10.0.3"], &json!([{"port": 8080}]));
    worker.plan();
    let mut kernel = Kernel::open(layouts()).unwrap();
    kernel.replace(worker.planner.entries()).unwrap();
    let endpoints = nft("list map ip kproxy eps");
    let mark = endpoints.split("elements = { ").nth(1).unwrap().split(' ').next().unwrap();
    for (client, endpoint) in [("10.0.0.1", "11.10.0.2"), ("10.0.0.2", "11.10.0.3"), ("10.0.0.3", "11.10.0.9")] {
        nft(&format!(
            "add element ip kproxy aff {{ {client} . {mark} . tcp timeout 3h expires 1h : {endpoint} . 8080 }}"
        ));
    }
    kernel.replace(worker.planner.entries()).unwrap();
    let clients = nft("list map ip kproxy aff");
    assert!(clients.contains("10.0.0.1") && clients.contains("10.0.0.2"), "{clients}");
    assert!(!clients.contains("10.0.0.3"), "its endpoint is none of the Service's: {clients}");
    assert_eq!(clients.matches("expires 59m").count(), 2, "they are remembered no longer than before: {clients}");

    // An endpoint goes while nobody watches.
    worker.put_slice("web", &["11.10.0.2"], &json!([{"port": 8080}]));
    worker.plan();
    let adoption = Kernel::open(layouts()).unwrap().adopt(worker.planner.entries()).unwrap();
    assert!(matches!(adoption, Adoption::Adopted { changed: 1.. }), "{adoption:?}");
    let clients = nft("list map ip kproxy aff");
    assert!(clients.contains("10.0.0.1") && !clients.contains("10.0.0.2"), "{clients}");
}

#[test]
fn numbers_of_endpoints_that_no_tag_can_say_change_and_are_adopted() {
    if !linux_net::testing::enter_sandbox() {
        return;
    }
    let (mut worker, mut kernel) = started();
    let addresses: Vec<String> = (0..420).map(|n| format!("11.10.{}.{}", n / 250, 1 + n % 250)).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let spec = |n: u8| json!({"spec": {"clusterIP": format!("100.64.0.{n}"), "ports": [{"port": 80}]}});
    // Codes come and go within one change, and chains of the same number of endpoints with them.
    for round in [[300, 400, 2], [400, 300, 300], [2, 420, 300], [300, 300, 401]] {
        for (n, count) in (1..).zip(round) {
            worker.put_service(&format!("s{n}"), &spec(n));
            worker.put_slice(&format!("s{n}"), &addresses[..count], &json!([{"port": 8080}]));
            worker.plan();
        }
        kernel.change(&worker.planner.take_change()).unwrap();
        nft("add table ip other");
        nft("delete table ip other");
        assert_eq!(kernel.inspect(worker.planner.entries()).unwrap(), Finding::Intact, "{round:?}");
    }
    assert!(nft("list ruleset").contains("numgen random mod 401 map @eps"));
    // A new run lends the codes in another order.
    let mut fresh = Worker::new();
    for n in [3, 2, 1] {
        fresh.put_service(&format!("s{n}"), &spec(n));
        let count = [300, 300, 401][usize::from(n) - 1];
        fresh.put_slice(&format!("s{n}"), &addresses[..count], &json!([{"port": 8080}]));
        fresh.plan();
    }
    let mut next = Kernel::open(layouts()).unwrap();
    assert!(matches!(next.adopt(fresh.planner.entries()).unwrap(), Adoption::Adopted { .. }));
    assert_eq!(next.inspect(fresh.planner.entries()).unwrap(), Finding::Intact);
}
