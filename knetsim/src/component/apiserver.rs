//! The Kubernetes API of a cluster and its controllers, on the first etcd node. There is one implementation: ours.

use std::net::SocketAddr;

use anyhow::anyhow;
use linux_net::NetNs;

use super::{STATE, http_status, program};
use crate::{
    lab::{Cluster, Node, PodNetwork},
    supervisor::{DaemonId, DaemonSpec},
};

/// The port of the API: plain HTTP, as kube-apiserver's once was.
pub const PORT: u16 = 8080;

/// The node that serves the API of a cluster.
///
/// # Errors
///
/// Never for a cluster of a checked lab, which has an etcd member.
pub fn node(cluster: &Cluster) -> anyhow::Result<&Node> {
    cluster.etcd.first().ok_or_else(|| anyhow!("cluster {} has no etcd member", cluster.name))
}

/// The address of the API on its node.
#[must_use]
pub fn address(node: &Node) -> SocketAddr {
    SocketAddr::from((node.address, PORT))
}

/// The name of the daemon.
#[must_use]
pub fn id(node: &Node) -> DaemonId {
    DaemonId::new(&node.name, "apiserver")
}

/// How the daemon is started.
///
/// # Errors
///
/// When the node has no namespace.
pub fn spec(cluster: &Cluster, pods: &PodNetwork) -> anyhow::Result<DaemonSpec> {
    let node = node(cluster)?;
    let arguments = [
        "apiserver".to_owned(),
        format!("--etcd-endpoints={}", cluster.etcd_endpoints()),
        format!("--listen={}", address(node)),
        format!("--service-cidr={}", pods.service_cidr),
    ];
    Ok(DaemonSpec {
        id: id(node),
        program: program("knetsim")?,
        arguments: arguments.into(),
        environment: Vec::new(),
        netns: NetNs::open(&node.name)?,
        log: std::path::Path::new(STATE).join(format!("{}-apiserver.log", node.name)),
        restart: true,
    })
}

/// Whether it answers, and etcd behind it.
#[must_use]
pub fn is_healthy(netns: &NetNs, node: &Node) -> bool {
    http_status(netns, address(node), "/healthz") == Some(200)
}
