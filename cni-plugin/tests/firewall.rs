//! The firewall plugin with real packets, beside the Go plugin and its iptables.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::path::Path;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::traffic::{ask, outside, serve, wait_for_dad};
use support::{Call, as_version_1, elements, go_plugins, install_ours, netns, sh, succeeds};

/// A node that forwards nothing unless told to, with two bridges and an outside host that knows the way to them.
struct Node {
    plugins: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        outside();
        sh("ip -n outside route add default via 192.0.2.1; ip -n outside route add default via 2001:db8::1");
        serve("outside", "outside", "[::]:80");
        Self { plugins: install_ours(), data: tempfile::tempdir().unwrap() }
    }

    /// Attaches a container to `cni<number>` and serves its name.
    fn attach(&self, name: &'static str, number: u8, ipv6: bool) -> Pod<'_> {
        let path = netns(name);
        let mut ranges = vec![json!([{"subnet": format!("10.22.{number}.0/24")}])];
        ranges.extend(ipv6.then(|| json!([{"subnet": format!("fd00:22:{number}::/64")}])));
        let conf = json!({
            "cniVersion": "1.1.0", "name": format!("lab{number}"), "type": "bridge", "bridge": format!("cni{number}"),
            "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": self.data.path(), "ranges": ranges}
        });
        let result = Call::new(self.plugins.path(), "bridge", name, &path).run("ADD", &conf).ok();
        serve(name, name, "[::]:80");
        Pod { plugins: self.plugins.path(), name, network: format!("lab{number}"), result }
    }
}

struct Pod<'a> {
    plugins: &'a Path,
    name: &'static str,
    network: String,
    result: Value,
}

impl Pod<'_> {
    fn call(&self) -> Call {
        Call::new(self.plugins, "firewall", self.name, &Path::new("/run/netns").join(self.name))
    }

    fn go(&self) -> Call {
        Call { program: go_plugins().join("firewall"), ..self.call() }
    }

    fn conf(&self, options: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": self.network, "type": "firewall", "prevResult": self.result
        });
        conf.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        conf
    }
}

/// Whether a server is reached.
fn reaches(from: &str, to: &str) -> bool {
    !ask(from, to).is_empty()
}

/// iptables with its chains in place, which forward nothing.
fn drop_what_is_forwarded() {
    sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
}

#[test]
fn a_container_gets_out_of_a_node_that_forwards_nothing() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    drop_what_is_forwarded();
    let pod = node.attach("p1", 1, true);
    assert!(!reaches("p1", "192.0.2.2:80"), "without the plugin");
    let conf = pod.conf(&json!({}));
    assert_eq!(pod.call().run("ADD", &conf).ok(), pod.result, "the result is passed through");
    wait_for_dad();
    assert_eq!(ask("p1", "192.0.2.2:80"), "outside ::ffff:10.22.1.2");
    assert_eq!(ask("p1", "[2001:db8::2]:80"), "outside fd00:22:1::2");
    assert!(!reaches("outside", "10.22.1.2:80"), "only answers come in");
    assert!(succeeds("iptables -S && iptables -L && iptables-save && ip6tables-save"), "iptables understands our rule");
    assert!(sh("iptables -S FORWARD").contains("-m mark --mark 0x1000/0x1000"));
    // The administrator's word comes first, in our table and in iptables.
    sh("nft add rule ip cni admin ip daddr 192.0.2.2 drop");
    assert!(!reaches("p1", "192.0.2.2:80"));
    sh("nft flush chain ip cni admin; iptables -N CNI-ADMIN; iptables -A CNI-ADMIN -d 192.0.2.2 -j DROP");
    pod.call().run("ADD", &conf).ok();
    assert!(!reaches("p1", "192.0.2.2:80"), "an ADD finds the chain that the Go plugin has made");
    sh("iptables -F CNI-ADMIN");
    assert!(reaches("p1", "192.0.2.2:80"));

    pod.call().run("CHECK", &conf).ok();
    pod.call().run("DEL", &conf).ok();
    assert_eq!(elements(), [""; 0]);
    assert!(!reaches("p1", "192.0.2.2:80"));
    pod.call().run("DEL", &conf).ok();
    assert_eq!(
        sh("iptables -S FORWARD").matches("accepted in table cni").count(),
        1,
        "one rule for all, however often"
    );
}

#[test]
fn policies_keep_out_whom_the_go_plugin_keeps_out() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pods = [("p1", 1), ("p2", 1), ("p3", 2), ("p4", 3)].map(|(name, bridge)| node.attach(name, bridge, false));
    sh("iptables -P FORWARD ACCEPT");
    // isolated is younger than the Go plugin here.
    for policy in ["open", "same-bridge"] {
        let conf = |pod: &Pod| {
            // p4 is on a bridge without a policy.
            let policy = if pod.name == "p4" { "open" } else { policy };
            as_version_1(pod.conf(&json!({"ingressPolicy": policy})))
        };
        let both = [true, false].map(|is_go| {
            let call = |pod: &Pod| if is_go { pod.go() } else { pod.call() };
            for pod in &pods {
                call(pod).run("ADD", &conf(pod)).ok();
                call(pod).run("CHECK", &conf(pod)).ok();
            }
            let from = ["p1", "p2", "p3", "p4", "outside", ""];
            let to = ["10.22.1.2", "10.22.1.3", "10.22.2.2", "10.22.3.2", "192.0.2.2"];
            let mut reached = Vec::new();
            for (from, to) in from.iter().flat_map(|from| to.map(|to| (*from, to))) {
                if reaches(from, &format!("{to}:80")) {
                    reached.push((from, to));
                }
            }
            for pod in &pods {
                call(pod).run("DEL", &conf(pod)).ok();
            }
            sh("iptables -F; iptables -X");
            reached
        });
        assert_eq!(both[0], both[1], "{policy}");
        let crosses = both[1].contains(&("p1", "10.22.2.2"));
        assert_eq!(crosses, policy == "open", "{policy}");
        assert_eq!(elements(), [""; 0]);
    }
}

#[test]
fn isolated_keeps_out_the_neighbours_of_the_same_bridge_too() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pods = [("p1", 1), ("p2", 1), ("p3", 2)].map(|(name, bridge)| node.attach(name, bridge, false));
    // Through the node instead of over the bridge: what the policy sees.
    sh("ip -n p1 route add 10.22.1.3 via 10.22.1.1; sysctl -qw net.ipv4.conf.cni1.send_redirects=0");
    for (policy, neighbour) in [("same-bridge", true), ("isolated", false)] {
        for pod in &pods {
            pod.call().run("ADD", &pod.conf(&json!({"ingressPolicy": policy}))).ok();
        }
        let reached =
            [("p1", "10.22.1.3:80"), ("p1", "10.22.2.2:80"), ("p1", "192.0.2.2:80"), ("outside", "10.22.1.2:80")]
                .map(|(from, to)| reaches(from, to));
        assert_eq!(reached, [neighbour, false, true, true], "{policy}");
    }
}

#[test]
fn a_container_of_the_go_plugin_is_taken_down_by_ours() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    drop_what_is_forwarded();
    let (pod, other) = (node.attach("p1", 1, true), node.attach("p2", 1, true));
    for pod in [&pod, &other] {
        pod.go().run("ADD", &as_version_1(pod.conf(&json!({})))).ok();
    }
    assert!(reaches("p1", "192.0.2.2:80"));
    pod.call().run("DEL", &as_version_1(pod.conf(&json!({})))).ok();
    let left = sh("iptables-save; ip6tables-save");
    assert!(!left.contains("10.22.1.2/32") && !left.contains("fd00:22:1::2/128"), "{left}");
    assert!(left.contains("10.22.1.3/32") && left.contains("fd00:22:1::3/128"), "{left}");
    assert!(!reaches("p1", "192.0.2.2:80"));
    assert!(reaches("p2", "192.0.2.2:80"));
    // And the other way round.
    other.call().run("ADD", &other.conf(&json!({}))).ok();
    other.go().run("DEL", &as_version_1(other.conf(&json!({})))).ok();
    other.call().run("DEL", &other.conf(&json!({}))).ok();
    assert_eq!(elements(), [""; 0]);
}

#[test]
fn del_and_gc_need_neither_namespace_nor_result() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let pods = [("p1", 1), ("p2", 1), ("p3", 1)].map(|(name, bridge)| node.attach(name, bridge, true));
    for pod in &pods {
        pod.call().run("ADD", &pod.conf(&json!({"ingressPolicy": "isolated"}))).ok();
    }
    let bare = json!({"cniVersion": "1.1.0", "name": "lab1", "type": "firewall"});
    pods[0].call().with("CNI_NETNS", "").run("DEL", &bare).ok();
    let left = elements();
    assert_eq!(left.len(), 2 * 4 * 2, "four elements for each family of two containers: {left:?}");
    assert!(left.iter().all(|element| !element.contains("p1 eth0")), "{left:?}");
    let mut gc = bare;
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "p3", "ifname": "eth0"}]);
    pods[0].call().run("GC", &gc).ok();
    let left = elements();
    assert!(left.len() == 8 && left.iter().all(|element| element.contains("p3 eth0")), "{left:?}");
    // A container that gets the address of one that never got a DEL.
    let heir = Call { env: pods[2].call().with("CNI_CONTAINERID", "heir").env, ..pods[2].call() };
    heir.run("ADD", &pods[2].conf(&json!({}))).ok();
    pods[2].call().run("DEL", &pods[2].conf(&json!({}))).ok();
    let left = elements();
    assert!(left.len() == 4 && left.iter().all(|element| element.contains("heir eth0")), "{left:?}");
}

#[test]
fn check_notices_what_was_changed_by_hand() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    drop_what_is_forwarded();
    let pod = node.attach("p1", 1, false);
    let conf = pod.conf(&json!({"ingressPolicy": "same-bridge"}));
    for sabotage in [
        "nft flush set ip cni firewall_pods",
        "nft flush map ip cni ingress_same_bridge",
        "nft flush chain ip cni firewall_forward",
        "iptables -F FORWARD",
    ] {
        pod.call().run("ADD", &conf).ok();
        pod.call().run("CHECK", &conf).ok();
        sh(sabotage);
        assert_eq!(pod.call().run("CHECK", &conf).code(), 102, "{sabotage}");
    }
    pod.call().run("STATUS", &conf).ok();
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    let answer = pod.call().run("ADD", &bare);
    assert_eq!((answer.code(), answer.json["msg"].as_str().unwrap()), (7, "missing prevResult from earlier plugin"));
}
