//! Whatever the kernel has, one plan brings it to the desired state: tried on a model of the kernel with random beginnings.

use std::net::IpAddr;

use flannel_rs::peer::Peer;
use flannel_rs::plan::{Observed, plan};
use flannel_rs::vxlan::{Device, Overlay, ROUTE_PROTOCOL};
use ipnet::IpNet;
use linux_net::netlink::{Address, FdbEntry, Link, LinkKind, LinkStatistics, Neighbour, Route};
use linux_net::{MacAddr, Op, Vni};
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
                master: None,
                alias: None,
                kind: LinkKind::Vxlan(vxlan),
                peer_index: None,
                hairpin: None,
                statistics: LinkStatistics::default(),
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
        Op::AddAddress { dev, address } => kernel.addresses.push(Address { dev, address }),
        Op::DelAddress { dev, address } => {
            remove(&mut kernel.addresses, |other| (&other.dev, other.address) == (&dev, address));
        }
        Op::ReplaceRoute(route) => {
            assert!(kernel.link.as_ref().is_some_and(|link| link.up), "ENETDOWN: {op:?}");
            kernel.routes.retain(|other| (other.dst, other.metric) != (route.dst, route.metric));
            kernel.routes.push(route);
        }
        Op::DelRoute(route) => remove(&mut kernel.routes, |other| *other == route),
        Op::ReplaceNeighbour(neighbour) => {
            kernel.neighbours.retain(|other| other.address != neighbour.address);
            kernel.neighbours.push(neighbour);
        }
        Op::DelNeighbour(neighbour) => remove(&mut kernel.neighbours, |other| *other == neighbour),
        Op::AppendFdb(entry) => kernel.fdb.push(entry),
        Op::DelFdb(entry) => remove(&mut kernel.fdb, |other| *other == entry),
        other => panic!("the planner has no use for {other:?}"),
    }
}

fn remove<T>(things: &mut Vec<T>, matches: impl Fn(&T) -> bool) {
    let at = things.iter().position(matches).expect("ENOENT: what is to be deleted is not there");
    things.remove(at);
}

fn device(address: IpNet, port: u16, mac: u8, mtu_bytes: u32) -> Device {
    let IpNet::V4(address) = address else { unreachable!("our subnets are IPv4") };
    Device {
        name: linux_net::IfName::new("flannel.100").expect("a short name"),
        vni: Vni::new(100).expect("24 bits"),
        port,
        parent: linux_net::IfName::new("eth0").expect("a short name"),
        local: [10, 0, 0, 3].into(),
        learning: false,
        mtu_bytes,
        mac: MacAddr([2, 0, 0, 0, 0, mac]),
        network: "11.0.0.0/8".parse().expect("a network"),
        address: Some(address),
    }
}

/// Few numbers, so that old and new things often coincide in part.
fn peers() -> impl Strategy<Value = Vec<Peer>> {
    let peer = (0_u8..6, 0_u8..6, 0_u8..6).prop_map(|(subnet, mac, ip)| Peer {
        subnet: format!("11.20.{subnet}.0/24").parse().expect("a network"),
        vtep_mac: MacAddr([2, 0, 0, 0, 1, mac]),
        public_ip: [10, 0, 1, ip].into(),
    });
    proptest::collection::btree_map(0_u8..6, peer, 0..6).prop_map(|by_subnet| {
        let peers = by_subnet
            .into_iter()
            .map(|(subnet, peer)| Peer { subnet: format!("11.20.{subnet}.0/24").parse().expect("a network"), ..peer });
        peers.collect()
    })
}

fn devices() -> impl Strategy<Value = Device> {
    let address = (0_u8..2).prop_map(|third| IpNet::new(IpAddr::from([11, 10, third, 0]), 32).expect("a host"));
    (address, prop_oneof![Just(8472), Just(4789)], 0_u8..2, 1400_u32..1402)
        .prop_map(|(address, port, mac, mtu)| device(address, port, mac, mtu))
}

/// A kernel in which another overlay was set up, with something stale beside it.
fn beginnings() -> impl Strategy<Value = Observed> {
    let former = (devices(), peers()).prop_map(|(device, peers)| {
        let mut kernel = Observed::default();
        for op in plan(&Overlay { device: &device, peers: peers.iter().collect() }, &Observed::default()) {
            apply(&mut kernel, &op);
        }
        kernel
    });
    let stale = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (prop_oneof![Just(Observed::default()), former], stale).prop_map(
        |(mut kernel, (is_down, route, neighbour, fdb))| {
            let by_hand = Route::to("11.77.0.0/24".parse().expect("a network")).protocol(ROUTE_PROTOCOL);
            if route {
                kernel.routes.push(by_hand);
            }
            let Some(link) = &mut kernel.link else { return kernel };
            if is_down {
                link.up = false;
                kernel.routes.retain(|route| route.dev.is_none());
                kernel.neighbours.clear();
            }
            let name = link.name.clone();
            if neighbour {
                kernel.neighbours.push(Neighbour::permanent(
                    name.clone(),
                    [11, 77, 0, 0].into(),
                    MacAddr([2, 0, 0, 0, 7, 7]),
                ));
            }
            if fdb {
                kernel.fdb.push(FdbEntry::permanent(name, MacAddr([2, 0, 0, 0, 7, 7]), [10, 0, 1, 7].into()));
            }
            kernel
        },
    )
}

proptest! {
    #[test]
    fn one_plan_is_enough(mut kernel in beginnings(), device in devices(), peers in peers()) {
        let desired = Overlay { device: &device, peers: peers.iter().collect() };
        for op in plan(&desired, &kernel) {
            apply(&mut kernel, &op);
        }
        prop_assert_eq!(plan(&desired, &kernel), vec![]);
        for peer in &peers {
            prop_assert!(kernel.routes.contains(&device.route(peer)));
            prop_assert!(kernel.neighbours.contains(&device.neighbour(peer)));
            prop_assert!(kernel.fdb.contains(&device.fdb_entry(peer)));
        }
        prop_assert_eq!((kernel.routes.len(), kernel.neighbours.len()), (peers.len(), peers.len()));
    }
}
