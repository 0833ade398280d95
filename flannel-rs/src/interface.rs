//! The external interface: the one that leads to the other workers.
//!
//! Source: flannel `pkg/ipmatch/match.go`, `LookupExtIface`.

use std::net::{IpAddr, Ipv4Addr};

use linux_net::IfName;
use linux_net::netlink::{Address, Link, Route, RouteKind};

use crate::error::InterfaceError;

/// The interface that leads to the other workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu_bytes: u32,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Chooses the first of `wanted`, names or addresses, that is there; the interface of the default route if none is wanted.
///
/// # Errors
///
/// [`InterfaceError`] saying what is there instead.
pub fn choose(
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
    wanted: &[String],
) -> Result<ExternalInterface, InterfaceError> {
    let (link, given) = if wanted.is_empty() {
        (default_link(links, routes).ok_or(InterfaceError::NoDefaultRoute)?, None)
    } else {
        let mut found = wanted.iter().filter_map(|text| named(links, addresses, text));
        found.next().ok_or_else(|| InterfaceError::NotFound {
            wanted: wanted.join(" or "),
            present: describe(links, addresses),
        })?
    };
    let address = given.or_else(|| addresses_of(link, addresses).find(|address| is_reachable(*address)));
    let address = address.ok_or_else(|| InterfaceError::NoAddress { name: link.name.to_string() })?;
    Ok(ExternalInterface { name: link.name.clone(), mtu_bytes: link.mtu_bytes, address })
}

/// Finds a link by its address, which is then the one to use, or by its name.
fn named<'a>(links: &'a [Link], addresses: &[Address], text: &str) -> Option<(&'a Link, Option<Ipv4Addr>)> {
    match text.parse::<Ipv4Addr>() {
        Ok(wanted) => {
            let link = links.iter().find(|link| addresses_of(link, addresses).any(|address| address == wanted))?;
            Some((link, Some(wanted)))
        }
        Err(_) => links.iter().find(|link| link.name.as_str() == text).map(|link| (link, None)),
    }
}

/// Finds the link of the IPv4 default route; of several the one with the lowest metric, which the kernel prefers.
fn default_link<'a>(links: &'a [Link], routes: &[Route]) -> Option<&'a Link> {
    let is_default = |route: &&Route| {
        let to_everywhere = matches!(route.dst.network(), IpAddr::V4(_)) && route.dst.prefix_len() == 0;
        to_everywhere && route.table == Route::MAIN_TABLE && route.kind == RouteKind::Unicast
    };
    let route = routes.iter().filter(is_default).min_by_key(|route| route.metric)?;
    links.iter().find(|link| Some(&link.name) == route.dev.as_ref())
}

fn addresses_of<'a>(link: &'a Link, addresses: &'a [Address]) -> impl Iterator<Item = Ipv4Addr> + 'a {
    addresses.iter().filter(|address| address.dev == link.name).filter_map(|address| match address.address.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

/// Says whether another machine could send to the address.
fn is_reachable(address: Ipv4Addr) -> bool {
    !address.is_loopback() && !address.is_link_local()
}

/// Lists what there is, for an error message: `eth0 (10.0.0.3), eth1`.
fn describe(links: &[Link], addresses: &[Address]) -> String {
    let describe = |link: &Link| {
        let addresses: Vec<_> = addresses_of(link, addresses).map(|address| address.to_string()).collect();
        if addresses.is_empty() { link.name.to_string() } else { format!("{} ({})", link.name, addresses.join(", ")) }
    };
    links.iter().map(describe).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use linux_net::netlink::{LinkKind, LinkStatistics};

    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.parse().unwrap(),
            mac: None,
            mtu_bytes: 1500,
            up: true,
            carrier: true,
            promiscuous: false,
            master: None,
            alias: None,
            kind: LinkKind::Veth,
            peer_index: None,
            hairpin: None,
            statistics: LinkStatistics::default(),
        }
    }

    fn address(dev: &str, address: &str) -> Address {
        Address { dev: dev.parse().unwrap(), address: address.parse().unwrap() }
    }

    fn choose_from(routes: &[Route], wanted: &[&str]) -> Result<String, String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "eth2")];
        let addresses = [
            address("lo", "127.0.0.1/8"),
            address("eth0", "fe80::1/64"),
            address("eth0", "10.0.0.3/8"),
            address("eth0", "10.0.0.33/8"),
            address("eth1", "169.254.0.1/16"),
            address("eth1", "192.168.1.7/24"),
        ];
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let chosen = choose(&links, &addresses, routes, &wanted);
        chosen.map(|chosen| format!("{} {}", chosen.name, chosen.address)).map_err(|error| error.to_string())
    }

    fn default_route(dev: &str, metric: u32) -> Route {
        Route { metric, ..Route::to("0.0.0.0/0".parse().unwrap()).dev(dev.parse().unwrap()) }
    }

    #[test]
    fn an_interface_is_found_by_name_or_by_address_the_first_that_is_there() {
        assert_eq!(choose_from(&[], &["eth1"]).unwrap(), "eth1 192.168.1.7");
        assert_eq!(choose_from(&[], &["10.0.0.33"]).unwrap(), "eth0 10.0.0.33");
        assert_eq!(choose_from(&[], &["eth9", "eth0"]).unwrap(), "eth0 10.0.0.3");
    }

    #[test]
    fn without_a_wish_the_default_route_decides() {
        assert_eq!(
            choose_from(&[default_route("eth0", 200), default_route("eth1", 100)], &[]).unwrap(),
            "eth1 192.168.1.7"
        );
    }

    #[test]
    fn errors_say_what_is_there_and_what_to_do() {
        let error = choose_from(&[], &["eth9"]).unwrap_err();
        assert!(error.contains("eth9") && error.contains("eth0 (10.0.0.3, 10.0.0.33), eth1"), "{error}");
        assert!(choose_from(&[], &[]).unwrap_err().contains("--iface"));
        assert!(choose_from(&[], &["eth2"]).unwrap_err().contains("eth2 has no IPv4 address"));
    }
}
