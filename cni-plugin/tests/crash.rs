//! kill -9 at any point of an ADD: what is half made goes with the DEL or the GC that follows.
//!
//! One ADD through a whole chain is traced with strace(1), which then repeats it and kills the process as it enters a chosen call: every call that
//! changes something, one after the other. Killed before any other call, it leaves what it leaves before the next of these.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::{install_ours, ip, netns, sh};

/// The calls by which a program changes what is outside of it: files, the kernel's network, other processes.
const CHANGES: &str = "openat,write,pwrite64,sendto,sendmsg,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,\
                       link,linkat,symlink,symlinkat,ftruncate,fallocate,utimensat,chmod,fchmod,fchmodat,flock,fsync,setns";

const CONTAINER: &str = "/run/netns/c1";

/// A node with a network of every plugin that leaves something somewhere.
struct Node {
    plugins: tempfile::TempDir,
    dir: tempfile::TempDir,
}

/// What of attachments can be found on the node.
#[derive(Debug, PartialEq, Eq)]
struct State {
    files: Vec<String>,
    links: Vec<String>,
    elements: Vec<String>,
}

impl Node {
    fn new() -> Self {
        sh("mount -t tmpfs tmpfs /var/lib && mkdir -p /run/cni");
        let node = Self { plugins: install_ours(), dir: tempfile::tempdir().unwrap() };
        let lease =
            "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        fs::write(node.path("subnet.env"), lease).unwrap();
        let list = json!({
            "cniVersion": "1.1.0", "name": "lab",
            "plugins": [
                {"type": "flannel", "subnetFile": node.path("subnet.env"), "dataDir": node.path("flannel"),
                 "delegate": {"isDefaultGateway": true}, "ipam": {"dataDir": node.path("ipam")}},
               {"type": "portmap", "capabilities": {"portMappings": true}},
               {"type": "firewall"},
               {"type": "tuning", "dataDir": node.path("tuning"), "mtu": 1400,
                "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
               {"type": "bandwidth", "capabilities": {"bandwidth": true}}
            ]
        });
        fs::create_dir(node.path("net")).unwrap();
        fs::write(node.path("net/10-lab.conflist"), list.to_string()).unwrap();
        node
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// `cnitool VERB lab …`, run by `wrapper` if there is one.
    fn cnitool(&self, wrapper: &[&str], arguments: &[&str]) -> Output {
        let program = self.plugins.path().join("cnitool").display().to_string();
        let mut words = wrapper.iter().copied().chain([program.as_str()]).chain(arguments.iter().copied());
        Command::new(words.next().unwrap())
            .args(words)
            .env("CNI_PATH", self.plugins.path())
            .env("NETCONFPATH", self.path("net"))
            .env(
                "CAP_ARGS",
                r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                                 "bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000,
                                               "egressRate": 8000000, "egressBurst": 800000}}"#,
            )
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn succeed(&self, arguments: &[&str]) {
        let output = self.cnitool(&[], arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The changing calls of one command, in their order, each with how often it had been made by then.
    fn calls_of(&self, verb: &str) -> Vec<(String, usize)> {
        let log = self.path("calls");
        let trace = format!("trace={CHANGES}");
        let strace = ["strace", "-f", "-qq", "-e", &trace, "-e", "signal=none", "-o", log.to_str().unwrap()];
        let output = self.cnitool(&strace, &[verb, "lab", CONTAINER]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let text = fs::read_to_string(log).unwrap();
        let calls = text.lines().filter_map(|line| {
            // 1234  openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
            let (name, arguments) = line.split_whitespace().nth(1)?.split_once('(').map(|(name, _)| (name, line))?;
            let count = counts.entry(name.to_owned()).or_default();
            *count += 1;
            let only_reads = name == "openat" && !arguments.contains("O_CREAT") && !arguments.contains("O_TRUNC");
            (!only_reads).then(|| (name.to_owned(), *count))
        });
        calls.collect()
    }

    /// Repeats the command and kills it as it enters this call.
    fn kill_at(&self, verb: &str, (name, count): &(String, usize)) {
        let inject = format!("inject={name}:signal=KILL:when={count}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject];
        let output = self.cnitool(&strace, &[verb, "lab", CONTAINER]);
        assert_eq!(output.status.signal(), Some(9), "{name} {count}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn state(&self) -> State {
        let mut files = Vec::new();
        for dir in [
            self.path("flannel"),
            self.path("ipam"),
            self.path("tuning"),
            Path::new("/var/lib/cni").into(),
            Path::new("/run/cni").into(),
        ] {
            collect_files(&dir, &mut files);
        }
        // What belongs to the network and not to an attachment.
        let is_networks = |file: &String| {
            let name = file.rsplit('/').next().unwrap_or_default();
            name == "lock" || name.starts_with("last_reserved_ip") || name.starts_with('.')
        };
        files.retain(|file| !is_networks(file));
        let links = ip("", "link show")
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect();
        State { files, links, elements: elements() }
    }
}

fn collect_files(dir: &Path, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() { collect_files(&path, files) } else { files.push(path.display().to_string()) }
    }
    files.sort();
}

/// The elements of all sets and maps, whatever they are.
fn elements() -> Vec<String> {
    let ruleset: Value = serde_json::from_str(&sh("nft -j list ruleset")).unwrap();
    let items = ruleset["nftables"].as_array().unwrap().iter();
    let sets = items.filter_map(|item| item.get("set").or_else(|| item.get("map")));
    let elements = sets.filter_map(|set| set["elem"].as_array()).flatten();
    elements.map(ToString::to_string).collect()
}

/// Makes an ADD and takes it back, so that what belongs to the network (the bridge, tables) is there; returns its calls and what is left.
fn rehearse(node: &Node) -> (Vec<(String, usize)>, State) {
    netns("c1");
    node.succeed(&["add", "lab", CONTAINER]);
    node.succeed(&["check", "lab", CONTAINER]);
    node.succeed(&["del", "lab", CONTAINER]);
    let calls = node.calls_of("add");
    node.succeed(&["del", "lab", CONTAINER]);
    let clean = node.state();
    assert!(clean.elements.is_empty() && clean.files.is_empty(), "{clean:?}");
    assert!(calls.len() > 20, "an ADD changes more than {calls:?}");
    (calls, clean)
}

#[test]
fn a_del_after_a_killed_add_leaves_nothing_and_the_next_add_works() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (calls, clean) = rehearse(&node);
    for call in &calls {
        node.kill_at("add", call);
        node.succeed(&["del", "lab", CONTAINER]);
        assert_eq!(node.state(), clean, "after a kill before {call:?} and DEL");
    }
    node.succeed(&["add", "lab", CONTAINER]);
    node.succeed(&["check", "lab", CONTAINER]);
}

#[test]
fn a_gc_after_a_killed_add_and_a_vanished_container_leaves_nothing() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (calls, clean) = rehearse(&node);
    for call in &calls {
        node.kill_at("add", call);
        sh("ip netns del c1");
        node.succeed(&["gc", "lab"]);
        assert_eq!(node.state(), clean, "after a kill before {call:?}, the end of the container, and GC");
        netns("c1");
    }
}

#[test]
fn a_del_killed_at_any_point_is_completed_by_the_next() {
    if !enter_sandbox() {
        return;
    }
    let node = Node::new();
    let (_, clean) = rehearse(&node);
    node.succeed(&["add", "lab", CONTAINER]);
    for call in node.calls_of("del") {
        node.succeed(&["add", "lab", CONTAINER]);
        node.kill_at("del", &call);
        node.succeed(&["del", "lab", CONTAINER]);
        assert_eq!(node.state(), clean, "after a kill of DEL before {call:?} and another DEL");
    }
}
