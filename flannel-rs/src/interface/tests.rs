//! Which interface is chosen, from one table of links and addresses.

use linux_net::netlink::LinkKind;

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
        all_multicast: false,
        tx_queue_packets: 1000,
        master: None,
        alias: None,
        kind: LinkKind::Veth,
        peer_index: None,
        hairpin: None,
        isolated: None,
    }
}

fn address(dev: &str, address: &str) -> Address {
    Address::permanent(dev.parse().unwrap(), address.parse().unwrap())
}

fn seen(routes: &[Route]) -> Seen {
    Seen {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "eth3")],
        addresses: vec![
            address("lo", "127.0.0.1/8"),
            address("eth0", "fe80::1/64"),
            address("eth0", "10.0.0.3/8"),
            Address { temporary: true, ..address("eth0", "10.0.0.2/8") },
            address("eth0", "10.0.0.33/8"),
            address("eth1", "169.254.0.1/16"),
            address("eth1", "192.168.1.7/24"),
            address("eth1", "fe80::7/64"),
            Address { permanent: false, temporary: true, ..address("eth1", "fd00:1::a7f3/64") },
            Address { permanent: false, ..address("eth1", "fd00:1::7/64") },
            Address { deprecated: true, ..address("eth1", "fd00:1::1/64") },
            address("eth3", "fd00:3::3/64"),
        ],
        routes: routes.to_vec(),
        way: None,
    }
}

fn wishes(names: &[&str]) -> Wishes {
    Wishes { names: names.iter().map(ToString::to_string).collect(), ..Wishes::default() }
}

fn pattern(pattern: &str) -> Wishes {
    Wishes { patterns: vec![Regex::new(pattern).unwrap()], ..Wishes::default() }
}

fn show(chosen: Result<ExternalInterface, InterfaceError>) -> Result<String, String> {
    let show = |chosen: ExternalInterface| {
        let ipv6 = chosen.addresses.ipv6.map(|address| format!(" {address}")).unwrap_or_default();
        format!("{} {}{ipv6}", chosen.name, chosen.addresses.ipv4)
    };
    chosen.map(show).map_err(|error| error.to_string())
}

fn one(routes: &[Route], wishes: &Wishes) -> Result<String, String> {
    show(choose(&seen(routes), wishes, false))
}

fn dual(routes: &[Route], wishes: &Wishes) -> Result<String, String> {
    show(choose(&seen(routes), wishes, true))
}

fn default_route(dev: &str, metric: u32) -> Route {
    Route { metric, ..Route::to("0.0.0.0/0".parse().unwrap()).dev(dev.parse().unwrap()) }
}

fn default_route6(dev: &str) -> Route {
    Route { metric: 1024, ..Route::to("::/0".parse().unwrap()).dev(dev.parse().unwrap()) }
}

#[test]
fn an_interface_is_found_by_name_or_by_address_the_first_that_is_there() {
    assert_eq!(one(&[], &wishes(&["eth1"])).unwrap(), "eth1 192.168.1.7");
    assert_eq!(one(&[], &wishes(&["10.0.0.33"])).unwrap(), "eth0 10.0.0.33");
    assert_eq!(one(&[], &wishes(&["eth9", "eth0"])).unwrap(), "eth0 10.0.0.3");
    assert_eq!(one(&[], &wishes(&["eth2", "eth0"])).unwrap(), "eth0 10.0.0.3", "eth2 has no address");
}

#[test]
fn a_pattern_is_tried_on_addresses_before_names() {
    assert_eq!(one(&[], &pattern("^192\\.168\\.")).unwrap(), "eth1 192.168.1.7");
    assert_eq!(one(&[], &pattern("eth[1-9]")).unwrap(), "eth1 192.168.1.7");
    assert_eq!(one(&[], &pattern("3$")).unwrap(), "eth0 10.0.0.3");
    let late = Wishes { names: vec!["eth0".to_owned()], ..pattern("eth1") };
    assert_eq!(one(&[], &late).unwrap(), "eth0 10.0.0.3", "names come before patterns");
}

#[test]
fn the_way_to_an_address_shows_the_interface_and_the_source() {
    let reach = Wishes { can_reach: Some("192.168.1.1".parse().unwrap()), ..Wishes::default() };
    let mut way = Route::to("192.168.1.1/32".parse().unwrap()).dev("eth0".parse().unwrap());
    way.src = Some("10.0.0.33".parse().unwrap());
    let seen = Seen { way: Some(way), ..seen(&[]) };
    assert_eq!(show(choose(&seen, &reach, false)).unwrap(), "eth0 10.0.0.33");
    let error = one(&[], &reach).unwrap_err();
    assert!(error.contains("a way to 192.168.1.1"), "{error}");
}

#[test]
fn without_a_wish_the_default_route_decides() {
    assert_eq!(
        one(&[default_route("eth0", 200), default_route("eth1", 100)], &Wishes::default()).unwrap(),
        "eth1 192.168.1.7"
    );
}

#[test]
fn a_public_address_shows_its_interface_and_else_is_announced_from_behind_a_router() {
    let public = |address: &str| Wishes { public_ip: Some(address.parse().unwrap()), ..Wishes::default() };
    let routes = [default_route("eth1", 0)];
    assert_eq!(one(&routes, &public("10.0.0.33")).unwrap(), "eth0 10.0.0.33");
    let chosen = choose(&seen(&routes), &public("203.0.113.9"), false).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.public.ipv4.to_string().as_str()), ("eth1", "203.0.113.9"));
    assert_eq!(chosen.addresses.ipv4.to_string(), "192.168.1.7");
}

#[test]
fn a_dual_stack_worker_has_both_addresses_on_one_interface() {
    assert_eq!(dual(&[], &wishes(&["eth1"])).unwrap(), "eth1 192.168.1.7 fd00:1::7");
    let public = Wishes { public_ipv6: Some("fd00:1::a7f3".parse().unwrap()), ..wishes(&["192.168.1.7"]) };
    assert_eq!(dual(&[], &public).unwrap(), "eth1 192.168.1.7 fd00:1::a7f3");
    assert_eq!(dual(&[], &wishes(&["fd00:1::7"])).unwrap(), "eth1 192.168.1.7 fd00:1::7");
    assert_eq!(
        dual(&[default_route("eth1", 0), default_route6("eth1")], &Wishes::default()).unwrap(),
        "eth1 192.168.1.7 fd00:1::7"
    );
    assert!(dual(&[], &wishes(&["eth0"])).unwrap_err().contains("eth0 has no IPv6 address"));
    assert!(dual(&[], &wishes(&["eth3"])).unwrap_err().contains("eth3 has no IPv4 address"));
    let apart = dual(&[default_route("eth1", 0), default_route6("eth3")], &Wishes::default()).unwrap_err();
    assert!(apart.contains("eth1") && apart.contains("eth3") && apart.contains("--iface"), "{apart}");
}

#[test]
fn errors_say_what_is_there_and_what_to_do() {
    let error = one(&[], &wishes(&["eth9"])).unwrap_err();
    assert!(error.contains("eth9") && error.contains("eth0 (fe80::1, 10.0.0.3"), "{error}");
    assert!(one(&[], &Wishes::default()).unwrap_err().contains("--iface"));
    assert!(one(&[], &wishes(&["eth2"])).unwrap_err().contains("eth2 has no IPv4 address"));
}
