//! Who plays the service proxy: ours, or the real kube-proxy, with the same settings.
//!
//! The real one is told about Services by a Kubernetes API server alone. `knetsim apiserver` serves what stands in the test's etcd; it is
//! looked for beside our own program.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{WORKER, say};

/// Where etcd listens, in the worker.
pub(crate) const ETCD: &str = "http://127.0.0.1:2379";
/// Where the Kubernetes API listens, in the worker.
pub(crate) const API_PORT: u16 = 8080;
/// Set by whoever wants to see the real kube-proxy in the place of ours.
pub(crate) const REAL: &str = "KNETSIM_REAL";

/// Why kube-proxy fails where it has to write much at once. It says "Message too long": a socket may have the buffer that this takes only
/// with privileges outside of the sandbox.
pub(crate) const TOO_MUCH: &str =
    "its nft sends more at once than the kernel takes in a user namespace, fails, and tries again in half a minute";

/// Who plays the service proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// The program under test.
    Ours,
    /// The original, from `PATH`.
    KubeProxy,
}

/// How the proxy is started, whoever it is.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// How pods are told from others.
    pub(crate) pods: Pods,
    /// Networks of addresses that have node ports; the proxy's own default when empty.
    pub(crate) node_port_addresses: Vec<&'static str>,
    /// The bit of the packet mark.
    pub(crate) masquerade_bit: u8,
}

/// How pods are told from others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pods {
    /// By their addresses.
    Networks(&'static str),
    /// By the bridge that they are on.
    Bridge(&'static str),
    /// By the beginning of the names of their interfaces.
    Prefix(&'static str),
}

impl Default for Settings {
    fn default() -> Self {
        let pods = Pods::Networks("11.0.0.0/8,fd00:11::/32");
        Self { pods, node_port_addresses: Vec::new(), masquerade_bit: 14 }
    }
}

impl Program {
    /// The name of its tables.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Ours => "kproxy",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// The program to try: ours, unless the reader wants to see kube-proxy in its place.
pub(crate) fn tested() -> Program {
    if std::env::var_os(REAL).is_some() { Program::KubeProxy } else { Program::Ours }
}

/// Says whether kube-proxy is tried, of which this is not expected, and tells why.
pub(crate) fn is_ours_only(reason: &str) -> bool {
    let skipped = tested() == Program::KubeProxy;
    if skipped {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        say(&format!("SKIPPED under kube-proxy: {test}: {reason}"));
    }
    skipped
}

/// Where kube-proxy is, if it is on `PATH`.
pub(crate) fn kube_proxy() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join("kube-proxy")).find(|file| file.is_file())
}

/// The proxy, to be started in the worker; `directory` is for the files that it reads.
pub(crate) fn command(settings: &Settings, directory: &Path) -> Command {
    match tested() {
        Program::Ours => ours(settings),
        Program::KubeProxy => {
            let config = directory.join("kube-proxy.json");
            std::fs::write(&config, real_config(settings, directory).to_string()).unwrap();
            let mut command = real();
            command.arg(format!("--config={}", config.display()));
            command
        }
    }
}

/// The command that deletes the proxy's tables.
pub(crate) fn cleanup() -> Command {
    match tested() {
        Program::Ours => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kproxy-rs"));
            command.arg("cleanup");
            command
        }
        Program::KubeProxy => {
            let mut command = real();
            command.arg("--cleanup");
            command
        }
    }
}

/// The Kubernetes API, to be started in the worker.
pub(crate) fn api() -> Command {
    let knetsim = Path::new(env!("CARGO_BIN_EXE_kproxy-rs")).with_file_name("knetsim");
    assert!(knetsim.is_file(), "{} is missing; `cargo build -p knetsim` builds it", knetsim.display());
    let mut command = Command::new(knetsim);
    command.args(["apiserver", "--etcd-endpoints", ETCD, "--service-cidr", "100.64.0.0/16", "--listen"]);
    command.arg(format!("127.0.0.1:{API_PORT}"));
    command
}

fn ours(settings: &Settings) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kproxy-rs"));
    command.args(["--etcd-endpoints", ETCD, "--hostname-override", WORKER]);
    command.arg(format!("--masquerade-bit={}", settings.masquerade_bit));
    match settings.pods {
        Pods::Networks(networks) => command.args(["--cluster-cidr", networks]),
        Pods::Bridge(name) => command.args(["--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", name]),
        Pods::Prefix(prefix) => {
            command.args(["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", prefix])
        }
    };
    if !settings.node_port_addresses.is_empty() {
        command.arg(format!("--nodeport-addresses={}", settings.node_port_addresses.join(",")));
    }
    command
}

fn real() -> Command {
    Command::new(kube_proxy().unwrap_or_else(|| panic!("{REAL} is set, but kube-proxy is not on PATH")))
}

/// Source: Kubernetes documentation, "kube-proxy Configuration (v1alpha1)".
fn real_config(settings: &Settings, directory: &Path) -> Value {
    let kubeconfig = directory.join("kubeconfig.json");
    let server = format!("http://127.0.0.1:{API_PORT}");
    let cluster = json!({"apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": server}}], "users": [{"name": "lab", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}]});
    std::fs::write(&kubeconfig, cluster.to_string()).unwrap();
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": WORKER,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // It would ask for protobuf, which our API does not speak.
        "clientConnection": {"kubeconfig": kubeconfig,
            "contentType": "application/json", "acceptContentTypes": "application/json"},
        // The limits of connection tracking belong to the machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"masqueradeBit": settings.masquerade_bit, "minSyncPeriod": "10ms"},
        "nodePortAddresses": settings.node_port_addresses,
    });
    match settings.pods {
        Pods::Networks(networks) => {
            config["detectLocalMode"] = json!("ClusterCIDR");
            config["clusterCIDR"] = json!(networks);
        }
        Pods::Bridge(name) => {
            config["detectLocalMode"] = json!("BridgeInterface");
            config["detectLocal"] = json!({ "bridgeInterface": name });
        }
        Pods::Prefix(prefix) => {
            config["detectLocalMode"] = json!("InterfaceNamePrefix");
            config["detectLocal"] = json!({ "interfaceNamePrefix": prefix });
        }
    }
    config
}
