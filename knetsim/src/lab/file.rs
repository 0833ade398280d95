//! `lab.toml` as a student writes it. Every table refuses unknown keys; what can be wrong bears its place.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LabFile {
    pub(super) underlay: Underlay,
    pub(super) pods: Pods,
    #[serde(default)]
    pub(super) cluster: Vec<Cluster>,
    #[serde(default)]
    pub(super) interconnect: Interconnect,
    #[serde(default)]
    pub(super) expose: Vec<Expose>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Underlay {
    pub(super) bridge: Spanned<String>,
    pub(super) network: Spanned<Ipv4Net>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Pods {
    pub(super) flannel_config: Spanned<String>,
    pub(super) service_cidr: Spanned<Ipv4Net>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Cluster {
    pub(super) name: Spanned<String>,
    pub(super) switch: Option<Spanned<String>>,
    pub(super) uplink_rate: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) etcd: Vec<Node>,
    #[serde(default)]
    pub(super) worker: Vec<Node>,
    #[serde(default)]
    pub(super) container: Vec<Container>,
    #[serde(default)]
    pub(super) service: Vec<Service>,
    #[serde(default)]
    pub(super) ingress: Vec<Ingress>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Node {
    pub(super) name: Spanned<String>,
    pub(super) address: Spanned<Ipv4Addr>,
    pub(super) rate: Option<Spanned<String>>,
    /// On a worker: by component, who implements it there.
    #[serde(default, rename = "impl")]
    pub(super) impls: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Container {
    pub(super) name: Spanned<String>,
    pub(super) worker: Spanned<String>,
    pub(super) run: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Service {
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Spanned<Ipv4Addr>,
    pub(super) containers: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) endpoints: Endpoints,
    #[serde(default)]
    pub(super) ports: Vec<u16>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Endpoints {
    Static,
    #[default]
    Follow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Ingress {
    pub(super) name: Spanned<String>,
    pub(super) worker: Spanned<String>,
    pub(super) port: Spanned<u16>,
    pub(super) paths: Spanned<Vec<super::IngressPath>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Interconnect {
    pub(super) link_port: u16,
}

impl Default for Interconnect {
    fn default() -> Self {
        Self { link_port: 55671 } // the inter-router port of Skupper
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expose {
    pub(super) name: Spanned<String>,
    pub(super) cluster: Spanned<String>,
    pub(super) container: Spanned<String>,
    pub(super) port: u16,
    pub(super) listen_cluster: Spanned<String>,
    pub(super) listen_port: Spanned<u16>,
}
