//! Host ports with real packets: from elsewhere, from the node, over its loopback, from the container itself, and over UDP.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::traffic::{ask, ask_udp, outside, serve, serve_udp, wait_for_dad, within};
use support::{Call, as_version_1, elements, go_plugins, install_ours, netns, sh, succeeds};

/// A node with a bridge of two families and a host outside, which has no route to the containers.
struct Node {
    plugins: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        outside();
        Self { plugins: install_ours(), data: tempfile::tempdir().unwrap() }
    }

    /// Attaches a container by bridge.
    fn attach(&self, name: &str, families: &[&str]) -> Pod<'_> {
        let path = netns(name);
        let ranges: Vec<_> = families.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let conf = json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "bridge", "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": self.data.path(), "ranges": ranges}
        });
        let result = Call::new(self.plugins.path(), "bridge", name, &path).run("ADD", &conf).ok();
        Pod { plugins: self.plugins.path(), name: name.to_owned(), result }
    }
}

struct Pod<'a> {
    plugins: &'a Path,
    name: String,
    result: Value,
}

impl Pod<'_> {
    fn call(&self) -> Call {
        Call::new(self.plugins, "portmap", &self.name, &Path::new("/run/netns").join(&self.name))
    }

    fn conf(&self, mappings: &Value) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "portmap", "prevResult": self.result,
            "runtimeConfig": {"portMappings": mappings}
        })
    }

    fn add(&self, mappings: &Value) -> Value {
        let conf = self.conf(mappings);
        assert_eq!(self.call().run("ADD", &conf).ok(), self.result, "the result is passed through");
        conf
    }

    fn address(&self, index: usize) -> IpAddr {
        let address = self.result["ips"][index]["address"].as_str().unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    }
}

const V4: &str = "10.22.0.0/24";
const V6: &str = "fd00:22::/64";

fn tcp(host_port: u16, container_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"})
}

#[test]
fn a_host_port_leads_to_the_container_from_everywhere() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (pod, other) = (node.attach("p1", &[V4, V6]), node.attach("p2", &[V4, V6]));
    serve("p1", "p1", "[::]:80");
    let conf = pod.add(&json!([tcp(8080, 80)]));
    let pod_address = pod.address(0);
    wait_for_dad();
    assert_eq!(ask("outside", "192.0.2.1:8080"), "p1 ::ffff:192.0.2.2", "the client keeps its address");
    assert_eq!(ask("outside", "[2001:db8::1]:8080"), "p1 2001:db8::2");
    assert_eq!(ask("", "10.22.0.1:8080"), "p1 ::ffff:10.22.0.1", "from the node");
    assert_eq!(ask("", "127.0.0.1:8080"), "p1 ::ffff:10.22.0.1", "over its loopback");
    assert_eq!(ask("p1", "10.22.0.1:8080"), "p1 ::ffff:10.22.0.1", "from the container itself");
    assert_eq!(ask("p1", "192.0.2.1:8080"), "p1 ::ffff:10.22.0.1", "by another address of the node");
    assert_eq!(ask("p1", "[fd00:22::1]:8080"), "p1 fd00:22::1");
    assert_eq!(ask("p2", "10.22.0.1:8080"), "p1 ::ffff:10.22.0.1", "from its neighbour");
    assert_eq!(ask("p2", &format!("{pod_address}:80")), format!("p1 ::ffff:{}", other.address(0)), "not by host port");
    assert_eq!(ask("", &format!("{pod_address}:8080")), "", "only the node's addresses have host ports");

    pod.call().run("CHECK", &conf).ok();
    pod.call().run("DEL", &conf).ok();
    assert_eq!(elements(), [""; 0]);
    assert_eq!(ask("", "10.22.0.1:8080"), "");
    pod.call().run("DEL", &conf).ok();
}

#[test]
fn a_host_address_narrows_a_port_down() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (pod, other) = (node.attach("p1", &[V4]), node.attach("p2", &[V4]));
    serve("p1", "p1", "0.0.0.0:80");
    serve("p2", "p2", "0.0.0.0:80");
    pod.add(&json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 8083, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
    ]));
    // The same port on all other addresses may be another container's.
    other.add(&json!([tcp(8080, 80)]));
    assert_eq!(ask("outside", "192.0.2.1:8080"), "p1 192.0.2.2");
    assert_eq!(ask("", "10.22.0.1:8080"), "p2 10.22.0.1");
    assert_eq!(ask("", "127.0.0.1:8081"), "p1 10.22.0.1");
    assert_eq!(ask("outside", "192.0.2.1:8081"), "");
    assert_eq!(ask("outside", "192.0.2.1:8082"), "p1 192.0.2.2");
    assert_eq!(ask("outside", "192.0.2.1:8083"), "", "a port of IPv6, for a container without");
}

#[test]
fn snat_and_masq_all_decide_whose_address_the_container_sees() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pod = node.attach("p1", &[V4]);
    serve("p1", "p1", "0.0.0.0:80");
    let mut conf = pod.conf(&json!([tcp(8080, 80)]));
    conf["masqAll"] = json!(true);
    pod.call().run("ADD", &conf).ok();
    assert_eq!(ask("outside", "192.0.2.1:8080"), "p1 10.22.0.1");
    pod.call().run("DEL", &conf).ok();
    sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0");
    conf["snat"] = json!(false);
    pod.call().run("ADD", &conf).ok();
    assert_eq!(ask("outside", "192.0.2.1:8080"), "p1 192.0.2.2");
    assert_eq!(ask("", "127.0.0.1:8080"), "");
    assert_eq!(sh("sysctl -n net.ipv4.conf.cni0.route_localnet").trim(), "0");
    pod.call().run("CHECK", &conf).ok();
}

#[test]
fn a_udp_client_that_never_pauses_follows_the_container() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (first, second) = (node.attach("p1", &[V4]), node.attach("p2", &[V4]));
    serve_udp("p1", "p1", "0.0.0.0:5353");
    serve_udp("p2", "p2", "0.0.0.0:5353");
    serve_udp("", "node", "192.0.2.1:53");
    let client = within("outside", || UdpSocket::bind("0.0.0.0:4000").unwrap());
    let mapping = json!([{"hostPort": 53, "containerPort": 5353, "protocol": "udp"}]);
    assert_eq!(ask_udp(&client, "192.0.2.1:53"), "node");
    let conf = first.add(&mapping);
    assert_eq!(ask_udp(&client, "192.0.2.1:53"), "p1", "ADD forgets the connection to the node itself");
    first.call().run("DEL", &conf).ok();
    assert!(!sh("conntrack -L -p udp 2>/dev/null || true").contains("10.22.0.2"), "DEL forgets the container's");
    assert_eq!(ask_udp(&client, "192.0.2.1:53"), "node");
    let conf = second.add(&mapping);
    assert_eq!(ask_udp(&client, "192.0.2.1:53"), "p2");
    // A DEL that was killed after its rules had gone.
    sh("nft flush table ip cni; nft flush map ip cni hostports; nft flush set ip cni hostport_sources");
    second.call().run("DEL", &conf).ok();
    assert_eq!(ask_udp(&client, "192.0.2.1:53"), "node");
}

#[test]
fn the_first_container_keeps_its_port_and_the_second_is_told_whose_it_is() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (first, second) = (node.attach("p1", &[V4]), node.attach("p2", &[V4]));
    serve("p1", "p1", "0.0.0.0:80");
    first.add(&json!([tcp(8080, 80)]));
    let conf = second.conf(&json!([tcp(9090, 80), tcp(8080, 80)]));
    let answer = second.call().run("ADD", &conf);
    assert_eq!(answer.code(), 101, "{answer:?}");
    let msg = answer.json["msg"].as_str().unwrap();
    assert!(msg.contains("tcp 8080") && msg.contains("lab p1 eth0"), "{msg}");
    second.call().run("DEL", &conf).ok();
    assert_eq!(ask("", "10.22.0.1:8080"), "p1 10.22.0.1", "the DEL of the second takes nothing of the first");
    assert_eq!(ask("", "10.22.0.1:9090"), "");
    // The same attachment again, as after a crash; and another one with the address of one that never got a DEL.
    first.add(&json!([tcp(8080, 80)]));
    let heir = Call::new(node.plugins.path(), "portmap", "heir", Path::new("/run/netns/p1"));
    heir.run("ADD", &first.conf(&json!([tcp(8080, 80)]))).ok();
    heir.run("CHECK", &first.conf(&json!([tcp(8080, 80)]))).ok();
    first.call().run("DEL", &first.conf(&json!([tcp(8080, 80)]))).ok();
    assert_eq!(ask("", "10.22.0.1:8080"), "p1 10.22.0.1", "a late DEL of the former owner takes nothing of the heir");
    heir.run("DEL", &first.conf(&json!([tcp(8080, 80)]))).ok();
    assert_eq!(elements(), [""; 0]);
}

#[test]
fn a_hundred_containers_at_once_do_not_disturb_each_other() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, count) = (install_ours(), 100);
    sh("ip link add cni0 type bridge; ip addr add 10.22.0.254/24 dev cni0; ip link set cni0 up");
    let of = |number: u16| {
        let name = format!("p{number}");
        let conf = json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "portmap",
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{name}")}],
                "ips": [{"interface": 0, "address": format!("10.22.0.{number}/24")}]
            },
            "runtimeConfig": {"portMappings": [
                tcp(8000 + number, 80), {"hostPort": 8000 + number, "containerPort": 53, "protocol": "udp"}
            ]}
        });
        let call = |plugin| Call::new(plugins.path(), plugin, &name, Path::new("/run/netns/p"));
        (call("portmap"), call("firewall"), conf)
    };
    let at_once = |command: &str| {
        std::thread::scope(|scope| {
            for number in 1..=count {
                let (portmap, firewall, conf) = of(number);
                scope.spawn(move || {
                    portmap.run(command, &conf).ok();
                    firewall.run(command, &conf).ok();
                });
            }
        });
    };
    at_once("ADD");
    assert_eq!(elements().len(), 6 * usize::from(count), "two ports, two sources, two of the firewall");
    at_once("CHECK");
    at_once("DEL");
    assert_eq!(elements(), [""; 0]);
}

#[test]
fn without_mappings_nothing_is_made_and_without_a_result_nothing_works() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pod = node.attach("p1", &[V4]);
    pod.add(&json!([]));
    assert_eq!(sh("nft list ruleset"), "");
    let mut conf = pod.conf(&json!([tcp(8080, 80)]));
    conf.as_object_mut().unwrap().remove("prevResult");
    let answer = pod.call().run("ADD", &conf);
    assert_eq!((answer.code(), answer.json["msg"].as_str().unwrap()), (7, "must be called as chained plugin"));
    pod.call().run("STATUS", &conf).ok();
}

#[test]
fn del_and_gc_need_neither_namespace_nor_result_nor_mappings() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pods = ["p1", "p2", "p3"].map(|name| node.attach(name, &[V4, V6]));
    for (pod, port) in pods.iter().zip([8081, 8082, 8083]) {
        let of = |protocol: &str| json!({"hostPort": port, "containerPort": 53, "protocol": protocol});
        let conf = pod.add(&json!([of("tcp"), of("udp"), of("sctp")]));
        pod.call().run("CHECK", &conf).ok();
    }
    let bare = json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap"});
    pods[0].call().with("CNI_NETNS", "").run("DEL", &bare).ok();
    assert!(elements().iter().all(|element| !element.contains("p1 eth0")));
    let mut gc = bare.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p3", "ifname": "eth0"}]);
    let mut other_network = gc.clone();
    other_network["name"] = json!("other");
    pods[0].call().run("GC", &other_network).ok();
    assert!(elements().iter().any(|element| element.contains("p2 eth0")), "another network's GC is none of ours");
    pods[0].call().run("GC", &gc).ok();
    let left = elements();
    assert!(!left.is_empty() && left.iter().all(|element| element.contains("p3 eth0")), "{left:?}");
    assert_eq!(pods[0].call().run("GC", &bare).code(), 7, "no list is not an empty list");
}

#[test]
fn check_notices_what_was_changed_by_hand() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pod = node.attach("p1", &[V4]);
    for sabotage in [
        "nft delete element ip cni hostports '{ tcp . 8080 }'",
        "nft flush set ip cni hostport_sources",
        "nft flush chain ip cni hostports",
        "nft flush chain ip cni hostport_output",
        "nft flush chain ip cni hostport_postrouting",
    ] {
        let conf = pod.add(&json!([tcp(8080, 80)]));
        pod.call().run("CHECK", &conf).ok();
        sh(sabotage);
        assert_eq!(pod.call().run("CHECK", &conf).code(), 102, "{sabotage}");
        pod.call().run("DEL", &conf).ok();
    }
}

/// With the Go plugin's chains for this container in iptables.
#[test]
fn a_container_of_the_go_plugin_is_taken_down_by_ours() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (pod, other) = (node.attach("p1", &[V4, V6]), node.attach("p2", &[V4, V6]));
    let go = |pod: &Pod| Call { program: go_plugins().join("portmap"), ..pod.call() };
    let version_1 = |pod: &Pod, port| as_version_1(pod.conf(&json!([tcp(port, 80)])));
    for (pod, port) in [(&pod, 8080), (&other, 8081)] {
        go(pod).run("ADD", &version_1(pod, port)).ok();
    }
    serve("p1", "p1", "0.0.0.0:80");
    serve("p2", "p2", "0.0.0.0:80");
    assert_eq!(ask("", "10.22.0.1:8080"), "p1 10.22.0.1");
    assert!(sh("iptables-save; ip6tables-save").contains("CNI-DN-"));
    pod.call().run("DEL", &version_1(&pod, 8080)).ok();
    let address = pod.address(0);
    let left = sh("iptables-save; ip6tables-save");
    assert!(!left.contains(&format!("{address}:80")) && !left.contains("id: \\\"p1\\\""), "{left}");
    assert_eq!(left.matches(":CNI-DN-").count(), 2, "the other container's chains of both families stay");
    assert_eq!(ask("", "10.22.0.1:8080"), "");
    assert_eq!(ask("", "10.22.0.1:8081"), "p2 10.22.0.1");
    // And the other way round: their DEL after our ADD has nothing to say against it.
    pod.add(&json!([tcp(8080, 80)]));
    go(&pod).run("DEL", &version_1(&pod, 8080)).ok();
    pod.call().run("DEL", &version_1(&pod, 8080)).ok();
    assert_eq!(elements(), [""; 0]);
    assert!(succeeds("nft list table ip cni"));
}

#[test]
fn the_same_ways_lead_to_a_container_as_with_the_go_plugin() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (pod, _neighbour) = (node.attach("p1", &[V4]), node.attach("p2", &[V4]));
    serve("p1", "p1", "0.0.0.0:80");
    // masqAll is younger than the Go plugin here.
    for options in [json!({}), json!({"snat": false}), json!({"backend": "iptables"})] {
        let mut conf = as_version_1(pod.conf(&json!([tcp(8080, 80), tcp(8081, 81)])));
        conf.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let go = Call { program: go_plugins().join("portmap"), ..pod.call() };
        let both = [go, pod.call()].map(|call| {
            sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0");
            let result = call.run("ADD", &conf).ok();
            let ways = [
                ("outside", "192.0.2.1:8080"),
                ("outside", "192.0.2.1:8081"),
                ("", "10.22.0.1:8080"),
                ("", "127.0.0.1:8080"),
                ("p1", "10.22.0.1:8080"),
                ("p2", "10.22.0.1:8080"),
                ("p2", "192.0.2.1:8080"),
            ];
            let seen = ways.map(|(from, to)| (from, to, ask(from, to)));
            call.run("DEL", &conf).ok();
            (result["ips"].clone(), result["interfaces"].clone(), seen)
        });
        assert_eq!(both[0], both[1], "{options}");
    }
}
