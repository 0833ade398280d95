//! What the lab offers: services, ingresses, and what the interconnect exposes.

use std::net::Ipv4Addr;

use anyhow::{anyhow, bail};

use super::{Running, ServiceState, World};
use crate::{
    component::{self, ingress, interconnect, kproxy},
    impls::{Component, Impl},
    lab::{Cluster, Endpoints, Ingress, Node, Service, vip_service_name},
    object::{self, Endpoint},
    prompt::line::did_you_mean,
};

impl World {
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
        let objects = vec![object::slice(&service, &endpoints), object::service(&service)];
        if let Some(claim) = self.store(cluster)?.claim(object::address_claim(&service), objects)? {
            let claim: serde_json::Value = serde_json::from_slice(&claim).unwrap_or_default();
            let holder = &claim["spec"]["parentRef"];
            bail!("{} is the address of service {}/{}", service.address, holder["namespace"], holder["name"]);
        }
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

    /// On workers with `kproxy=nft` nobody watches etcd, so the lab loads the rules itself.
    pub(super) fn load_static_rules(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let is_static = |worker: &&Node| self.impl_on(worker, Component::Kproxy) == Impl::Nft;
        if !cluster.workers.iter().any(|worker| is_static(&worker)) {
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
        cluster
            .workers
            .iter()
            .filter(is_static)
            .try_for_each(|worker| kproxy::load_static(&self.processes, worker, &rules))
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

    /// Tells a running router of exposed containers that came, went, or have another address.
    pub(super) fn router_follows(&self, cluster: &Cluster) -> anyhow::Result<()> {
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
}

/// The endpoints of a service: those of its containers that run, in its order.
pub(super) fn endpoints(service: &Service, known: &[(String, Running)]) -> Vec<Endpoint> {
    let of = |container: &String| {
        let (name, running) = known.iter().find(|(name, _)| name == container)?;
        Some(Endpoint { container: name.clone(), worker: running.worker.clone(), address: running.address? })
    };
    service.containers.iter().filter_map(of).collect()
}
