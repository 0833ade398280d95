//! The difference between what the kernel has and what it should have, as operations: a pure function.
//!
//! Removals come first, and among the additions a peer's route comes last, as in flanneld: a packet that finds the route finds the
//! rest of the way too. A second run on the outcome of the first plans nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::Op;
use linux_net::netlink::{Address, Event, FdbEntry, Link, LinkKind, Neighbour, NeighbourState, Route};

use crate::vxlan::{Device, Overlay, ROUTE_PROTOCOL};

/// What the kernel has, as far as it can concern us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device of our name, whatever it is.
    pub link: Option<Link>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// All routes.
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
pub fn plan(desired: &Overlay<'_>, observed: &Observed) -> Vec<Op> {
    let device = desired.device;
    let mut ops = plan_device(device, observed.link.as_ref());
    let link = observed.link.as_ref().filter(|link| is_usable(device, link));
    let set_up = link.is_none_or(|link| !link.up).then(|| Op::SetUp { dev: device.name.clone() });
    let Some(address) = device.address else {
        ops.extend(set_up);
        return ops;
    };
    // With a device that does not exist yet, nothing is on it; and a new MAC makes the kernel forget the neighbours.
    let has_mac = link.is_some_and(|link| link.mac == Some(device.mac));
    let routes = observed.routes.iter().filter(|route| link.is_some() || route.dev.as_ref() != Some(&device.name));
    let fdb = if link.is_some() { &observed.fdb[..] } else { &[] };
    let neighbours = if has_mac { &observed.neighbours[..] } else { &[] };
    let addresses = if link.is_some() { &observed.addresses[..] } else { &[] };

    let routes = plan_routes(desired, routes);
    let fdb = plan_fdb(desired, fdb);
    let neighbours = plan_neighbours(desired, neighbours);
    let addresses = plan_addresses(device, address.into(), addresses);

    ops.extend([routes.stale, fdb.stale, neighbours.stale, addresses.stale].into_iter().flatten());
    ops.extend(set_up);
    ops.extend([addresses.missing, neighbours.missing, fdb.missing, routes.missing].into_iter().flatten());
    ops
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
        && vxlan.local == Some(device.local.into())
        && vxlan.dev.as_ref() == Some(&device.parent)
        && vxlan.learning == device.learning
        && !vxlan.gbp
}

/// Says whether an event can mean that the kernel's state is no longer the desired one.
#[must_use]
pub fn concerns(device: &Device, event: &Event) -> bool {
    match event {
        Event::NewLink(link) | Event::DelLink(link) => link.name == device.name || link.name == device.parent,
        Event::NewAddress(address) | Event::DelAddress(address) => address.dev == device.name,
        Event::NewRoute(route) | Event::DelRoute(route) => {
            route.protocol == ROUTE_PROTOCOL || route.dev.as_ref() == Some(&device.name)
        }
        Event::NewNeighbour(neighbour) | Event::DelNeighbour(neighbour) => neighbour.dev == device.name,
        Event::NewFdb(entry) | Event::DelFdb(entry) => entry.dev == device.name,
        Event::Overrun => true,
    }
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

/// The device bears the base of our subnet and, inside the pod network, nothing else.
fn plan_addresses(device: &Device, wanted: IpNet, observed: &[Address]) -> Changes {
    let observed: BTreeSet<IpNet> =
        observed.iter().filter(|address| address.dev == device.name).map(|a| a.address).collect();
    let network = IpNet::V4(device.network);
    let stale = observed.iter().filter(|address| **address != wanted && network.contains(&address.addr()));
    let missing = (!observed.contains(&wanted)).then_some(wanted);
    Changes {
        stale: stale.map(|address| Op::DelAddress { dev: device.name.clone(), address: *address }).collect(),
        missing: missing.into_iter().map(|address| Op::AddAddress { dev: device.name.clone(), address }).collect(),
    }
}

fn plan_routes<'a>(desired: &Overlay<'_>, observed: impl Iterator<Item = &'a Route>) -> Changes {
    let device = desired.device;
    let mut missing: BTreeMap<IpNet, Route> =
        desired.peers.iter().map(|peer| (peer.subnet.into(), device.route(peer))).collect();
    let mut stale = Vec::new();
    for route in observed.filter(|route| is_ours(device, route)) {
        match missing.get(&route.dst) {
            Some(wanted) if leads_alike(wanted, route) => drop(missing.remove(&route.dst)),
            // The kernel replaces a route by destination and metric, and ours have metric 0.
            Some(_) if route.metric == 0 => {}
            _ => stale.push(Op::DelRoute(route.clone())),
        }
    }
    Changes { stale, missing: missing.into_values().map(Op::ReplaceRoute).collect() }
}

/// Says whether we, or a flanneld before us, made the route. That one leaves no mark, but nobody else makes onlink routes on our device.
fn is_ours(device: &Device, route: &Route) -> bool {
    let by_flanneld = || {
        route.protocol == Route::PROTOCOL_BOOT
            && route.onlink
            && route.dev.as_ref() == Some(&device.name)
            && IpNet::V4(device.network).contains(&route.dst)
    };
    route.table == Route::MAIN_TABLE && (route.protocol == ROUTE_PROTOCOL || by_flanneld())
}

/// Compares what we set; the kernel fills in the rest, such as the scope.
fn leads_alike(wanted: &Route, observed: &Route) -> bool {
    (wanted.kind, wanted.via, &wanted.dev, wanted.onlink, wanted.metric, wanted.protocol)
        == (observed.kind, observed.via, &observed.dev, observed.onlink, observed.metric, observed.protocol)
}

fn plan_fdb(desired: &Overlay<'_>, observed: &[FdbEntry]) -> Changes {
    let wanted: BTreeSet<FdbEntry> = desired.peers.iter().map(|peer| desired.device.fdb_entry(peer)).collect();
    // An entry without destination is the kernel's own.
    let observed: BTreeSet<FdbEntry> = observed.iter().filter(|entry| entry.dst.is_some()).cloned().collect();
    Changes {
        stale: observed.difference(&wanted).cloned().map(Op::DelFdb).collect(),
        missing: wanted.difference(&observed).cloned().map(Op::AppendFdb).collect(),
    }
}

fn plan_neighbours(desired: &Overlay<'_>, observed: &[Neighbour]) -> Changes {
    let wanted: BTreeSet<Neighbour> = desired.peers.iter().map(|peer| desired.device.neighbour(peer)).collect();
    // Entries that are not permanent are the kernel's own business, and so is IPv6.
    let is_static =
        |neighbour: &&Neighbour| neighbour.state == NeighbourState::Permanent && neighbour.address.is_ipv4();
    let observed: BTreeSet<Neighbour> = observed.iter().filter(is_static).cloned().collect();
    // One with another MAC is replaced in place, so that no packet finds none.
    let addresses: BTreeSet<IpAddr> = wanted.iter().map(|neighbour| neighbour.address).collect();
    let stale = observed.iter().filter(|neighbour| !addresses.contains(&neighbour.address));
    Changes {
        stale: stale.cloned().map(Op::DelNeighbour).collect(),
        missing: wanted.difference(&observed).cloned().map(Op::ReplaceNeighbour).collect(),
    }
}

#[cfg(test)]
mod tests {
    use linux_net::MacAddr;
    use linux_net::netlink::{FdbOwner, LinkStatistics, RouteScope};

    use super::*;
    use crate::peer::Peer;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn device() -> Device {
        Device {
            name: "flannel.100".parse().unwrap(),
            vni: linux_net::Vni::new(100).unwrap(),
            port: 8472,
            parent: "eth0".parse().unwrap(),
            local: [10, 0, 0, 3].into(),
            learning: false,
            mtu_bytes: 1450,
            mac: MAC,
            network: "11.0.0.0/8".parse().unwrap(),
            address: Some("11.10.0.0/32".parse().unwrap()),
        }
    }

    fn peer(number: u8) -> Peer {
        Peer {
            subnet: format!("11.20.{number}.0/24").parse().unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 0, 1, number]),
            public_ip: [10, 0, 0, number].into(),
        }
    }

    fn link(device: &Device) -> Link {
        Link {
            index: 7,
            name: device.name.clone(),
            mac: Some(device.mac),
            mtu_bytes: device.mtu_bytes,
            up: true,
            carrier: true,
            promiscuous: false,
            master: None,
            alias: None,
            kind: LinkKind::Vxlan(device.to_vxlan()),
            peer_index: None,
            hairpin: None,
            statistics: LinkStatistics::default(),
        }
    }

    /// What the kernel has once a plan for these peers was carried out.
    fn settled(device: &Device, peers: &[Peer]) -> Observed {
        let address = device.address.map(|address| Address { dev: device.name.clone(), address: address.into() });
        Observed {
            link: Some(link(device)),
            addresses: address.into_iter().collect(),
            routes: peers.iter().map(|peer| Route { scope: Some(RouteScope::Global), ..device.route(peer) }).collect(),
            neighbours: peers.iter().map(|peer| device.neighbour(peer)).collect(),
            fdb: peers.iter().map(|peer| device.fdb_entry(peer)).collect(),
        }
    }

    fn planned(device: &Device, peers: &[Peer], observed: &Observed) -> Vec<Op> {
        plan(&Overlay { device, peers: peers.iter().collect() }, observed)
    }

    #[test]
    fn on_an_empty_machine_everything_is_made_and_the_route_comes_last() {
        let (device, peer) = (device(), peer(4));
        let dev = || device.name.clone();
        let expected = [
            Op::AddVxlan(device.to_vxlan()),
            Op::SetUp { dev: dev() },
            Op::AddAddress { dev: dev(), address: "11.10.0.0/32".parse().unwrap() },
            Op::ReplaceNeighbour(device.neighbour(&peer)),
            Op::AppendFdb(device.fdb_entry(&peer)),
            Op::ReplaceRoute(device.route(&peer)),
        ];
        assert_eq!(planned(&device, &[peer], &Observed::default()), expected);
    }

    #[test]
    fn as_long_as_the_subnet_is_unknown_only_the_device_is_touched() {
        let unknown = Device { address: None, mtu_bytes: 1400, ..device() };
        assert_eq!(
            planned(&unknown, &[], &settled(&device(), &[peer(4)])),
            [Op::SetMtu { dev: unknown.name.clone(), mtu_bytes: 1400 }]
        );
        assert_eq!(planned(&unknown, &[], &Observed::default()).len(), 2);
    }

    #[test]
    fn a_second_run_plans_nothing() {
        let peers = [peer(4), peer(5)];
        assert_eq!(planned(&device(), &peers, &settled(&device(), &peers)), []);
    }

    #[test]
    fn a_vanished_peer_loses_its_three_entries() {
        let observed = settled(&device(), &[peer(4), peer(5)]);
        let ops = plan(&Overlay { device: &device(), peers: vec![&peer(4)] }, &observed);
        assert!(matches!(&ops[..], [Op::DelRoute(_), Op::DelFdb(_), Op::DelNeighbour(_)]), "{ops:?}");
    }

    #[test]
    fn a_peer_with_a_new_mac_loses_the_old_fdb_entry_and_keeps_its_route() {
        let observed = settled(&device(), &[peer(4)]);
        let changed = Peer { vtep_mac: MacAddr([2, 0, 0, 0, 9, 9]), ..peer(4) };
        let ops = plan(&Overlay { device: &device(), peers: vec![&changed] }, &observed);
        assert!(matches!(&ops[..], [Op::DelFdb(_), Op::ReplaceNeighbour(_), Op::AppendFdb(_)]), "{ops:?}");
    }

    #[test]
    fn a_device_that_cannot_be_changed_into_ours_is_made_anew_with_all_that_was_on_it() {
        let other = Device { port: 4789, ..device() };
        let ops = plan(&Overlay { device: &device(), peers: vec![&peer(4)] }, &settled(&other, &[peer(4)]));
        assert!(
            matches!(
                &ops[..],
                [
                    Op::DelLink { .. },
                    Op::AddVxlan(_),
                    Op::SetUp { .. },
                    Op::AddAddress { .. },
                    Op::ReplaceNeighbour(_),
                    Op::AppendFdb(_),
                    Op::ReplaceRoute(_)
                ]
            ),
            "{ops:?}"
        );
    }

    #[test]
    fn mtu_mac_and_state_of_the_device_are_put_right_in_place() {
        let wrong = Device { mtu_bytes: 1400, mac: MacAddr([2, 0, 0, 0, 0, 2]), ..device() };
        let mut observed = settled(&wrong, &[peer(4)]);
        observed.link.as_mut().unwrap().up = false;
        let ops = plan(&Overlay { device: &device(), peers: vec![&peer(4)] }, &observed);
        // The new MAC makes the kernel forget the neighbour.
        assert!(
            matches!(&ops[..], [Op::SetMtu { .. }, Op::SetMac { .. }, Op::SetUp { .. }, Op::ReplaceNeighbour(_)]),
            "{ops:?}"
        );
    }

    #[test]
    fn only_addresses_inside_the_pod_network_are_removed() {
        let mut observed = settled(&device(), &[]);
        for address in ["11.30.0.0/32", "192.168.7.7/24", "fe80::1/64"] {
            observed.addresses.push(Address { dev: device().name, address: address.parse().unwrap() });
        }
        assert_eq!(
            planned(&device(), &[], &observed),
            [Op::DelAddress { dev: device().name, address: "11.30.0.0/32".parse().unwrap() }]
        );
    }

    #[test]
    fn stale_routes_are_swept_and_those_of_others_are_left() {
        let stale = device().route(&peer(9));
        let mut observed = settled(&device(), &[]);
        observed.routes = vec![
            stale.clone(),                                                                // of a crashed run
            Route { dev: Some("eth0".parse().unwrap()), onlink: false, ..stale.clone() }, // of a run with another backend
            stale.clone().protocol(Route::PROTOCOL_BOOT),                                 // of a flanneld
            Route::to("11.40.0.0/24".parse().unwrap()).dev(device().name),                // by hand, not onlink
            stale.clone().protocol(186),                                                  // of a BGP daemon
            Route { table: 100, ..stale },                                                // in a table that is not ours
        ];
        assert_eq!(planned(&device(), &[], &observed).len(), 3);
    }

    #[test]
    fn a_route_of_flanneld_to_a_known_peer_is_taken_over() {
        let mut observed = settled(&device(), &[peer(4)]);
        observed.routes = vec![device().route(&peer(4)).protocol(Route::PROTOCOL_BOOT)];
        let ops = plan(&Overlay { device: &device(), peers: vec![&peer(4)] }, &observed);
        assert!(matches!(&ops[..], [Op::ReplaceRoute(_)]), "{ops:?}");
    }

    #[test]
    fn the_entries_that_the_kernel_keeps_for_itself_are_left() {
        let mut observed = settled(&device(), &[]);
        let dev = device().name;
        observed.neighbours = vec![Neighbour {
            state: NeighbourState::NoArp,
            ..Neighbour::permanent(dev.clone(), "224.0.0.22".parse().unwrap(), MAC)
        }];
        observed.fdb =
            vec![FdbEntry { dev, mac: MAC, dst: None, owner: FdbOwner::Itself, state: NeighbourState::Permanent }];
        assert_eq!(planned(&device(), &[], &observed), []);
    }

    #[test]
    fn a_change_of_our_device_its_parent_or_a_route_of_ours_is_an_event_for_us() {
        let ours = device();
        let other = Link { name: "veth7".parse().unwrap(), ..link(&ours) };
        let parent = Link { name: ours.parent.clone(), ..link(&ours) };
        assert!(concerns(&ours, &Event::DelLink(link(&ours))) && concerns(&ours, &Event::NewLink(parent)));
        assert!(!concerns(&ours, &Event::NewLink(other)));
        assert!(concerns(&ours, &Event::DelRoute(ours.route(&peer(4)))));
        assert!(!concerns(&ours, &Event::DelRoute(Route::to("10.0.0.0/8".parse().unwrap()))));
        assert!(concerns(&ours, &Event::Overrun));
    }
}
