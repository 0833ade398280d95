//! Whatever the kernel has, one plan brings it to the desired state: tried on a model of the kernel with random beginnings, in both
//! families, with a VXLAN, with direct routes beside it, and without.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use flannel_rs::overlay::{Overlay, ROUTE_PROTOCOL, Transport};
use flannel_rs::peer::Peer;
use flannel_rs::plan::{Observed, plan};
use flannel_rs::vxlan::Device;
use ipnet::IpNet;
use linux_net::netlink::{Address, FdbEntry, Link, LinkKind, Neighbour, Route};
use linux_net::{IfName, MacAddr, Op, Vni};
use proptest::prelude::*;

/// Carries an operation out as Linux does, as far as our operations and devices go.
fn apply(kernel: &mut Observed, op: &Op) {
    match op.clone() {
        Op::AddVxlan(vxlan) => {
            assert!(kernel.link.is_none(), "EEXIST: {op:?}");
            kernel.link = Some(Link {
                index: 7,
                name: vxlan.name.clone(),
                mac: vxlan.mac,
                mtu_bytes: vxlan.mtu_bytes.unwrap_or(1450),
                up: false,
                carrier: false,
                promiscuous: false,
                all_multicast: false,
                tx_queue_packets: 1000,
                master: None,
                alias: None,
                kind: LinkKind::Vxlan(vxlan),
                peer_index: None,
                hairpin: None,
                isolated: None,
            });
        }
        Op::DelLink { name } => {
            kernel.link.take().expect("ENODEV");
            kernel.routes.retain(|route| route.dev.as_ref() != Some(&name));
            (kernel.addresses, kernel.neighbours, kernel.fdb) = Default::default();
        }
        Op::SetUp { .. } => kernel.link.as_mut().expect("ENODEV").up = true,
        Op::SetMtu { mtu_bytes, .. } => kernel.link.as_mut().expect("ENODEV").mtu_bytes = mtu_bytes,
        Op::SetMac { mac, .. } => {
            kernel.link.as_mut().expect("ENODEV").mac = Some(mac);
            kernel.neighbours.clear();
        }
        Op::AddAddress { dev, address } => kernel.addresses.push(Address { dev, address, ..address_of_ours() }),
        Op::DelAddress { dev, address } => {
            remove(&mut kernel.addresses, |other| (&other.dev, other.address) == (&dev, address));
        }
        Op::ReplaceRoute(route) => {
            let over_device = route.dev.as_ref().is_some_and(|dev| dev.as_str().starts_with("flannel"));
            let is_up = kernel.link.as_ref().is_some_and(|link| link.up);
            assert!(!over_device || is_up, "ENETDOWN: {op:?}");
            kernel.routes.retain(|other| (other.dst, other.metric) != (route.dst, route.metric));
            kernel.routes.push(route);
        }
        Op::DelRoute(route) => remove(&mut kernel.routes, |other| *other == route),
        Op::ReplaceNeighbour(neighbour) => {
            kernel.neighbours.retain(|other| other.address != neighbour.address);
            kernel.neighbours.push(neighbour);
        }
        Op::DelNeighbour(neighbour) => remove(&mut kernel.neighbours, |other| *other == neighbour),
        Op::ReplaceFdb(entry) => {
            kernel.fdb.retain(|other| other.mac != entry.mac);
            kernel.fdb.push(entry);
        }
        Op::DelFdb(entry) => remove(&mut kernel.fdb, |other| *other == entry),
        other => panic!("the planner has no use for {other:?}"),
    }
}

fn remove<T>(things: &mut Vec<T>, matches: impl Fn(&T) -> bool) {
    let at = things.iter().position(matches).expect("ENOENT: what is to be deleted is not there");
    things.remove(at);
}

fn name(name: &str) -> IfName {
    IfName::new(name).expect("a short name")
}

/// The attributes of an address that somebody set, rather than the kernel.
fn address_of_ours() -> Address {
    Address {
        dev: name("flannel.100"),
        address: "11.10.0.0/32".parse().expect("an address"),
        permanent: true,
        temporary: false,
        deprecated: false,
    }
}

/// An address of the worker `number`, in the underlay.
fn underlay(is_ipv6: bool, number: u8) -> IpAddr {
    if is_ipv6 { Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()).into() } else { [10, 0, 1, number].into() }
}

/// The subnet `number` of the pod network.
fn subnet(is_ipv6: bool, number: u8) -> IpNet {
    let text = if is_ipv6 { format!("fd00:11:0:{number}::/64") } else { format!("11.20.{number}.0/24") };
    text.parse().expect("a network")
}

fn device(is_ipv6: bool, port: u16, mac: u8, mtu_bytes: u32) -> Device {
    Device {
        name: name("flannel.100"),
        vni: Vni::new(100).expect("24 bits"),
        port,
        parent: name("eth0"),
        local: underlay(is_ipv6, 100),
        learning: false,
        gbp: false,
        mtu_bytes,
        mac: MacAddr([2, 0, 0, 0, 0, mac]),
    }
}

/// Few numbers, so that old and new things often coincide in part.
fn peers(is_ipv6: bool) -> impl Strategy<Value = Vec<Peer>> {
    let peer = (0_u8..6, 0_u8..6).prop_map(move |(mac, ip)| (MacAddr([2, 0, 0, 0, 1, mac]), underlay(is_ipv6, ip)));
    proptest::collection::btree_map(0_u8..6, peer, 0..6).prop_map(move |by_subnet| {
        let peers = by_subnet.into_iter().map(|(number, (mac, public_ip))| Peer {
            subnet: subnet(is_ipv6, number),
            vtep_mac: Some(mac),
            public_ip,
        });
        peers.collect()
    })
}

/// An overlay, its peers, and those of them that are on our own link.
type Situation = (Overlay, Vec<Peer>, BTreeMap<IpAddr, IfName>);

fn situations(is_ipv6: bool) -> impl Strategy<Value = Situation> {
    let device = (prop_oneof![Just(8472), Just(4789)], 0_u8..2, 1400_u32..1402)
        .prop_map(move |(port, mac, mtu)| device(is_ipv6, port, mac, mtu));
    let transport = prop_oneof![
        3 => (device, any::<bool>()).prop_map(|(device, direct_routing)| Transport::Vxlan { device, direct_routing }),
        1 => Just(Transport::HostGw { interface: name("eth0"), mtu_bytes: 1500 }),
    ];
    let network: IpNet = if is_ipv6 { "fd00:11::/32" } else { "11.0.0.0/8" }.parse().expect("a network");
    let on_link = proptest::collection::btree_set(0_u8..6, 0..6);
    (transport, 10_u8..12, any::<bool>(), peers(is_ipv6), on_link).prop_map(
        move |(transport, own, blackhole, peers, on_link)| {
            let overlay = Overlay { network, subnet: Some(subnet(is_ipv6, own)), transport, blackhole };
            let on_link = if overlay.routes_directly() { on_link } else { BTreeSet::new() };
            (overlay, peers, on_link.into_iter().map(|number| (underlay(is_ipv6, number), name("eth0"))).collect())
        },
    )
}

/// A kernel in which another overlay was set up, with something stale beside it.
fn beginnings(is_ipv6: bool) -> impl Strategy<Value = Observed> {
    let former = situations(is_ipv6).prop_map(|(overlay, peers, on_link)| {
        let mut kernel = Observed::default();
        for op in plan(&overlay.desired(peers.iter(), &on_link), &Observed::default()) {
            apply(&mut kernel, &op);
        }
        kernel
    });
    let stale = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (prop_oneof![1 => Just(Observed::default()), 3 => former], stale).prop_map(
        move |(mut kernel, (is_down, route, neighbour, fdb))| {
            if route {
                kernel.routes.push(Route::to(subnet(is_ipv6, 77)).protocol(ROUTE_PROTOCOL));
            }
            let Some(link) = &mut kernel.link else { return kernel };
            let dev = link.name.clone();
            if is_down {
                link.up = false;
                kernel.routes.retain(|route| route.dev.as_ref() != Some(&dev));
                kernel.neighbours.clear();
            }
            let mac = MacAddr([2, 0, 0, 0, 7, 7]);
            if neighbour {
                kernel.neighbours.push(Neighbour::permanent(dev.clone(), subnet(is_ipv6, 77).network(), mac));
            }
            if fdb {
                kernel.fdb.push(FdbEntry::permanent(dev, mac, underlay(is_ipv6, 7)));
            }
            kernel
        },
    )
}

fn cases() -> impl Strategy<Value = (Observed, Situation)> {
    any::<bool>().prop_flat_map(|is_ipv6| (beginnings(is_ipv6), situations(is_ipv6)))
}

proptest! {
    #[test]
    fn one_plan_is_enough((mut kernel, (overlay, peers, on_link)) in cases()) {
        let desired = overlay.desired(peers.iter(), &on_link);
        for op in plan(&desired, &kernel) {
            apply(&mut kernel, &op);
        }
        prop_assert_eq!(plan(&desired, &kernel), vec![]);

        // What is there is what is desired, no more and no less.
        let entries = desired.entries.as_ref().expect("our subnet is known");
        let routes: BTreeMap<IpNet, Route> = kernel.routes.iter().map(|route| (route.dst, route.clone())).collect();
        prop_assert_eq!(&routes, &entries.routes);
        prop_assert_eq!(kernel.routes.len(), routes.len());
        if desired.device.is_some() {
            let neighbours: BTreeMap<IpAddr, Neighbour> =
                kernel.neighbours.iter().map(|neighbour| (neighbour.address, neighbour.clone())).collect();
            let fdb: BTreeMap<MacAddr, FdbEntry> = kernel.fdb.iter().map(|entry| (entry.mac, entry.clone())).collect();
            prop_assert_eq!((&neighbours, &fdb), (&entries.neighbours, &entries.fdb));
            prop_assert_eq!((kernel.neighbours.len(), kernel.fdb.len()), (neighbours.len(), fdb.len()));
        }
        // Every peer is reached, unless another one announces the same MAC address.
        let macs: BTreeSet<_> = peers.iter().map(|peer| peer.vtep_mac).collect();
        if macs.len() == peers.len() {
            prop_assert!(peers.iter().all(|peer| routes.contains_key(&peer.subnet)));
        }
    }
}
