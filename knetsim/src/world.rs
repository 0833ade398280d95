//! The running lab: what there is, and what can be done with it. The prompt, the boot and the control socket all work
//! through a [`World`].

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use linux_net::{IfName, NetNs, Netlink, Op, process::CommandNamespaceExt as _};

use crate::{
    certificate::CertificateFiles,
    component::{self, cni, flannel, ingress, interconnect, kproxy},
    impls::{Component, Impl, Impls},
    lab::{Cluster, ClusterName, Container, Endpoints, Ingress, Lab, Node, Service, container_name, vip_service_name},
    object::{self, Endpoint},
    process::Processes,
    prompt::line::{LineError, Names, did_you_mean, nearest},
    store::Store,
    supervisor::{DaemonId, DaemonSpec, Supervisor},
    terminal::Terminal,
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
    /// The CNI programs.
    pub plugins: cni::Plugins,
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
        plugins: cni::Plugins,
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

    /// Makes a container on a worker and attaches it to the pod network; returns its address.
    ///
    /// # Errors
    ///
    /// When the name is wrong or taken, or the CNI plugins fail. Nothing of the container is left then.
    pub fn create_container(&self, worker: &str, name: &str) -> anyhow::Result<Ipv4Addr> {
        let (cluster, node) = self.worker(worker)?;
        let name = container_name(name).map_err(|message| anyhow!(message))?;
        let id = (cluster.name.clone(), name.clone());
        let netns = cluster.name.container_netns(&name);
        let running = Running { worker: node.name.clone(), netns: netns.clone(), address: None };
        // The name is taken before anything is made, so that two who ask for one name at once cannot both go on.
        match self.state().containers.entry(id.clone()) {
            std::collections::btree_map::Entry::Occupied(taken) => {
                bail!("container {name} exists already on {}; names are unique in a cluster", taken.get().worker)
            }
            std::collections::btree_map::Entry::Vacant(free) => free.insert(running),
        };
        match self.attach(node, &netns) {
            Ok(address) => {
                if let Some(running) = self.state().containers.get_mut(&id) {
                    running.address = Some(address);
                }
                self.containers_changed(cluster)?;
                Ok(address)
            }
            Err(error) => {
                self.state().containers.remove(&id);
                Err(error.context(format!("create container {name} on {worker}")))
            }
        }
    }

    fn attach(&self, worker: &Node, netns: &str) -> anyhow::Result<Ipv4Addr> {
        NetNs::create(netns)?;
        self.plugins.add(&self.processes, worker, netns).inspect_err(|_| {
            // The error that counts is that of the ADD; what these two could not undo, the next boot of the sandbox will.
            let _ = self.plugins.del(&self.processes, worker, netns);
            let _ = NetNs::delete(netns);
        })
    }

    /// Stops what runs in a container, detaches it and removes it.
    ///
    /// # Errors
    ///
    /// When there is no such container on the worker, or the CNI plugins fail.
    pub fn delete_container(&self, worker: &str, name: &str) -> anyhow::Result<()> {
        let (cluster, node) = self.worker(worker)?;
        let running = self.container(worker, name)?;
        let prefix = format!("{name}-");
        self.supervisor.stop_where(|id| id.node == worker && id.daemon.starts_with(&prefix));
        self.plugins.del(&self.processes, node, &running.netns)?;
        NetNs::delete(&running.netns)?;
        self.state().containers.remove(&(cluster.name.clone(), name.to_owned()));
        self.containers_changed(cluster)
    }

    /// Starts a command in a container and leaves it running; returns its log.
    ///
    /// # Errors
    ///
    /// When the container is unknown or the command cannot be started.
    pub fn exec_container_async(
        &self,
        worker: &str,
        container: &str,
        command: &str,
    ) -> anyhow::Result<std::path::PathBuf> {
        let netns = self.netns(worker, Some(container))?;
        let number = {
            let mut state = self.state();
            state.commands += 1;
            state.commands
        };
        let daemon = format!("{container}-{number}");
        let log = component::node_directory(worker).join(format!("{daemon}.log"));
        self.supervisor.run(DaemonSpec {
            id: DaemonId::new(worker, &daemon),
            program: "/bin/sh".into(),
            // `exec` so that the process that is watched and stopped is the command and not its shell.
            arguments: vec!["-c".to_owned(), format!("exec {command}")],
            environment: Vec::new(),
            netns,
            log: log.clone(),
            restart: false,
        })?;
        Ok(log)
    }

    /// Runs a command in a namespace, on the terminal if there is one, and waits for its end.
    ///
    /// # Errors
    ///
    /// When the shell cannot be started.
    pub fn run_foreground(&self, netns: &NetNs, command: &str) -> anyhow::Result<ExitStatus> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).in_netns(netns);
        self.foreground(&mut shell)
    }

    /// Runs a program in the foreground: Ctrl-C is for it alone.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn foreground(&self, command: &mut Command) -> anyhow::Result<ExitStatus> {
        let terminal = Terminal::of_stdin();
        command.own_process_group();
        match &terminal {
            Some(terminal) => command.foreground_of(terminal.as_fd()),
            // The rest of a script on standard input is not for its commands.
            None => command.stdin(Stdio::null()),
        };
        let status = self.processes.run(command).with_context(|| format!("run {}", command.get_program().display()));
        if let Some(terminal) = terminal {
            terminal.take_foreground()?;
        }
        status
    }

    /// Makes a service at a virtual address whose endpoints stay as they are now. It takes every protocol, ping included.
    ///
    /// # Errors
    ///
    /// When the address is none of the service range, or a container is unknown.
    pub fn add_vip(&self, cluster: &Cluster, address: &str, containers: &[String]) -> anyhow::Result<()> {
        let address: Ipv4Addr =
            address.parse().map_err(|_| anyhow!("{address:?} is no IPv4 address; write one like 100.64.10.1"))?;
        if !self.lab.pods.service_cidr.contains(&address) {
            bail!("{address} is outside the service range {}", self.lab.pods.service_cidr);
        }
        let name = vip_service_name(address);
        let containers = containers.to_vec();
        self.add_service(
            cluster,
            Service { name, address, containers, endpoints: Endpoints::Static, ports: Vec::new() },
        )
    }

    /// Makes a service, or replaces one of the same name.
    ///
    /// # Errors
    ///
    /// When a container is unknown or etcd does not take it.
    pub fn add_service(&self, cluster: &Cluster, service: Service) -> anyhow::Result<()> {
        let known = self.containers_of(cluster);
        for container in &service.containers {
            if !known.iter().any(|(name, _)| name == container) {
                let suggestion = did_you_mean(container, known.iter().map(|(name, _)| name.clone()));
                bail!("cluster {} has no container {container:?}{suggestion}", cluster.name);
            }
        }
        let endpoints = endpoints(&service, &known);
        self.store(cluster)?.put(vec![object::slice(&service, &endpoints), object::service(&service)])?;
        let key = (cluster.name.clone(), service.name.clone());
        self.state().services.insert(key, ServiceState { service, endpoints });
        self.load_static_rules(cluster)
    }

    /// Starts an ingress on a worker, or one of the same name anew.
    ///
    /// # Errors
    ///
    /// When its program is missing or it does not listen in time.
    pub fn run_ingress(&self, ingress: &Ingress) -> anyhow::Result<()> {
        let spec = ingress::spec(ingress, self.impls.of(Component::Ingress))?;
        let (id, netns) = (spec.id.clone(), spec.netns.clone());
        self.supervisor.run(spec)?;
        component::wait_until_ready(
            &self.supervisor,
            &id,
            &format!("it does not listen on port {}", ingress.port),
            || ingress::is_ready(&netns, ingress),
        )
    }

    /// Writes the router's configuration for the containers as they are.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_router_config(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let addresses = self
            .containers_of(cluster)
            .into_iter()
            .filter_map(|(name, running)| Some((name, running.address?)))
            .collect();
        let certificates = self
            .certificates
            .get(&cluster.name)
            .ok_or_else(|| anyhow!("the router of {} has no certificate", cluster.name))?;
        interconnect::write_config(&self.lab, cluster, certificates, &addresses)
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

    /// Lets what depends on containers follow: services that are not static, and the router's connectors.
    fn containers_changed(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let known = self.containers_of(cluster);
        let mut changed = Vec::new();
        for ((of, _), service) in &mut self.state().services {
            let follows = service.service.endpoints == Endpoints::Follow && *of == cluster.name;
            let now = endpoints(&service.service, &known);
            if follows && now != service.endpoints {
                service.endpoints = now;
                changed.push(object::slice(&service.service, &service.endpoints));
            }
        }
        if !changed.is_empty() {
            self.store(cluster)?.put(changed)?;
            self.load_static_rules(cluster)?;
        }
        self.router_follows(cluster)
    }

    /// Tells a running router of exposed containers that came, went, or have another address.
    fn router_follows(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let exposes = self.lab.exposed.iter().any(|expose| expose.cluster == cluster.name);
        let id = interconnect::id(cluster);
        if !exposes || self.supervisor.status_of(&id).is_none() {
            return Ok(());
        }
        let file = interconnect::config_file(cluster);
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        self.write_router_config(cluster)?;
        if std::fs::read_to_string(&file).unwrap_or_default() == before {
            return Ok(());
        }
        match self.impls.of(Component::Interconnect) {
            Impl::Rust | Impl::Nft => {
                self.supervisor.signal(&id, nix::sys::signal::Signal::SIGHUP);
            }
            // skrouterd reads its file only at start.
            Impl::Real => {
                self.supervisor.run(interconnect::spec(cluster, Impl::Real)?)?;
            }
        }
        Ok(())
    }

    /// With `kproxy=nft` nobody watches etcd, so the lab loads the rules itself.
    fn load_static_rules(&self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.impls.of(Component::Kproxy) != Impl::Nft {
            return Ok(());
        }
        let vips: Vec<kproxy::StaticVip> = self
            .services_of(cluster)
            .into_iter()
            .map(|(service, endpoints)| kproxy::StaticVip {
                address: service.address,
                endpoints: endpoints.iter().map(|endpoint| endpoint.address).collect(),
            })
            .collect();
        let rules = kproxy::static_rules(&vips, &self.lab.pods);
        cluster.workers.iter().try_for_each(|worker| kproxy::load_static(&self.processes, worker, &rules))
    }

    /// Starts the overlay agent of a worker.
    ///
    /// # Errors
    ///
    /// When its program is missing.
    pub fn start_flannel(&self, cluster: &Cluster, worker: &Node) -> anyhow::Result<()> {
        self.supervisor.run(flannel::spec(cluster, worker, self.impls.of(Component::Flannel))?)?;
        Ok(())
    }

    /// Makes the containers of the lab file that belong to a worker, and starts their commands.
    ///
    /// # Errors
    ///
    /// As [`World::create_container`].
    pub fn create_containers_of(&self, cluster: &Cluster, worker: &Node) -> anyhow::Result<()> {
        for Container { name, run, .. } in cluster.containers.iter().filter(|container| container.worker == worker.name)
        {
            self.create_container(&worker.name, name)?;
            if let Some(command) = run {
                self.exec_container_async(&worker.name, name, command)?;
            }
        }
        Ok(())
    }

    /// Waits until a check passes, at most for `patience`.
    #[must_use]
    pub fn eventually(&self, patience: Duration, mut check: impl FnMut() -> bool) -> bool {
        const LOOK_EVERY: Duration = Duration::from_millis(5);
        let deadline = std::time::Instant::now() + patience;
        loop {
            if check() {
                return true;
            }
            if std::time::Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The endpoints of a service: those of its containers that run, in its order.
fn endpoints(service: &Service, known: &[(String, Running)]) -> Vec<Endpoint> {
    let of = |container: &String| {
        let (name, running) = known.iter().find(|(name, _)| name == container)?;
        Some(Endpoint { container: name.clone(), worker: running.worker.clone(), address: running.address? })
    };
    service.containers.iter().filter_map(of).collect()
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

/// A lab that several threads share.
pub type SharedWorld = Arc<World>;
