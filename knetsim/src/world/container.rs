//! Containers come and go: a namespace, its attachment by CNI, and whoever depends on it.

use std::net::Ipv4Addr;

use anyhow::{anyhow, bail};
use linux_net::NetNs;

use super::{PodId, Running, World, service::endpoints};
use crate::{
    lab::{Cluster, Container, Endpoints, Node, container_name},
    object,
};

impl World {
    /// Makes a container on a worker and attaches it to the pod network; returns its address.
    ///
    /// # Errors
    ///
    /// When the name is wrong or taken, or the CNI plugins fail. Nothing of the container is left then.
    pub fn create_container(&self, worker: &str, name: &str) -> anyhow::Result<Ipv4Addr> {
        let (cluster, node) = self.worker(worker)?;
        let pod = PodId { namespace: object::NAMESPACE.to_owned(), name: name.to_owned(), uid: None };
        let address = self.make_container(cluster, node, name, pod)?;
        self.store(cluster)?.put(vec![object::pod(name, node, address)])?;
        Ok(address)
    }

    /// Makes the container of a pod.
    pub(super) fn make_container(
        &self,
        cluster: &Cluster,
        node: &Node,
        name: &str,
        pod: PodId,
    ) -> anyhow::Result<Ipv4Addr> {
        let name = container_name(name).map_err(|message| anyhow!(message))?;
        let id = (cluster.name.clone(), name.clone());
        let netns = cluster.name.container_netns(&name);
        let running = Running { worker: node.name.clone(), netns: netns.clone(), address: None, pod };
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
                Err(error.context(format!("create container {name} on {}", node.name)))
            }
        }
    }

    fn attach(&self, worker: &Node, netns: &str) -> anyhow::Result<Ipv4Addr> {
        let plugins = self.plugins_of(worker)?;
        NetNs::create(netns)?;
        plugins.add(&self.processes, worker, netns).inspect_err(|_| {
            // The error that counts is that of the ADD; what these two could not undo, the next boot of the sandbox will.
            let _ = plugins.del(&self.processes, worker, netns);
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
        let pod = self.container(worker, name)?.pod;
        self.unmake_container(cluster, node, name)?;
        self.store(cluster)?.delete(vec![object::pod_key(&pod.namespace, &pod.name)])
    }

    /// Removes a container; its pod stays in etcd.
    pub(super) fn unmake_container(&self, cluster: &Cluster, node: &Node, name: &str) -> anyhow::Result<()> {
        let worker = node.name.as_str();
        let running = self.container(worker, name)?;
        // A command is named `c1-7`; the container `c1-7` may be there too, and its commands are `c1-7-8`.
        let is_its = |daemon: &str| {
            daemon.rsplit_once('-').is_some_and(|(of, number)| of == name && number.parse::<u32>().is_ok())
        };
        self.supervisor.stop_where(|id| id.node == worker && is_its(&id.daemon));
        self.plugins_of(node)?.del(&self.processes, node, &running.netns)?;
        NetNs::delete(&running.netns)?;
        self.state().containers.remove(&(cluster.name.clone(), name.to_owned()));
        self.containers_changed(cluster)
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
}
