//! An [`Op`] as the command a student would type.

use std::fmt;

use super::{
    FdbEntry, FdbOwner, MacvlanMode, Neighbour, NeighbourState, Op, Qdisc, Route, RouteKind, RouteScope, Veth, Vlans,
    Vxlan,
};

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_off = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Op::AddBridge { name } => write!(f, "ip link add {name} type bridge"),
            Op::AddVeth(veth) => add_veth(veth, f),
            Op::AddVxlan(vxlan) => add_vxlan(vxlan, f),
            Op::AddMacvlan(macvlan) => {
                let mode = match macvlan.mode {
                    MacvlanMode::Private => "private",
                    MacvlanMode::Vepa => "vepa",
                    MacvlanMode::Bridge => "bridge",
                    MacvlanMode::Passthru => "passthru",
                };
                write!(f, "ip link add {} link {}", macvlan.name, macvlan.parent)?;
                write_some(f, "address", macvlan.mac)?;
                write_some(f, "netns", macvlan.netns.as_ref().map(crate::NetNs::argument))?;
                write!(f, " type macvlan mode {mode}")
            }
            Op::AddIfb(ifb) => {
                write!(f, "ip link add {}", ifb.name)?;
                write_some(f, "mtu", ifb.mtu_bytes)?;
                write_some(f, "txqueuelen", ifb.tx_queue_packets)?;
                f.write_str(" type ifb")
            }
            Op::SetAllMulticast { dev, on } => write!(f, "ip link set {dev} allmulticast {}", on_off(on)),
            Op::SetTxQueueLength { dev, packets } => write!(f, "ip link set {dev} txqueuelen {packets}"),
            Op::SetIsolated { dev, on } => write!(f, "bridge link set dev {dev} isolated {}", on_off(on)),
            Op::SetVlanFiltering { bridge, on } => {
                write!(f, "ip link set {bridge} type bridge vlan_filtering {}", u8::from(*on))
            }
            Op::AddVlans(vlans) => write_vlans("add", vlans, f),
            Op::DelVlans(vlans) => write_vlans("del", vlans, f),
            Op::AddQdisc { dev, qdisc } => write!(f, "tc qdisc add dev {dev} {qdisc}"),
            Op::DelQdisc { dev, qdisc: Qdisc::Ingress } => write!(f, "tc qdisc del dev {dev} ingress"),
            Op::DelQdisc { dev, qdisc: Qdisc::TokenBucket(_) | Qdisc::Other(_) } => {
                write!(f, "tc qdisc del dev {dev} root")
            }
            Op::AddRedirect { dev, to } => write!(
                f,
                "tc filter add dev {dev} parent ffff: prio 1 protocol all u32 match u32 0 0 flowid 1:1 \
                 action mirred egress redirect dev {to}"
            ),
            Op::DelLink { name } => write!(f, "ip link del {name}"),
            Op::SetUp { dev } => write!(f, "ip link set {dev} up"),
            Op::SetDown { dev } => write!(f, "ip link set {dev} down"),
            Op::SetMaster { dev, master: Some(master) } => write!(f, "ip link set {dev} master {master}"),
            Op::SetMaster { dev, master: None } => write!(f, "ip link set {dev} nomaster"),
            Op::PlugIn { dev, master } => write!(f, "ip link set {dev} master {master} up"),
            Op::SetMtu { dev, mtu_bytes } => write!(f, "ip link set {dev} mtu {mtu_bytes}"),
            Op::SetMac { dev, mac } => write!(f, "ip link set {dev} address {mac}"),
            Op::SetAlias { dev, alias } => write!(f, "ip link set {dev} alias '{}'", alias.replace('\'', "'\\''")),
            Op::SetHairpin { dev, on } => write!(f, "bridge link set dev {dev} hairpin {}", on_off(on)),
            Op::SetPromiscuous { dev, on } => write!(f, "ip link set {dev} promisc {}", on_off(on)),
            Op::Rename { dev, name } => write!(f, "ip link set {dev} name {name}"),
            Op::SetNetNs { dev, netns } => write!(f, "ip link set {dev} netns {}", netns.argument()),
            Op::AddAddress { dev, address } => write!(f, "ip addr add {address}{} dev {dev}", broadcast(*address)),
            Op::DelAddress { dev, address } => write!(f, "ip addr del {address} dev {dev}"),
            Op::AddRoute(route) => write_route("add", route, f),
            Op::ReplaceRoute(route) => write_route("replace", route, f),
            Op::DelRoute(route) => write_route("del", route, f),
            Op::ReplaceNeighbour(entry) => write_neighbour("replace", entry, f),
            Op::DelNeighbour(entry) => {
                write!(f, "ip{} neigh del {} dev {}", six(entry.address.is_ipv6()), entry.address, entry.dev)
            }
            Op::AppendFdb(entry) => write_fdb("append", entry, f),
            Op::ReplaceFdb(entry) => write_fdb("replace", entry, f),
            Op::DelFdb(entry) => write_fdb("del", entry, f),
        }
    }
}

fn write_some(f: &mut fmt::Formatter<'_>, word: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {word} {value}"))
}

fn six(is_ipv6: bool) -> &'static str {
    if is_ipv6 { " -6" } else { "" }
}

fn broadcast(address: ipnet::IpNet) -> &'static str {
    if address.addr().is_ipv4() && address.prefix_len() < 31 { " brd +" } else { "" }
}

fn add_veth(veth: &Veth, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "ip link add {}", veth.name)?;
    write_some(f, "address", veth.mac)?;
    write_some(f, "mtu", veth.mtu_bytes)?;
    write!(f, " type veth peer name {}", veth.peer.name)?;
    write_some(f, "address", veth.peer.mac)?;
    write_some(f, "mtu", veth.mtu_bytes)?;
    write_some(f, "netns", veth.peer.netns.as_ref().map(crate::NetNs::argument))
}

fn add_vxlan(vxlan: &Vxlan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "ip link add {}", vxlan.name)?;
    write_some(f, "address", vxlan.mac)?;
    write_some(f, "mtu", vxlan.mtu_bytes)?;
    write!(f, " type vxlan id {}", vxlan.vni)?;
    write_some(f, "local", vxlan.local)?;
    write_some(f, "dev", vxlan.dev.as_ref())?;
    write!(f, " dstport {} {}learning", vxlan.port, if vxlan.learning { "" } else { "no" })?;
    if vxlan.gbp { f.write_str(" gbp") } else { Ok(()) }
}

fn write_vlans(verb: &str, vlans: &Vlans, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "bridge vlan {verb} dev {} vid {}", vlans.dev, vlans.first)?;
    if vlans.last != vlans.first {
        write!(f, "-{}", vlans.last)?;
    }
    if vlans.untagged {
        f.write_str(" pvid untagged")?;
    }
    if vlans.on_bridge { f.write_str(" self") } else { Ok(()) }
}

fn write_route(verb: &str, route: &Route, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "ip{} route {verb} ", six(route.dst.addr().is_ipv6()))?;
    match route.kind {
        RouteKind::Unicast => {}
        RouteKind::Local => f.write_str("local ")?,
        RouteKind::Broadcast => f.write_str("broadcast ")?,
        RouteKind::Multicast => f.write_str("multicast ")?,
        RouteKind::Blackhole => f.write_str("blackhole ")?,
        RouteKind::Unreachable => f.write_str("unreachable ")?,
        RouteKind::Prohibit => f.write_str("prohibit ")?,
        RouteKind::Other(kind) => write!(f, "type {kind} ")?,
    }
    if route.dst.prefix_len() == 0 {
        f.write_str("default")?;
    } else {
        write!(f, "{}", route.dst.trunc())?;
    }
    write_some(f, "via", route.via)?;
    write_some(f, "dev", route.dev.as_ref())?;
    write_some(f, "src", route.src)?;
    if route.metric > 0 {
        write!(f, " metric {}", route.metric)?;
    }
    if route.table != Route::MAIN_TABLE {
        write!(f, " table {}", route.table)?;
    }
    match route.scope {
        None => {}
        Some(RouteScope::Global) => f.write_str(" scope global")?,
        Some(RouteScope::Link) => f.write_str(" scope link")?,
        Some(RouteScope::Host) => f.write_str(" scope host")?,
        Some(RouteScope::Other(scope)) => write!(f, " scope {scope}")?,
    }
    // Without the word `ip` takes 3, boot.
    if route.protocol != Route::PROTOCOL_BOOT {
        write!(f, " proto {}", route.protocol)?;
    }
    write_some(f, "mtu", route.mtu_bytes)?;
    if route.onlink { f.write_str(" onlink") } else { Ok(()) }
}

fn write_neighbour(verb: &str, entry: &Neighbour, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let state = state(entry.state);
    write!(f, "ip neigh {verb} {} lladdr {} dev {} nud {state}", entry.address, entry.mac, entry.dev)
}

fn state(state: NeighbourState) -> String {
    match state {
        NeighbourState::Permanent => "permanent".to_owned(),
        NeighbourState::NoArp => "noarp".to_owned(),
        NeighbourState::Reachable => "reachable".to_owned(),
        NeighbourState::Stale => "stale".to_owned(),
        NeighbourState::Other(state) => format!("{state:#x}"),
    }
}

fn write_fdb(verb: &str, entry: &FdbEntry, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "bridge fdb {verb} {} dev {}", entry.mac, entry.dev)?;
    write_some(f, "dst", entry.dst)?;
    f.write_str(match entry.owner {
        FdbOwner::Itself => " self",
        FdbOwner::Master => " master",
    })?;
    match entry.state {
        NeighbourState::Permanent => f.write_str(" permanent"),
        NeighbourState::NoArp => f.write_str(" static"),
        NeighbourState::Reachable => f.write_str(" dynamic"),
        NeighbourState::Stale | NeighbourState::Other(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IfName, MacAddr, Vni, netlink::Macvlan};

    #[test]
    fn operations_print_as_the_commands_that_a_student_types() {
        let dev = || IfName::new("eth0").unwrap();
        let mac: MacAddr = "02:00:00:00:00:01".parse().unwrap();
        let mut veth = Veth::new(dev(), IfName::new("far0").unwrap(), None);
        veth.mtu_bytes = Some(1450);
        let mut vxlan = Vxlan::new(IfName::new("flannel.100").unwrap(), Vni::new(100).unwrap());
        vxlan.local = Some("10.0.0.3".parse().unwrap());
        let macvlan = Macvlan {
            name: IfName::new("mac0").unwrap(),
            parent: dev(),
            mode: MacvlanMode::Bridge,
            netns: None,
            mac: Some(mac),
        };
        let mut route = Route::to("11.10.16.0/20".parse().unwrap()).via("11.10.16.0".parse().unwrap()).dev(dev());
        route.metric = 5;
        let mut blackhole = Route::to("fd00::/8".parse().unwrap());
        blackhole.kind = RouteKind::Blackhole;
        let neighbour = Neighbour::permanent(dev(), "11.10.16.0".parse().unwrap(), mac);
        let entry = FdbEntry::permanent(dev(), mac, "10.0.0.4".parse().unwrap());
        for (op, command) in [
            (Op::AddVeth(veth), "ip link add eth0 mtu 1450 type veth peer name far0 mtu 1450"),
            (Op::AddVxlan(vxlan), "ip link add flannel.100 type vxlan id 100 local 10.0.0.3 dstport 8472 nolearning"),
            (Op::AddMacvlan(macvlan), "ip link add mac0 link eth0 address 02:00:00:00:00:01 type macvlan mode bridge"),
            (Op::SetMaster { dev: dev(), master: None }, "ip link set eth0 nomaster"),
            (Op::SetAlias { dev: dev(), alias: "it's".into() }, r"ip link set eth0 alias 'it'\''s'"),
            (Op::SetHairpin { dev: dev(), on: true }, "bridge link set dev eth0 hairpin on"),
            (
                Op::AddVlans(Vlans { last: 20, untagged: true, on_bridge: true, ..Vlans::one(dev(), 10) }),
                "bridge vlan add dev eth0 vid 10-20 pvid untagged self",
            ),
            (Op::DelVlans(Vlans::one(dev(), 1)), "bridge vlan del dev eth0 vid 1"),
            (Op::SetVlanFiltering { bridge: dev(), on: true }, "ip link set eth0 type bridge vlan_filtering 1"),
            (Op::AddRoute(Route::to("0.0.0.0/0".parse().unwrap()).dev(dev())), "ip route add default dev eth0"),
            (
                Op::ReplaceRoute(route.onlink().protocol(77)),
                "ip route replace 11.10.16.0/20 via 11.10.16.0 dev eth0 metric 5 proto 77 onlink",
            ),
            (Op::DelRoute(blackhole), "ip -6 route del blackhole fd00::/8"),
            (
                Op::ReplaceNeighbour(neighbour),
                "ip neigh replace 11.10.16.0 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
            ),
            (Op::AppendFdb(entry), "bridge fdb append 02:00:00:00:00:01 dev eth0 dst 10.0.0.4 self permanent"),
        ] {
            assert_eq!(op.to_string(), command);
        }
    }
}
