//! `ipMasq` of bridge: whose address an outside host sees, and what is left of it afterwards.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::path::Path;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::traffic::{ask, outside, serve, wait_for_dad};
use support::{Call, elements, go_plugins, install_ours, netns, sh, succeeds};

const NODE_V4: &str = "outside ::ffff:192.0.2.1";
const NODE_V6: &str = "outside 2001:db8::1";

/// A node and an outside host that has no route to containers: it answers to the node's own address only.
struct Node {
    plugins: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        outside();
        serve("outside", "outside", "[::]:80");
        Self { plugins: install_ours(), data: tempfile::tempdir().unwrap() }
    }

    fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "lab", "type": "bridge", "isDefaultGateway": true, "ipMasq": true,
            "ipam": {
                "type": "host-local", "dataDir": self.data.path(),
                "ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]]
            }
        })
    }

    fn call(&self, name: &str) -> Call {
        Call::new(self.plugins.path(), "bridge", name, &Path::new("/run/netns").join(name))
    }

    fn go(&self, name: &str) -> Call {
        Call {
            program: go_plugins().join("bridge"),
            ..self.call(name).with("CNI_PATH", go_plugins().to_str().unwrap())
        }
    }
}

fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
fn both_families_bear_the_nodes_address() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    for (name, backend) in [("p1", json!(null)), ("p2", json!("iptables")), ("p3", json!("nftables"))] {
        netns(name);
        let mut conf = node.conf();
        conf["ipMasqBackend"] = backend;
        let result = node.call(name).run("ADD", &conf).ok();
        wait_for_dad();
        assert_eq!(ask(name, "192.0.2.2:80"), NODE_V4);
        assert_eq!(ask(name, "[2001:db8::2]:80"), NODE_V6);
        node.call(name).run("CHECK", &with_result(&conf, &result)).ok();
    }
    serve("p1", "p1", "[::]:80");
    assert_eq!(ask("p2", "10.22.0.2:80"), "p1 ::ffff:10.22.0.3", "not inside the subnet");
    assert_eq!(elements().len(), 6, "one of each family for each container");
}

#[test]
fn del_needs_neither_namespace_nor_result_and_gc_neither_a_del() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let conf = node.conf();
    for name in ["p1", "p2", "p3", "p4"] {
        netns(name);
        node.call(name).run("ADD", &conf).ok();
    }
    sh("ip netns del p1; ip netns del p2; ip netns del p3");
    node.call("p1").with("CNI_NETNS", "").run("DEL", &conf).ok();
    node.call("p2").with("CNI_NETNS", "/run/netns/gone").run("DEL", &conf).ok();
    let left = elements();
    assert!(left.len() == 4 && left.iter().all(|e| e.contains("p3 eth0") || e.contains("p4 eth0")), "{left:?}");
    let mut gc = conf.clone();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p4", "ifname": "eth0"}]);
    node.call("p4").run("GC", &gc).ok();
    let left = elements();
    assert!(left.len() == 2 && left.iter().all(|element| element.contains("p4 eth0")), "{left:?}");
    node.call("p4").run("DEL", &conf).ok();
    node.call("p4").run("DEL", &conf).ok();
    assert_eq!(elements(), [""; 0]);
}

#[test]
fn an_add_that_fails_late_leaves_no_element() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    netns("p1");
    sh("nft add table ip cni; nft add chain ip cni postrouting '{ type filter hook input priority 0; }'");
    let answer = node.call("p1").run("ADD", &node.conf());
    assert_eq!(answer.code(), 100, "{answer:?}");
    assert_eq!(elements(), [""; 0]);
    sh("nft delete table ip cni");
    node.call("p1").run("ADD", &node.conf()).ok();
}

#[test]
fn an_address_belongs_to_who_has_it_now() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let conf = node.conf();
    netns("p1");
    node.call("p1").run("ADD", &conf).ok();
    // A node that forgot its reservations: the next container gets the same address.
    sh(&format!("ip netns del p1; rm -r {}/lab", node.data.path().display()));
    netns("p2");
    node.call("p2").run("ADD", &conf).ok();
    assert_eq!(ask("p2", "192.0.2.2:80"), NODE_V4);
    node.call("p1").with("CNI_NETNS", "").run("DEL", &conf).ok();
    assert_eq!(ask("p2", "192.0.2.2:80"), NODE_V4, "the late DEL of the former owner");
    assert!(elements().iter().all(|element| element.contains("p2 eth0")));
}

#[test]
fn check_notices_what_was_changed_by_hand() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    for (index, sabotage) in [
        "nft flush map ip cni pods",
        "nft delete element ip6 cni pods '{ ADDRESS }'",
        "nft flush chain ip cni postrouting",
        "nft flush chain ip cni subnet_10.22.0.0/24",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("p{index}");
        netns(&name);
        let result = node.call(&name).run("ADD", &node.conf()).ok();
        let checked = with_result(&node.conf(), &result);
        node.call(&name).run("CHECK", &checked).ok();
        let address = result["ips"][1]["address"].as_str().unwrap().split('/').next().unwrap();
        sh(&sabotage.replace("ADDRESS", address));
        assert_eq!(node.call(&name).run("CHECK", &checked).code(), 102, "{sabotage}");
        node.call(&name).run("DEL", &checked).ok();
    }
}

#[test]
fn a_container_of_the_go_plugin_is_taken_down_by_ours() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let conf = node.conf();
    for name in ["p1", "p2"] {
        netns(name);
        node.go(name).run("ADD", &conf).ok();
    }
    let rules = sh("iptables-save; ip6tables-save");
    assert!(rules.contains("id: \\\"p1\\\"") && rules.contains("id: \\\"p2\\\""), "{rules}");
    // As containerd does it: without a namespace, where the Go plugin itself leaves its chain.
    node.call("p1").with("CNI_NETNS", "").run("DEL", &conf).ok();
    let rules = sh("iptables-save; ip6tables-save");
    assert!(!rules.contains("id: \\\"p1\\\""), "{rules}");
    assert_eq!(rules.matches(":CNI-").count(), 2, "the chains of p2, one of each family: {rules}");
    node.call("p2").run("DEL", &conf).ok();
    let rules = sh("iptables-save; ip6tables-save");
    assert!(!rules.contains("CNI-"), "{rules}");
    // And the other way round.
    netns("p3");
    let result = node.call("p3").run("ADD", &conf).ok();
    // Debian's Go plugin does not understand this iptables when a chain is not there, its own included: a runtime that tries again succeeds.
    let first = node.go("p3").run("DEL", &with_result(&conf, &result));
    assert!(first.success || first.json["msg"].as_str().unwrap().contains("does not exist"), "{first:?}");
    node.go("p3").run("DEL", &with_result(&conf, &result)).ok();
    assert!(!succeeds("ip -n p3 link show eth0"));
    node.call("p3").run("DEL", &with_result(&conf, &result)).ok();
    assert_eq!(elements(), [""; 0]);
}

/// The newer backend of the Go plugin, whose rules bear a comment that begins with two hashes.
#[test]
fn rules_of_the_go_plugins_nftables_backends_go_too() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let conf = node.conf();
    let hash = |text: &str| sh(&format!("printf %s '{text}' | sha512sum"))[..16].to_owned();
    let comment =
        |name: &str| format!("{}-{}, net: lab, if: eth0, id: {name}", hash("lab"), hash(&format!("eth0:{name}")));
    sh("nft add table inet cni_plugins_masquerade; nft add chain inet cni_plugins_masquerade masq_checks");
    for name in ["p1", "p2"] {
        let rule = format!("ip saddr 10.22.0.2 masquerade comment \"{}\"", comment(name));
        sh(&format!("nft 'add rule inet cni_plugins_masquerade masq_checks {rule}'"));
    }
    sh("nft add table ip cni_hostport; nft add chain ip cni_hostport hostports");
    for name in ["p1", "p2"] {
        sh(&format!("nft 'add rule ip cni_hostport hostports tcp dport 80 dnat to 10.22.0.2:80 comment \"{name}\"'"));
    }
    node.call("p1").with("CNI_NETNS", "").run("DEL", &conf).ok();
    let portmap = Call { program: node.plugins.path().join("portmap"), ..node.call("p1").with("CNI_NETNS", "") };
    portmap.run("DEL", &json!({"cniVersion": "1.0.0", "name": "lab", "type": "portmap"})).ok();
    let left = sh("nft list ruleset");
    assert!(!left.contains("id: p1") && !left.contains("\"p1\""), "{left}");
    assert!(left.contains("id: p2") && left.contains("\"p2\""), "{left}");
}
