//! The members of a cluster's etcd. It is always the real one.

use std::{net::SocketAddr, path::Path};

use linux_net::NetNs;

use super::{STATE, http_status, real_program};
use crate::{
    lab::{Cluster, ETCD_CLIENT_PORT, ETCD_PEER_PORT, Node},
    supervisor::{DaemonId, DaemonSpec},
};

/// Milliseconds between two heartbeats of the leader, and until a member without one calls an election. Ten times below
/// etcd's defaults: the members are microseconds apart, and nobody wants to wait a second for the first leader.
const HEARTBEAT_MS: u32 = 20;
const ELECTION_MS: u32 = 200;

/// The name of the daemon.
#[must_use]
pub fn id(node: &Node) -> DaemonId {
    DaemonId::new(&node.name, "etcd")
}

/// How a member is started. Its data outlives its process, so that a member that died comes back with what it knew.
///
/// # Errors
///
/// When `etcd` is not installed or the node has no namespace.
pub fn spec(cluster: &Cluster, node: &Node, lab_name: &str) -> anyhow::Result<DaemonSpec> {
    let client = |node: &Node| format!("http://{}:{ETCD_CLIENT_PORT}", node.address);
    let peer = |node: &Node| format!("http://{}:{ETCD_PEER_PORT}", node.address);
    let members: Vec<String> = cluster.etcd.iter().map(|member| format!("{}={}", member.name, peer(member))).collect();
    let directory = Path::new(STATE);
    let arguments = [
        ("--name", node.name.clone()),
        ("--data-dir", directory.join(format!("{}.etcd", node.name)).display().to_string()),
        ("--listen-client-urls", format!("{},http://127.0.0.1:{ETCD_CLIENT_PORT}", client(node))),
        ("--advertise-client-urls", client(node)),
        ("--listen-peer-urls", peer(node)),
        ("--initial-advertise-peer-urls", peer(node)),
        ("--initial-cluster", members.join(",")),
        ("--initial-cluster-token", format!("{lab_name}-{}", cluster.name)),
        ("--initial-cluster-state", "new".to_owned()),
        ("--heartbeat-interval", HEARTBEAT_MS.to_string()),
        ("--election-timeout", ELECTION_MS.to_string()),
        ("--log-level", "warn".to_owned()),
        ("--logger", "zap".to_owned()),
    ];
    Ok(DaemonSpec {
        id: id(node),
        program: real_program("etcd")?,
        arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect(),
        environment: Vec::new(),
        netns: NetNs::open(&node.name)?,
        log: directory.join(format!("{}.log", node.name)),
        restart: true,
    })
}

/// Whether the member answers other members.
#[must_use]
pub fn serves_peers(netns: &NetNs, node: &Node) -> bool {
    http_status(netns, SocketAddr::from((node.address, ETCD_PEER_PORT)), "/version").is_some()
}

/// Whether the member is part of a cluster that has a leader: `/health` commits a proposal.
#[must_use]
pub fn is_healthy(netns: &NetNs, node: &Node) -> bool {
    http_status(netns, SocketAddr::from((node.address, ETCD_CLIENT_PORT)), "/health") == Some(200)
}
