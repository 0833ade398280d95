//! CHECK: is everything that ADD made still there?

use linux_net::netlink::{LinkKind, Netlink};

use crate::attachment::Mark;
use crate::bridge::config::Config;
use crate::bridge::{masquerade, spoof};
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::namespace;
use crate::pod;
use crate::result::{CniResult, Interface};

/// Compares interfaces, cable, port, addresses and routes with the result of ADD.
///
/// # Errors
///
/// Code 102 naming the first thing that is missing or different.
pub fn check(env: &Environment, config: &Config, mark: &Mark, result: &CniResult) -> Result<()> {
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

    let bridge = pod::present(&mut host, bridge_name, "node")?;
    if bridge.kind != LinkKind::Bridge {
        return Err(Error::check(format!("interface {bridge_name} is not a bridge")));
    }
    let host_link = pod::present(&mut host, &result.interfaces[host_end].name, "node")?;
    let pod_link = pod::present(&mut pod, ifname.as_str(), "container")?;
    if host_link.master.as_ref() != Some(&config.bridge) {
        return Err(Error::check(format!("interface {} is not a port of {bridge_name}", host_link.name)));
    }
    if host_link.peer_index != Some(pod_link.index) || pod_link.peer_index != Some(host_link.index) {
        return Err(Error::check(format!("{} and {ifname} are not two ends of one cable", host_link.name)));
    }
    for (field, wanted, found) in [
        ("hairpinMode", config.hairpin_mode, host_link.hairpin),
        ("portIsolation", config.port_isolation, host_link.isolated),
    ] {
        if wanted && found != Some(true) {
            return Err(Error::check(format!("{field} is not set on {}", host_link.name)));
        }
    }
    if config.vlans.is_needed() && !config.vlans.is_met_by(&host_link.name, &host.vlans(&host_link.name)?) {
        return Err(Error::check(format!("{} is not in the VLANs that it should be in", host_link.name)));
    }
    if let Some(mac) = pod_link.mac.filter(|_| config.mac_spoof_check) {
        spoof::check(&host_link.name, mac, mark)?;
    }
    if config.ip_masq {
        masquerade::check(&result.addresses_of(pod_end), mark)?;
    }
    pod::check(&mut pod, &pod_link, result, pod_end)
}
