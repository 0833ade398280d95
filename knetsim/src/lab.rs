//! The lab as `conf/lab.toml` describes it: clusters, nodes, containers, services.
//!
//! `lab/file.rs` is what a student writes; this module is what the rest of the program works with. Whatever is in a [`Lab`] has
//! been checked: names are unique, addresses lie in their networks, and each reference points at something that exists.

mod check;
mod file;
mod name;

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};

use ipnet::Ipv4Net;

use crate::impls::{COMPONENTS, Component, Impl, Impls, WorkerImpls};

pub use self::{
    check::LabError,
    name::{container_name, vip_service_name},
};

/// A whole lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lab {
    /// The network that joins all nodes.
    pub underlay: Underlay,
    /// The networks of pods and of services.
    pub pods: PodNetwork,
    /// The clusters, in the order of the file.
    pub clusters: Vec<Cluster>,
    /// Services of one cluster that another one reaches through the interconnect.
    pub exposed: Vec<Expose>,
    /// The port on which the interconnect's routers meet.
    pub link_port: u16,
}

/// The flat network below everything: one bridge that joins the switches of the clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the joining bridge, `t0`.
    pub bridge: String,
    /// The network in which every node has its address, `10.0.0.0/8`.
    pub network: Ipv4Net,
}

/// Where pods and services get their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// The network configuration for the overlay agent, as it is put into etcd.
    pub flannel_config: String,
    /// `Network` of that configuration, `11.0.0.0/8`.
    pub cidr: Ipv4Net,
    /// `VNI` of that configuration: names the device, `flannel.100`.
    pub vni: u32,
    /// The range of virtual service addresses, `100.64.0.0/16`.
    pub service_cidr: Ipv4Net,
}

/// One Kubernetes cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `C0`.
    pub name: ClusterName,
    /// The bridge its nodes hang on, `C0s0`.
    pub switch: String,
    /// Rate of the link between the switch and the underlay's bridge.
    pub uplink_rate: Option<Rate>,
    /// Members of its etcd.
    pub etcd: Vec<Node>,
    /// Its workers.
    pub workers: Vec<Node>,
    /// The containers made at boot, in order.
    pub containers: Vec<Container>,
    /// The services made at boot.
    pub services: Vec<Service>,
    /// The ingresses started at boot.
    pub ingresses: Vec<Ingress>,
}

impl Cluster {
    /// The worker that the cluster calls `short` (`w1`) or that has this full name (`C0w1`).
    #[must_use]
    pub fn worker(&self, short: &str) -> Option<&Node> {
        let full = self.name.node(short);
        self.workers.iter().find(|worker| worker.name == full || worker.name == short)
    }

    /// The etcd client addresses, as the daemons' `--etcd-endpoints` takes them.
    #[must_use]
    pub fn etcd_endpoints(&self) -> String {
        let urls: Vec<String> =
            self.etcd.iter().map(|node| format!("http://{}:{ETCD_CLIENT_PORT}", node.address)).collect();
        urls.join(",")
    }

    /// The worker on which the cluster's interconnect router runs: the first.
    ///
    /// # Panics
    ///
    /// Never: a checked lab has a worker in each cluster.
    #[must_use]
    pub fn router(&self) -> &Node {
        self.workers.first().expect("a checked cluster has at least one worker")
    }
}

/// Port on which an etcd member serves clients.
pub const ETCD_CLIENT_PORT: u16 = 2379;
/// Port on which etcd members talk to each other.
pub const ETCD_PEER_PORT: u16 = 2380;

/// The name of a cluster: `C` and one to three lower-case letters or digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as it is printed, `C0`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind the `C`: `0`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0[1..]
    }

    /// The full name of a node that the cluster calls `short`: `w1` → `C0w1`.
    #[must_use]
    pub fn node(&self, short: &str) -> String {
        format!("{}{short}", self.0)
    }

    /// The network namespace of a container: `c1` → `k0_c1`.
    #[must_use]
    pub fn container_netns(&self, container: &str) -> String {
        format!("k{}_{container}", self.id())
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine of the lab: a network namespace with one interface on its cluster's switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Full name, `C0w1`; also the name of its network namespace.
    pub name: String,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// Rate of its link to the switch.
    pub rate: Option<Rate>,
    /// What a worker says of who implements its components; an etcd member says nothing.
    pub impls: WorkerImpls,
}

impl Node {
    /// The node's interface on the underlay, `C0w1-eth0`.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("{}-eth0", self.name)
    }
}

/// A container: a network namespace attached to its worker's pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name, unique in the cluster: `c1`.
    pub name: String,
    /// Full name of its worker.
    pub worker: String,
    /// A command that is started in it at boot.
    pub run: Option<String>,
}

/// A service at a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The Kubernetes name of the object.
    pub name: String,
    /// The ClusterIP.
    pub address: Ipv4Addr,
    /// The containers behind it.
    pub containers: Vec<String>,
    /// What happens when one of them goes.
    pub endpoints: Endpoints,
    /// The TCP ports it serves; none: every protocol and every port, and ping.
    pub ports: Vec<u16>,
}

/// Whether a service's endpoints follow its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoints {
    /// They stay as they were when the service was made. A lesson deletes a container and watches connections fail.
    Static,
    /// A deleted container leaves the service, and comes back when it is made anew.
    Follow,
}

/// An HTTP ingress on a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Its name, which is also the name of its files: `grp1`.
    pub name: String,
    /// Full name of its worker.
    pub worker: String,
    /// The port it listens on, at all addresses of the worker.
    pub port: u16,
    /// Which path goes where.
    pub paths: Vec<IngressPath>,
}

/// One path of an [`Ingress`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngressPath {
    /// A path prefix, by elements: `/svc1`.
    pub path: String,
    /// Where requests go: `address:port`.
    pub endpoint: std::net::SocketAddrV4,
}

/// A container's TCP port that another cluster reaches through the interconnect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// The address in the routers' sense, which joins the two ends.
    pub name: String,
    /// The cluster the container is in.
    pub cluster: ClusterName,
    /// The container.
    pub container: String,
    /// The port it serves.
    pub port: u16,
    /// The cluster whose router listens.
    pub listen_cluster: ClusterName,
    /// The port on which it listens.
    pub listen_port: u16,
}

/// The rate of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second.
    pub bits_per_second: u64,
}

impl Lab {
    /// Reads and checks a lab file. Paths in it are relative to its own directory.
    ///
    /// # Errors
    ///
    /// [`LabError`], with file, line and column, when the file cannot be read, is not TOML, has an unknown key, or
    /// describes a lab that cannot exist.
    pub fn load(path: &Path) -> Result<Self, LabError> {
        let text = std::fs::read_to_string(path).map_err(|source| LabError::Read { path: path.to_owned(), source })?;
        check::check(path, &text)
    }

    /// The lab that `knetsim up` boots when no file is named: `conf/lab.toml`, compiled in.
    ///
    /// # Panics
    ///
    /// Never: a test checks the file.
    #[must_use]
    pub fn default_lab() -> Self {
        let text = include_str!("../../conf/lab.toml");
        let flannel = include_str!("../../conf/flannel-network-config.json");
        check::check_with(Path::new("conf/lab.toml"), text, |_| Ok(flannel.to_owned()))
            .expect("the lab that is compiled in has been checked by a test")
    }

    /// The cluster of this name, or of this bare number (`0`).
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name.as_str() == name || cluster.name.id() == name)
    }

    /// All nodes, each with its cluster, etcd members first.
    pub fn nodes(&self) -> impl Iterator<Item = (&Cluster, &Node)> {
        self.clusters
            .iter()
            .flat_map(|cluster| cluster.etcd.iter().chain(&cluster.workers).map(move |node| (cluster, node)))
    }

    /// All workers, each with its cluster.
    pub fn workers(&self) -> impl Iterator<Item = (&Cluster, &Node)> {
        self.clusters.iter().flat_map(|cluster| cluster.workers.iter().map(move |node| (cluster, node)))
    }

    /// Which implementations of which components run somewhere in this lab, when `impls` was said on the command line.
    #[must_use]
    pub fn choices(&self, impls: &Impls) -> BTreeSet<(Component, Impl)> {
        let (own, one): (Vec<_>, Vec<_>) =
            COMPONENTS.into_iter().partition(|component| component.runs_on_every_worker());
        let on_workers = self
            .workers()
            .flat_map(|(_, worker)| own.iter().map(move |component| (*component, impls.on(&worker.impls, *component))));
        on_workers.chain(one.iter().map(|component| (*component, impls.of(*component)))).collect()
    }

    /// The names of the switches, and of the bridge that joins them.
    pub fn switches(&self) -> impl Iterator<Item = &str> {
        self.clusters
            .iter()
            .map(|cluster| cluster.switch.as_str())
            .chain(std::iter::once(self.underlay.bridge.as_str()))
    }
}
