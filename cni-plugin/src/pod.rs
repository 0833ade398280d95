//! What bridge and ptp have in common: a cable into the pod, and addresses and routes on its far end.

use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux_net::netlink::{Link, LinkKind, Netlink, Op, Route, RouteScope, Veth};
use linux_net::{IfName, MacAddr, NetNs, sysctl};

use crate::attachment::Mark;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::namespace::{self, apply};
use crate::result::wire::is_ipv4;
use crate::result::{CniResult, Interface};

/// Duplicate address detection takes about one second (RFC 4862, section 5.4); the Go plugin waits ten.
const DAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a cable whose far end is born in the pod, under a random name `veth` + 8 hex digits; tries another one when the name is taken.
///
/// The near end bears the attachment's mark as its alias (`ip link` shows it): by that DEL and GC find a cable whose pod they cannot enter. Both are
/// asked for in one message, so that no cable is without its mark even when this process is killed.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn add_veth(
    host: &mut Netlink,
    pod_end: &IfName,
    netns: &NetNs,
    mtu_bytes: u32,
    mac: Option<MacAddr>,
    mark: Option<&Mark>,
) -> Result<IfName> {
    const TRIES: u32 = 10;
    let mut tries = 0;
    loop {
        // The standard library's hasher is seeded at random: all the randomness that a name needs.
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let name: IfName = format!("veth{:08x}", random & 0xffff_ffff).parse()?;
        tries += 1;
        // A mark must not come onto somebody else's link, so that a name that is taken is not even tried.
        if host.has_link(&name)? && tries < TRIES {
            continue;
        }
        let mut veth = Veth::new(name.clone(), pod_end.clone(), Some(netns));
        veth.mtu_bytes = (mtu_bytes != 0).then_some(mtu_bytes);
        veth.peer.mac = mac;
        let alias = mark.map(|mark| Op::SetAlias { dev: name.clone(), alias: mark.to_string() });
        apply(host, &std::iter::once(Op::AddVeth(veth)).chain(alias).collect::<Vec<_>>())?;
        return Ok(name);
    }
}

/// Refuses a second ADD: the interface must not be there.
///
/// # Errors
///
/// Code 100 when it is.
pub fn must_be_free(pod: &mut Netlink, pod_end: &IfName) -> Result<()> {
    if !pod.has_link(pod_end)? {
        return Ok(());
    }
    let msg = format!("container veth name provided ({pod_end}) already exists");
    Err(Error::new(Code::Kernel, msg).with_details("ADD was called twice without a DEL between"))
}

/// Prepares the pod's end for its addresses: IPv6 is switched on where it is needed, and the neighbours will be told.
///
/// # Errors
///
/// Code 100 when a parameter cannot be set.
pub fn prepare(netns: &NetNs, pod_end: &IfName, result: &CniResult, detects_duplicates: bool) -> Result<()> {
    netns.run(|| {
        if has_ipv6(result) {
            set_if_there(&conf_key("ipv6", pod_end, "disable_ipv6"), "0")?;
        }
        if !detects_duplicates {
            set_if_there(&conf_key("ipv6", pod_end, "accept_dad"), "0")?;
        }
        // A gratuitous ARP when the interface comes up corrects neighbours that knew the address's former owner.
        set_if_there(&conf_key("ipv4", pod_end, "arp_notify"), "1")
    })?
}

/// Whether one of the addresses is of IPv6.
#[must_use]
pub fn has_ipv6(result: &CniResult) -> bool {
    result.ips.iter().any(|ip| !is_ipv4(&ip.address))
}

/// The operations that give the pod's end its addresses and bring it and the pod's `lo` up.
#[must_use]
pub fn address_ops(pod_end: &IfName, result: &CniResult) -> Vec<Op> {
    let dev = || pod_end.clone();
    let addresses = result.ips.iter().map(|ip| Op::AddAddress { dev: dev(), address: ip.address });
    addresses.chain([Op::SetUp { dev: IfName::loopback() }, Op::SetUp { dev: dev() }]).collect()
}

/// The operations that add the result's routes.
///
/// # Errors
///
/// Code 2 for a field of a route that cannot be set.
pub fn route_ops(plugin: &str, pod_end: &IfName, result: &CniResult) -> Result<Vec<Op>> {
    result.routes.iter().map(|route| kernel_route(plugin, route, result, pod_end).map(Op::AddRoute)).collect()
}

fn kernel_route(plugin: &str, route: &crate::result::Route, result: &CniResult, dev: &IfName) -> Result<Route> {
    if route.advmss.is_some() {
        return Err(Error::unsupported(plugin, "routes.advmss"));
    }
    let mut kernel = Route::to(route.dst).dev(dev.clone());
    kernel.via = next_hop(route, result);
    kernel.metric = route.priority.unwrap_or_default();
    kernel.table = route.table.unwrap_or(Route::MAIN_TABLE);
    kernel.mtu_bytes = route.mtu;
    kernel.scope = Some(match route.scope {
        None | Some(0) => RouteScope::Global,
        Some(253) => RouteScope::Link,
        Some(254) => RouteScope::Host,
        Some(other) => RouteScope::Other(other),
    });
    Ok(kernel)
}

/// The next hop of a route in the container: its own, or else the gateway of the first address of its family.
#[must_use]
pub fn next_hop(route: &crate::result::Route, result: &CniResult) -> Option<std::net::IpAddr> {
    let same_family = |ip: &&crate::result::IpConfig| is_ipv4(&ip.address) == is_ipv4(&route.dst);
    route.gw.or_else(|| result.ips.iter().filter(same_family).find_map(|ip| ip.gateway))
}

/// Lets the node pass packets on, for the families of these addresses.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn forward<'a>(addresses: impl IntoIterator<Item = &'a IpNet>) -> Result<()> {
    for address in addresses {
        let key = match address {
            IpNet::V4(_) => "net.ipv4.ip_forward",
            IpNet::V6(_) => "net.ipv6.conf.all.forwarding",
        };
        switch_on(key)?;
    }
    Ok(())
}

/// Sets a parameter to 1. One that is 1 already is only read.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn switch_on(key: &str) -> Result<()> {
    if sysctl::get(key)? != "1" {
        sysctl::set(key, "1")?;
    }
    Ok(())
}

/// What a result says of a link.
#[must_use]
pub fn describe(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.to_string(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu_bytes),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// A link that this ADD has made.
///
/// # Errors
///
/// Code 100 when somebody has taken it away.
pub fn required(netlink: &mut Netlink, name: &IfName) -> Result<Link> {
    netlink.link(name)?.ok_or_else(|| Error::new(Code::Kernel, format!("interface {name} has gone during ADD")))
}

/// Deletes a link that may be gone.
///
/// # Errors
///
/// Code 100 when the kernel refuses for another reason.
pub fn remove(netlink: &mut Netlink, name: &IfName) -> Result<()> {
    match netlink.apply(&Op::DelLink { name: name.clone() }) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes an attachment's cable away: by the pod's end, or, when the pod's namespace is not given or cannot be found any more, by the mark of the other
/// one. There may be none.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn unplug(env: &Environment, mark: &Mark) -> Result<()> {
    match namespace::open_if_there(env)? {
        Some(netns) => remove(&mut Netlink::open_in(&netns)?, env.ifname()?),
        None => remove_marked(&mut Netlink::open()?, |alias| alias == mark.as_str()),
    }
}

/// Deletes the cables whose mark says so.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn remove_marked(host: &mut Netlink, is_doomed: impl Fn(&str) -> bool) -> Result<()> {
    let links = host.links()?;
    let marked =
        links.iter().filter(|link| link.kind == LinkKind::Veth && link.alias.as_deref().is_some_and(&is_doomed));
    marked.map(|link| &link.name).try_for_each(|name| remove(host, name))
}

/// CHECK of the pod's end: MAC, addresses and routes are those of the result. `index` is its place in the result's list.
///
/// # Errors
///
/// Code 102 naming the first thing that is missing or different.
pub fn check(pod: &mut Netlink, pod_link: &Link, result: &CniResult, index: usize) -> Result<()> {
    let ifname = &pod_link.name;
    let mac = &result.interfaces[index].mac;
    if !mac.is_empty() && pod_link.mac.is_none_or(|found| !found.to_string().eq_ignore_ascii_case(mac)) {
        return Err(Error::check(format!("MAC of {ifname} is not {mac}")));
    }
    let addresses: Vec<IpNet> = pod.addresses()?.into_iter().filter(|a| a.dev == *ifname).map(|a| a.address).collect();
    for ip in result.ips.iter().filter(|ip| ip.interface == Some(index)) {
        if !addresses.contains(&ip.address) {
            return Err(Error::check(format!("expected address {} is not on {ifname}", ip.address)));
        }
    }
    let routes = pod.routes()?;
    for route in &result.routes {
        let via = next_hop(route, result);
        let is_there = routes.iter().any(|found| found.dst == route.dst.trunc() && (via.is_none() || found.via == via));
        if !is_there {
            let via = via.map(|via| format!(" via {via}")).unwrap_or_default();
            return Err(Error::check(format!("expected route {}{via} is not in the container", route.dst)));
        }
    }
    Ok(())
}

/// The link of this name, for CHECK.
///
/// # Errors
///
/// Code 102 when it is not there.
pub fn present(netlink: &mut Netlink, name: &str, place: &str) -> Result<Link> {
    let missing = || Error::check(format!("interface {name} is not in the {place}"));
    netlink.link(&name.parse().map_err(|_| missing())?)?.ok_or_else(missing)
}

/// Waits until the pod's IPv6 addresses can be used: a tentative one cannot be a route's source, nor a program's.
///
/// Detection of duplicates takes a second. Without it the kernel still makes an address usable a moment after it has taken it, in a thread of its own.
/// The flag is in `/proc/net/if_inet6`, fifth column.
///
/// # Errors
///
/// Code 11 when detection does not end.
pub fn wait_for_addresses(netns: &NetNs, dev: &IfName) -> Result<()> {
    const IFA_F_TENTATIVE: u32 = 0x40; // linux/if_addr.h
    let deadline = Instant::now() + DAD_TIMEOUT;
    let is_tentative = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let flags = columns.get(4).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or_default();
        columns.get(5) == Some(&dev.as_str()) && flags & IFA_F_TENTATIVE != 0
    };
    loop {
        let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))?.unwrap_or_default();
        if !table.lines().any(is_tentative) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::new(Code::TryAgain, format!("IPv6 addresses of {dev} are still tentative")));
        }
        sleep(Duration::from_millis(1));
    }
}

/// A parameter of an interface. With slashes, because an interface may have a dot in its name.
#[must_use]
pub fn conf_key(family: &str, dev: &IfName, key: &str) -> String {
    format!("net/{family}/conf/{dev}/{key}")
}

/// Sets a parameter; one that is not there belongs to a protocol that this kernel does not have.
///
/// # Errors
///
/// Code 100 when it is there and cannot be set.
pub fn set_if_there(key: &str, value: &str) -> Result<()> {
    match sysctl::set(key, value) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::version::SpecVersion;

    #[test]
    fn a_route_without_next_hop_goes_through_the_gateway_of_its_family() {
        let given = json!({
            "ips": [{"address": "fd00::9/64", "gateway": "fd00::1"}, {"address": "10.1.2.9/24", "gateway": "10.1.2.1"}],
        });
        let result = CniResult::from_value(&given, SpecVersion::V1_1_0).unwrap();
        let route = crate::result::Route::new("11.0.0.0/8".parse().unwrap(), None);
        assert_eq!(next_hop(&route, &result), Some("10.1.2.1".parse().unwrap()));
    }
}
