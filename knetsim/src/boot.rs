//! From an empty sandbox to a lab whose every function has been probed. Each step prints what it made and how long it took.
//!
//! Nothing here waits for time to pass: a step ends when a probe of its result passes, or fails with the log of the daemon
//! that is to blame.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use linux_net::{NetNs, process::CommandNamespaceExt as _};

use crate::{
    certificate::Authority,
    component::{self, apiserver, cni, etcd, flannel, interconnect, kproxy, wait_until_ready},
    impls::{Component, Impl, Impls},
    kubelet,
    lab::{Cluster, Lab, Node},
    object,
    process::Processes,
    progress::Progress,
    store::Store,
    supervisor::Supervisor,
    topology,
    world::World,
};

/// How long a service may take from its objects in etcd to the first answered ping.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the boot is given.
pub struct Boot<'a> {
    /// The lab's name.
    pub name: String,
    /// What to build.
    pub lab: Lab,
    /// Who implements what.
    pub impls: Impls,
    /// Where processes are started.
    pub processes: Processes,
    /// What keeps daemons running.
    pub supervisor: Supervisor,
    /// Where steps are shown.
    pub progress: &'a mut Progress,
}

/// Builds the lab.
///
/// # Errors
///
/// When a step fails: the message names the step and the node, and shows the end of its daemon's log.
pub fn boot(boot: Boot<'_>) -> anyhow::Result<Arc<World>> {
    let Boot { name, lab, impls, processes, supervisor, progress } = boot;

    progress.step("topology", || {
        topology::build(&lab, &processes)?;
        Ok(topology::summary(&lab))
    })?;

    progress.step("etcd", || start_etcd(&lab, &name, &supervisor))?;

    let mut stores = BTreeMap::new();
    for cluster in &lab.clusters {
        let store = Store::start(cluster)?;
        store.put(vec![(flannel::CONFIG_KEY.to_owned(), lab.pods.flannel_config.clone().into_bytes())])?;
        stores.insert(cluster.name.clone(), store);
    }
    for cluster in &lab.clusters {
        supervisor.run(apiserver::spec(cluster, &lab.pods)?)?;
    }
    let authority = Authority::create(&interconnect::directory(), &name)?;
    let mut certificates = BTreeMap::new();
    for cluster in &lab.clusters {
        let files = authority.issue(cluster.name.as_str(), cluster.router().address)?;
        certificates.insert(cluster.name.clone(), files);
    }
    cni::install(&processes)?;
    let mut plugins = BTreeMap::new();
    for (_, choice) in lab.choices(&impls).into_iter().filter(|(component, _)| *component == Component::Cni) {
        let of_choice = cni::plugins(choice)?;
        if let Some(remark) = &of_choice.remark {
            progress.remark(remark);
        }
        plugins.insert(choice, of_choice);
    }
    let world = Arc::new(World::new(name, lab, impls, processes, supervisor, plugins, stores, certificates));
    progress.step("overlay", || start_overlay(&world))?;
    progress.step("control plane", || start_control_plane(&world))?;
    progress.step("service proxy", || wait_for_proxies(&world))?;
    progress.step("containers", || create_containers(&world))?;
    progress.step("services", || make_services(&world))?;
    if world.lab.clusters.iter().any(|cluster| !cluster.ingresses.is_empty()) {
        progress.step("ingress", || start_ingresses(&world))?;
    }
    if !world.lab.exposed.is_empty() {
        progress.step("interconnect", || start_routers(&world))?;
    }
    Ok(world)
}

/// Starts the members of all clusters, a cluster's one after the other.
///
/// Before a new member serves its peers it asks each of them whether the cluster exists already. One that has not started
/// refuses the connection at once; one that is just at the same point holds it for a second, and so do both.
fn start_etcd(lab: &Lab, name: &str, supervisor: &Supervisor) -> anyhow::Result<String> {
    let most = lab.clusters.iter().map(|cluster| cluster.etcd.len()).max().unwrap_or(0);
    for number in 0..most {
        let started = || lab.clusters.iter().filter_map(move |cluster| Some((cluster, cluster.etcd.get(number)?)));
        for (cluster, node) in started() {
            supervisor.run(etcd::spec(cluster, node, name)?)?;
        }
        for (_, node) in started() {
            let netns = NetNs::open(&node.name)?;
            wait_until_ready(supervisor, &etcd::id(node), "it does not serve its peers", || {
                etcd::serves_peers(&netns, node)
            })?;
        }
    }
    for (_, node) in members(lab) {
        let netns = NetNs::open(&node.name)?;
        wait_until_ready(supervisor, &etcd::id(node), "its /health does not answer 200", || {
            etcd::is_healthy(&netns, node)
        })?;
    }
    Ok(format!("{} members healthy", members(lab).count()))
}

/// Starts the overlay agents, and the service proxies, which need nothing of the overlay and may come up meanwhile.
fn start_overlay(world: &World) -> anyhow::Result<String> {
    let lab = &world.lab;
    for (cluster, worker) in lab.workers() {
        cni::write_conflist(worker)?;
        world.start_flannel(cluster, worker)?;
        // The real one needs the API, and the Node that the lab makes when the worker has its subnet.
        let choice = world.impl_on(worker, Component::Kproxy);
        if choice != Impl::Real
            && let Some(spec) = kproxy::spec(cluster, worker, &lab.pods, choice)?
        {
            world.supervisor.run(spec)?;
        }
    }
    for (_, worker) in lab.workers() {
        let what = format!("{} is not written", flannel::subnet_file(worker).display());
        wait_until_ready(&world.supervisor, &flannel::id(worker), &what, || flannel::subnet(worker).is_some())?;
    }
    Ok(format!("flannel ({}) on {} workers", world.implementations(Component::Flannel), lab.workers().count()))
}

/// Starts the service proxies that are real, and waits for all of them.
fn wait_for_proxies(world: &World) -> anyhow::Result<String> {
    for (cluster, worker) in world.lab.workers() {
        if world.impl_on(worker, Component::Kproxy) == Impl::Real
            && let Some(spec) = kproxy::spec(cluster, worker, &world.lab.pods, Impl::Real)?
        {
            world.supervisor.run(spec)?;
        }
    }
    let daemons = world.lab.workers().filter(|(_, worker)| world.impl_on(worker, Component::Kproxy) != Impl::Nft);
    for (_, worker) in daemons {
        let netns = NetNs::open(&worker.name)?;
        wait_until_ready(&world.supervisor, &kproxy::id(worker), "its /healthz does not answer 200", || {
            kproxy::is_healthy(&netns)
        })?;
    }
    let implementations = world.implementations(Component::Kproxy);
    Ok(format!("kproxy ({implementations}) on {} workers", world.lab.workers().count()))
}

/// Workers at once; on one worker one container after the other, as a kubelet does.
fn create_containers(world: &World) -> anyhow::Result<String> {
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = world
            .lab
            .workers()
            .map(|(cluster, worker)| scope.spawn(move || world.create_containers_of(cluster, worker)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))).collect()
    });
    results.into_iter().collect::<anyhow::Result<()>>()?;
    let count: usize = world.lab.clusters.iter().map(|cluster| cluster.containers.len()).sum();
    Ok(format!("{count} attached by CNI ({})", world.implementations(Component::Cni)))
}

fn make_services(world: &World) -> anyhow::Result<String> {
    let mut count = 0;
    for cluster in &world.lab.clusters {
        for service in &cluster.services {
            world.add_service(cluster, service.clone())?;
            count += 1;
        }
    }
    Ok(format!("{count} virtual addresses"))
}

/// Makes the workers known, waits for the API of each cluster, which was started with the overlay, and lets the workers take pods.
fn start_control_plane(world: &Arc<World>) -> anyhow::Result<String> {
    let mut addresses = Vec::new();
    for cluster in &world.lab.clusters {
        let nodes = cluster.workers.iter().map(|worker| {
            let subnet = flannel::subnet(worker).map(|subnet| subnet.network.to_string());
            object::node(worker, subnet.as_deref())
        });
        world.store(cluster)?.put(nodes.collect())?;
        let node = apiserver::node(cluster)?;
        let netns = NetNs::open(&node.name)?;
        wait_until_ready(&world.supervisor, &apiserver::id(node), "its /healthz does not answer 200", || {
            apiserver::is_healthy(&netns, node)
        })?;
        kubelet::start(world, cluster)?;
        addresses.push(apiserver::address(node).to_string());
    }
    Ok(format!("Kubernetes API at {}", addresses.join(", ")))
}

fn start_ingresses(world: &World) -> anyhow::Result<String> {
    let mut places = Vec::new();
    for ingress in world.lab.clusters.iter().flat_map(|cluster| &cluster.ingresses) {
        world.run_ingress(ingress)?;
        places.push(format!("{}:{}", ingress.worker, ingress.port));
    }
    Ok(format!("{} ({})", places.join(", "), world.impls.of(Component::Ingress)))
}

/// Starts a router per cluster and waits until every exposed service is open where it shall be.
fn start_routers(world: &World) -> anyhow::Result<String> {
    for cluster in &world.lab.clusters {
        world.write_router_config(cluster)?;
        world.supervisor.run(interconnect::spec(cluster, world.impls.of(Component::Interconnect))?)?;
    }
    for cluster in &world.lab.clusters {
        let netns = NetNs::open(&cluster.router().name)?;
        wait_until_ready(&world.supervisor, &interconnect::id(cluster), "its /healthz does not answer 200", || {
            interconnect::is_healthy(&netns)
        })?;
    }
    for expose in &world.lab.exposed {
        let cluster = world.lab.cluster(expose.listen_cluster.as_str()).context("an exposed service has no cluster")?;
        let netns = NetNs::open(&cluster.router().name)?;
        // The listener opens once the address is reachable through the link, so this probes the link as well.
        let what = format!("port {} is not open", expose.listen_port);
        let address = ([127, 0, 0, 1], expose.listen_port).into();
        wait_until_ready(&world.supervisor, &interconnect::id(cluster), &what, || component::accepts(&netns, address))?;
    }
    let count = world.lab.clusters.len();
    Ok(format!("{count} routers linked ({})", world.impls.of(Component::Interconnect)))
}

/// One connectivity check: a command in a container or on a node that must succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The node.
    pub node: String,
    /// A container on it.
    pub container: Option<String>,
    /// The command.
    pub command: String,
}

/// The checks of the original's main.py, for any lab: a pod pings a virtual address of each cluster, a pod fetches each
/// exposed service, a node outside fetches each ingress path. What needs an address that takes every protocol is left out when
/// some worker's proxy has none, `serves_all`: kube-proxy knows ports only.
#[must_use]
pub fn checks(lab: &Lab, serves_all: bool) -> Vec<Check> {
    let mut checks = Vec::new();
    for cluster in lab.clusters.iter().filter(|_| serves_all) {
        let pinged = cluster.services.iter().find(|service| service.ports.is_empty() && !service.containers.is_empty());
        if let Some(service) = pinged
            && let Some(client) = cluster.containers.iter().find(|client| !service.containers.contains(&client.name))
        {
            checks.push(Check {
                node: client.worker.clone(),
                container: Some(client.name.clone()),
                command: format!("ping {} -c 5 -i 0.01", service.address),
            });
        }
    }
    for expose in &lab.exposed {
        let Some(cluster) = lab.cluster(expose.listen_cluster.as_str()) else { continue };
        // A container on another worker than the router's takes the longer way.
        let Some(client) = cluster.containers.iter().rev().find(|client| client.worker != cluster.router().name) else {
            continue;
        };
        checks.push(Check {
            node: client.worker.clone(),
            container: Some(client.name.clone()),
            command: fetch(cluster.router().address, expose.listen_port, "/"),
        });
    }
    for cluster in &lab.clusters {
        for ingress in &cluster.ingresses {
            let (Some(outside), Some(worker)) = (cluster.etcd.first(), cluster.worker(&ingress.worker)) else {
                continue;
            };
            let takes_all = |address: Ipv4Addr| {
                cluster.services.iter().any(|service| service.address == address && service.ports.is_empty())
            };
            for path in ingress.paths.iter().filter(|path| serves_all || !takes_all(*path.endpoint.ip())) {
                checks.push(Check {
                    node: outside.name.clone(),
                    container: None,
                    command: fetch(worker.address, ingress.port, &path.path),
                });
            }
        }
    }
    checks
}

fn fetch(address: Ipv4Addr, port: u16, path: &str) -> String {
    format!("curl -sS --fail --max-time 5 -o /dev/null http://{address}:{port}{path}")
}

/// Runs the checks; each must pass within ten seconds.
///
/// # Errors
///
/// The first check that did not pass, with what its command last said.
pub fn run_checks(world: &World, progress: &mut Progress) -> anyhow::Result<()> {
    let serves_all = world.lab.workers().all(|(_, worker)| world.impl_on(worker, Component::Kproxy) != Impl::Real);
    if !serves_all {
        progress.remark("kube-proxy serves ports only: addresses that take every protocol are not checked");
    }
    let checks = checks(&world.lab, serves_all);
    progress.step("checks", || {
        let deadline = Instant::now() + SERVICE_TIMEOUT;
        for check in &checks {
            run_check(world, check, deadline)?;
        }
        Ok(format!("{} passed", checks.len()))
    })
}

fn run_check(world: &World, check: &Check, deadline: Instant) -> anyhow::Result<()> {
    let netns = world.netns(&check.node, check.container.as_deref())?;
    loop {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", &check.command]).in_netns(&netns);
        let (status, output, errors) = world.processes.output(&mut command)?;
        if status.success() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let place = match &check.container {
                Some(container) => format!("{}.{container}", check.node),
                None => check.node.clone(),
            };
            bail!("`{}` in {place} failed: {}{}", check.command, output, errors);
        }
    }
}

fn members(lab: &Lab) -> impl Iterator<Item = (&Cluster, &Node)> {
    lab.clusters.iter().flat_map(|cluster| cluster.etcd.iter().map(move |node| (cluster, node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_lab_is_checked_as_the_original_checked_it() {
        let checks = checks(&Lab::default_lab(), true);
        let lines: Vec<String> = checks
            .iter()
            .map(|check| format!("{}.{}: {}", check.node, check.container.as_deref().unwrap_or("-"), check.command))
            .collect();
        assert_eq!(lines[0], "C0w1.c1: ping 100.64.10.1 -c 5 -i 0.01");
        assert_eq!(lines[1], "C1w1.c1: ping 100.64.10.1 -c 5 -i 0.01");
        assert!(lines[2].starts_with("C1w3.c3: curl") && lines[2].ends_with("http://10.0.0.8:1028/"), "{}", lines[2]);
        assert!(
            lines[3].starts_with("C0e1.-: curl") && lines[3].ends_with("http://10.0.0.3:8001/svc1"),
            "{}",
            lines[3]
        );
        assert_eq!(lines.len(), 5);
        assert_eq!(super::checks(&Lab::default_lab(), false).len(), 1);
    }
}
