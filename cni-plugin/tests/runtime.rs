//! The runtime side: cnitool with lists of several plugins, and taking over from the Go cnitool and back.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::{files, go_plugins, install_ours, ip, netns, sh, succeeds};

/// A node with a directory of lists, and an empty cache.
struct Node {
    plugins: tempfile::TempDir,
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        sh("mount -t tmpfs tmpfs /var/lib && mkdir -p /run/cni && ip link set lo up");
        let node = Self { plugins: install_ours(), dir: tempfile::tempdir().unwrap() };
        fs::create_dir(node.path("net")).unwrap();
        node
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn write(&self, file: &str, list: &Value) {
        fs::write(self.path("net").join(file), list.to_string()).unwrap();
    }

    /// bridge, tuning and bandwidth.
    fn list(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "lab",
            "plugins": [
                {"type": "bridge", "isDefaultGateway": true, "capabilities": {"mac": true},
                 "ipam": {"type": "host-local", "dataDir": self.path("ipam"), "ranges": [[{"subnet": "10.9.0.0/24"}]],
                          "routes": [{"dst": "192.0.2.0/24", "gw": "10.9.0.1"}]}},
                {"type": "tuning", "dataDir": self.path("tuning"), "mtu": 1400},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ],
        })
    }

    fn run(&self, program: &Path, plugins: &Path, arguments: &[&str], capabilities: &str) -> Output {
        Command::new(program)
            .args(arguments)
            .env("CNI_PATH", plugins)
            .env("NETCONFPATH", self.path("net"))
            .env("CAP_ARGS", capabilities)
            .output()
            .unwrap()
    }

    fn cnitool(&self, arguments: &[&str]) -> Output {
        self.run(&self.plugins.path().join("cnitool"), self.plugins.path(), arguments, "{}")
    }

    fn succeed(&self, arguments: &[&str]) -> Value {
        ok(&self.cnitool(arguments))
    }

    /// What is known of attachments: reservations, backups, cache entries, ifbs.
    fn left(&self) -> Vec<String> {
        let names = |dir: PathBuf| files(&dir).into_keys().filter(|name| name != "lock" && !name.starts_with("last_"));
        let mut left: Vec<_> = names(self.path("ipam/lab")).collect();
        left.extend(names(self.path("tuning")));
        left.extend(names("/var/lib/cni/results".into()));
        left.extend(ip("", "link show type ifb").as_array().unwrap().iter().map(|link| link["ifname"].to_string()));
        left
    }
}

fn ok(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const LIMITS: &str = r#"{"bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000},
                         "mac": "02:00:00:00:00:42"}"#;

const C1: &str = "/run/netns/c1";
const C2: &str = "/run/netns/c2";
const C3: &str = "/run/netns/c3";

#[test]
fn del_and_check_remember_what_add_was_asked_for() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    node.write("10-lab.conflist", &node.list("1.0.0"));
    netns("c1");
    let cnitool = node.plugins.path().join("cnitool");
    let result = ok(&node.run(&cnitool, node.plugins.path(), &["add", "lab", C1], LIMITS));
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4, "bridge, two ends of a cable, ifb: {result}");
    assert_eq!(ip("c1", "link show eth0")[0]["address"], "02:00:00:00:00:42");
    // Without the capabilities again.
    node.succeed(&["check", "lab", C1]);
    sh(&format!("tc qdisc del dev {} root", result["interfaces"][1]["name"].as_str().unwrap()));
    assert!(complaint(&node.cnitool(&["check", "lab", C1])).contains("bandwidth"), "the limit is known from the cache");
    node.succeed(&["del", "lab", C1]);
    node.succeed(&["del", "lab", C1]);
    assert_eq!(node.left(), Vec::<String>::new());
}

#[test]
fn gc_keeps_what_it_is_told_to_keep_and_frees_the_rest() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    node.write("10-lab.conflist", &node.list("1.1.0"));
    let mut other = node.list("1.1.0");
    other["name"] = json!("lab-2");
    other["plugins"][0]["bridge"] = json!("cni2");
    other["plugins"][0]["ipam"]["routes"] = json!([]);
    other["plugins"][0]["ipam"]["ranges"] = json!([[{"subnet": "10.10.0.0/24"}]]);
    node.write("20-lab-2.conflist", &other);
    let cnitool = node.plugins.path().join("cnitool");
    for (container, path) in [("c1", C1), ("c2", C2)] {
        netns(container);
        ok(&node.run(&cnitool, node.plugins.path(), &["add", "lab", path], LIMITS));
    }
    netns("c3");
    ok(&node.run(&cnitool, node.plugins.path(), &["add", "lab-2", C3, "-i", "eth1"], "{}"));
    sh("ip netns del c1");
    // The cache was lost: what is known is in the plugins' own files, and in the kernel.
    for entry in
        files(Path::new("/var/lib/cni/results")).into_keys().filter(|name| name.starts_with("lab-cnitool-20b4"))
    {
        fs::remove_file(Path::new("/var/lib/cni/results").join(entry)).unwrap();
    }
    assert_eq!(node.left().len(), 9);
    for _ in 0..2 {
        node.succeed(&["gc", "lab", "--keep", C2]);
        assert_eq!(
            node.left().len(),
            6,
            "an address, a backup, a cache entry, an ifb of c2; what is of lab-2: {:?}",
            node.left()
        );
    }
    node.succeed(&["check", "lab", C2]);
    assert_eq!(files(&node.path("ipam/lab-2")).len(), 3, "the other network's address, and its two files");
    let mut disabled = node.list("1.1.0");
    disabled["disableGC"] = json!(true);
    node.write("10-lab.conflist", &disabled);
    node.succeed(&["gc", "lab"]);
    assert_eq!(node.left().len(), 6, "others use the network");
    node.write("10-lab.conflist", &node.list("1.1.0"));
    node.succeed(&["gc", "lab"]);
    node.succeed(&["gc", "lab-2"]);
    assert_eq!(node.left(), Vec::<String>::new());
    assert_eq!(files(&node.path("ipam/lab-2")).len(), 2);
}

#[test]
fn gc_of_an_old_version_frees_what_is_cached() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    node.write("10-lab.conflist", &node.list("0.4.0"));
    netns("c1");
    let cnitool = node.plugins.path().join("cnitool");
    ok(&node.run(&cnitool, node.plugins.path(), &["add", "lab", C1], LIMITS));
    sh("ip netns del c1");
    node.succeed(&["gc", "lab"]);
    assert_eq!(node.left(), Vec::<String>::new());
}

#[test]
fn status_and_validate_say_what_is_missing() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let flannel = json!({
        "cniVersion": "1.1.0", "name": "lab",
        "plugins": [
            {"type": "flannel", "subnetFile": node.path("subnet.env"), "dataDir": node.path("flannel")},
            {"type": "tuning", "capabilities": {"mac": true, "ips": false}},
        ],
    });
    node.write("10-lab.conflist", &flannel);
    assert!(complaint(&node.cnitool(&["status", "lab"])).contains("subnet.env"));
    fs::write(
        node.path("subnet.env"),
        "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.1.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    node.succeed(&["status", "lab"]);
    node.succeed(&["status", "lab", C1]);
    assert_eq!(
        node.succeed(&["validate", "lab"]),
        json!({"cniVersion": "1.1.0", "plugins": ["flannel", "tuning"], "capabilities": ["mac"]})
    );
    assert!(complaint(&node.cnitool(&["validate", "nowhere"])).contains("nowhere"));

    // Debian's plugins do not speak 1.1.0; and of two troubles none is lost.
    let mixed = tempfile::tempdir().unwrap();
    symlink(go_plugins().join("bridge"), mixed.path().join("bridge")).unwrap();
    let mut list = node.list("1.1.0");
    node.write("10-lab.conflist", &list);
    let cnitool = node.plugins.path().join("cnitool");
    let said = complaint(&node.run(&cnitool, mixed.path(), &["validate", "lab"], "{}"));
    assert!(said.contains("bridge does not support config version") && said.contains("tuning"), "{said}");
    list["cniVersion"] = json!("1.0.0");
    list["plugins"] = json!([{"type": "bridge", "capabilities": {"ips": true}}]);
    node.write("10-lab.conflist", &list);
    assert_eq!(ok(&node.run(&cnitool, mixed.path(), &["validate", "lab"], "{}"))["capabilities"], json!(["ips"]));
}

#[test]
fn a_plugin_that_is_no_plugin_is_named() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("odd");
    fs::write(&script, "#!/bin/sh\ncat >/dev/null\necho nonsense\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    node.write("10.conf", &json!({"cniVersion": "1.0.0", "name": "lab", "type": "odd"}));
    netns("c1");
    let cnitool = node.plugins.path().join("cnitool");
    for verb in ["add", "validate"] {
        let arguments: &[&str] = if verb == "add" { &["add", "lab", C1] } else { &["validate", "lab"] };
        let said = complaint(&node.run(&cnitool, dir.path(), arguments, "{}"));
        assert!(said.contains("odd"), "{said}");
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

#[test]
fn the_go_cnitool_takes_over_from_ours_and_back() {
    if !enter_sandbox() {
        return;
    }
    let path = std::env::var_os("PATH").unwrap();
    let Some(go) = std::env::split_paths(&path).map(|dir| dir.join("cnitool")).find(|program| program.exists()) else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: there is no cnitool of Go on PATH; go install github.com/containernetworking/cni/cnitool@latest"
        );
        return;
    };
    let node = Node::new();
    let ours = node.plugins.path().join("cnitool");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        node.write("10-lab.conflist", &node.list(version));
        for (adds, dels) in [(&ours, &go), (&go, &ours)] {
            netns("c1");
            ok(&node.run(adds, node.plugins.path(), &["add", "lab", C1], LIMITS));
            for program in [adds, dels] {
                ok(&node.run(program, node.plugins.path(), &["check", "lab", C1], LIMITS));
                ok(&node.run(program, node.plugins.path(), &["status", "lab", C1], LIMITS));
            }
            assert!(succeeds("ip netns exec c1 ping -c1 -W1 10.9.0.1"));
            ok(&node.run(dels, node.plugins.path(), &["del", "lab", C1], LIMITS));
            assert_eq!(node.left(), Vec::<String>::new(), "{version}");
            // What is cached by one, and whose container has vanished, is freed by the other.
            ok(&node.run(adds, node.plugins.path(), &["add", "lab", C1], LIMITS));
            sh("ip netns del c1");
            if *dels == ours {
                ok(&node.run(dels, node.plugins.path(), &["gc", "lab", C1], "{}"));
            } else {
                // The Go cnitool then asks our plugins for GC without a list, which from 1.1.0 on they refuse to take for an empty one.
                node.run(dels, node.plugins.path(), &["gc", "lab", C1], "{}");
            }
            assert_eq!(node.left(), Vec::<String>::new(), "{version}");
        }
    }
}
