//! The difference between what the kernel has and what it should have, as operations: a pure function.
//!
//! Removals come first, and among the additions a peer's route comes last, as in flanneld: a packet that finds the route finds the
//! rest of the way too. A second run on the outcome of the first plans nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use linux_net::netlink::{Address, Event, FdbEntry, Link, LinkKind, Neighbour, NeighbourState, Route, RouteKind};
use linux_net::{IfName, Op};

use crate::overlay::{Desired, Entries, Expected, Overlay, Overlays, ROUTE_PROTOCOL};
use crate::vxlan::Device;
use linux_net::ip::Family;

/// What the kernel has, as far as it can concern one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device of our name, whatever it is.
    pub link: Option<Link>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// All routes of the family.
    pub routes: Vec<Route>,
    /// The device's neighbours.
    pub neighbours: Vec<Neighbour>,
    /// The device's FDB entries.
    pub fdb: Vec<FdbEntry>,
}

/// Returns the changes that turn `observed` into `desired`, removals first.
///
/// As long as our subnet is not known, nor who the peers are, only the device itself is put right: on a restart the entries of
/// the former run go on carrying packets meanwhile.
#[must_use]
pub fn plan(desired: &Desired<'_>, observed: &Observed) -> Vec<Op> {
    let Some(device) = desired.device else {
        let Some(entries) = &desired.entries else { return Vec::new() };
        let routes = plan_routes(desired, entries, observed.routes.iter());
        return routes.stale.into_iter().chain(routes.missing).collect();
    };
    let mut ops = plan_device(device, observed.link.as_ref());
    let link = observed.link.as_ref().filter(|link| is_usable(device, link));
    let set_up = link.is_none_or(|link| !link.up).then(|| Op::SetUp { dev: device.name.clone() });
    let Some(entries) = &desired.entries else {
        ops.extend(set_up);
        return ops;
    };
    // With a device that does not exist yet, nothing is on it; and a new MAC makes the kernel forget the neighbours.
    let has_mac = link.is_some_and(|link| link.mac == Some(device.mac));
    let routes = observed.routes.iter().filter(|route| link.is_some() || route.dev.as_ref() != Some(&device.name));
    let fdb = if link.is_some() { &observed.fdb[..] } else { &[] };
    let neighbours = if has_mac { &observed.neighbours[..] } else { &[] };
    let addresses = if link.is_some() { &observed.addresses[..] } else { &[] };

    let routes = plan_routes(desired, entries, routes);
    let fdb = plan_fdb(entries, fdb.iter());
    // Entries that are not permanent are the kernel's own business.
    let family = Family::of(device.local);
    let is_static = |neighbour: &&Neighbour| {
        neighbour.state == NeighbourState::Permanent && Family::of(neighbour.address) == family
    };
    let neighbours = plan_neighbours(entries, neighbours.iter().filter(is_static));
    let addresses = plan_addresses(device, desired.network, entries.subnet, addresses);

    ops.extend([routes.stale, fdb.stale, neighbours.stale, addresses.stale].into_iter().flatten());
    ops.extend(set_up);
    ops.extend([addresses.missing, neighbours.missing, fdb.missing, routes.missing].into_iter().flatten());
    ops
}

/// Returns the changes that turn what the last pass left into `desired`, removals first: for news from etcd, as long as nothing was heard of
/// a change in the kernel. Nothing is read back for it, so that one new peer costs the same beside a thousand others as alone.
#[must_use]
pub fn plan_news(desired: &Desired<'_>, last: &Entries) -> Vec<Op> {
    let Some(entries) = &desired.entries else { return Vec::new() };
    let routes = plan_routes(desired, entries, last.routes.values());
    let fdb = plan_fdb(entries, last.fdb.values());
    let neighbours = plan_neighbours(entries, last.neighbours.values());
    let stale = [routes.stale, fdb.stale, neighbours.stale].into_iter().flatten();
    stale.chain(neighbours.missing).chain(fdb.missing).chain(routes.missing).collect()
}

/// What is to change among the things of one kind.
struct Changes {
    stale: Vec<Op>,
    missing: Vec<Op>,
}

/// Says whether `link` can serve as `device`: all that cannot be changed later agrees. flanneld compares the same, but for learning.
#[must_use]
pub fn is_usable(device: &Device, link: &Link) -> bool {
    let LinkKind::Vxlan(vxlan) = &link.kind else { return false };
    vxlan.vni == device.vni
        && vxlan.port == device.port
        && vxlan.local == Some(device.local)
        && vxlan.dev.as_ref() == Some(&device.parent)
        && vxlan.learning == device.learning
        && vxlan.gbp == device.gbp
}

/// Says whether an event means that the kernel's state may not be the desired one any more.
///
/// Most events are echoes of our own changes: they say that what should be is. `expected` is what the last pass left in each family; with it
/// an echo is told from somebody else's doing.
#[must_use]
pub fn concerns(overlays: &Overlays, expected: &Expected, event: &Event) -> bool {
    let device = |name: &IfName| overlays.iter().filter_map(Overlay::device).find(|device| device.name == *name);
    let leads_out = |name: &IfName| overlays.iter().any(|overlay| overlay.interface() == name);
    match event {
        Event::NewLink(link) => match device(&link.name) {
            Some(device) => {
                !is_usable(device, link)
                    || !link.up
                    || (link.mac, link.mtu_bytes) != (Some(device.mac), device.mtu_bytes)
            }
            None => leads_out(&link.name),
        },
        Event::DelLink(link) => device(&link.name).is_some() || leads_out(&link.name),
        Event::NewAddress(address) | Event::DelAddress(address) => {
            device(&address.dev).is_some() || leads_out(&address.dev)
        }
        Event::NewRoute(route) => {
            let is_echo = expected.route(route).is_some_and(|wanted| leads_alike(wanted, route));
            !is_echo && route_is_near(overlays, route)
        }
        Event::DelRoute(route) => {
            let is_missed = expected.route(route).is_some_and(|wanted| wanted.metric == route.metric);
            is_missed || (moves_peers(overlays) && route_is_near(overlays, route))
        }
        Event::NewNeighbour(neighbour) => match expected.neighbour(neighbour) {
            Some(wanted) => wanted != neighbour,
            None => neighbour.state == NeighbourState::Permanent && device(&neighbour.dev).is_some(),
        },
        Event::DelNeighbour(neighbour) => expected.neighbour(neighbour).is_some(),
        Event::NewFdb(entry) => {
            entry.dst.is_some() && device(&entry.dev).is_some() && expected.fdb_entry(entry) != Some(entry)
        }
        Event::DelFdb(entry) => expected.fdb_entry(entry) == Some(entry),
        Event::Overrun => true,
    }
}

/// With direct routing, any change of the underlay's routes may move a peer on our own link or away from it.
fn moves_peers(overlays: &Overlays) -> bool {
    overlays.iter().any(Overlay::routes_directly)
}

fn route_is_near(overlays: &Overlays, route: &Route) -> bool {
    let on_device = |overlay: &Overlay| overlay.device().is_some_and(|device| Some(&device.name) == route.dev.as_ref());
    route.protocol == ROUTE_PROTOCOL || overlays.iter().any(on_device) || moves_peers(overlays)
}

fn plan_device(device: &Device, link: Option<&Link>) -> Vec<Op> {
    let dev = || device.name.clone();
    match link {
        None => vec![Op::AddVxlan(device.to_vxlan())],
        Some(link) if !is_usable(device, link) => vec![Op::DelLink { name: dev() }, Op::AddVxlan(device.to_vxlan())],
        Some(link) => {
            let mtu =
                (link.mtu_bytes != device.mtu_bytes).then(|| Op::SetMtu { dev: dev(), mtu_bytes: device.mtu_bytes });
            let mac = (link.mac != Some(device.mac)).then(|| Op::SetMac { dev: dev(), mac: device.mac });
            mtu.into_iter().chain(mac).collect()
        }
    }
}

/// The device bears the base of our subnet and, inside the pod network, nothing else: the rest of the subnet is behind the pods' bridge.
fn plan_addresses(device: &Device, network: Option<IpNet>, subnet: Option<IpNet>, observed: &[Address]) -> Changes {
    let wanted = subnet.map(|subnet| IpNet::from(subnet.network()));
    let on_device = |address: &&Address| address.dev == device.name;
    let observed: Vec<IpNet> = observed.iter().filter(on_device).map(|address| address.address).collect();
    let in_network = |address: &IpNet| network.is_some_and(|network| network.contains(&address.addr()));
    let stale = observed.iter().filter(|address| Some(**address) != wanted && in_network(address));
    let missing = wanted.filter(|wanted| !observed.contains(wanted));
    Changes {
        stale: stale.map(|address| Op::DelAddress { dev: device.name.clone(), address: *address }).collect(),
        missing: missing.into_iter().map(|address| Op::AddAddress { dev: device.name.clone(), address }).collect(),
    }
}

fn plan_routes<'a>(desired: &Desired<'_>, entries: &Entries, observed: impl Iterator<Item = &'a Route>) -> Changes {
    let mut missing: BTreeMap<IpNet, &Route> = entries.routes.iter().map(|(dst, route)| (*dst, route)).collect();
    let mut stale = Vec::new();
    for route in observed.filter(|route| is_ours(desired, entries, route)) {
        match missing.get(&route.dst) {
            Some(wanted) if leads_alike(wanted, route) => drop(missing.remove(&route.dst)),
            // The kernel replaces a route by destination and metric.
            Some(wanted) if route.metric == wanted.metric => {}
            _ => stale.push(Op::DelRoute(route.clone())),
        }
    }
    Changes { stale, missing: missing.into_values().cloned().map(Op::ReplaceRoute).collect() }
}

/// Says whether we, or a flanneld before us, made the route. That one leaves no mark, but nobody else makes onlink routes on our device,
/// and nobody may send our own subnet elsewhere.
fn is_ours(desired: &Desired<'_>, entries: &Entries, route: &Route) -> bool {
    let by_flanneld = || {
        let on_device =
            route.onlink && route.dev.is_some() && route.dev.as_ref() == desired.device.map(|device| &device.name);
        let away = route.via.is_some() && Some(route.dst) == entries.subnet;
        let is_peer = entries.routes.get(&route.dst).is_some_and(|wanted| leads_alike_but_for_protocol(wanted, route));
        route.protocol == Route::PROTOCOL_BOOT
            && desired.network.is_some_and(|network| network.contains(&route.dst))
            && (on_device || away || is_peer)
    };
    route.table == Route::MAIN_TABLE && (route.protocol == ROUTE_PROTOCOL || by_flanneld())
}

/// Compares what we set; the kernel fills in the rest, such as the scope.
fn leads_alike(wanted: &Route, observed: &Route) -> bool {
    wanted.protocol == observed.protocol && leads_alike_but_for_protocol(wanted, observed)
}

fn leads_alike_but_for_protocol(wanted: &Route, observed: &Route) -> bool {
    // Of a route that leads nowhere the kernel says `dev lo` in IPv6 and nothing in IPv4.
    let same_dev = wanted.kind == RouteKind::Blackhole || wanted.dev == observed.dev;
    same_dev
        && (wanted.kind, wanted.via, wanted.onlink, wanted.metric)
            == (observed.kind, observed.via, observed.onlink, observed.metric)
}

fn plan_fdb<'a>(entries: &Entries, observed: impl Iterator<Item = &'a FdbEntry>) -> Changes {
    // An entry without destination is the kernel's own.
    let observed = observed.filter(|entry| entry.dst.is_some());
    let is_right = |entry: &&FdbEntry| entries.fdb.get(&entry.mac) == Some(*entry);
    let (right, wrong): (BTreeSet<&FdbEntry>, BTreeSet<&FdbEntry>) = observed.partition(is_right);
    // One whose worker has moved is replaced in place, so that no packet finds none.
    let stale = wrong.into_iter().filter(|entry| !entries.fdb.contains_key(&entry.mac));
    let missing = entries.fdb.values().filter(|entry| !right.contains(entry));
    Changes { stale: stale.cloned().map(Op::DelFdb).collect(), missing: missing.cloned().map(Op::ReplaceFdb).collect() }
}

fn plan_neighbours<'a>(entries: &Entries, observed: impl Iterator<Item = &'a Neighbour>) -> Changes {
    let observed: BTreeMap<_, _> = observed.map(|neighbour| (neighbour.address, neighbour)).collect();
    let stale = observed.values().filter(|neighbour| !entries.neighbours.contains_key(&neighbour.address));
    let missing = entries.neighbours.values().filter(|wanted| observed.get(&wanted.address) != Some(wanted));
    Changes {
        stale: stale.copied().cloned().map(Op::DelNeighbour).collect(),
        missing: missing.cloned().map(Op::ReplaceNeighbour).collect(),
    }
}

#[cfg(test)]
mod tests;
