//! From what the student wrote to a [`Lab`] that can exist, or to an error that shows the place.

mod offer;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::Deserialize;
use toml::Spanned;

use self::offer::{check_expose, check_ports, check_service};
use super::{
    Cluster, ClusterName, Container, Ingress, Lab, Node, PodNetwork, Underlay, file,
    name::{cluster_name, container_name, interface_name, object_name, rate, short_name},
};
use crate::impls::WorkerImpls;

/// Why a lab file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The file, or one that it names, cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is wrong at one place.
    #[error("{}:{line}:{column}: {message}", path.display())]
    At {
        /// The lab file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// Checks the text of a lab file; files that it names are looked for beside it.
pub(super) fn check(path: &Path, text: &str) -> Result<Lab, LabError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    check_with(path, text, |name| std::fs::read_to_string(directory.join(name)))
}

/// As [`check`], with the reading of further files left to the caller.
pub(super) fn check_with(
    path: &Path,
    text: &str,
    read: impl Fn(&str) -> std::io::Result<String>,
) -> Result<Lab, LabError> {
    let source = Source { path, text };
    let file: file::LabFile = toml::from_str(text)
        .map_err(|error| source.error(error.span().unwrap_or(0..0), error.message().trim_end().replace('\n', ", ")))?;
    let mut names = Unique::new("name");
    let mut addresses = Unique::new("address");

    let underlay =
        Underlay { bridge: interface_name(&source, &file.underlay.bridge)?, network: *file.underlay.network.get_ref() };
    names.claim(&source, &underlay.bridge, file.underlay.bridge.span(), "the underlay's bridge")?;
    let pods = pod_network(&source, &file.pods, read)?;
    if file.cluster.is_empty() {
        return Err(source.error(0..0, "the lab has no cluster; add a [[cluster]]".to_owned()));
    }

    let mut clusters = Vec::new();
    for cluster in &file.cluster {
        clusters.push(check_cluster(&source, cluster, &underlay, &pods, &mut names, &mut addresses)?);
    }
    let mut lab = Lab { underlay, pods, clusters, exposed: Vec::new(), link_port: file.interconnect.link_port };
    lab.exposed = file.expose.iter().map(|expose| check_expose(&source, expose, &lab)).collect::<Result<_, _>>()?;
    check_ports(&source, &file, &lab)?;
    Ok(lab)
}

/// The file under check, to make errors with.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn error(&self, span: Range<usize>, message: String) -> LabError {
        let before = &self.text[..span.start.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        LabError::At { path: self.path.to_owned(), line, column, message }
    }
}

/// Things of which each may stand once, with the place where it stood first.
struct Unique {
    what: &'static str,
    seen: BTreeMap<String, String>,
}

impl Unique {
    fn new(what: &'static str) -> Self {
        Self { what, seen: BTreeMap::new() }
    }

    fn claim(&mut self, source: &Source<'_>, key: &str, span: Range<usize>, owner: &str) -> Result<(), LabError> {
        match self.seen.insert(key.to_owned(), owner.to_owned()) {
            None => Ok(()),
            Some(first) => Err(source.error(span, format!("{} {key} is taken by {first}; choose another", self.what))),
        }
    }
}

fn pod_network(
    source: &Source<'_>,
    pods: &file::Pods,
    read: impl Fn(&str) -> std::io::Result<String>,
) -> Result<PodNetwork, LabError> {
    /// What the lab itself needs of flannel's network configuration.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct NetworkConfig {
        network: Ipv4Net,
        #[serde(default)]
        backend: Backend,
    }
    #[derive(Deserialize, Default)]
    struct Backend {
        #[serde(rename = "VNI")]
        vni: Option<u32>,
    }
    let name = pods.flannel_config.get_ref();
    let flannel_config = read(name)
        .map_err(|error| source.error(pods.flannel_config.span(), format!("read flannel-config {name}: {error}")))?;
    let config: NetworkConfig = serde_json::from_str(&flannel_config)
        .map_err(|error| source.error(pods.flannel_config.span(), format!("flannel-config {name}: {error}")))?;
    let service_cidr = *pods.service_cidr.get_ref();
    if service_cidr.contains(&config.network) || config.network.contains(&service_cidr) {
        let message =
            format!("service-cidr {service_cidr} overlaps the pod network {}; choose another range", config.network);
        return Err(source.error(pods.service_cidr.span(), message));
    }
    Ok(PodNetwork { flannel_config, cidr: config.network, vni: config.backend.vni.unwrap_or(1), service_cidr })
}

fn check_cluster(
    source: &Source<'_>,
    cluster: &file::Cluster,
    underlay: &Underlay,
    pods: &PodNetwork,
    names: &mut Unique,
    addresses: &mut Unique,
) -> Result<Cluster, LabError> {
    let name = cluster_name(source, &cluster.name)?;
    names.claim(source, name.as_str(), cluster.name.span(), "another cluster")?;
    let switch = match &cluster.switch {
        Some(switch) => interface_name(source, switch)?,
        None => name.node("s0"),
    };
    names.claim(
        source,
        &switch,
        cluster.switch.as_ref().map_or(cluster.name.span(), Spanned::span),
        "another bridge",
    )?;
    for (nodes, what) in [(&cluster.etcd, "[[cluster.etcd]]"), (&cluster.worker, "[[cluster.worker]]")] {
        if nodes.is_empty() {
            return Err(source.error(cluster.name.span(), format!("cluster {name} has no {what}; add one")));
        }
    }
    if let Some((component, _)) = cluster.etcd.iter().flat_map(|node| &node.impls).next() {
        let message = "an etcd member runs nothing that can be swapped; `impl` belongs to a [[cluster.worker]]";
        return Err(source.error(component.span(), message.to_owned()));
    }
    let mut nodes = |nodes: &[file::Node]| {
        nodes
            .iter()
            .map(|node| check_node(source, &name, node, underlay, names, addresses))
            .collect::<Result<Vec<_>, _>>()
    };
    let mut checked = Cluster {
        etcd: nodes(&cluster.etcd)?,
        workers: nodes(&cluster.worker)?,
        uplink_rate: rate(source, cluster.uplink_rate.as_ref())?,
        name,
        switch,
        containers: Vec::new(),
        services: Vec::new(),
        ingresses: Vec::new(),
    };
    let mut container_names = Unique::new("container");
    for container in &cluster.container {
        checked.containers.push(check_container(source, container, &checked, &mut container_names)?);
    }
    let mut service_names = Unique::new("service");
    for service in &cluster.service {
        checked.services.push(check_service(source, service, &checked, pods, &mut service_names)?);
    }
    let mut ingress_names = Unique::new("ingress");
    for ingress in &cluster.ingress {
        let name = object_name(source, &ingress.name)?;
        ingress_names.claim(source, &name, ingress.name.span(), "another ingress")?;
        let worker = find_worker(source, &checked, &ingress.worker)?;
        for path in ingress.paths.get_ref() {
            if !path.path.starts_with('/') {
                let message = format!("path {:?} of ingress {name} must begin with /", path.path);
                return Err(source.error(ingress.paths.span(), message));
            }
        }
        let port = *ingress.port.get_ref();
        checked.ingresses.push(Ingress { name, worker, port, paths: ingress.paths.get_ref().clone() });
    }
    Ok(checked)
}

fn check_node(
    source: &Source<'_>,
    cluster: &ClusterName,
    node: &file::Node,
    underlay: &Underlay,
    names: &mut Unique,
    addresses: &mut Unique,
) -> Result<Node, LabError> {
    let short = short_name(source, &node.name)?;
    let name = cluster.node(&short);
    names.claim(source, &name, node.name.span(), "another node")?;
    let address = *node.address.get_ref();
    if !underlay.network.contains(&address) {
        let message = format!("address {address} of {name} is outside the underlay {}", underlay.network);
        return Err(source.error(node.address.span(), message));
    }
    if address == underlay.network.network() || address == underlay.network.broadcast() {
        let message =
            format!("address {address} of {name} is the network's own or its broadcast address; choose another");
        return Err(source.error(node.address.span(), message));
    }
    addresses.claim(source, &address.to_string(), node.address.span(), "another node")?;
    let mut impls = WorkerImpls::default();
    for (component, choice) in &node.impls {
        let refused = |message| source.error(component.span(), format!("impl of {name}: {message}"));
        impls.choose(component.get_ref(), choice.get_ref()).map_err(refused)?;
    }
    Ok(Node { name, address, rate: rate(source, node.rate.as_ref())?, impls })
}

fn check_container(
    source: &Source<'_>,
    container: &file::Container,
    cluster: &Cluster,
    names: &mut Unique,
) -> Result<Container, LabError> {
    let name = container_name(container.name.get_ref()).map_err(|error| source.error(container.name.span(), error))?;
    names.claim(source, &name, container.name.span(), "another container of the cluster")?;
    let worker = find_worker(source, cluster, &container.worker)?;
    Ok(Container { name, worker, run: container.run.clone() })
}

fn find_worker(source: &Source<'_>, cluster: &Cluster, worker: &Spanned<String>) -> Result<String, LabError> {
    match cluster.worker(worker.get_ref()) {
        Some(node) => Ok(node.name.clone()),
        None => {
            let known: Vec<&str> = cluster.workers.iter().map(|worker| worker.name.as_str()).collect();
            let message =
                format!("cluster {} has no worker {}; it has {}", cluster.name, worker.get_ref(), known.join(", "));
            Err(source.error(worker.span(), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        impls::{Component, Impl, Impls},
        lab::Endpoints,
    };

    fn refused(change: impl Fn(String) -> String) -> String {
        let text = change(include_str!("../../../conf/lab.toml").to_owned());
        let read = |_: &str| Ok(include_str!("../../../conf/flannel-network-config.json").to_owned());
        check_with(Path::new("lab.toml"), &text, read).unwrap_err().to_string()
    }

    #[test]
    fn the_default_lab_is_the_one_of_the_lessons() {
        let lab = Lab::default_lab();
        let nodes: Vec<String> = lab.nodes().map(|(_, node)| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(
            nodes,
            [
                "C0e1 10.1.0.1",
                "C0e2 10.1.0.2",
                "C0w1 10.0.0.3",
                "C0w2 10.0.0.4",
                "C0w3 10.0.0.5",
                "C1e1 10.2.0.1",
                "C1e2 10.2.0.2",
                "C1w1 10.0.0.8",
                "C1w2 10.0.0.9",
                "C1w3 10.0.0.10",
            ]
        );
        assert_eq!(lab.switches().collect::<Vec<_>>(), ["C0s0", "C1s0", "t0"]);
        assert_eq!(lab.pods.cidr.to_string(), "11.0.0.0/8");
        assert_eq!(lab.pods.vni, 100);
        assert_eq!(lab.clusters[0].name.container_netns("c1"), "k0_c1");
        assert_eq!(lab.clusters[0].services[0].endpoints, Endpoints::Static);
        assert_eq!(lab.exposed[0].listen_port, 1028);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let message = refused(|text| text.replace("bridge = ", "brigde = "));
        assert!(message.starts_with("lab.toml:"), "{message}");
        assert!(message.contains("unknown field `brigde`"), "{message}");
    }

    #[test]
    fn impossible_labs_are_refused_and_say_why() {
        let table: [(&str, &str, &str); 11] = [
            ("\"10.0.0.4\"", "\"10.0.0.3\"", "address 10.0.0.3 is taken by another node"),
            ("\"10.0.0.4\"", "\"192.168.0.4\"", "outside the underlay 10.0.0.0/8"),
            ("\"10.0.0.4\"", "\"10.255.255.255\"", "broadcast address"),
            ("name = \"w2\"", "name = \"w1\"", "name C0w1 is taken by another node"),
            ("name = \"w2\"", "name = \"worker-two\"", "must be one to six lower-case letters"),
            ("name = \"C1\"", "name = \"cluster\"", "must be C and one to three"),
            ("containers = [\"c2\", \"c3\"]", "containers = [\"c2\", \"c9\"]", "names the container c9"),
            ("address = \"100.64.10.1\"", "address = \"100.99.10.1\"", "outside service-cidr 100.64.0.0/16"),
            ("service-cidr = \"100.64.0.0/16\"", "service-cidr = \"11.64.0.0/16\"", "overlaps the pod network"),
            ("port = 8001", "port = 55671", "port 55671 of C0w1 is taken by the interconnect"),
            ("container = \"c4\"", "container = \"c5\"", "cluster C0 has no container c5"),
        ];
        for (from, to, expected) in table {
            let message = refused(|text| {
                assert!(text.contains(from), "{from} is not in the default lab");
                text.replacen(from, to, 1)
            });
            assert!(message.contains(expected), "{to}: {message}");
        }
    }

    /// The default lab with `impl = …` behind the address of `C0w2`, or of another node.
    fn with_impl(text: &str, address: &str, choice: &str) -> String {
        text.replacen(&format!("\"{address}\""), &format!("\"{address}\"\nimpl = {choice}"), 1)
    }

    #[test]
    fn a_worker_may_choose_for_itself_and_the_others_follow_the_command_line() {
        let text =
            with_impl(include_str!("../../../conf/lab.toml"), "10.0.0.4", r#"{ flannel = "real", kproxy = "nft" }"#);
        let read = |_: &str| Ok(include_str!("../../../conf/flannel-network-config.json").to_owned());
        let lab = check_with(Path::new("lab.toml"), &text, read).unwrap();
        let impls = Impls::default();
        let overruled = |component| {
            let of = lab.workers().filter(|(_, worker)| impls.on(&worker.impls, component) != Impl::Rust);
            of.map(|(_, worker)| worker.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(overruled(Component::Flannel), ["C0w2"]);
        assert_eq!(overruled(Component::Kproxy), ["C0w2"]);
        assert!(overruled(Component::Cni).is_empty());
        let choices = lab.choices(&impls);
        assert!(
            choices.contains(&(Component::Flannel, Impl::Real)) && choices.contains(&(Component::Flannel, Impl::Rust))
        );
        assert!(!choices.contains(&(Component::Ingress, Impl::Real)));
        // What every worker overrules is not needed.
        let all_real = Lab::default_lab().choices(&impls.merge(&"flannel=real".parse().unwrap()));
        assert!(!all_real.contains(&(Component::Flannel, Impl::Rust)));
    }

    #[test]
    fn a_wrong_choice_of_a_worker_is_refused_with_its_place() {
        let table = [
            (
                "10.0.0.4",
                r#"{ ingress = "real" }"#,
                "ingress does not run on every worker, so choose with --impl ingress=real",
            ),
            ("10.0.0.4", r#"{ flanel = "real" }"#, "there is no component \"flanel\"; there are flannel, cni"),
            ("10.0.0.4", r#"{ flannel = "go" }"#, "impl of C0w2: flannel is rust or real, not \"go\""),
            ("10.1.0.1", r#"{ flannel = "real" }"#, "`impl` belongs to a [[cluster.worker]]"),
        ];
        let lab = include_str!("../../../conf/lab.toml");
        for (address, choice, expected) in table {
            let message = refused(|text| with_impl(&text, address, choice));
            let line = lab.lines().position(|line| line.contains(&format!("\"{address}\""))).unwrap() + 2;
            assert!(message.starts_with(&format!("lab.toml:{line}:")) && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn an_error_names_line_and_column() {
        let message = refused(|text| text.replacen("\"10.0.0.4\"", "\"10.0.0.3\"", 1));
        let lab = include_str!("../../../conf/lab.toml");
        let line = lab.lines().position(|line| line.contains("\"10.0.0.4\"")).unwrap() + 1;
        assert!(message.starts_with(&format!("lab.toml:{line}:")), "{message}");
    }
}
