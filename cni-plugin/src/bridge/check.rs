//! CHECK: is everything that ADD made still there?

use ipnet::IpNet;
use linux_net::netlink::{Link, LinkKind, Netlink};

use crate::bridge::config::Config;
use crate::bridge::plan;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::namespace;
use crate::result::{CniResult, Interface};

/// Compares interfaces, cable, addresses and routes with the result of ADD.
///
/// # Errors
///
/// Code 102 naming the first thing that is missing or different.
pub fn check(env: &Environment, config: &Config, result: &CniResult) -> Result<()> {
    let netns = namespace::open(env)?;
    let (mut host, mut pod) = (Netlink::open()?, Netlink::open_in(&netns)?);
    let sandbox = env.netns()?.display().to_string();
    let ifname = env.ifname()?;

    let find = |what: &str, is_it: &dyn Fn(&Interface) -> bool| {
        let found = result.interfaces.iter().position(is_it);
        found.ok_or_else(|| Error::check(format!("prevResult names no {what}")))
    };
    let bridge_name = config.bridge.as_str();
    find("bridge", &|i| i.sandbox.is_empty() && i.name == bridge_name)?;
    let host_end = find("host interface", &|i| i.sandbox.is_empty() && i.name != bridge_name)?;
    let pod_end = find("container interface", &|i| i.sandbox == sandbox && i.name == ifname.as_str())?;

    let bridge = present(&mut host, bridge_name, "node")?;
    if bridge.kind != LinkKind::Bridge {
        return Err(Error::check(format!("interface {bridge_name} is not a bridge")));
    }
    let host_link = present(&mut host, &result.interfaces[host_end].name, "node")?;
    let pod_link = present(&mut pod, ifname.as_str(), "container")?;
    if host_link.master.as_ref() != Some(&config.bridge) {
        return Err(Error::check(format!("interface {} is not a port of {bridge_name}", host_link.name)));
    }
    if host_link.peer_index != Some(pod_link.index) || pod_link.peer_index != Some(host_link.index) {
        return Err(Error::check(format!("{} and {ifname} are not two ends of one cable", host_link.name)));
    }
    let mac = &result.interfaces[pod_end].mac;
    if !mac.is_empty() && pod_link.mac.is_none_or(|found| !found.to_string().eq_ignore_ascii_case(mac)) {
        return Err(Error::check(format!("MAC of {ifname} is not {mac}")));
    }

    let addresses: Vec<IpNet> = pod.addresses()?.into_iter().filter(|a| a.dev == *ifname).map(|a| a.address).collect();
    for ip in result.ips.iter().filter(|ip| ip.interface == Some(pod_end)) {
        if !addresses.contains(&ip.address) {
            return Err(Error::check(format!("expected address {} is not on {ifname}", ip.address)));
        }
    }
    let routes = pod.routes()?;
    for route in &result.routes {
        let via = plan::next_hop(route, result);
        let is_there = routes.iter().any(|found| found.dst == route.dst.trunc() && (via.is_none() || found.via == via));
        if !is_there {
            let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
            return Err(Error::check(format!("expected route {}{via} is not in the container", route.dst)));
        }
    }
    Ok(())
}

fn present(netlink: &mut Netlink, name: &str, place: &str) -> Result<Link> {
    let missing = || Error::check(format!("interface {name} is not in the {place}"));
    netlink.link(&name.parse().map_err(|_| missing())?)?.ok_or_else(missing)
}
