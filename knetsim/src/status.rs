//! What `status` shows: the lab's nodes, containers, services and daemons, as a table or as JSON.

use std::{collections::BTreeMap, net::Ipv4Addr};

use comfy_table::{Table, presets::NOTHING};
use serde::{Deserialize, Serialize};

use crate::{
    impls::{COMPONENTS, Component, Impl},
    supervisor::DaemonStatus,
    world::World,
};

/// The state of a lab.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The lab's name.
    pub lab: String,
    /// Whether every daemon that should run does.
    pub healthy: bool,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The containers.
    pub containers: Vec<ContainerStatus>,
    /// The services.
    pub services: Vec<ServiceStatus>,
    /// The daemons, and the commands that were started in containers.
    pub daemons: Vec<DaemonStatus>,
}

/// A node.
#[derive(Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Full name.
    pub name: String,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// On a worker: who implements what there. Empty for an etcd member.
    #[serde(rename = "impl")]
    pub impls: BTreeMap<Component, Impl>,
}

/// A container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The cluster.
    pub cluster: String,
    /// Its name.
    pub name: String,
    /// Full name of its worker.
    pub worker: String,
    /// Its network namespace.
    pub netns: String,
    /// Its address; none while it is being made.
    pub address: Option<Ipv4Addr>,
}

/// A service.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The cluster.
    pub cluster: String,
    /// The object's name.
    pub name: String,
    /// The virtual address.
    pub address: Ipv4Addr,
    /// The containers behind it.
    pub endpoints: Vec<String>,
}

/// Looks at a running lab.
#[must_use]
pub fn collect(world: &World) -> Status {
    let daemons = world.supervisor.status();
    let mut status = Status {
        lab: world.name.clone(),
        healthy: daemons.iter().all(|daemon| daemon.pid.is_some()),
        nodes: world
            .lab
            .nodes()
            .map(|(cluster, node)| {
                let runs = |component: &Component| component.runs_on_every_worker() && cluster.workers.contains(node);
                let impls = COMPONENTS.into_iter().filter(runs);
                let impls = impls.map(|component| (component, world.impl_on(node, component))).collect();
                NodeStatus { name: node.name.clone(), address: node.address, impls }
            })
            .collect(),
        containers: Vec::new(),
        services: Vec::new(),
        daemons,
    };
    for cluster in &world.lab.clusters {
        for (name, running) in world.containers_of(cluster) {
            status.containers.push(ContainerStatus {
                cluster: cluster.name.to_string(),
                name,
                worker: running.worker,
                netns: running.netns,
                address: running.address,
            });
        }
        for (service, endpoints) in world.services_of(cluster) {
            status.services.push(ServiceStatus {
                cluster: cluster.name.to_string(),
                name: service.name,
                address: service.address,
                endpoints: endpoints.into_iter().map(|endpoint| endpoint.container).collect(),
            });
        }
    }
    status
}

/// The daemons as a table.
#[must_use]
pub fn table(status: &Status) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["NODE", "DAEMON", "PROGRAM", "PID", "UP", "RESTARTS", "LAST END"]);
    for daemon in &status.daemons {
        table.add_row([
            daemon.node.clone(),
            daemon.daemon.clone(),
            daemon.program.clone(),
            daemon.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            format!("{} s", daemon.up_seconds),
            daemon.restarts.to_string(),
            daemon.last_end.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let daemons = status.daemons.len();
    let containers = status.containers.len();
    let state = if status.healthy { "every daemon runs" } else { "NOT every daemon runs" };
    format!(
        "lab {}: {} nodes, {containers} containers, {daemons} daemons; {state}\n{table}\n{}",
        status.lab,
        status.nodes.len(),
        differing(&status.nodes)
    )
}

/// A line for each component that not all workers have from the same side: `flannel: real on C0w2; rust on C0w1, C0w3`.
fn differing(nodes: &[NodeStatus]) -> String {
    let mut text = String::new();
    for component in COMPONENTS {
        let mut workers: BTreeMap<Impl, Vec<&str>> = BTreeMap::new();
        for node in nodes {
            if let Some(choice) = node.impls.get(&component) {
                workers.entry(*choice).or_default().push(&node.name);
            }
        }
        if workers.len() > 1 {
            let sides: Vec<String> =
                workers.iter().map(|(choice, names)| format!("{choice} on {}", names.join(", "))).collect();
            text.push_str(&format!("{component}: {}\n", sides.join("; ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_components_that_differ_between_workers_are_told() {
        let node = |name: &str, flannel| NodeStatus {
            name: name.to_owned(),
            address: Ipv4Addr::LOCALHOST,
            impls: [(Component::Flannel, flannel), (Component::Cni, Impl::Rust)].into(),
        };
        let mut nodes = vec![node("C0w1", Impl::Rust), node("C0w2", Impl::Real), node("C0w3", Impl::Rust)];
        assert_eq!(differing(&nodes), "flannel: rust on C0w1, C0w3; real on C0w2\n");
        nodes.remove(1);
        assert_eq!(differing(&nodes), "");
    }
}
