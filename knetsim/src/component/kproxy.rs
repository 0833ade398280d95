//! The service proxy of a worker: the daemon, or the original's static rules in its place.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use linux_net::{NetNs, process::CommandNamespaceExt as _};
use serde_json::{Value, json};

use super::{apiserver, node_directory, program, real_program, write_file};
use crate::{
    impls::Impl,
    lab::{Cluster, Node, PodNetwork},
    process::{Processes, describe},
    supervisor::{DaemonId, DaemonSpec},
};

/// Ports of the daemon in the worker, those of kube-proxy.
pub const HEALTHZ_PORT: u16 = 10256;
/// See [`HEALTHZ_PORT`].
pub const METRICS_PORT: u16 = 10249;

/// The name of the daemon.
#[must_use]
pub fn id(worker: &Node) -> DaemonId {
    DaemonId::new(&worker.name, "kproxy")
}

/// How the daemon is started; none for [`Impl::Nft`], which has no daemon.
///
/// # Errors
///
/// When the program is missing, needs what the lab does not have, or the worker has no namespace.
pub fn spec(cluster: &Cluster, worker: &Node, pods: &PodNetwork, choice: Impl) -> anyhow::Result<Option<DaemonSpec>> {
    let (program, arguments, environment) = match choice {
        Impl::Rust => (program("kproxy-rs")?, arguments(&cluster.etcd_endpoints(), worker, pods).into(), Vec::new()),
        Impl::Nft => return Ok(None),
        Impl::Real => {
            let arguments = real_arguments(cluster, worker, pods, &node_directory(&worker.name))?;
            (real_program("kube-proxy")?, arguments.into(), Vec::new())
        }
    };
    Ok(Some(DaemonSpec {
        id: id(worker),
        program,
        arguments,
        environment,
        netns: NetNs::open(&worker.name)?,
        log: node_directory(&worker.name).join("kproxy.log"),
        restart: true,
    }))
}

/// The arguments of the daemon.
#[must_use]
pub fn arguments(etcd_endpoints: &str, worker: &Node, pods: &PodNetwork) -> [String; 5] {
    [
        format!("--etcd-endpoints={etcd_endpoints}"),
        format!("--hostname-override={}", worker.name),
        format!("--cluster-cidr={}", pods.cidr),
        format!("--healthz-bind-address=127.0.0.1:{HEALTHZ_PORT}"),
        format!("--metrics-bind-address=127.0.0.1:{METRICS_PORT}"),
    ]
}

/// The arguments of the real one, which follows the API of the cluster; its configuration is written to a directory.
///
/// # Errors
///
/// When the directory cannot be written to.
pub fn real_arguments(
    cluster: &Cluster,
    worker: &Node,
    pods: &PodNetwork,
    directory: &Path,
) -> anyhow::Result<[String; 1]> {
    let (kubeconfig, config) = (directory.join("kube-proxy.kubeconfig"), directory.join("kube-proxy.json"));
    let server = format!("http://{}", apiserver::address(apiserver::node(cluster)?));
    write_file(&kubeconfig, &format!("{:#}\n", real_kubeconfig(&server)))?;
    write_file(&config, &format!("{:#}\n", real_config(worker, pods, &kubeconfig)))?;
    Ok([format!("--config={}", config.display())])
}

/// Where the real one finds the API: a file as kubectl's, with one cluster and no user.
fn real_kubeconfig(server: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": server } }],
        "users": [{ "name": "lab", "user": {} }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
        "current-context": "lab",
    })
}

/// The configuration of the real one. It shall write nftables only: the limits of connection tracking belong to the machine, and a
/// lab of an ordinary user may not change them.
///
/// Source: Kubernetes documentation, "kube-proxy Configuration (v1alpha1)".
fn real_config(worker: &Node, pods: &PodNetwork, kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": worker.name,
        "clusterCIDR": pods.cidr,
        "detectLocalMode": "ClusterCIDR",
        "healthzBindAddress": format!("127.0.0.1:{HEALTHZ_PORT}"),
        "metricsBindAddress": format!("127.0.0.1:{METRICS_PORT}"),
        "clientConnection": {
            "kubeconfig": kubeconfig,
            // It would ask for protobuf, which the lab's API does not speak.
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}

/// Whether the daemon has programmed what stands in etcd.
#[must_use]
pub fn is_healthy(netns: &NetNs) -> bool {
    super::http_status(netns, SocketAddr::from(([127, 0, 0, 1], HEALTHZ_PORT)), "/healthz") == Some(200)
}

/// A virtual address and the endpoints behind it, for the static rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticVip {
    /// The virtual address.
    pub address: Ipv4Addr,
    /// The endpoints' addresses.
    pub endpoints: Vec<Ipv4Addr>,
}

/// The original's rules: per virtual address one rule that hashes the IPv4 checksum, in PREROUTING and in OUTPUT.
///
/// They stand in a table of their own; the original used `nat`, which iptables then could not read any more. What comes
/// from outside the pod network leaves with the worker's own address, so that the reply comes back through it.
#[must_use]
pub fn static_rules(vips: &[StaticVip], pods: &PodNetwork) -> String {
    let mut text =
        String::from("add table ip kproxy-static\ndelete table ip kproxy-static\ntable ip kproxy-static {\n");
    for (chain, hook) in [("PREROUTING", "prerouting"), ("OUTPUT", "output")] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\tchain {chain} {{\n\t\ttype nat hook {hook} priority -100;");
        for vip in vips.iter().filter(|vip| !vip.endpoints.is_empty()) {
            let count = vip.endpoints.len();
            let map: Vec<String> =
                vip.endpoints.iter().enumerate().map(|(index, ip)| format!("{index} : {ip}")).collect();
            let map = map.join(", ");
            let _ = writeln!(
                text,
                "\t\tip daddr {} counter dnat to jhash ip checksum mod {count} map {{ {map} }}",
                vip.address
            );
        }
        text.push_str("\t}\n");
    }
    let _ = writeln!(
        text,
        "\tchain POSTROUTING {{\n\t\ttype nat hook postrouting priority 100;\n\t\tct status dnat ip saddr != {} masquerade\n\t}}\n}}",
        pods.cidr
    );
    text
}

/// Loads the static rules on a worker with `nft`, and leaves them in the worker's directory to be read.
///
/// # Errors
///
/// When `nft` refuses them, with what it said.
pub fn load_static(processes: &Processes, worker: &Node, rules: &str) -> anyhow::Result<()> {
    let file = node_directory(&worker.name).join("kproxy-static.nft");
    write_file(&file, rules)?;
    let mut command = Command::new(real_program("nft")?);
    command.arg("-f").arg(&file).stdin(Stdio::null()).in_netns(&NetNs::open(&worker.name)?);
    let (status, _, errors) = processes.output(&mut command).context("run nft")?;
    if !status.success() {
        bail!("nft -f {} on {} {}: {}", file.display(), worker.name, describe(status), errors.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_static_rules_are_those_of_the_original() {
        let vip = |last, endpoints| StaticVip { address: Ipv4Addr::new(100, 64, 10, last), endpoints };
        let two = vec![Ipv4Addr::new(11, 10, 16, 2), Ipv4Addr::new(11, 10, 32, 2)];
        let pods = crate::lab::Lab::default_lab().pods;
        insta::assert_snapshot!(static_rules(&[vip(1, two), vip(2, Vec::new())], &pods));
    }
}
