//! The running lab: what there is, and what can be done with it. The prompt, the boot and the control socket all work
//! through a [`World`].

mod command;
mod container;
mod pod;
mod service;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard},
};

use anyhow::{anyhow, bail};
use linux_net::{IfName, NetNs, Netlink, Op};

use crate::{
    certificate::CertificateFiles,
    component::{cni, flannel},
    impls::{Component, Impl, Impls},
    lab::{Cluster, ClusterName, Lab, Node, Service},
    object::Endpoint,
    process::Processes,
    prompt::line::{LineError, Names, nearest},
    store::Store,
    supervisor::Supervisor,
};

/// The running lab.
pub struct World {
    /// Its name, which tells it from other labs of this machine.
    pub name: String,
    /// What was asked for.
    pub lab: Lab,
    /// Who implements what.
    pub impls: Impls,
    /// Where processes are started and reaped.
    pub processes: Processes,
    /// What keeps the daemons running.
    pub supervisor: Supervisor,
    /// The CNI programs of each choice that a worker makes.
    pub plugins: BTreeMap<Impl, cni::Plugins>,
    /// The etcd of each cluster.
    pub stores: BTreeMap<ClusterName, Store>,
    /// The certificates of each cluster's router.
    pub certificates: BTreeMap<ClusterName, CertificateFiles>,
    /// What changes while the lab runs.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<ContainerId, Running>,
    services: BTreeMap<(ClusterName, String), ServiceState>,
    /// How many commands were started in the background, to name them.
    commands: u32,
}

/// A container's name: it is unique in its cluster.
type ContainerId = (ClusterName, String);

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Full name of its worker.
    pub worker: String,
    /// Its network namespace.
    pub netns: String,
    /// Its address; none while it is being made.
    pub address: Option<Ipv4Addr>,
    /// The pod that it is.
    pub pod: PodId,
}

/// The pod that a container is. Those of the lab itself have a pod of their own name in `default`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodId {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The uid of the pod for which the container was made; none for a container that was there before its pod.
    pub uid: Option<String>,
}

struct ServiceState {
    service: Service,
    /// The endpoints as they were last written.
    endpoints: Vec<Endpoint>,
}

impl World {
    /// Puts together what the boot has made so far.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "the boot, its only caller, hands over what its steps made one by one"
    )]
    pub fn new(
        name: String,
        lab: Lab,
        impls: Impls,
        processes: Processes,
        supervisor: Supervisor,
        plugins: BTreeMap<Impl, cni::Plugins>,
        stores: BTreeMap<ClusterName, Store>,
        certificates: BTreeMap<ClusterName, CertificateFiles>,
    ) -> Self {
        Self { name, lab, impls, processes, supervisor, plugins, stores, certificates, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The node of this full name, with its cluster.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<(&Cluster, &Node)> {
        self.lab.nodes().find(|(_, node)| node.name == name)
    }

    /// The worker of this full name, with its cluster.
    ///
    /// # Errors
    ///
    /// When the node is none, or no worker.
    pub fn worker(&self, name: &str) -> anyhow::Result<(&Cluster, &Node)> {
        let (cluster, node) = self.node(name).ok_or_else(|| self.unknown_node(name))?;
        match cluster.workers.contains(node) {
            true => Ok((cluster, node)),
            false => bail!("{name} is no worker: containers run on {}", worker_names(cluster)),
        }
    }

    fn unknown_node(&self, name: &str) -> LineError {
        LineError::UnknownNode { name: name.to_owned(), suggestion: nearest(name, self.nodes()) }
    }

    /// The containers of a cluster, by name.
    #[must_use]
    pub fn containers_of(&self, cluster: &Cluster) -> Vec<(String, Running)> {
        let state = self.state();
        let of_cluster = state.containers.iter().filter(|((name, _), _)| *name == cluster.name);
        of_cluster.map(|((_, container), running)| (container.clone(), running.clone())).collect()
    }

    /// The services of a cluster with their endpoints, by name.
    #[must_use]
    pub fn services_of(&self, cluster: &Cluster) -> Vec<(Service, Vec<Endpoint>)> {
        let state = self.state();
        let of_cluster = state.services.iter().filter(|((name, _), _)| *name == cluster.name);
        of_cluster.map(|(_, service)| (service.service.clone(), service.endpoints.clone())).collect()
    }

    /// A container that runs on a worker.
    ///
    /// # Errors
    ///
    /// When there is none of this name on it, with the nearest right name.
    pub fn container(&self, worker: &str, container: &str) -> anyhow::Result<Running> {
        let (cluster, node) = self.worker(worker)?;
        let known = self.containers_of(cluster);
        match known.iter().find(|(name, _)| name == container) {
            Some((_, running)) if running.worker == node.name => Ok(running.clone()),
            Some((_, running)) => bail!("container {container} runs on {}, not on {worker}", running.worker),
            None => {
                let suggestion = nearest(container, known.into_iter().map(|(name, _)| name));
                Err(LineError::UnknownContainer {
                    node: worker.to_owned(),
                    container: container.to_owned(),
                    suggestion,
                }
                .into())
            }
        }
    }

    /// The network namespace of a node or of a container on it.
    ///
    /// # Errors
    ///
    /// When the name is unknown.
    pub fn netns(&self, node: &str, container: Option<&str>) -> anyhow::Result<NetNs> {
        if let Some(container) = container {
            return Ok(NetNs::open(&self.container(node, container)?.netns)?);
        }
        if self.lab.switches().any(|switch| switch == node) {
            return Ok(NetNs::current()?); // bridges live in the sandbox's own namespace, as in Mininet
        }
        match self.node(node) {
            Some(_) => Ok(NetNs::open(node)?),
            None => Err(self.unknown_node(node).into()),
        }
    }

    /// The etcd of a cluster.
    ///
    /// # Errors
    ///
    /// Never for a cluster of this lab.
    pub fn store(&self, cluster: &Cluster) -> anyhow::Result<&Store> {
        self.stores.get(&cluster.name).ok_or_else(|| anyhow!("cluster {} has no etcd", cluster.name))
    }

    /// Brings a link up or down, at the end that is a node or, between two bridges, at the first one's.
    ///
    /// # Errors
    ///
    /// When the two are not linked.
    pub fn set_link(&self, a: &str, b: &str, up: bool) -> anyhow::Result<()> {
        let link = crate::topology::links(&self.lab)
            .into_iter()
            .find(|link| (link.a == a && link.b == b) || (link.a == b && link.b == a))
            .ok_or_else(|| anyhow!("{a} and {b} are not linked; `links` lists the links"))?;
        let interface = IfName::new(&link.a_interface)?;
        let mut netlink = Netlink::open_in(&self.netns(&link.a, None)?)?;
        netlink.apply(&if up { Op::SetUp { dev: interface } } else { Op::SetDown { dev: interface } })?;
        if up && let Some((cluster, node)) = self.node(&link.a) {
            // The kernel forgot the routes over the interface when it went down.
            crate::topology::restore_routes(&mut netlink, &self.lab, cluster, node)?;
        }
        Ok(())
    }

    /// Who implements a component on a worker.
    #[must_use]
    pub fn impl_on(&self, worker: &Node, component: Component) -> Impl {
        self.impls.on(&worker.impls, component)
    }

    /// Who implements a component, in words: the command line's choice, then the workers that chose otherwise.
    #[must_use]
    pub fn implementations(&self, component: Component) -> String {
        let common = self.impls.of(component);
        let mut others: BTreeMap<Impl, Vec<&str>> = BTreeMap::new();
        let mut has_common = false;
        for (_, worker) in self.lab.workers() {
            match self.impl_on(worker, component) {
                choice if choice == common => has_common = true,
                choice => others.entry(choice).or_default().push(&worker.name),
            }
        }
        let others = others.iter().map(|(choice, workers)| format!("{choice} on {}", workers.join(", ")));
        has_common.then(|| common.to_string()).into_iter().chain(others).collect::<Vec<_>>().join("; ")
    }

    /// The CNI programs of a worker.
    ///
    /// # Errors
    ///
    /// Never for a worker of this lab.
    pub fn plugins_of(&self, worker: &Node) -> anyhow::Result<&cni::Plugins> {
        let choice = self.impl_on(worker, Component::Cni);
        self.plugins.get(&choice).ok_or_else(|| anyhow!("the lab has no CNI programs of cni={choice}"))
    }

    /// Starts the overlay agent of a worker.
    ///
    /// # Errors
    ///
    /// When its program is missing.
    pub fn start_flannel(&self, cluster: &Cluster, worker: &Node) -> anyhow::Result<()> {
        self.supervisor.run(flannel::spec(cluster, worker, self.impl_on(worker, Component::Flannel))?)?;
        Ok(())
    }
}

fn worker_names(cluster: &Cluster) -> String {
    cluster.workers.iter().map(|worker| worker.name.as_str()).collect::<Vec<_>>().join(", ")
}

impl Names for World {
    fn nodes(&self) -> Vec<String> {
        let nodes = self.lab.nodes().map(|(_, node)| node.name.clone());
        nodes.chain(self.lab.switches().map(str::to_owned)).collect()
    }

    fn containers(&self, node: &str) -> Vec<String> {
        let Some((cluster, _)) = self.node(node) else { return Vec::new() };
        let here = self.containers_of(cluster).into_iter().filter(|(_, running)| running.worker == node);
        here.map(|(name, _)| name).collect()
    }

    fn address(&self, node: &str) -> Option<String> {
        self.node(node).map(|(_, node)| node.address.to_string())
    }
}
