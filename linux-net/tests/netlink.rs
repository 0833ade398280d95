//! Every operation does what the command it prints does: each is applied in one namespace, its text is run by `sh` in a
//! twin namespace, and both are read back.

use std::{io::Write as _, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use linux_net::{
    IfName, MacAddr, NetNs, Netlink, Op, Vni,
    netlink::{
        Address, FdbEntry, FdbOwner, Ifb, Link, LinkKind, Macvlan, MacvlanMode, Neighbour, NeighbourState, Qdisc,
        Route, RouteKind, RouteScope, TokenBucket, Veth, Vlans, Vxlan,
    },
    process::CommandNamespaceExt,
    testing::enter_sandbox,
};

/// Two namespaces that begin alike: `ours` is changed by operations, `theirs` by the commands they print.
struct Twins {
    ours: NetNs,
    theirs: NetNs,
    netlink: Netlink,
}

impl Twins {
    /// Makes both with a veth pair `up0`–`far0` that is up and has 10.0.0.1/24, which most operations need.
    fn new() -> Result<Self> {
        let (ours, theirs) = (NetNs::create("ours")?, NetNs::create("theirs")?);
        for ns in [&ours, &theirs] {
            let mut netlink = Netlink::open_in(ns)?;
            let mut veth = Veth::new(name("up0"), name("far0"), None);
            veth.mac = Some(mac("02:00:00:00:00:01"));
            veth.peer.mac = Some(mac("02:00:00:00:00:02"));
            for result in netlink.apply_all(&[
                Op::SetUp { dev: IfName::loopback() },
                Op::AddVeth(veth),
                Op::SetUp { dev: name("up0") },
                Op::SetUp { dev: name("far0") },
                Op::AddAddress { dev: name("up0"), address: "10.0.0.1/24".parse()? },
            ]) {
                result?;
            }
        }
        let netlink = Netlink::open_in(&ours)?;
        Ok(Self { ours, theirs, netlink })
    }

    /// Applies the operations here, runs their commands there, and checks that the two are alike.
    fn both(&mut self, ops: &[Op]) -> Result<State> {
        for op in ops {
            self.netlink.apply(op)?;
            let command = op.to_string();
            let output = Command::new("sh").args(["-c", &command]).in_netns(&self.theirs).output()?;
            ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let (ours, theirs) = (State::read(&self.ours)?, State::read(&self.theirs)?);
        assert_eq!(ours, theirs, "after {}", ops.iter().map(Op::to_string).collect::<Vec<_>>().join("\n"));
        Ok(ours)
    }
}

/// What stands in a namespace, without what the kernel picks at random.
#[derive(Debug, PartialEq)]
struct State {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    fdb: Vec<FdbEntry>,
}

impl State {
    fn read(ns: &NetNs) -> Result<Self> {
        let mut netlink = Netlink::open_in(ns)?;
        let mut links = netlink.links()?;
        let (mut neighbours, mut fdb) = (Vec::new(), Vec::new());
        for link in &links {
            neighbours.extend(netlink.neighbours(&link.name)?);
            fdb.extend(netlink.fdb(&link.name)?);
        }
        // Neighbours other than ours come and go with multicast listeners; the rest depends on chance or on time.
        neighbours.retain(|entry| entry.state == NeighbourState::Permanent);
        fdb.retain(|entry| {
            entry.mac.octets()[0] & 1 == 0 && (entry.dst.is_some() || entry.mac == mac("02:00:00:00:00:99"))
        });
        for link in &mut links {
            if link.mac.is_some_and(|mac| !mac.octets().starts_with(&[2, 0, 0])) {
                link.mac = None;
            }
            if let LinkKind::Vxlan(vxlan) = &mut link.kind {
                vxlan.mac = link.mac;
            }
        }
        let of_ipv4 = |address: std::net::IpAddr| address.is_ipv4();
        let mut addresses = netlink.addresses()?;
        // IPv6 gives links addresses and routes by itself, some of them late.
        addresses
            .retain(|address| of_ipv4(address.address.addr()) || address.address.addr().to_string().starts_with("fd"));
        let mut routes = netlink.routes()?;
        routes.retain(|route| of_ipv4(route.dst.addr()) || route.protocol != Route::PROTOCOL_KERNEL);
        Ok(Self { links, addresses, routes, neighbours, fdb })
    }

    fn link(&self, wanted: &str) -> Result<&Link> {
        self.links.iter().find(|link| link.name.as_str() == wanted).with_context(|| format!("no link {wanted}"))
    }
}

fn name(text: &str) -> IfName {
    text.parse().expect("a test knows its names")
}

fn mac(text: &str) -> MacAddr {
    text.parse().expect("a test knows its addresses")
}

#[test]
fn links_are_made_changed_and_deleted() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let state = twins.both(&[
        Op::AddBridge { name: name("br0") },
        Op::SetMac { dev: name("br0"), mac: mac("02:00:00:00:00:10") },
        Op::SetUp { dev: name("br0") },
        Op::SetMaster { dev: name("far0"), master: Some(name("br0")) },
        Op::SetHairpin { dev: name("far0"), on: true },
        Op::SetAlias { dev: name("br0"), alias: "it's the bridge of C0".into() },
        Op::SetMtu { dev: name("up0"), mtu_bytes: 1400 },
        Op::SetPromiscuous { dev: name("up0"), on: true },
        Op::SetAllMulticast { dev: name("up0"), on: true },
        Op::SetTxQueueLength { dev: name("up0"), packets: 77 },
        Op::SetIsolated { dev: name("far0"), on: true },
    ])?;
    assert_eq!((state.link("up0")?.all_multicast, state.link("up0")?.tx_queue_packets), (true, 77));
    assert_eq!((state.link("far0")?.isolated, state.link("up0")?.isolated), (Some(true), None));
    assert_eq!(state.link("br0")?.kind, LinkKind::Bridge);
    assert_eq!(state.link("br0")?.alias.as_deref(), Some("it's the bridge of C0"));
    assert_eq!(state.link("far0")?.master, Some(name("br0")));
    assert_eq!(state.link("far0")?.hairpin, Some(true));
    assert_eq!(state.link("up0")?.hairpin, None);
    assert_eq!((state.link("up0")?.mtu_bytes, state.link("up0")?.promiscuous), (1400, true));
    let state = twins.both(&[
        Op::SetHairpin { dev: name("far0"), on: false },
        Op::SetPromiscuous { dev: name("up0"), on: false },
        Op::SetAllMulticast { dev: name("up0"), on: false },
        Op::SetIsolated { dev: name("far0"), on: false },
        Op::SetMaster { dev: name("far0"), master: None },
        Op::SetDown { dev: name("far0") },
        Op::SetDown { dev: name("br0") },
        Op::Rename { dev: name("br0"), name: name("br1") },
        Op::SetAlias { dev: name("br1"), alias: String::new() },
    ])?;
    assert_eq!(state.link("far0")?.master, None);
    assert!(!state.link("br1")?.up && !state.link("far0")?.up);
    let state = twins.both(&[Op::PlugIn { dev: name("far0"), master: name("br1") }])?;
    assert!(state.link("far0")?.up);
    assert_eq!(state.link("far0")?.master, Some(name("br1")));
    assert_eq!(state.link("br1")?.alias, None);
    let state = twins.both(&[Op::DelLink { name: name("br1") }, Op::DelLink { name: name("up0") }])?;
    assert_eq!(state.links.len(), 1, "only lo is left");
    Ok(())
}

#[test]
fn what_a_link_receives_is_shaped_on_another() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let bucket = |rate: u64| Qdisc::TokenBucket(TokenBucket::new(rate, 100_000, Duration::from_millis(25)));
    let ifb = Ifb { name: name("ifb7"), mtu_bytes: Some(1400), tx_queue_packets: Some(50) };
    let state = twins.both(&[
        Op::AddIfb(ifb),
        Op::SetUp { dev: name("ifb7") },
        Op::AddQdisc { dev: name("ifb7"), qdisc: bucket(1_000_000) },
        Op::AddQdisc { dev: name("up0"), qdisc: bucket(5_000_000_000) },
        Op::AddQdisc { dev: name("up0"), qdisc: Qdisc::Ingress },
        Op::AddRedirect { dev: name("up0"), to: name("ifb7") },
    ])?;
    assert_eq!(state.link("ifb7")?.kind, LinkKind::Other("ifb".to_owned()));
    assert_eq!((state.link("ifb7")?.mtu_bytes, state.link("ifb7")?.tx_queue_packets), (1400, 50));
    let read = |ns: &NetNs| -> Result<_> {
        let mut netlink = Netlink::open_in(ns)?;
        Ok((netlink.qdiscs(&name("ifb7"))?, netlink.qdiscs(&name("up0"))?, netlink.redirects(&name("up0"))?))
    };
    let wanted = (vec![bucket(1_000_000)], vec![bucket(5_000_000_000), Qdisc::Ingress], vec![name("ifb7")]);
    assert_eq!(read(&twins.ours)?, wanted);
    let theirs = read(&twins.theirs)?;
    assert_eq!((&theirs.0, &theirs.2), (&wanted.0, &wanted.2));
    twins.both(&[
        Op::DelQdisc { dev: name("up0"), qdisc: Qdisc::Ingress },
        Op::DelQdisc { dev: name("ifb7"), qdisc: bucket(1_000_000) },
    ])?;
    let mut netlink = Netlink::open_in(&twins.ours)?;
    assert_eq!(netlink.redirects(&name("up0")).unwrap_or_default(), []);
    assert!(!netlink.qdiscs(&name("up0"))?.contains(&Qdisc::Ingress));
    Ok(())
}

#[test]
fn vlans_of_a_port_or_a_word_of_why_there_are_none() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    twins
        .both(&[Op::AddBridge { name: name("br0") }, Op::SetMaster { dev: name("far0"), master: Some(name("br0")) }])?;
    if let Err(error) = twins.netlink.apply(&Op::SetVlanFiltering { bridge: name("br0"), on: true }) {
        assert!(error.to_string().contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{error}");
        let error = twins.netlink.apply(&Op::AddVlans(Vlans::one(name("far0"), 7))).unwrap_err();
        assert!(error.to_string().starts_with("bridge vlan add dev far0 vid 7: "), "{error}");
        assert_eq!(twins.netlink.vlans(&name("far0"))?, []);
        writeln!(std::io::stderr(), "SKIPPED: this kernel's bridge knows nothing of VLANs")?;
        return Ok(());
    }
    twins.both(&[
        Op::SetVlanFiltering { bridge: name("br0"), on: true },
        Op::AddVlans(Vlans { untagged: true, ..Vlans::one(name("far0"), 7) }),
        Op::AddVlans(Vlans { last: 12, ..Vlans::one(name("far0"), 10) }),
        Op::AddVlans(Vlans { on_bridge: true, ..Vlans::one(name("br0"), 7) }),
        Op::DelVlans(Vlans::one(name("far0"), 1)),
    ])?;
    let vlans = twins.netlink.vlans(&name("far0"))?;
    assert_eq!(vlans.iter().map(|vlan| vlan.first).collect::<Vec<_>>(), [7, 10, 11, 12]);
    assert!(vlans[0].untagged && !vlans[1].untagged);
    assert_eq!(Netlink::open_in(&twins.theirs)?.vlans(&name("far0"))?, vlans);
    Ok(())
}

#[test]
fn a_veth_peer_is_born_in_the_other_namespace() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let pod = NetNs::create("pod")?;
    let mut veth = Veth::new(name("veth1"), name("eth0"), Some(&pod));
    veth.mac = Some(mac("02:00:00:00:01:01"));
    veth.mtu_bytes = Some(1450);
    veth.peer.mac = Some(mac("02:00:00:00:01:02"));
    twins.netlink.apply(&Op::AddVeth(veth.clone()))?;
    let mut in_pod = Netlink::open_in(&pod)?;
    let born = in_pod.link(&name("eth0"))?.context("the far end is in the pod")?;
    assert_eq!((born.mac, born.mtu_bytes), (Some(mac("02:00:00:00:01:02")), 1450));
    in_pod.apply(&Op::DelLink { name: name("eth0") })?;
    assert!(twins.netlink.link(&name("veth1"))?.is_none(), "both ends go together");
    // The printed command does the same.
    let state = twins.both(&[])?;
    assert_eq!(state.links.len(), 3);
    let output = Command::new("sh").args(["-c", &Op::AddVeth(veth).to_string()]).in_netns(&twins.theirs).output()?;
    ensure!(output.status.success(), "{output:?}");
    let theirs = in_pod.link(&name("eth0"))?.context("ip makes it there too")?;
    assert_eq!((theirs.mac, theirs.mtu_bytes), (born.mac, born.mtu_bytes));
    // And back out of it, the slow way.
    in_pod.apply(&Op::SetNetNs { dev: name("eth0"), netns: twins.ours.clone() })?;
    assert!(twins.netlink.link(&name("eth0"))?.is_some());
    Ok(())
}

#[test]
fn a_vxlan_overlay_as_flannel_makes_it() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let dev = name("flannel.100");
    let peer_mac = mac("02:00:00:00:00:99");
    let mut vxlan = Vxlan::new(dev.clone(), Vni::new(100)?);
    vxlan.local = Some("10.0.0.1".parse()?);
    vxlan.dev = Some(name("up0"));
    vxlan.mtu_bytes = Some(1450);
    vxlan.mac = Some(mac("02:00:00:00:00:42"));
    vxlan.gbp = true;
    let state = twins.both(&[
        Op::AddVxlan(vxlan.clone()),
        Op::AddAddress { dev: dev.clone(), address: "11.10.0.0/32".parse()? },
        Op::SetUp { dev: dev.clone() },
        Op::ReplaceNeighbour(Neighbour::permanent(dev.clone(), "11.10.16.0".parse()?, peer_mac)),
        Op::AppendFdb(FdbEntry::permanent(dev.clone(), peer_mac, "10.0.0.4".parse()?)),
        Op::AppendFdb(FdbEntry::permanent(dev.clone(), MacAddr::ZERO, "10.0.0.4".parse()?)),
        Op::AppendFdb(FdbEntry::permanent(dev.clone(), MacAddr::ZERO, "10.0.0.5".parse()?)),
        Op::AddRoute(
            Route::to("11.10.16.0/20".parse()?).via("11.10.16.0".parse()?).dev(dev.clone()).onlink().protocol(77),
        ),
    ])?;
    assert_eq!(state.link("flannel.100")?.kind, LinkKind::Vxlan(vxlan));
    assert_eq!(state.neighbours, [Neighbour::permanent(dev.clone(), "11.10.16.0".parse()?, peer_mac)]);
    let everybody: Vec<_> = state.fdb.iter().filter(|entry| entry.mac == MacAddr::ZERO).collect();
    assert_eq!(everybody.len(), 2, "the second destination is beside the first: {everybody:?}");
    assert!(state.fdb.contains(&FdbEntry::permanent(dev.clone(), peer_mac, "10.0.0.4".parse()?)));
    let mut wanted =
        Route::to("11.10.16.0/20".parse()?).via("11.10.16.0".parse()?).dev(dev.clone()).onlink().protocol(77);
    wanted.scope = Some(RouteScope::Global);
    assert!(state.routes.contains(&wanted), "a route reads back as it was written: {:?}", state.routes);
    let state = twins.both(&[
        Op::ReplaceFdb(FdbEntry::permanent(dev.clone(), peer_mac, "10.0.0.9".parse()?)),
        Op::DelFdb(FdbEntry::permanent(dev.clone(), MacAddr::ZERO, "10.0.0.5".parse()?)),
        Op::DelRoute(wanted),
        Op::DelNeighbour(Neighbour::permanent(dev.clone(), "11.10.16.0".parse()?, peer_mac)),
    ])?;
    assert!(state.neighbours.is_empty());
    assert_eq!(state.fdb.iter().filter_map(|entry| entry.dst).count(), 2, "{:?}", state.fdb);
    Ok(())
}

#[test]
fn routes_and_addresses_of_every_kind() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let up0 = || name("up0");
    let mut special = Route::to("10.9.0.0/16".parse()?).via("10.0.0.7".parse()?).dev(up0());
    special.src = Some("10.0.0.1".parse()?);
    special.metric = 50;
    special.table = 1000;
    special.mtu_bytes = Some(1400);
    let mut blackhole = Route::to("11.0.0.0/8".parse()?);
    blackhole.kind = RouteKind::Blackhole;
    let mut blackhole6 = Route::to("fd11::/64".parse()?);
    blackhole6.kind = RouteKind::Blackhole;
    let default = Route::to("0.0.0.0/0".parse()?).via("10.0.0.2".parse()?);
    let on_link = Route::to("10.8.0.0/24".parse()?).dev(up0());
    let six = Route::to("fd22::/64".parse()?).via("fd00::2".parse()?).dev(up0());
    let routes = [special, blackhole, blackhole6, default.clone(), on_link, six];
    let mut ops = vec![Op::AddAddress { dev: up0(), address: "fd00::1/64".parse()? }];
    ops.extend(routes.iter().cloned().map(Op::AddRoute));
    let state = twins.both(&ops)?;
    for route in &routes {
        // What was left to the kernel reads back as what it chose.
        let mut read_back = route.clone();
        let is_ipv6 = route.dst.addr().is_ipv6();
        if route.kind == RouteKind::Unicast {
            read_back.dev = Some(up0());
        } else if is_ipv6 {
            read_back.dev = Some(IfName::loopback());
        }
        read_back.metric = if is_ipv6 { 1024 } else { route.metric };
        let is_near = route.via.is_none() && route.kind == RouteKind::Unicast && !is_ipv6;
        read_back.scope = Some(if is_near { RouteScope::Link } else { RouteScope::Global });
        assert!(state.routes.contains(&read_back), "{route:?}: {:#?}", state.routes);
    }
    let mut elsewhere = default;
    elsewhere.via = Some("10.0.0.3".parse()?);
    let mut ops = vec![Op::ReplaceRoute(elsewhere.clone())];
    ops.extend(routes.iter().filter(|route| route.dst.prefix_len() > 0).cloned().map(Op::DelRoute));
    ops.push(Op::DelRoute(elsewhere));
    ops.push(Op::DelAddress { dev: up0(), address: "10.0.0.1/24".parse()? });
    let state = twins.both(&ops)?;
    assert!(state.routes.iter().all(|route| route.protocol == Route::PROTOCOL_KERNEL), "{:#?}", state.routes);
    Ok(())
}

#[test]
fn the_kernel_says_which_way_a_packet_would_go() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let far = Route::to("10.9.0.0/16".parse()?).via("10.0.0.7".parse()?).dev(name("up0"));
    twins.netlink.apply(&Op::AddRoute(far))?;
    let mut way = |to: &str| twins.netlink.route_to(to.parse().expect("an address")).expect("an answer");
    let near = way("10.0.0.9").context("the link's own network")?;
    assert_eq!((near.dev, near.via, near.src), (Some(name("up0")), None, Some("10.0.0.1".parse()?)));
    let far = way("10.9.1.1").context("a network behind a router")?;
    assert_eq!((far.dev, far.via), (Some(name("up0")), Some("10.0.0.7".parse()?)));
    assert_eq!(way("10.0.0.1").map(|own| own.kind), Some(RouteKind::Local));
    assert_eq!(way("192.168.1.1"), None, "there is no default route");
    assert_eq!(way("fd99::1"), None);
    Ok(())
}

#[test]
fn a_macvlan_is_made_where_the_kernel_has_them() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let macvlan = Macvlan {
        name: name("mac0"),
        parent: name("up0"),
        mode: MacvlanMode::Bridge,
        netns: None,
        mac: Some(mac("02:00:00:00:00:77")),
    };
    let state = twins.both(&[Op::AddMacvlan(macvlan.clone())])?;
    assert_eq!(state.link("mac0")?.kind, LinkKind::Macvlan(macvlan));
    Ok(())
}

#[test]
fn a_bridge_learns_what_it_is_told() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut twins = Twins::new()?;
    let entry = FdbEntry {
        dev: name("far0"),
        mac: mac("02:00:00:00:00:99"),
        dst: None,
        owner: FdbOwner::Master,
        state: NeighbourState::NoArp,
    };
    let state = twins.both(&[
        Op::AddBridge { name: name("br0") },
        Op::SetMaster { dev: name("far0"), master: Some(name("br0")) },
        Op::ReplaceFdb(entry.clone()),
    ])?;
    assert_eq!(state.fdb, [entry]);
    Ok(())
}

#[test]
fn errors_name_the_command_and_what_the_kernel_says() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    let bridge = Op::AddBridge { name: name("br0") };
    netlink.apply(&bridge)?;
    let error = netlink.apply(&bridge).unwrap_err();
    assert!(error.is_exists());
    assert_eq!(error.to_string(), "ip link add br0 type bridge: File exists");
    let error = netlink.apply(&Op::AddAddress { dev: name("eth9"), address: "10.0.0.1/8".parse()? }).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "ip addr add 10.0.0.1/8 brd + dev eth9: No such device; there is no link eth9");
    let error = netlink.apply(&Op::SetUp { dev: name("eth9") }).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let unreachable = Route::to("10.1.0.0/16".parse()?).via("10.2.0.1".parse()?).dev(IfName::loopback());
    let error = netlink.apply(&Op::AddRoute(unreachable)).unwrap_err();
    assert!(error.to_string().starts_with("ip route add 10.1.0.0/16 via 10.2.0.1 dev lo: "), "{error}");
    assert!(error.to_string().contains("; "), "the kernel's own words follow: {error}");
    Ok(())
}

#[test]
fn a_long_batch_goes_on_after_a_failure_and_finds_links_that_it_makes() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut ops = Vec::new();
    for number in 0..150 {
        let bridge = name(&format!("br{number}"));
        ops.push(Op::AddBridge { name: bridge.clone() });
        ops.push(Op::SetUp { dev: bridge.clone() });
        ops.push(Op::AddAddress { dev: bridge, address: format!("10.{number}.0.1/16").parse()? });
    }
    ops.push(Op::DelLink { name: name("br7") });
    ops.push(Op::AddAddress { dev: name("br7"), address: "10.200.0.1/16".parse()? });
    ops.push(Op::AddBridge { name: name("br7") });
    ops.push(Op::AddAddress { dev: name("br7"), address: "10.201.0.1/16".parse()? });
    let mut netlink = Netlink::open()?;
    let results = netlink.apply_all(&ops);
    assert_eq!(results.len(), ops.len());
    for (position, result) in results.iter().enumerate() {
        match result {
            Ok(()) => assert_ne!(position, 451),
            Err(error) => assert!(position == 451 && error.is_not_found(), "{position}: {error}"),
        }
    }
    assert_eq!(netlink.links()?.len(), 151);
    assert_eq!(
        netlink
            .addresses()?
            .iter()
            .filter(|address| address.dev.as_str() == "br7" && address.address.addr().is_ipv4())
            .count(),
        1
    );
    Ok(())
}
