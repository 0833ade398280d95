//! The external interface: the one that leads to the other workers, and the addresses that they send to.
//!
//! The first of these that finds one decides, as in flanneld:
//!
//! 1. `--iface`: names and addresses, in their order;
//! 2. `--iface-regex`: patterns, in their order, each tried on all addresses first and then on all names;
//! 3. `--iface-can-reach`: the interface by which a packet to that address would leave;
//! 4. without any wish: the interface that bears `--public-ip`, else that of the default route. (flanneld stops when no interface bears
//!    it; behind a translating router none does.)
//!
//! A dual-stack worker needs an address of each family on that one interface.
//!
//! Source: flannel `pkg/ipmatch/match.go`, `LookupExtIface`; `pkg/ip/iface.go`, `compareAddrs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux_net::IfName;
use linux_net::netlink::{Address, Link, Route, RouteKind};
use regex::Regex;

use crate::error::InterfaceError;
use crate::lease::PublicAddresses;

/// What the user says about the interface.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Names and addresses, best first.
    pub names: Vec<String>,
    /// Patterns for addresses and names, best first.
    pub patterns: Vec<Regex>,
    /// An address that packets through the interface shall reach.
    pub can_reach: Option<IpAddr>,
    /// The address to announce, where it is not the interface's own.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// What the kernel has to choose from.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routes.
    pub routes: Vec<Route>,
    /// The way to [`Wishes::can_reach`].
    pub way: Option<Route>,
}

/// The interface that leads to the other workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu_bytes: u32,
    /// Its own addresses.
    pub addresses: PublicAddresses,
    /// What others send to: its own addresses, unless the user says otherwise.
    pub public: PublicAddresses,
}

/// An interface that may be the one, with the addresses on it that the user named.
struct Candidate<'a> {
    link: &'a Link,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

/// Chooses the external interface, for one family or for two.
///
/// # Errors
///
/// [`InterfaceError`] saying what is there instead.
pub fn choose(seen: &Seen, wishes: &Wishes, is_dual_stack: bool) -> Result<ExternalInterface, InterfaceError> {
    let has_wish = !wishes.names.is_empty() || !wishes.patterns.is_empty() || wishes.can_reach.is_some();
    if !has_wish {
        let bearer = wishes.public_ip.and_then(|address| seen.candidate(&address.to_string()));
        let candidate = match bearer {
            Some(candidate) => candidate,
            None => seen.default_link(is_dual_stack)?,
        };
        return seen.complete(&candidate, wishes, is_dual_stack);
    }
    let named = wishes.names.iter().filter_map(|text| seen.candidate(text));
    let matching = wishes.patterns.iter().filter_map(|pattern| seen.matching(pattern, is_dual_stack));
    let reaching = seen.way.iter().filter_map(|way| seen.leading(way));
    let mut incomplete = None;
    for candidate in named.chain(matching).chain(reaching) {
        match seen.complete(&candidate, wishes, is_dual_stack) {
            Ok(interface) => return Ok(interface),
            Err(error) => incomplete = incomplete.or(Some(error)),
        }
    }
    Err(incomplete.unwrap_or_else(|| InterfaceError::NotFound { wanted: wishes.describe(), present: seen.describe() }))
}

impl Wishes {
    fn describe(&self) -> String {
        let names = self.names.iter().cloned();
        let patterns = self.patterns.iter().map(|pattern| format!("/{pattern}/"));
        let reach = self.can_reach.iter().map(|address| format!("a way to {address}"));
        names.chain(patterns).chain(reach).collect::<Vec<_>>().join(" or ")
    }
}

impl Seen {
    /// Finds a link by its address, which is then the one to use, or by its name.
    fn candidate(&self, text: &str) -> Option<Candidate<'_>> {
        let bearer = |wanted: IpAddr| {
            self.links.iter().find(|link| self.on(link).any(|address| address.address.addr() == wanted))
        };
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(wanted)) => Some(Candidate { link: bearer(wanted.into())?, ipv4: Some(wanted), ipv6: None }),
            Ok(IpAddr::V6(wanted)) => Some(Candidate { link: bearer(wanted.into())?, ipv4: None, ipv6: Some(wanted) }),
            Err(_) => {
                let link = self.links.iter().find(|link| link.name.as_str() == text)?;
                Some(Candidate { link, ipv4: None, ipv6: None })
            }
        }
    }

    /// Finds the first link with an address (of each family) that the pattern matches, else the first with such a name.
    fn matching(&self, pattern: &Regex, is_dual_stack: bool) -> Option<Candidate<'_>> {
        let is_match = |address: &str| pattern.is_match(address);
        let by_address = self.links.iter().find_map(|link| {
            let ipv4 = self.ipv4_on(link).into_iter().find(|address| is_match(&address.to_string()))?;
            let ipv6 = self.ipv6_on(link).into_iter().find(|address| is_match(&address.to_string()));
            (!is_dual_stack || ipv6.is_some()).then_some(Candidate { link, ipv4: Some(ipv4), ipv6 })
        });
        let by_name = || {
            let link = self.links.iter().find(|link| pattern.is_match(link.name.as_str()))?;
            Some(Candidate { link, ipv4: None, ipv6: None })
        };
        by_address.or_else(by_name)
    }

    /// The link that a way leads through, with the source address that packets on it have.
    fn leading(&self, way: &Route) -> Option<Candidate<'_>> {
        if way.kind != RouteKind::Unicast {
            return None; // An address of our own is no way to the others.
        }
        let link = self.links.iter().find(|link| Some(&link.name) == way.dev.as_ref())?;
        Some(match way.src {
            Some(IpAddr::V4(src)) => Candidate { link, ipv4: Some(src), ipv6: None },
            Some(IpAddr::V6(src)) => Candidate { link, ipv4: None, ipv6: Some(src) },
            None => Candidate { link, ipv4: None, ipv6: None },
        })
    }

    /// The link of the default route; in a dual-stack cluster that of both default routes.
    fn default_link(&self, is_dual_stack: bool) -> Result<Candidate<'_>, InterfaceError> {
        let link = |is_ipv4: bool| {
            let is_default = |route: &&Route| {
                let to_everywhere = route.dst.addr().is_ipv4() == is_ipv4 && route.dst.prefix_len() == 0;
                to_everywhere && route.table == Route::MAIN_TABLE && route.kind == RouteKind::Unicast
            };
            // Of several the kernel prefers the one with the lowest metric.
            let route = self.routes.iter().filter(is_default).min_by_key(|route| route.metric)?;
            self.links.iter().find(|link| Some(&link.name) == route.dev.as_ref())
        };
        let ipv4 = link(true).ok_or(InterfaceError::NoDefaultRoute { family: "IPv4" })?;
        if is_dual_stack {
            let ipv6 = link(false).ok_or(InterfaceError::NoDefaultRoute { family: "IPv6" })?;
            if ipv4.name != ipv6.name {
                return Err(InterfaceError::TwoDefaultRoutes {
                    ipv4: ipv4.name.to_string(),
                    ipv6: ipv6.name.to_string(),
                });
            }
        }
        Ok(Candidate { link: ipv4, ipv4: None, ipv6: None })
    }

    /// Finds the addresses that were not named, the link's best ones.
    fn complete(
        &self,
        candidate: &Candidate<'_>,
        wishes: &Wishes,
        is_dual_stack: bool,
    ) -> Result<ExternalInterface, InterfaceError> {
        let link = candidate.link;
        let lacks = |family| InterfaceError::NoAddress { name: link.name.to_string(), family };
        let ipv4 = candidate.ipv4.or_else(|| self.ipv4_on(link).first().copied()).ok_or_else(|| lacks("IPv4"))?;
        let addresses = self.ipv6_on(link);
        let named = wishes.public_ipv6.filter(|address| addresses.contains(address));
        let ipv6 = candidate.ipv6.or(named).or_else(|| addresses.first().copied()).filter(|_| is_dual_stack);
        if is_dual_stack && ipv6.is_none() {
            return Err(lacks("IPv6"));
        }
        Ok(ExternalInterface {
            name: link.name.clone(),
            mtu_bytes: link.mtu_bytes,
            addresses: PublicAddresses { ipv4, ipv6 },
            public: PublicAddresses {
                ipv4: wishes.public_ip.unwrap_or(ipv4),
                ipv6: ipv6.map(|own| wishes.public_ipv6.unwrap_or(own)),
            },
        })
    }

    fn on<'a>(&'a self, link: &'a Link) -> impl Iterator<Item = &'a Address> {
        self.addresses.iter().filter(|address| address.dev == link.name)
    }

    /// The IPv4 addresses that another machine could send to, best first.
    fn ipv4_on(&self, link: &Link) -> Vec<Ipv4Addr> {
        let usable = |address: &Address| match address.address.addr() {
            IpAddr::V4(ip) => (!ip.is_loopback() && !ip.is_link_local()).then_some(ip),
            IpAddr::V6(_) => None,
        };
        best_first(self.on(link)).filter_map(usable).collect()
    }

    /// The IPv6 addresses that another machine could send to, best first.
    fn ipv6_on(&self, link: &Link) -> Vec<Ipv6Addr> {
        let usable = |address: &Address| match address.address.addr() {
            IpAddr::V6(ip) => (!ip.is_loopback() && !ip.is_unicast_link_local()).then_some(ip),
            IpAddr::V4(_) => None,
        };
        best_first(self.on(link)).filter_map(usable).collect()
    }

    /// Lists what there is, for an error message: `eth0 (10.0.0.3), eth1`.
    fn describe(&self) -> String {
        let describe = |link: &Link| {
            let addresses: Vec<_> = self.on(link).map(|address| address.address.addr().to_string()).collect();
            if addresses.is_empty() {
                link.name.to_string()
            } else {
                format!("{} ({})", link.name, addresses.join(", "))
            }
        };
        self.links.iter().map(describe).collect::<Vec<_>>().join(", ")
    }
}

/// Sorts as flanneld does: assigned by hand before learned, lasting before temporary; what is deprecated is left out.
fn best_first<'a>(addresses: impl Iterator<Item = &'a Address>) -> impl Iterator<Item = &'a Address> {
    let mut addresses: Vec<_> = addresses.filter(|address| !address.deprecated).collect();
    addresses.sort_by_key(|address| (!address.permanent, address.temporary));
    addresses.into_iter()
}

#[cfg(test)]
mod tests;
