//! What is planned for which Services.

use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::endpoint::{Condition, Endpoint, SlicePort};
use crate::service::{Balance, Reach, ServicePort, TrafficPolicy, Weights};
use crate::tag::{EXTERNAL_BIT, LOCAL_BIT, MASQUERADE_BIT, Spread};

fn name(n: u8) -> ServiceName {
    ServiceName::new("shop", format!("s{n}"))
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(n: u8, reach: Reach) -> Service {
    Service {
        cluster_ips: [[100, 64, 0, n].into()].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        ports: [ServicePort { name: "".into(), protocol: Protocol::Tcp, port: port(80), node_port: None }].into(),
        reach,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        balance: Balance::Random,
        weights: Weights::default(),
        health_check_node_port: None,
    }
}

/// A Service of type `LoadBalancer`, with one of everything.
fn balancer() -> Service {
    let mut service = service(1, Reach::ListedPorts);
    service.external_ips = [ip("198.51.100.1")].into();
    service.load_balancer_ips = [ip("203.0.113.7")].into();
    service.ports[0].node_port = Some(port(30080));
    service
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        address: [11, 0, 0, last].into(),
        condition: Condition::Ready,
        node: None,
        pod: None,
        zones: Box::default(),
        nodes: Box::default(),
    }
}

fn slice(n: u8, endpoints: &[u8]) -> Slice {
    Slice {
        service: name(n),
        family: Family::V4,
        endpoints: endpoints.iter().map(|last| endpoint(*last)).collect(),
        ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: port(8080) }].into(),
    }
}

/// Endpoint 7 on this worker, 8 on another.
fn near_and_far() -> Slice {
    let mut slice = slice(1, &[7, 8]);
    slice.endpoints[0].node = Some("w1".into());
    slice.endpoints[1].node = Some("w2".into());
    slice
}

fn planner() -> Planner {
    let mut planner = Planner::new(Node::new("w1"));
    planner.take_change();
    planner
}

fn planned(service: &Service, slices: &[Slice]) -> Vec<Entry> {
    let mut planner = planner();
    planner.update(&name(1), Some(service), slices.iter());
    planner.entries().copied().collect()
}

/// The tag of a place that clients send to.
fn tag_of(entries: &[Entry], place: &str) -> Option<u32> {
    entries.iter().find_map(|entry| match entry {
        Entry::Front { address, tag, .. } if address.to_string() == place => Some(tag.mark()),
        Entry::NodePort { port, tag, .. } if port.to_string() == place => Some(tag.mark()),
        _ => None,
    })
}

/// The endpoints that a tag leads to, by their last number.
fn endpoints_of(entries: &[Entry], tag: u32) -> Vec<u8> {
    let last = |address: IpAddr| if let IpAddr::V4(address) = address { address.octets()[3] } else { 0 };
    let targets = entries.iter().filter_map(|entry| match entry {
        Entry::Endpoint { id, target, .. } if id.mark() == tag & 0x000f_ffff => Some(last(target.address)),
        _ => None,
    });
    targets.collect()
}

/// What the kernel has after a change.
fn apply(kernel: &mut BTreeSet<Entry>, change: &Change) {
    for entry in &change.removed {
        assert!(kernel.remove(entry), "{entry:?} was deleted and was not there");
    }
    for entry in &change.added {
        assert!(kernel.insert(*entry), "{entry:?} was added and was there");
    }
}

/// Plans what a change of one Service does to others too.
fn settle(planner: &mut Planner, state: &BTreeMap<u8, (Service, Vec<u8>)>) {
    loop {
        let affected = planner.take_affected();
        if affected.is_empty() {
            return;
        }
        for n in state.keys().filter(|n| affected.contains(&name(**n))) {
            planner.update(&name(*n), Some(&state[n].0), [slice(*n, &state[n].1)].iter());
        }
    }
}

fn from_scratch(state: &BTreeMap<u8, (Service, Vec<u8>)>) -> BTreeSet<Entry> {
    let mut planner = planner();
    for (n, (service, endpoints)) in state {
        planner.update(&name(*n), Some(service), [slice(*n, endpoints)].iter());
    }
    settle(&mut planner, state);
    planner.entries().copied().collect()
}

#[test]
fn every_place_of_a_load_balancer_leads_to_the_endpoints_and_those_for_the_outside_masquerade() {
    let entries = planned(&balancer(), &[near_and_far()]);
    let inside = tag_of(&entries, "100.64.0.1").unwrap();
    assert_eq!(inside & (EXTERNAL_BIT | MASQUERADE_BIT | LOCAL_BIT), 0);
    for place in ["198.51.100.1", "203.0.113.7", "30080"] {
        let tag = tag_of(&entries, place).unwrap();
        assert_eq!(tag & (EXTERNAL_BIT | MASQUERADE_BIT | LOCAL_BIT), EXTERNAL_BIT | MASQUERADE_BIT, "{place}");
        assert_eq!(endpoints_of(&entries, tag), [7, 8], "{place}");
    }
}

#[test]
fn with_external_policy_local_strangers_get_this_worker_s_endpoints_and_pods_get_all() {
    let mut service = balancer();
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(port(30999));
    let mut planner = planner();
    planner.update(&name(1), Some(&service), [near_and_far()].iter());
    let entries: Vec<Entry> = planner.entries().copied().collect();
    let tag = tag_of(&entries, "203.0.113.7").unwrap();
    assert_eq!(tag & (EXTERNAL_BIT | MASQUERADE_BIT | LOCAL_BIT), EXTERNAL_BIT | LOCAL_BIT);
    assert_eq!(endpoints_of(&entries, tag), [7]);
    let view = entries.iter().find_map(|entry| match entry {
        Entry::AnyView { local, cluster, .. } if local.mark() == tag => Some(cluster.mark()),
        _ => None,
    });
    assert_eq!(endpoints_of(&entries, view.unwrap()), [7, 8]);
    assert_eq!(endpoints_of(&entries, tag_of(&entries, "100.64.0.1").unwrap()), [7, 8]);
    let checks: Vec<_> = planner.health_checks().map(|(_, check)| (check.port.get(), check.local_endpoints)).collect();
    assert_eq!(checks, [(30999, 1)]);
}

#[test]
fn ranges_hold_for_the_load_balancer_s_addresses_only() {
    let mut service = balancer();
    service.source_ranges = ["192.0.2.0/24".parse().unwrap()].into();
    let entries = planned(&service, &[near_and_far()]);
    let ranged: Vec<u32> = entries
        .iter()
        .filter_map(|entry| if let Entry::Ranged { tag, .. } = entry { Some(tag.mark()) } else { None })
        .collect();
    assert_eq!(ranged, [tag_of(&entries, "203.0.113.7").unwrap()]);
    assert!(!ranged.contains(&tag_of(&entries, "30080").unwrap()));
    let networks: Vec<IpNet> = entries
        .iter()
        .filter_map(|entry| if let Entry::Range { network, .. } = entry { Some(*network) } else { None })
        .collect();
    assert_eq!(*networks, *service.source_ranges);
    // Ranges of IPv6 alone say nothing about IPv4.
    service.source_ranges = ["2001:db8::/32".parse().unwrap()].into();
    assert!(planned(&service, &[near_and_far()]).iter().all(|entry| !matches!(entry, Entry::Ranged { .. })));
}

#[test]
fn without_endpoints_every_place_refuses_and_without_local_ones_it_drops() {
    let mut service = balancer();
    let slots = |entries: &[Entry], place| tag_of(entries, place).unwrap() >> 20 & 0xff;
    let entries = planned(&service, &[slice(1, &[])]);
    for place in ["100.64.0.1", "198.51.100.1", "203.0.113.7", "30080"] {
        assert_eq!(slots(&entries, place), 0xff, "{place}");
    }
    service.external_policy = TrafficPolicy::Local;
    let mut far = near_and_far();
    far.endpoints = [far.endpoints[1].clone()].into();
    let entries = planned(&service, &[far]);
    assert_eq!((slots(&entries, "100.64.0.1"), slots(&entries, "30080")), (1, 0));
}

#[test]
fn a_sticky_service_has_a_chain_that_learns() {
    let mut service = service(1, Reach::ListedPorts);
    service.affinity = Some(Duration::from_mins(1));
    let entries = planned(&service, &[slice(1, &[7])]);
    assert!(entries.iter().any(|entry| matches!(entry, Entry::Learn { seconds: 60, .. })));
    assert!(entries.iter().any(|entry| matches!(entry, Entry::Sticky { seconds: 60, .. })));
    assert!(entries.iter().any(|entry| matches!(entry, Entry::Endpoint { is_sticky: true, .. })));
}

#[test]
fn clients_of_a_sticky_endpoint_that_went_are_forgotten() {
    let mut sticky = service(1, Reach::ListedPorts);
    sticky.affinity = Some(Duration::from_mins(1));
    let mut planner = planner();
    planner.update(&name(1), Some(&sticky), [slice(1, &[7, 8])].iter());
    planner.take_flows();
    // 8 moves to slot 0: it is still there.
    planner.update(&name(1), Some(&sticky), [slice(1, &[8])].iter());
    let forgotten: Vec<_> = planner.take_flows().forgotten.iter().map(|memory| memory.target.to_string()).collect();
    assert_eq!(forgotten, ["11.0.0.7:8080"]);
}

#[test]
fn udp_connections_to_what_went_and_from_before_there_was_anything_are_ended() {
    let mut dns = service(1, Reach::ListedPorts);
    dns.ports[0].protocol = Protocol::Udp;
    dns.ports[0].node_port = Some(port(30053));
    let slice = |endpoints: &[u8]| {
        let mut slice = slice(1, endpoints);
        slice.ports[0].protocol = Protocol::Udp;
        slice
    };
    let mut planner = planner();
    let mut ended = |service: Option<&Service>, endpoints: &[u8]| {
        planner.update(&name(1), service, [slice(endpoints)].iter());
        planner.take_flows().contradicted.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(ended(Some(&dns), &[]), [""; 0]);
    let untranslated = [
        "conntrack -D -p udp --orig-port-dst 30053 --reply-port-src 30053",
        "conntrack -D -p udp --orig-dst 100.64.0.1 --orig-port-dst 80 --reply-src 100.64.0.1 --reply-port-src 80",
    ];
    assert_eq!(ended(Some(&dns), &[7]), untranslated);
    let of_seven = [
        "conntrack -D -p udp --orig-port-dst 30053 --reply-src 11.0.0.7 --reply-port-src 8080",
        "conntrack -D -p udp --orig-dst 100.64.0.1 --orig-port-dst 80 --reply-src 11.0.0.7 --reply-port-src 8080",
    ];
    assert_eq!(ended(Some(&dns), &[8]), of_seven);
    assert_eq!(ended(None, &[]).len(), 2);
}

#[test]
fn weights_become_numbers_of_slots() {
    let slots = |weights: &[u8]| {
        crate::slots::fill::<u16>(&(1..).zip(weights).map(|(target, weight)| (target, *weight)).collect::<Vec<_>>())
    };
    assert_eq!(slots(&[1, 1]), [1, 2]);
    assert_eq!(slots(&[9, 3]), [1, 1, 1, 2], "the smallest numbers that do");
    assert_eq!(slots(&[2, 0, 4]), [1, 3, 3]);
    let many = slots(&[100, 99, 98, 97]);
    assert!(many.len() <= 239 && (1..=4).all(|target| many.contains(&target)), "{}", many.len());
}

#[test]
fn hundreds_of_endpoints_have_a_slot_each() {
    let many = |n: u8, count: u16| {
        let mut slice = slice(n, &[]);
        let address = |k: u16| [11, n, (k >> 8) as u8, (k & 0xff) as u8];
        slice.endpoints = (0..count).map(|k| Endpoint { address: address(k).into(), ..endpoint(0) }).collect();
        slice
    };
    let slots_of = |planner: &Planner, n: u8| {
        let endpoints = planner.entries().filter_map(|entry| match entry {
            Entry::Endpoint { target, slot, .. } => Some((target.address, *slot)),
            _ => None,
        });
        endpoints.filter(|(address, _)| matches!(address, IpAddr::V4(address) if address.octets()[1] == n)).count()
    };
    let mut planner = planner();
    for (n, count) in (1..=15).zip(300..) {
        planner.update(&name(n), Some(&service(n, Reach::ListedPorts)), [many(n, count)].iter());
        assert_eq!(slots_of(&planner, n), usize::from(count));
    }
    // All codes are lent. The same number needs none of its own, another one is rounded up, the largest is cut.
    for (n, count, slots) in [(16, 300, 300), (17, 299, 300), (18, 1000, 239)] {
        planner.update(&name(n), Some(&service(n, Reach::ListedPorts)), [many(n, count)].iter());
        assert_eq!(slots_of(&planner, n), slots, "{count}");
    }
    // One becomes free.
    planner.update(&name(15), Some(&service(15, Reach::ListedPorts)), [many(15, 5)].iter());
    planner.update(&name(18), Some(&service(18, Reach::ListedPorts)), [many(18, 1000)].iter());
    assert_eq!((slots_of(&planner, 15), slots_of(&planner, 18)), (5, 1000));
    for n in 1..=18 {
        planner.update(&name(n), None, [].iter());
    }
    assert_eq!(planner.entries().count(), 0);
}

#[test]
fn a_port_of_the_worker_is_the_first_claimant_s_and_passes_on() {
    let with_port = |n: u8| {
        let mut service = service(n, Reach::ListedPorts);
        service.ports[0].node_port = Some(port(30080));
        service
    };
    let holder = |planner: &Planner| {
        let tags = planner
            .entries()
            .filter_map(|entry| if let Entry::NodePort { tag, .. } = entry { Some(tag.mark()) } else { None });
        let tags: Vec<u32> = tags.collect();
        let [tag] = tags[..] else { panic!("{tags:?}") };
        let entries: Vec<Entry> = planner.entries().copied().collect();
        endpoints_of(&entries, tag)
    };
    let mut planner = planner();
    let mut state = BTreeMap::from([(2, (with_port(2), vec![2]))]);
    planner.update(&name(2), Some(&with_port(2)), [slice(2, &[2])].iter());
    state.insert(1, (with_port(1), vec![1]));
    planner.update(&name(1), Some(&with_port(1)), [slice(1, &[1])].iter());
    settle(&mut planner, &state);
    assert_eq!(holder(&planner), [1]);
    state.remove(&1);
    planner.update(&name(1), None, [].iter());
    settle(&mut planner, &state);
    assert_eq!(holder(&planner), [2]);
}

#[test]
fn a_dual_stack_service_is_in_both_tables() {
    let mut dual = balancer();
    dual.cluster_ips = [dual.cluster_ips[0], ip("fd00:64::1")].into();
    let mut slice6 = slice(1, &[]);
    slice6.family = Family::V6;
    slice6.endpoints = [Endpoint { address: ip("fd00:11::7"), ..endpoint(7) }].into();
    let entries = planned(&dual, &[slice(1, &[7]), slice6]);
    for family in [Family::V4, Family::V6] {
        let own = || entries.iter().filter(|entry| entry.family() == family);
        assert_eq!(own().filter(|entry| matches!(entry, Entry::Endpoint { .. })).count(), 1, "{family}");
        assert!(own().any(|entry| matches!(entry, Entry::NodePort { .. })), "{family}");
    }
    assert_eq!(tag_of(&entries, "fd00:64::1").map(|tag| tag >> 20 & 0xff), Some(1));
}

#[test]
fn what_services_share_stays_while_one_needs_it() {
    let mut planner = planner();
    for n in [1, 2] {
        planner.update(&name(n), Some(&service(n, Reach::ListedPorts)), [slice(n, &[7])].iter());
    }
    planner.take_change();
    planner.update(&name(1), None, [].iter());
    let slots = Slots::narrow(1).unwrap();
    let spread = Spread { slots, balance: Balance::Random, is_sticky: false, keeps_ports: false };
    let shared = [Entry::Class { family: Family::V4, spread }, Entry::Hairpin([11, 0, 0, 7].into())];
    let removed = planner.take_change().removed;
    assert!(shared.iter().all(|entry| !removed.contains(entry)), "{removed:?}");
    planner.update(&name(2), None, [].iter());
    let removed = planner.take_change().removed;
    assert!(shared.iter().all(|entry| removed.contains(entry)), "{removed:?}");
}

#[test]
fn services_without_an_endpoint_on_this_worker_are_counted_while_a_policy_wants_one() {
    let mut planner = planner();
    let mut web = balancer();
    web.internal_policy = TrafficPolicy::Local;
    web.external_policy = TrafficPolicy::Local;
    let mut far = near_and_far();
    far.endpoints = [far.endpoints[1].clone()].into();
    let counts = |planner: &Planner| (planner.without_local(Side::Internal), planner.without_local(Side::External));
    planner.update(&name(1), Some(&web), [far.clone()].iter());
    planner.update(&name(1), Some(&web), [far.clone()].iter());
    assert_eq!(counts(&planner), (1, 1));
    web.internal_policy = TrafficPolicy::Cluster;
    planner.update(&name(1), Some(&web), [far.clone()].iter());
    assert_eq!(counts(&planner), (0, 1));
    planner.update(&name(1), Some(&web), [near_and_far()].iter());
    assert_eq!(counts(&planner), (0, 0));
    planner.update(&name(1), Some(&web), [far].iter());
    planner.update(&name(1), None, [].iter());
    assert_eq!(counts(&planner), (0, 0));
}

#[test]
fn a_change_that_is_taken_back_changes_nothing() {
    let mut planner = planner();
    let web = service(1, Reach::ListedPorts);
    planner.update(&name(1), Some(&web), [slice(1, &[7])].iter());
    planner.take_change();
    planner.update(&name(1), Some(&web), [slice(1, &[7, 8])].iter());
    planner.update(&name(1), Some(&web), [slice(1, &[7])].iter());
    assert!(planner.take_change().is_empty());
}

#[test]
fn a_listed_port_without_endpoints_is_one_of_all() {
    let mut portless = slice(1, &[7]);
    portless.ports = Box::default();
    let entries = planned(&service(1, Reach::AllProtocols), &[portless]);
    assert!(entries.iter().all(|entry| !matches!(entry, Entry::Front { .. })));
    assert!(entries.iter().any(|entry| matches!(entry, Entry::Any { .. })));
}

#[test]
fn endpoints_of_other_workers_never_hairpin() {
    let mut spread = slice(1, &[7, 8, 9]);
    spread.endpoints[0].node = Some("w1".into());
    spread.endpoints[1].node = Some("w2".into());
    let entries = planned(&service(1, Reach::ListedPorts), &[spread]);
    let hairpins = entries
        .iter()
        .filter_map(|entry| if let Entry::Hairpin(address) = entry { Some(address.to_string()) } else { None });
    assert_eq!(hairpins.collect::<Vec<_>>(), ["11.0.0.7", "11.0.0.9"]);
}

/// Services that get into each other's way: few ports, few addresses.
fn services() -> impl Strategy<Value = Service> {
    let kind = (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(0u16..2), prop::option::of(0u8..2));
    (0u8..6, kind).prop_map(|(n, (all, is_local, is_sticky, node_port, external))| {
        let mut service = service(n, if all { Reach::AllProtocols } else { Reach::ListedPorts });
        service.ports[0].node_port = node_port.map(|offset| port(30_000 + offset));
        service.external_ips = external.map(|last| [198, 51, 100, last].into()).into_iter().collect();
        service.external_policy = if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        service.affinity = is_sticky.then(|| Duration::from_mins(1));
        service
    })
}

proptest! {
    /// Step by step or from scratch, the tables are the same; and no step deletes what is not there or adds what is.
    #[test]
    fn many_small_changes_end_where_one_plan_begins(
        steps in prop::collection::vec((0u8..6, prop::option::of((services(), prop::collection::vec(1u8..9, 0..5)))), 1..40),
        taken_every in 1usize..4,
    ) {
        let mut planner = planner();
        let (mut kernel, mut state) = (BTreeSet::new(), BTreeMap::new());
        for (step, (n, wanted)) in steps.into_iter().enumerate() {
            match wanted {
                Some((mut service, endpoints)) => {
                    service.cluster_ips = [[100, 64, 0, n].into()].into();
                    planner.update(&name(n), Some(&service), [slice(n, &endpoints)].iter());
                    state.insert(n, (service, endpoints));
                }
                None => {
                    planner.update(&name(n), None, [].iter());
                    state.remove(&n);
                }
            }
            settle(&mut planner, &state);
            if step % taken_every == 0 {
                apply(&mut kernel, &planner.take_change());
            }
        }
        apply(&mut kernel, &planner.take_change());
        prop_assert_eq!(&kernel, &from_scratch(&state));
        prop_assert_eq!(planner.entry_count(), planner.entries().count());
        let change = Change::between(&kernel, &BTreeSet::new());
        prop_assert_eq!(change.removed.len(), kernel.len());
    }
}
