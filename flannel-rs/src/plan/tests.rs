//! What is planned for which state of the kernel.

use std::net::IpAddr;

use linux_net::netlink::{FdbOwner, RouteScope};
use linux_net::{IfName, MacAddr};

use super::*;
use crate::overlay::{Overlay, Transport};
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
        gbp: false,
        mtu_bytes: 1450,
        mac: MAC,
    }
}

fn vxlan(device: &Device) -> Overlay {
    Overlay {
        network: "11.0.0.0/8".parse().unwrap(),
        subnet: Some("11.10.0.0/20".parse().unwrap()),
        transport: Transport::Vxlan { device: device.clone(), direct_routing: false },
        blackhole: false,
    }
}

fn host_gw() -> Overlay {
    Overlay { transport: Transport::HostGw { interface: "eth0".parse().unwrap(), mtu_bytes: 1500 }, ..vxlan(&device()) }
}

fn ipv6() -> Overlay {
    let device = Device {
        name: "flannel-v6.100".parse().unwrap(),
        local: "fd00:aa::3".parse().unwrap(),
        mtu_bytes: 1430,
        ..device()
    };
    Overlay {
        network: "fd00:11::/48".parse().unwrap(),
        subnet: Some("fd00:11:0:1::/64".parse().unwrap()),
        ..vxlan(&device)
    }
}

fn peer(number: u8) -> Peer {
    Peer {
        subnet: format!("11.20.{number}.0/24").parse().unwrap(),
        vtep_mac: Some(MacAddr([2, 0, 0, 0, 1, number])),
        public_ip: [10, 0, 0, number].into(),
    }
}

fn peer6(number: u8) -> Peer {
    Peer {
        subnet: format!("fd00:11:0:{number}::/64").parse().unwrap(),
        public_ip: format!("fd00:aa::{number}").parse().unwrap(),
        ..peer(number)
    }
}

/// The three steps to a peer.
fn steps(device: &Device, peer: &Peer) -> (Route, Neighbour, FdbEntry) {
    let mac = peer.vtep_mac.unwrap();
    (device.route(peer.subnet), device.neighbour(peer.subnet, mac), device.fdb_entry(mac, peer.public_ip))
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
        all_multicast: false,
        tx_queue_packets: 1000,
        master: None,
        alias: None,
        kind: LinkKind::Vxlan(device.to_vxlan()),
        peer_index: None,
        hairpin: None,
        isolated: None,
    }
}

/// What the kernel has once a plan for these peers was carried out.
fn settled(overlay: &Overlay, peers: &[Peer]) -> Observed {
    let device = overlay.device().unwrap();
    let address = Address::permanent(device.name.clone(), overlay.subnet.unwrap().network().into());
    let steps: Vec<_> = peers.iter().map(|peer| steps(device, peer)).collect();
    Observed {
        link: Some(link(device)),
        addresses: vec![address],
        routes: steps.iter().map(|steps| Route { scope: Some(RouteScope::Global), ..steps.0.clone() }).collect(),
        neighbours: steps.iter().map(|steps| steps.1.clone()).collect(),
        fdb: steps.iter().map(|steps| steps.2.clone()).collect(),
    }
}

fn planned(overlay: &Overlay, peers: &[Peer], observed: &Observed) -> Vec<Op> {
    plan(&overlay.desired(peers.iter(), &BTreeMap::new()), observed)
}

/// The same where the underlay leads to these addresses without a router.
fn planned_with_direct(overlay: &Overlay, peers: &[Peer], on_link: &[[u8; 4]], observed: &Observed) -> Vec<Op> {
    let eth0: IfName = "eth0".parse().unwrap();
    let on_link = on_link.iter().map(|address| (IpAddr::from(*address), eth0.clone())).collect();
    plan(&overlay.desired(peers.iter(), &on_link), observed)
}

#[test]
fn on_an_empty_machine_everything_is_made_and_the_route_comes_last() {
    for (overlay, peer, base) in [(vxlan(&device()), peer(4), "11.10.0.0/32"), (ipv6(), peer6(4), "fd00:11:0:1::/128")]
    {
        let device = overlay.device().unwrap();
        let dev = || device.name.clone();
        let (route, neighbour, fdb_entry) = steps(device, &peer);
        let expected = [
            Op::AddVxlan(device.to_vxlan()),
            Op::SetUp { dev: dev() },
            Op::AddAddress { dev: dev(), address: base.parse().unwrap() },
            Op::ReplaceNeighbour(neighbour),
            Op::ReplaceFdb(fdb_entry),
            Op::ReplaceRoute(route),
        ];
        assert_eq!(planned(&overlay, &[peer], &Observed::default()), expected);
    }
}

#[test]
fn as_long_as_the_subnet_is_unknown_only_the_device_is_touched() {
    let narrower = Device { mtu_bytes: 1400, ..device() };
    let unknown = Overlay { subnet: None, ..vxlan(&narrower) };
    assert_eq!(
        planned(&unknown, &[], &settled(&vxlan(&device()), &[peer(4)])),
        [Op::SetMtu { dev: device().name, mtu_bytes: 1400 }]
    );
    assert_eq!(planned(&unknown, &[], &Observed::default()).len(), 2);
    let unknown = Overlay { subnet: None, ..host_gw() };
    assert_eq!(planned(&unknown, &[], &settled(&vxlan(&device()), &[peer(4)])), []);
}

#[test]
fn a_second_run_plans_nothing() {
    let peers = [peer(4), peer(5)];
    assert_eq!(planned(&vxlan(&device()), &peers, &settled(&vxlan(&device()), &peers)), []);
    let peers = [peer6(4), peer6(5)];
    assert_eq!(planned(&ipv6(), &peers, &settled(&ipv6(), &peers)), []);
}

#[test]
fn a_vanished_peer_loses_its_three_entries() {
    let observed = settled(&vxlan(&device()), &[peer(4), peer(5)]);
    let ops = planned(&vxlan(&device()), &[peer(4)], &observed);
    assert!(matches!(&ops[..], [Op::DelRoute(_), Op::DelFdb(_), Op::DelNeighbour(_)]), "{ops:?}");
}

#[test]
fn a_peer_with_a_new_mac_loses_the_old_fdb_entry_and_keeps_its_route() {
    let observed = settled(&vxlan(&device()), &[peer(4)]);
    let changed = Peer { vtep_mac: Some(MacAddr([2, 0, 0, 0, 9, 9])), ..peer(4) };
    let ops = planned(&vxlan(&device()), &[changed], &observed);
    assert!(matches!(&ops[..], [Op::DelFdb(_), Op::ReplaceNeighbour(_), Op::ReplaceFdb(_)]), "{ops:?}");
}

#[test]
fn a_device_that_cannot_be_changed_into_ours_is_made_anew_with_all_that_was_on_it() {
    let other = Device { port: 4789, ..device() };
    let ops = planned(&vxlan(&device()), &[peer(4)], &settled(&vxlan(&other), &[peer(4)]));
    assert!(
        matches!(
            &ops[..],
            [
                Op::DelLink { .. },
                Op::AddVxlan(_),
                Op::SetUp { .. },
                Op::AddAddress { .. },
                Op::ReplaceNeighbour(_),
                Op::ReplaceFdb(_),
                Op::ReplaceRoute(_)
            ]
        ),
        "{ops:?}"
    );
}

#[test]
fn mtu_mac_and_state_of_the_device_are_put_right_in_place() {
    let wrong = Device { mtu_bytes: 1400, mac: MacAddr([2, 0, 0, 0, 0, 2]), ..device() };
    let mut observed = settled(&vxlan(&wrong), &[peer(4)]);
    observed.link.as_mut().unwrap().up = false;
    let ops = planned(&vxlan(&device()), &[peer(4)], &observed);
    // The new MAC makes the kernel forget the neighbour.
    assert!(
        matches!(&ops[..], [Op::SetMtu { .. }, Op::SetMac { .. }, Op::SetUp { .. }, Op::ReplaceNeighbour(_)]),
        "{ops:?}"
    );
}

#[test]
fn only_addresses_inside_the_pod_network_are_removed() {
    let mut observed = settled(&vxlan(&device()), &[]);
    for address in ["11.30.0.0/32", "192.168.7.7/24", "fe80::1/64"] {
        observed.addresses.push(Address::permanent(device().name, address.parse().unwrap()));
    }
    assert_eq!(
        planned(&vxlan(&device()), &[], &observed),
        [Op::DelAddress { dev: device().name, address: "11.30.0.0/32".parse().unwrap() }]
    );
}

#[test]
fn stale_routes_are_swept_and_those_of_others_are_left() {
    let stale = device().route(peer(9).subnet);
    let mut observed = settled(&vxlan(&device()), &[]);
    observed.routes = vec![
        stale.clone(),                                                                // of a crashed run
        Route { dev: Some("eth0".parse().unwrap()), onlink: false, ..stale.clone() }, // of a run with another backend
        stale.clone().protocol(Route::PROTOCOL_BOOT),                                 // of a flanneld
        Route::to("11.40.0.0/24".parse().unwrap()).dev(device().name),                // by hand, not onlink
        stale.clone().protocol(186),                                                  // of a BGP daemon
        Route { table: 100, ..stale },                                                // in a table that is not ours
    ];
    assert_eq!(planned(&vxlan(&device()), &[], &observed).len(), 3);
}

#[test]
fn a_route_of_flanneld_to_a_known_peer_is_taken_over() {
    let mut observed = settled(&vxlan(&device()), &[peer(4)]);
    observed.routes = vec![device().route(peer(4).subnet).protocol(Route::PROTOCOL_BOOT)];
    let ops = planned(&vxlan(&device()), &[peer(4)], &observed);
    assert!(matches!(&ops[..], [Op::ReplaceRoute(_)]), "{ops:?}");
}

#[test]
fn the_entries_that_the_kernel_keeps_for_itself_are_left() {
    let mut observed = settled(&vxlan(&device()), &[]);
    let dev = device().name;
    observed.neighbours = vec![Neighbour {
        state: NeighbourState::NoArp,
        ..Neighbour::permanent(dev.clone(), "224.0.0.22".parse().unwrap(), MAC)
    }];
    observed.fdb =
        vec![FdbEntry { dev, mac: MAC, dst: None, owner: FdbOwner::Itself, state: NeighbourState::Permanent }];
    assert_eq!(planned(&vxlan(&device()), &[], &observed), []);
}

#[test]
fn a_peer_that_moved_gets_its_fdb_entry_replaced_in_place() {
    let moved = Peer { public_ip: [10, 0, 9, 9].into(), ..peer(4) };
    let ops = planned(&vxlan(&device()), &[moved], &settled(&vxlan(&device()), &[peer(4)]));
    assert!(matches!(&ops[..], [Op::ReplaceFdb(_)]), "{ops:?}");
}

#[test]
fn news_are_planned_from_what_the_last_pass_left_as_from_what_the_kernel_has() {
    let overlay = vxlan(&device());
    let peers = [peer(4), peer(5), peer(6)];
    let moved = Peer { public_ip: [10, 0, 9, 9].into(), ..peer(5) };
    let last = overlay.desired(peers.iter(), &BTreeMap::new()).entries.unwrap();
    for now in [vec![], vec![peer(4), peer(5), peer(6), peer(7)], vec![peer(4), moved], peers.to_vec()] {
        let desired = overlay.desired(now.iter(), &BTreeMap::new());
        let mut observed = settled(&overlay, &peers);
        observed.routes.iter_mut().for_each(|route| route.scope = None); // We leave it to the kernel.
        assert_eq!(plan_news(&desired, &last), plan(&desired, &observed), "{now:?}");
    }
}

#[test]
fn of_two_peers_with_one_mac_the_first_is_reached_and_the_second_plans_nothing_for_ever() {
    let twin = Peer { vtep_mac: peer(4).vtep_mac, ..peer(5) };
    let peers = [peer(4), twin];
    assert_eq!(planned(&vxlan(&device()), &peers, &settled(&vxlan(&device()), &[peer(4)])), []);
}

#[test]
fn with_host_gw_there_is_one_route_per_peer_through_the_peer() {
    let ops = planned(&host_gw(), &[peer(4)], &Observed::default());
    let [Op::ReplaceRoute(route)] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!((route.via, route.dev.as_ref().unwrap().as_str()), (Some([10, 0, 0, 4].into()), "eth0"));
    assert!(!route.onlink, "the kernel shall check that the peer is on our link");
    let settled = Observed { routes: vec![route.clone()], ..Observed::default() };
    assert_eq!(planned(&host_gw(), &[peer(4)], &settled), []);
    assert_eq!(planned(&host_gw(), &[], &settled), [Op::DelRoute(route.clone())]);
}

#[test]
fn with_direct_routing_a_peer_on_our_link_needs_no_tunnel_and_a_move_of_it_changes_the_way() {
    let overlay =
        Overlay { transport: Transport::Vxlan { device: device(), direct_routing: true }, ..vxlan(&device()) };
    let peers = [peer(4), peer(5)];
    let mut observed = settled(&overlay, &[]);
    let ops = planned_with_direct(&overlay, &peers, &[[10, 0, 0, 4]], &observed);
    let (far, near) =
        (device().route(peer(5).subnet), crate::host_gw::route(peer(4).subnet, peer(4).public_ip, &device().parent));
    assert!(
        matches!(&ops[..], [Op::ReplaceNeighbour(_), Op::ReplaceFdb(_), Op::ReplaceRoute(one), Op::ReplaceRoute(two)]
            if *one == near && *two == far),
        "{ops:?}"
    );
    // The underlay changes: a router stands between us and peer 4, and none between us and peer 5.
    observed = settled(&overlay, &[peer(5)]);
    observed.routes.push(near);
    let ops = planned_with_direct(&overlay, &peers, &[[10, 0, 0, 5]], &observed);
    assert!(
        matches!(
            &ops[..],
            [
                Op::DelFdb(_),
                Op::DelNeighbour(_),
                Op::ReplaceNeighbour(_),
                Op::ReplaceFdb(_),
                Op::ReplaceRoute(_),
                Op::ReplaceRoute(_)
            ]
        ),
        "{ops:?}"
    );
}

#[test]
fn the_blackhole_stands_behind_every_other_route_to_our_subnet() {
    let overlay = Overlay { blackhole: true, ..host_gw() };
    let ops = planned(&overlay, &[], &Observed::default());
    let [Op::ReplaceRoute(route)] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!((route.kind, route.dst, route.metric), (RouteKind::Blackhole, overlay.subnet.unwrap(), u32::MAX));
    // IPv6 says `dev lo` of such a route.
    let read_back = Route { dev: Some(IfName::loopback()), ..route.clone() };
    assert_eq!(planned(&overlay, &[], &Observed { routes: vec![read_back], ..Observed::default() }), []);
}

#[test]
fn a_family_that_the_cluster_has_not_leaves_no_route_of_ours() {
    let observed = Observed { routes: vec![device().route(peer(4).subnet)], ..Observed::default() };
    assert_eq!(plan(&Desired::nothing(), &observed).len(), 1);
}

#[test]
fn a_route_that_sends_our_own_subnet_away_is_removed_whoever_left_it() {
    let mut observed = settled(&vxlan(&device()), &[]);
    let elsewhere = Route::to("11.10.0.0/20".parse().unwrap()).via([10, 0, 0, 9].into()).dev("eth0".parse().unwrap());
    let bridge =
        Route::to("11.10.0.0/20".parse().unwrap()).dev("cni0".parse().unwrap()).protocol(Route::PROTOCOL_KERNEL);
    observed.routes = vec![elsewhere.clone(), bridge];
    assert_eq!(planned(&vxlan(&device()), &[], &observed), [Op::DelRoute(elsewhere)]);
}

/// What a pass for peer 4 leaves.
fn expected() -> Expected {
    let entries = |overlay: &Overlay, peer: Peer| overlay.desired([peer].iter(), &BTreeMap::new()).entries.unwrap();
    Expected { ipv4: entries(&vxlan(&device()), peer(4)), ipv6: entries(&ipv6(), peer6(4)) }
}

#[test]
fn a_change_of_our_device_its_parent_or_a_route_of_ours_is_an_event_for_us() {
    let overlays = Overlays { ipv4: vxlan(&device()), ipv6: Some(ipv6()) };
    let concerns = |event| concerns(&overlays, &expected(), &event);
    let down = Link { up: false, ..link(&device()) };
    let other = Link { name: "veth7".parse().unwrap(), ..link(&device()) };
    let parent = Link { name: device().parent, ..link(&device()) };
    let second = Link { name: "flannel-v6.100".parse().unwrap(), ..link(&device()) };
    assert!(concerns(Event::DelLink(link(&device()))) && concerns(Event::NewLink(parent)));
    assert!(concerns(Event::DelLink(second)) && concerns(Event::NewLink(down)));
    assert!(!concerns(Event::NewLink(other)));
    let (route, neighbour, fdb_entry) = steps(&device(), &peer(4));
    assert!(concerns(Event::DelRoute(route)) && concerns(Event::DelNeighbour(neighbour)));
    assert!(concerns(Event::DelFdb(fdb_entry)));
    assert!(concerns(Event::Overrun));
}

#[test]
fn the_echo_of_our_own_changes_is_no_event_for_us() {
    let overlays = Overlays { ipv4: vxlan(&device()), ipv6: Some(ipv6()) };
    let concerns = |event| concerns(&overlays, &expected(), &event);
    assert!(!concerns(Event::NewLink(link(&device()))));
    for (device, peer) in [(device(), peer(4)), (ipv6().device().unwrap().clone(), peer6(4))] {
        let (route, neighbour, fdb_entry) = steps(&device, &peer);
        assert!(!concerns(Event::NewRoute(route)) && !concerns(Event::NewNeighbour(neighbour)));
        assert!(!concerns(Event::NewFdb(fdb_entry)));
    }
    // What we have removed ourselves.
    let (route, neighbour, fdb_entry) = steps(&device(), &peer(9));
    assert!(!concerns(Event::DelRoute(route.clone())) && !concerns(Event::DelNeighbour(neighbour.clone())));
    assert!(!concerns(Event::DelFdb(fdb_entry.clone())));
    // What nobody should have made.
    assert!(concerns(Event::NewRoute(route)) && concerns(Event::NewNeighbour(neighbour)));
    assert!(concerns(Event::NewFdb(fdb_entry)));
    // Another MAC for a peer of ours.
    let (_, neighbour, _) = steps(&device(), &peer(4));
    assert!(concerns(Event::NewNeighbour(Neighbour { mac: MAC, ..neighbour })));
}

#[test]
fn with_direct_routing_the_underlay_s_routes_are_events_for_us() {
    let underlay = || Event::DelRoute(Route::to("10.0.0.0/8".parse().unwrap()));
    let overlays = Overlays { ipv4: vxlan(&device()), ipv6: None };
    assert!(!concerns(&overlays, &expected(), &underlay()));
    let direct = Transport::Vxlan { device: device(), direct_routing: true };
    let overlays = Overlays { ipv4: Overlay { transport: direct, ..vxlan(&device()) }, ipv6: None };
    assert!(concerns(&overlays, &expected(), &underlay()), "a peer may be on our link from now on");
}
