//! What a lab offers: services, containers that another cluster reaches, and the ports all of it takes.

use toml::Spanned;

use super::{
    super::{
        Cluster, Endpoints, Expose, Lab, PodNetwork, Service, file,
        name::{object_name, vip_service_name},
    },
    LabError, Source, Unique,
};

/// A service, its containers known and its address in the range of services.
pub(super) fn check_service(
    source: &Source<'_>,
    service: &file::Service,
    cluster: &Cluster,
    pods: &PodNetwork,
    names: &mut Unique,
) -> Result<Service, LabError> {
    let address = *service.address.get_ref();
    let name = match &service.name {
        Some(name) => object_name(source, name)?,
        None => vip_service_name(address),
    };
    let span = service.name.as_ref().map_or(service.address.span(), Spanned::span);
    names.claim(source, &name, span, "another service of the cluster")?;
    if cluster.services.iter().any(|other| other.address == address) {
        return Err(
            source.error(service.address.span(), format!("service address {address} is taken by another service"))
        );
    }
    if !pods.service_cidr.contains(&address) {
        let message = format!("service address {address} is outside service-cidr {}", pods.service_cidr);
        return Err(source.error(service.address.span(), message));
    }
    for container in &service.containers {
        if !cluster.containers.iter().any(|known| known.name == *container.get_ref()) {
            let known: Vec<&str> = cluster.containers.iter().map(|container| container.name.as_str()).collect();
            let message = format!(
                "service {name} names the container {}, which cluster {} does not have; it has {}",
                container.get_ref(),
                cluster.name,
                known.join(", ")
            );
            return Err(source.error(container.span(), message));
        }
    }
    Ok(Service {
        name,
        address,
        containers: service.containers.iter().map(|container| container.get_ref().clone()).collect(),
        endpoints: match service.endpoints {
            file::Endpoints::Static => Endpoints::Static,
            file::Endpoints::Follow => Endpoints::Follow,
        },
        ports: service.ports.clone(),
    })
}

/// A container that another cluster reaches; both exist.
pub(super) fn check_expose(source: &Source<'_>, expose: &file::Expose, lab: &Lab) -> Result<Expose, LabError> {
    let find = |name: &Spanned<String>| {
        let known = || lab.clusters.iter().map(|cluster| cluster.name.as_str()).collect::<Vec<_>>().join(", ");
        lab.cluster(name.get_ref()).ok_or_else(|| {
            source.error(name.span(), format!("there is no cluster {}; there are {}", name.get_ref(), known()))
        })
    };
    let cluster = find(&expose.cluster)?;
    let listen_cluster = find(&expose.listen_cluster)?;
    if cluster.name == listen_cluster.name {
        let message = format!("cluster {} cannot reach its own container through the interconnect", cluster.name);
        return Err(source.error(expose.listen_cluster.span(), message));
    }
    let container = expose.container.get_ref();
    if !cluster.containers.iter().any(|known| known.name == *container) {
        let message = format!("cluster {} has no container {container}", cluster.name);
        return Err(source.error(expose.container.span(), message));
    }
    Ok(Expose {
        name: object_name(source, &expose.name)?,
        cluster: cluster.name.clone(),
        container: container.clone(),
        port: expose.port,
        listen_cluster: listen_cluster.name.clone(),
        listen_port: *expose.listen_port.get_ref(),
    })
}

/// Refuses two listeners on one port of one worker.
pub(super) fn check_ports(source: &Source<'_>, file: &file::LabFile, lab: &Lab) -> Result<(), LabError> {
    let mut ports = Unique::new("port");
    for cluster in &lab.clusters {
        ports.claim(source, &format!("{} of {}", lab.link_port, cluster.router().name), 0..0, "the interconnect")?;
    }
    for (cluster, written) in lab.clusters.iter().zip(&file.cluster) {
        for (ingress, written) in cluster.ingresses.iter().zip(&written.ingress) {
            let owner = format!("the ingress {}", ingress.name);
            ports.claim(source, &format!("{} of {}", ingress.port, ingress.worker), written.port.span(), &owner)?;
        }
    }
    for (expose, written) in lab.exposed.iter().zip(&file.expose) {
        let router = lab.cluster(expose.listen_cluster.as_str()).map_or("", |cluster| cluster.router().name.as_str());
        let owner = format!("the exposed service {}", expose.name);
        ports.claim(source, &format!("{} of {router}", expose.listen_port), written.listen_port.span(), &owner)?;
    }
    Ok(())
}
