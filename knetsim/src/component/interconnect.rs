//! The cluster-to-cluster router, one per cluster on its first worker. Both implementations read the same file.
//!
//! Every router listens for those of later clusters and connects to those of earlier ones, so that any two meet directly.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use linux_net::NetNs;
use serde_json::{Value, json};

use super::{STATE, http_status, program, real_program, write_file};
use crate::{
    certificate::CertificateFiles,
    impls::Impl,
    lab::{Cluster, Lab},
    supervisor::{DaemonId, DaemonSpec},
};

/// The port for `/healthz` and `/metrics` in the router's worker, that of Skupper.
pub const HEALTHZ_PORT: u16 = 9090;
/// The name of the profile that holds the certificates.
const TLS_PROFILE: &str = "inter-router-tls";

/// The directory of the routers' files.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(STATE).join("skupper")
}

/// The name of the daemon.
#[must_use]
pub fn id(cluster: &Cluster) -> DaemonId {
    DaemonId::new(&cluster.router().name, "interconnect")
}

/// The file that the router of a cluster reads.
#[must_use]
pub fn config_file(cluster: &Cluster) -> PathBuf {
    directory().join(format!("{}.json", cluster.name))
}

/// How the router is started.
///
/// # Errors
///
/// When the program is missing or the worker has no namespace.
pub fn spec(cluster: &Cluster, choice: Impl) -> anyhow::Result<DaemonSpec> {
    let program = match choice {
        Impl::Real => real_program("skrouterd")?,
        Impl::Rust | Impl::Nft => program("interconnect-rs")?,
    };
    Ok(DaemonSpec {
        id: id(cluster),
        program,
        arguments: vec!["-c".to_owned(), config_file(cluster).display().to_string()],
        environment: Vec::new(),
        netns: NetNs::open(&cluster.router().name)?,
        log: directory().join(format!("{}.log", cluster.name)),
        restart: true,
    })
}

/// Whether the router answers.
#[must_use]
pub fn is_healthy(netns: &NetNs) -> bool {
    http_status(netns, SocketAddr::from(([127, 0, 0, 1], HEALTHZ_PORT)), "/healthz") == Some(200)
}

/// Writes the router's configuration. `addresses` are those of the exposed containers that exist.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_config(
    lab: &Lab,
    cluster: &Cluster,
    certificates: &CertificateFiles,
    addresses: &BTreeMap<String, Ipv4Addr>,
) -> anyhow::Result<()> {
    let config = Value::Array(config(lab, cluster, certificates, addresses));
    write_file(&config_file(cluster), &format!("{config:#}\n"))
}

fn config(
    lab: &Lab,
    cluster: &Cluster,
    certificates: &CertificateFiles,
    addresses: &BTreeMap<String, Ipv4Addr>,
) -> Vec<Value> {
    let mut entities = vec![
        json!(["router", { "id": cluster.name.as_str(), "mode": "interior" }]),
        json!(["sslProfile", {
            "name": TLS_PROFILE,
            "caCertFile": certificates.ca,
            "certFile": certificates.certificate,
            "privateKeyFile": certificates.key,
        }]),
        json!(["listener", {
            "name": "@9090", "role": "normal", "host": "127.0.0.1", "port": HEALTHZ_PORT,
            "http": true, "httpRootDir": "disabled", "healthz": true, "metrics": true,
        }]),
    ];
    let position = lab.clusters.iter().position(|other| other.name == cluster.name).unwrap_or(0);
    if position + 1 < lab.clusters.len() {
        entities.push(json!(["listener", {
            "name": "interior-listener", "role": "inter-router",
            "host": cluster.router().address, "port": lab.link_port,
            "sslProfile": TLS_PROFILE, "saslMechanisms": "EXTERNAL", "authenticatePeer": true, "requireSsl": true,
        }]));
    }
    for earlier in &lab.clusters[..position] {
        entities.push(json!(["connector", {
            "name": format!("to-{}", earlier.name), "role": "inter-router",
            "host": earlier.router().address, "port": lab.link_port,
            "sslProfile": TLS_PROFILE, "saslMechanisms": "EXTERNAL", "verifyHostname": true,
        }]));
    }
    for expose in &lab.exposed {
        let address = format!("{}:{}", expose.name, expose.port);
        if expose.cluster == cluster.name
            && let Some(host) = addresses.get(&expose.container)
        {
            entities.push(json!(["tcpConnector", {
                "name": expose.name, "host": host, "port": expose.port, "address": address, "siteId": cluster.name.as_str(),
            }]));
        }
        if expose.listen_cluster == cluster.name {
            entities.push(json!(["tcpListener", {
                "name": expose.name, "host": "0.0.0.0", "port": expose.listen_port, "address": address,
                "siteId": cluster.name.as_str(),
            }]));
        }
    }
    entities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_listens_and_the_second_connects() {
        let lab = Lab::default_lab();
        let files = |name: &str| CertificateFiles {
            ca: "/tmp/knetsim/skupper/ca.crt".into(),
            certificate: format!("/tmp/knetsim/skupper/{name}.crt").into(),
            key: format!("/tmp/knetsim/skupper/{name}.key").into(),
        };
        let addresses = BTreeMap::from([("c4".to_owned(), Ipv4Addr::new(11, 10, 32, 3))]);
        for cluster in &lab.clusters {
            let name = cluster.name.as_str();
            let config = Value::Array(config(&lab, cluster, &files(name), &addresses));
            insta::assert_snapshot!(format!("router-{name}"), format!("{config:#}"));
        }
    }
}
