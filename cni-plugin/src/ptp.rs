//! `ptp`: a cable between the pod and the node, and no switch: every pod is a network of its own, and the node routes between them.
//!
//! ```text
//!   pod: eth0 10.1.1.2/24 ═══════ veth1f00a2b3 10.1.1.1/32    route 10.1.1.2 dev veth1f00a2b3
//!   pod: eth0 10.1.1.3/24 ═══════ veth77e0c1d4 10.1.1.1/32    route 10.1.1.3 dev veth77e0c1d4
//! ```
//!
//! All cables bear the same gateway's address at the node's end. A pod must not look for its neighbours on the cable, where only the gateway is: the
//! kernel's route to the subnet, which came with the address, is replaced by two:
//!
//! ```text
//! ip route del 10.1.1.0/24 dev eth0
//! ip route add 10.1.1.1 dev eth0 scope link src 10.1.1.2
//! ip route add 10.1.1.0/24 via 10.1.1.1 dev eth0 src 10.1.1.2
//! ```
//!
//! Beyond the Go plugin: the pod's `lo` is brought up, nobody waits a second for duplicate address detection (the other end of the cable is ours), and
//! an IPAM plugin that gives no gateway is told so.
//!
//! Source: containernetworking/plugins, `plugins/main/ptp`.

use ipnet::IpNet;
use linux_net::netlink::{LinkKind, Netlink, Op, Route, RouteScope};
use linux_net::{IfName, NetNs};
use serde::Deserialize;

use crate::attachment::{Mark, Valid};
use crate::bridge::config::check_masq_backend;
use crate::bridge::masquerade;
use crate::conf::Conf;
use crate::delegate;
use crate::env::{Command, Environment};
use crate::error::{Error, Result};
use crate::namespace::{self, apply};
use crate::plugin::Plugin;
use crate::pod;
use crate::result::{CniResult, Dns, IpConfig};

/// The pod's end is the second of the result: node end, pod end.
const CONTAINER_INTERFACE: usize = 1;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Ptp;

/// What ptp reads of a configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    ip_masq_backend: Option<String>,
    /// In bytes; 0 for the kernel's default.
    #[serde(default)]
    mtu: u32,
    /// Takes the place of what IPAM says of name servers, when it says anything.
    #[serde(default)]
    dns: Dns,
    #[serde(skip)]
    ipam: String,
}

impl Config {
    fn read(env: &Environment, conf: &Conf) -> Result<Self> {
        env.check_args()?;
        let mut config: Self = conf.read()?;
        check_masq_backend("ptp", config.ip_masq_backend.as_deref())?;
        conf.ipam_type()?.clone_into(&mut config.ipam);
        if config.ipam.is_empty() {
            return Err(Error::config("ptp needs an IPAM plugin: the field \"type\" in \"ipam\" is missing"));
        }
        Ok(config)
    }

    fn ipam(&self, command: Command, env: &Environment, conf: &Conf) -> Result<CniResult> {
        delegate::invoke(&self.ipam, command, env, conf.object().clone()).map(Option::unwrap_or_default)
    }
}

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(env, conf)?;
        let mark = Mark::of(env, conf)?;
        let mut cable = Cable::lay(env, &config, &mark)?;
        // Back to before the ADD when something fails; the first error is the one to report.
        let undo_cable = |cable: &mut Cable| drop(pod::remove(&mut cable.host, &cable.host_end));
        let allocated = config.ipam(Command::Add, env, conf).inspect_err(|_| undo_cable(&mut cable))?;
        attach(env, &config, &mark, &mut cable, allocated).inspect_err(|_| {
            undo_cable(&mut cable);
            if config.ip_masq {
                drop(masquerade::remove(env, conf));
            }
            drop(config.ipam(Command::Del, env, conf));
        })
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        pod::unplug(env, &Mark::of(env, conf)?)?;
        // Only now: an address that is free must not be on an interface any more.
        config.ipam(Command::Del, env, conf)?;
        if config.ip_masq { masquerade::remove(env, conf) } else { Ok(()) }
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let result = conf.required_prev_result()?;
        config.ipam(Command::Check, env, conf)?;
        let netns = namespace::open(env)?;
        let mut pod = Netlink::open_in(&netns)?;
        let (ifname, sandbox) = (env.ifname()?, env.netns()?.display().to_string());
        let index = result.interfaces.iter().position(|i| i.name == ifname.as_str() && i.sandbox == sandbox);
        let index = index.ok_or_else(|| {
            Error::check(format!("Sandbox in prevResult doesn't match configured netns: {sandbox} has no {ifname}"))
        })?;
        let link = pod::present(&mut pod, ifname.as_str(), "container")?;
        if link.kind != LinkKind::Veth {
            return Err(Error::check(format!("Container interface {ifname} not of type veth/p2p")));
        }
        if config.ip_masq {
            masquerade::check(&result.addresses_of(index), &Mark::of(env, conf)?)?;
        }
        pod::check(&mut pod, &link, &result, index)
    }

    /// Cables are found by their marks, and what nftables knows of them too; the rest is the IPAM plugin's.
    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        pod::remove_marked(&mut Netlink::open()?, |alias| valid.is_stale(alias))?;
        masquerade::remove_stale(&valid)?;
        Config::read(env, conf)?.ipam(Command::Gc, env, conf).map(|_| ())
    }

    fn status(&self, env: &Environment, conf: &Conf) -> Result<()> {
        Config::read(env, conf)?.ipam(Command::Status, env, conf).map(|_| ())
    }
}

/// A veth between the node and a pod.
struct Cable {
    host: Netlink,
    pod: Netlink,
    netns: NetNs,
    host_end: IfName,
    pod_end: IfName,
}

impl Cable {
    fn lay(env: &Environment, config: &Config, mark: &Mark) -> Result<Self> {
        let netns = namespace::open(env)?;
        let (mut host, mut pod) = (Netlink::open()?, Netlink::open_in(&netns)?);
        let pod_end = env.ifname()?.clone();
        pod::must_be_free(&mut pod, &pod_end)?;
        let host_end = pod::add_veth(&mut host, &pod_end, &netns, config.mtu, None, Some(mark))?;
        Ok(Self { host, pod, netns, host_end, pod_end })
    }
}

/// Everything of an ADD that comes after the cable and the addresses, and is undone with them.
fn attach(
    env: &Environment,
    config: &Config,
    mark: &Mark,
    cable: &mut Cable,
    mut result: CniResult,
) -> Result<CniResult> {
    if result.ips.is_empty() {
        return Err(Error::new(crate::error::Code::Plugin, "IPAM plugin returned missing IP config"));
    }
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER_INTERFACE);
    }
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
    pod::forward(&addresses)?;

    pod::prepare(&cable.netns, &cable.pod_end, &result, false)?;
    apply(&mut cable.pod, &pod::address_ops(&cable.pod_end, &result))?;
    if pod::has_ipv6(&result) {
        pod::wait_for_addresses(&cable.netns, &cable.pod_end)?;
    }
    let mut detour = Vec::new();
    for ip in &result.ips {
        let (connected, instead) = plan_detour(ip, &cable.pod_end)?;
        match cable.pod.apply(&Op::DelRoute(connected)) {
            // An address of full length brings no route.
            Err(error) if !error.is_not_found() => return Err(error.into()),
            Ok(()) | Err(_) => detour.extend(instead.map(Op::AddRoute)),
        }
    }
    detour.extend(pod::route_ops("ptp", &cable.pod_end, &result)?);
    apply(&mut cable.pod, &detour)?;

    for (family, key) in [("ipv6", "accept_ra"), ("ipv6", "accept_dad")] {
        pod::set_if_there(&pod::conf_key(family, &cable.host_end, key), "0")?;
    }
    let mut ops = vec![Op::SetUp { dev: cable.host_end.clone() }];
    for ip in &result.ips {
        ops.extend(plan_host(ip, &cable.host_end)?);
    }
    apply(&mut cable.host, &ops)?;

    if config.ip_masq {
        masquerade::add(&addresses, mark)?;
    }
    let (host_end, pod_end) =
        (pod::required(&mut cable.host, &cable.host_end)?, pod::required(&mut cable.pod, &cable.pod_end)?);
    let sandbox = env.netns()?.display().to_string();
    result.interfaces = vec![pod::describe(&host_end, ""), pod::describe(&pod_end, &sandbox)];
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

fn gateway(ip: &IpConfig) -> Result<IpNet> {
    let gateway = ip.gateway.ok_or_else(|| {
        Error::config(format!("ptp needs a gateway for {}, and the IPAM plugin gave none", ip.address))
    })?;
    Ok(IpNet::from(gateway))
}

/// The route that the kernel made with the address, and the two that take its place in the pod.
fn plan_detour(ip: &IpConfig, dev: &IfName) -> Result<(Route, [Route; 2])> {
    let mut connected = Route::to(ip.address.trunc()).dev(dev.clone()).protocol(Route::PROTOCOL_KERNEL);
    connected.scope = ip.address.addr().is_ipv4().then_some(RouteScope::Link);
    let gateway = gateway(ip)?;
    let mut to_gateway = Route::to(gateway).dev(dev.clone());
    to_gateway.scope = Some(RouteScope::Link);
    to_gateway.src = Some(ip.address.addr());
    let mut to_subnet = Route::to(ip.address.trunc()).dev(dev.clone()).via(gateway.addr());
    to_subnet.src = Some(ip.address.addr());
    Ok((connected, [to_gateway, to_subnet]))
}

/// The gateway's address and the way to the pod, on the node.
fn plan_host(ip: &IpConfig, dev: &IfName) -> Result<[Op; 2]> {
    let mut to_pod = Route::to(IpNet::from(ip.address.addr())).dev(dev.clone());
    to_pod.scope = Some(RouteScope::Host);
    Ok([Op::AddAddress { dev: dev.clone(), address: gateway(ip)? }, Op::AddRoute(to_pod)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_is_behind_the_gateway() {
        let ip = IpConfig {
            interface: None,
            address: "10.1.1.2/24".parse().unwrap(),
            gateway: Some("10.1.1.1".parse().unwrap()),
        };
        let dev = "eth0".parse().unwrap();
        let (connected, instead) = plan_detour(&ip, &dev).unwrap();
        let [to_gateway, to_subnet] = instead.map(|route| Op::AddRoute(route).to_string());
        assert_eq!(connected.dst.to_string(), "10.1.1.0/24");
        assert_eq!(to_gateway, "ip route add 10.1.1.1/32 dev eth0 src 10.1.1.2 scope link");
        assert_eq!(to_subnet, "ip route add 10.1.1.0/24 via 10.1.1.1 dev eth0 src 10.1.1.2");
        let [address, route] = plan_host(&ip, &"veth0".parse().unwrap()).unwrap().map(|op| op.to_string());
        assert_eq!(address, "ip addr add 10.1.1.1/32 dev veth0");
        assert_eq!(route, "ip route add 10.1.1.2/32 dev veth0 scope host");
        let without = IpConfig { gateway: None, ..ip };
        assert!(plan_detour(&without, &dev).unwrap_err().msg.contains("10.1.1.2/24"));
    }
}
