//! The overlay agent of a worker.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use ipnet::Ipv4Net;
use linux_net::NetNs;

use super::{node_directory, program, real_program};
use crate::{
    impls::Impl,
    lab::{Cluster, Node},
    supervisor::{DaemonId, DaemonSpec},
};

/// The port for `/healthz` and `/metrics` in the worker.
pub const HEALTHZ_PORT: u16 = 8471;
/// The key under which the network configuration stands, with flanneld's default prefix.
pub const CONFIG_KEY: &str = "/coreos.com/network/config";

/// The name of the daemon.
#[must_use]
pub fn id(worker: &Node) -> DaemonId {
    DaemonId::new(&worker.name, "flannel")
}

/// The file in which the agent says which subnet the worker has.
#[must_use]
pub fn subnet_file(worker: &Node) -> PathBuf {
    node_directory(&worker.name).join("flannel-subnet.env")
}

/// The agent's command line.
///
/// With `--ip-masq` the CNI plugin does not masquerade a second time, and pods keep their addresses among each other.
#[must_use]
pub fn arguments(etcd_endpoints: &str, interface: &str, subnet_file: &Path) -> [String; 6] {
    [
        format!("--etcd-endpoints={etcd_endpoints}"),
        format!("--iface={interface}"),
        format!("--subnet-file={}", subnet_file.display()),
        "--ip-masq".to_owned(),
        "--healthz-ip=127.0.0.1".to_owned(),
        format!("--healthz-port={HEALTHZ_PORT}"),
    ]
}

/// How the agent is started: the same arguments for both implementations.
///
/// # Errors
///
/// When the program is missing or the worker has no namespace.
pub fn spec(cluster: &Cluster, worker: &Node, choice: Impl) -> anyhow::Result<DaemonSpec> {
    let program = match choice {
        Impl::Real => real_program("flanneld")?,
        Impl::Rust | Impl::Nft => program("flannel-rs")?,
    };
    let arguments = arguments(&cluster.etcd_endpoints(), &worker.interface(), &subnet_file(worker));
    Ok(DaemonSpec {
        id: id(worker),
        program,
        arguments: arguments.into(),
        environment: Vec::new(),
        netns: NetNs::open(&worker.name)?,
        log: node_directory(&worker.name).join("flannel.log"),
        restart: true,
    })
}

/// What the agent says of the worker's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The worker's part of the pod network, `11.10.0.0/20`.
    pub network: Ipv4Net,
    /// The address of the worker's bridge, `11.10.0.1`.
    pub gateway: Ipv4Addr,
    /// The MTU of pods.
    pub mtu_bytes: u32,
}

/// Reads the subnet file; none while the agent has not written it.
#[must_use]
pub fn subnet(worker: &Node) -> Option<Subnet> {
    let text = std::fs::read_to_string(subnet_file(worker)).ok()?;
    parse_subnet(&text).ok()
}

fn parse_subnet(text: &str) -> anyhow::Result<Subnet> {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .with_context(|| format!("the subnet file has no {key}"))
    };
    let subnet: Ipv4Net = value("FLANNEL_SUBNET")?.parse()?;
    Ok(Subnet { network: subnet.trunc(), gateway: subnet.addr(), mtu_bytes: value("FLANNEL_MTU")?.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_file_names_bridge_address_and_mtu() {
        let text = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.11.80.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let subnet = parse_subnet(text).unwrap();
        assert_eq!(subnet.network.to_string(), "11.11.80.0/20");
        assert_eq!(subnet.gateway.to_string(), "11.11.80.1");
        assert_eq!(subnet.mtu_bytes, 1450);
        assert!(parse_subnet("FLANNEL_MTU=1450\n").is_err());
    }
}
