//! The wires of the lab: bridges, nodes and the links between them. [`plan`] decides, [`build`] carries out.
//!
//! ```text
//!            t0                     bridges live in the sandbox's own namespace, as Mininet's do
//!          /    \
//!      C0s0      C1s0               C0s0-eth6 ─── t0-eth1
//!     / | | \    / ...
//!  C0e1 C0w1 …                      C0w1: a namespace with C0w1-eth0, whose other end is C0s0-eth3
//! ```

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use linux_net::{
    IfName, NetNs, Netlink, Op,
    netlink::{Route, Veth},
    process::CommandNamespaceExt as _,
    sysctl,
};

use crate::{
    lab::{Cluster, Lab, Node, Rate},
    process::Processes,
};

/// A cable: two ends, each an interface of a node or bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The node, or the cluster's switch.
    pub a: String,
    /// Its interface.
    pub a_interface: String,
    /// The switch, or the underlay's bridge.
    pub b: String,
    /// Its interface.
    pub b_interface: String,
    /// How fast it is; as fast as the machine when none.
    pub rate: Option<Rate>,
}

/// All cables of a lab, numbered as Mininet numbers them: nodes in the order of the lab, then each switch's uplink.
#[must_use]
pub fn links(lab: &Lab) -> Vec<Link> {
    let mut links = Vec::new();
    for (cluster_number, cluster) in (1..).zip(&lab.clusters) {
        let nodes: Vec<&Node> = cluster.etcd.iter().chain(&cluster.workers).collect();
        for (port, node) in (1..).zip(&nodes) {
            links.push(Link {
                a: node.name.clone(),
                a_interface: node.interface(),
                b: cluster.switch.clone(),
                b_interface: format!("{}-eth{port}", cluster.switch),
                rate: node.rate,
            });
        }
        links.push(Link {
            a: cluster.switch.clone(),
            a_interface: format!("{}-eth{}", cluster.switch, nodes.len() + 1),
            b: lab.underlay.bridge.clone(),
            b_interface: format!("{}-eth{cluster_number}", lab.underlay.bridge),
            rate: cluster.uplink_rate,
        });
    }
    links
}

/// What makes a topology: operations in the sandbox's namespace, then in each node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Operations where the bridges are.
    pub bridges: Vec<Op>,
    /// Operations in each node, by the node's name.
    pub nodes: Vec<(String, Vec<Op>)>,
}

/// Decides what makes the lab. `netns` gives a node's namespace, in which its end of the cable is born.
///
/// # Errors
///
/// When a name does not fit an interface, or `netns` fails.
pub fn plan(lab: &Lab, netns: impl Fn(&str) -> anyhow::Result<NetNs>) -> anyhow::Result<Plan> {
    let mut bridges = Vec::new();
    for switch in lab.switches() {
        let name = IfName::new(switch)?;
        bridges.extend([Op::AddBridge { name: name.clone() }, Op::SetUp { dev: name }]);
    }
    let is_switch = |name: &str| lab.switches().any(|switch| switch == name);
    for link in links(lab) {
        let near = IfName::new(link.b_interface.as_str())?;
        let far = IfName::new(link.a_interface.as_str())?;
        let far_netns = if is_switch(&link.a) { None } else { Some(netns(&link.a)?) };
        bridges.push(Op::AddVeth(Veth::new(near.clone(), far.clone(), far_netns.as_ref())));
        bridges.push(Op::SetMaster { dev: near.clone(), master: Some(IfName::new(link.b.as_str())?) });
        bridges.push(Op::SetUp { dev: near });
        if far_netns.is_none() {
            bridges.push(Op::SetMaster { dev: far.clone(), master: Some(IfName::new(link.a.as_str())?) });
            bridges.push(Op::SetUp { dev: far });
        }
    }
    let mut nodes = Vec::new();
    for (cluster, node) in lab.nodes() {
        nodes.push((node.name.clone(), node_ops(lab, cluster, node)?));
    }
    Ok(Plan { bridges, nodes })
}

fn node_ops(lab: &Lab, cluster: &Cluster, node: &Node) -> anyhow::Result<Vec<Op>> {
    let interface = IfName::new(node.interface())?;
    let address = IpNet::V4(Ipv4Net::new(node.address, lab.underlay.network.prefix_len())?);
    let mut ops = vec![
        Op::SetUp { dev: IfName::loopback() },
        Op::AddAddress { dev: interface.clone(), address },
        Op::SetUp { dev: interface },
    ];
    ops.extend(service_route(lab, cluster, node)?);
    Ok(ops)
}

/// A worker's own route to the service addresses: the kernel wants one before it asks the service proxy, although no
/// packet ever leaves by it. On a real node the default route is what this one is here.
fn service_route(lab: &Lab, cluster: &Cluster, node: &Node) -> anyhow::Result<Option<Op>> {
    if !cluster.workers.contains(node) {
        return Ok(None);
    }
    let route = Route::to(IpNet::V4(lab.pods.service_cidr)).dev(IfName::new(node.interface())?);
    Ok(Some(Op::ReplaceRoute(route)))
}

/// Puts back what the kernel forgot of a node's routes when its interface was down.
///
/// # Errors
///
/// When the kernel refuses.
pub fn restore_routes(netlink: &mut Netlink, lab: &Lab, cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    if let Some(route) = service_route(lab, cluster, node)? {
        netlink.apply(&route)?;
    }
    Ok(())
}

/// Makes the topology in this thread's network namespace.
///
/// # Errors
///
/// The first operation that the kernel refused, as the command a student would have typed.
pub fn build(lab: &Lab, processes: &Processes) -> anyhow::Result<()> {
    let namespaces = wire(lab)?;
    set_forwarding(lab, &namespaces)?;
    let netns = |name: &str| find(&namespaces, name);
    for link in links(lab).iter().filter(|link| link.rate.is_some()) {
        limit_rate(link, &netns, processes)?;
    }
    Ok(())
}

/// Sets who forwards, and what is asked before.
///
/// # Errors
///
/// When the kernel lacks a setting, or refuses it.
pub fn set_forwarding(lab: &Lab, namespaces: &BTreeMap<String, NetNs>) -> anyhow::Result<()> {
    // The bridges of the sandbox forward as a switch does, without asking netfilter (as the original set it).
    set_if_present("net.bridge.bridge-nf-call-iptables", "0")?;
    for (_, worker) in lab.workers() {
        find(namespaces, &worker.name)?.run(|| prepare_worker(&worker.name))??;
    }
    Ok(())
}

/// Makes the namespaces and the cables alone; returns the namespaces by the nodes' names.
///
/// # Errors
///
/// As [`build`].
pub fn wire(lab: &Lab) -> anyhow::Result<BTreeMap<String, NetNs>> {
    let mut namespaces = BTreeMap::new();
    for (_, node) in lab.nodes() {
        namespaces.insert(node.name.clone(), NetNs::create(&node.name)?);
    }
    let plan = plan(lab, |name| find(&namespaces, name))?;
    apply(&mut Netlink::open()?, &plan.bridges)?;
    for (name, ops) in &plan.nodes {
        apply(&mut Netlink::open_in(&find(&namespaces, name)?)?, ops).with_context(|| format!("on {name}"))?;
    }
    Ok(namespaces)
}

fn find(namespaces: &BTreeMap<String, NetNs>, name: &str) -> anyhow::Result<NetNs> {
    namespaces.get(name).cloned().with_context(|| format!("{name} has no namespace"))
}

fn apply(netlink: &mut Netlink, ops: &[Op]) -> anyhow::Result<()> {
    netlink.apply_all(ops).into_iter().collect::<Result<(), _>>()?;
    Ok(())
}

/// What every Kubernetes node sets: it forwards, and its bridge asks netfilter, so that a service address works between
/// two pods of one bridge too.
fn prepare_worker(name: &str) -> anyhow::Result<()> {
    sysctl::set("net.ipv4.ip_forward", "1")?;
    match sysctl::set("net.bridge.bridge-nf-call-iptables", "1") {
        Err(error) if error.is_not_found() => bail!(
            "{name} has no net.bridge.bridge-nf-call-iptables: the kernel module br_netfilter is not loaded; \
             run `modprobe br_netfilter` as root"
        ),
        other => Ok(other?),
    }
}

fn set_if_present(key: &str, value: &str) -> anyhow::Result<()> {
    match sysctl::set(key, value) {
        Err(error) if error.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}

/// Limits both directions of a link with a token bucket (tc-tbf(8)).
fn limit_rate(
    link: &Link,
    netns: &impl Fn(&str) -> anyhow::Result<NetNs>,
    processes: &Processes,
) -> anyhow::Result<()> {
    let Some(rate) = link.rate else { return Ok(()) };
    // The bucket must hold what comes between two ticks of the kernel's clock, at least a few packets.
    let burst_bytes = (rate.bits_per_second / 8 / 100).max(16 * 1024);
    for (node, interface) in [(&link.a, &link.a_interface), (&link.b, &link.b_interface)] {
        let mut tc = Command::new(crate::component::real_program("tc")?);
        let rate = format!("{}bit", rate.bits_per_second);
        tc.args(["qdisc", "replace", "dev", interface, "root", "tbf", "rate", &rate]);
        tc.args(["burst", &burst_bytes.to_string(), "latency", "50ms"]);
        if let Ok(netns) = netns(node) {
            tc.in_netns(&netns);
        }
        let (status, _, errors) = processes.output(&mut tc).with_context(|| format!("run tc for {interface}"))?;
        if !status.success() {
            bail!("limit {interface} to {rate}: {}", errors.trim());
        }
    }
    Ok(())
}

/// How much the topology holds, in words.
#[must_use]
pub fn summary(lab: &Lab) -> String {
    format!("{} nodes, {} bridges, {} links", lab.nodes().count(), lab.switches().count(), links(lab).len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_are_numbered_as_mininet_numbers_them() {
        let links: Vec<String> = links(&Lab::default_lab())
            .iter()
            .map(|link| format!("{}:{}", link.a_interface, link.b_interface))
            .collect();
        assert_eq!(
            links,
            [
                "C0e1-eth0:C0s0-eth1",
                "C0e2-eth0:C0s0-eth2",
                "C0w1-eth0:C0s0-eth3",
                "C0w2-eth0:C0s0-eth4",
                "C0w3-eth0:C0s0-eth5",
                "C0s0-eth6:t0-eth1",
                "C1e1-eth0:C1s0-eth1",
                "C1e2-eth0:C1s0-eth2",
                "C1w1-eth0:C1s0-eth3",
                "C1w2-eth0:C1s0-eth4",
                "C1w3-eth0:C1s0-eth5",
                "C1s0-eth6:t0-eth2",
            ]
        );
    }

    #[test]
    fn the_plan_prints_as_the_commands_a_student_would_type() {
        let mut lab = Lab::default_lab();
        lab.clusters.truncate(1);
        lab.clusters[0].workers.truncate(1);
        let here = NetNs::current().unwrap();
        let this_process = format!("/proc/{}/ns/net", std::process::id());
        let plan = plan(&lab, |_| Ok(here.clone())).unwrap();
        let mut text = String::new();
        for op in &plan.bridges {
            text.push_str(&format!("{op}\n").replace(&this_process, "NETNS"));
        }
        for (name, ops) in &plan.nodes {
            for op in ops {
                text.push_str(&format!("{name}: {op}\n"));
            }
        }
        insta::assert_snapshot!(text);
    }
}
