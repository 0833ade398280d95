//! From an [`Op`] to the message that asks the kernel for it.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind,
        InfoMacVlan, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        MacVlanMode,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric},
};

use super::{
    FdbEntry, FdbOwner, Macvlan, MacvlanMode, Neighbour, NeighbourState, Op, Route, RouteKind, RouteScope, Veth, Vlans,
    Vxlan, traffic,
};
use crate::name::IfName;

/// The kernel's number of a link.
pub(super) type Index = u32;

/// Make it; fail when it is there.
const CREATE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
/// Make it, or change the one that is there.
const REPLACE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;

/// The message for an operation, and its flags.
pub(super) fn message(op: &Op, index: &dyn Fn(&IfName) -> Index) -> (RouteNetlinkMessage, u16) {
    match op {
        Op::AddBridge { name } => new_link(name, InfoKind::Bridge, None, Vec::new()),
        Op::AddVeth(veth) => add_veth(veth),
        Op::AddVxlan(vxlan) => add_vxlan(vxlan, index),
        Op::AddMacvlan(macvlan) => add_macvlan(macvlan, index),
        Op::AddIfb(ifb) => {
            let queue = ifb.tx_queue_packets.map(LinkAttribute::TxQueueLen);
            new_link(
                &ifb.name,
                InfoKind::Ifb,
                None,
                ifb.mtu_bytes.map(LinkAttribute::Mtu).into_iter().chain(queue).collect(),
            )
        }
        Op::DelLink { name } => (RouteNetlinkMessage::DelLink(link_named(name)), NLM_F_ACK),
        Op::SetUp { dev } => set_flag(dev, LinkFlags::Up, true),
        Op::SetDown { dev } => set_flag(dev, LinkFlags::Up, false),
        Op::SetPromiscuous { dev, on } => set_flag(dev, LinkFlags::Promisc, *on),
        Op::SetMaster { dev, master } => set_link(dev, LinkAttribute::Controller(master.as_ref().map_or(0, index))),
        Op::PlugIn { dev, master } => {
            let mut message = link_with_flag(dev, LinkFlags::Up, true);
            message.attributes.push(LinkAttribute::Controller(index(master)));
            (RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
        }
        Op::SetMtu { dev, mtu_bytes } => set_link(dev, LinkAttribute::Mtu(*mtu_bytes)),
        Op::SetMac { dev, mac } => set_link(dev, LinkAttribute::Address(mac.octets().to_vec())),
        Op::SetAlias { dev, alias } => set_link(dev, LinkAttribute::IfAlias(alias.clone())),
        Op::SetNetNs { dev, netns } => set_link(dev, LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())),
        Op::SetAllMulticast { dev, on } => set_flag(dev, LinkFlags::Allmulti, *on),
        Op::SetTxQueueLength { dev, packets } => set_link(dev, LinkAttribute::TxQueueLen(*packets)),
        Op::SetHairpin { dev, on } => set_port(dev, InfoBridgePort::HairpinMode(*on)),
        Op::SetIsolated { dev, on } => set_port(dev, InfoBridgePort::Isolated(*on)),
        Op::SetVlanFiltering { bridge, on } => set_link(
            bridge,
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(*on)])),
            ]),
        ),
        Op::AddVlans(vlans) => (RouteNetlinkMessage::SetLink(vlans_message(vlans, index)), NLM_F_ACK),
        Op::DelVlans(vlans) => (RouteNetlinkMessage::DelLink(vlans_message(vlans, index)), NLM_F_ACK),
        Op::AddQdisc { dev, qdisc } => {
            (RouteNetlinkMessage::NewQueueDiscipline(traffic::qdisc_message(index(dev), qdisc)), CREATE)
        }
        Op::DelQdisc { dev, qdisc } => {
            (RouteNetlinkMessage::DelQueueDiscipline(traffic::qdisc_message(index(dev), qdisc)), NLM_F_ACK)
        }
        Op::AddRedirect { dev, to } => {
            (RouteNetlinkMessage::NewTrafficFilter(traffic::redirect_message(index(dev), index(to))), CREATE)
        }
        Op::Rename { dev, name } => {
            // The new name stands where the old one would, so the link is meant by its number.
            let mut message = LinkMessage::default();
            message.header.index = index(dev);
            message.attributes.push(LinkAttribute::IfName(name.to_string()));
            (RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
        }
        Op::AddAddress { dev, address } => {
            (RouteNetlinkMessage::NewAddress(address_message(index(dev), *address)), CREATE)
        }
        Op::DelAddress { dev, address } => {
            (RouteNetlinkMessage::DelAddress(address_message(index(dev), *address)), NLM_F_ACK)
        }
        Op::AddRoute(route) => (RouteNetlinkMessage::NewRoute(route_message(route, index)), CREATE),
        Op::ReplaceRoute(route) => (RouteNetlinkMessage::NewRoute(route_message(route, index)), REPLACE),
        Op::DelRoute(route) => (RouteNetlinkMessage::DelRoute(route_message(route, index)), NLM_F_ACK),
        Op::ReplaceNeighbour(entry) => (RouteNetlinkMessage::NewNeighbour(neighbour_message(entry, index)), REPLACE),
        Op::DelNeighbour(entry) => (RouteNetlinkMessage::DelNeighbour(neighbour_message(entry, index)), NLM_F_ACK),
        Op::AppendFdb(entry) => {
            let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
            (RouteNetlinkMessage::NewNeighbour(fdb_message(entry, index)), flags)
        }
        Op::ReplaceFdb(entry) => (RouteNetlinkMessage::NewNeighbour(fdb_message(entry, index)), REPLACE),
        Op::DelFdb(entry) => (RouteNetlinkMessage::DelNeighbour(fdb_message(entry, index)), NLM_F_ACK),
    }
}

fn link_named(name: &IfName) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn set_link(dev: &IfName, attribute: LinkAttribute) -> (RouteNetlinkMessage, u16) {
    let mut message = link_named(dev);
    message.attributes.push(attribute);
    // The kernel changes a port's settings, LinkInfo, in answer to RTM_NEWLINK only.
    if matches!(message.attributes.last(), Some(LinkAttribute::LinkInfo(_))) {
        return (RouteNetlinkMessage::NewLink(message), NLM_F_ACK);
    }
    (RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
}

fn set_port(port: &IfName, setting: InfoBridgePort) -> (RouteNetlinkMessage, u16) {
    set_link(
        port,
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![setting])),
        ]),
    )
}

/// A message of the bridge's own family, which knows links by their number only.
fn vlans_message(vlans: &Vlans, index: &dyn Fn(&IfName) -> Index) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index(&vlans.dev);
    let flags = if vlans.untagged {
        BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
    } else {
        BridgeVlanInfoFlags::empty()
    };
    let mut specification = Vec::new();
    if vlans.on_bridge {
        specification.push(AfSpecBridge::Flags(BridgeFlag::LowerDev));
    }
    let vlan = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    if vlans.first == vlans.last {
        specification.push(vlan(vlans.first, flags));
    } else {
        specification.push(vlan(vlans.first, flags | BridgeVlanInfoFlags::RangeBegin));
        specification.push(vlan(vlans.last, flags | BridgeVlanInfoFlags::RangeEnd));
    }
    message.attributes.push(LinkAttribute::AfSpecBridge(specification));
    message
}

fn link_with_flag(dev: &IfName, flag: LinkFlags, on: bool) -> LinkMessage {
    let mut message = link_named(dev);
    message.header.flags.set(flag, on);
    message.header.change_mask = flag;
    message
}

fn set_flag(dev: &IfName, flag: LinkFlags, on: bool) -> (RouteNetlinkMessage, u16) {
    (RouteNetlinkMessage::SetLink(link_with_flag(dev, flag, on)), NLM_F_ACK)
}

fn new_link(
    name: &IfName,
    kind: InfoKind,
    data: Option<InfoData>,
    attributes: Vec<LinkAttribute>,
) -> (RouteNetlinkMessage, u16) {
    let mut message = link_named(name);
    message.attributes.extend(attributes);
    let info = std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data)).collect();
    message.attributes.push(LinkAttribute::LinkInfo(info));
    (RouteNetlinkMessage::NewLink(message), CREATE)
}

fn add_veth(veth: &Veth) -> (RouteNetlinkMessage, u16) {
    let mtu = || veth.mtu_bytes.map(LinkAttribute::Mtu);
    let mac = |mac: Option<crate::MacAddr>| mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec()));
    let mut peer = link_named(&veth.peer.name);
    let netns = veth.peer.netns.as_ref().map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
    peer.attributes.extend(mtu().into_iter().chain(mac(veth.peer.mac)).chain(netns));
    let attributes = mtu().into_iter().chain(mac(veth.mac)).collect();
    new_link(&veth.name, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))), attributes)
}

fn add_vxlan(vxlan: &Vxlan, index: &dyn Fn(&IfName) -> Index) -> (RouteNetlinkMessage, u16) {
    let mut data =
        vec![InfoVxlan::Id(vxlan.vni.get()), InfoVxlan::Port(vxlan.port), InfoVxlan::Learning(vxlan.learning)];
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    data.extend(vxlan.dev.as_ref().map(|dev| InfoVxlan::Link(index(dev))));
    data.extend(vxlan.gbp.then_some(InfoVxlan::Gbp));
    let mac = vxlan.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec()));
    let attributes = vxlan.mtu_bytes.map(LinkAttribute::Mtu).into_iter().chain(mac).collect();
    new_link(&vxlan.name, InfoKind::Vxlan, Some(InfoData::Vxlan(data)), attributes)
}

fn add_macvlan(macvlan: &Macvlan, index: &dyn Fn(&IfName) -> Index) -> (RouteNetlinkMessage, u16) {
    let mode = match macvlan.mode {
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    };
    let mut attributes = vec![LinkAttribute::Link(index(&macvlan.parent))];
    attributes.extend(macvlan.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    attributes.extend(macvlan.netns.as_ref().map(|netns| LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())));
    let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
    new_link(&macvlan.name, InfoKind::MacVlan, Some(data), attributes)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: Index, address: ipnet::IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    // As `ip addr add ADDRESS brd +`, where there is room for a broadcast address.
    if let ipnet::IpNet::V4(address) = address
        && address.prefix_len() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
    }
    message
}

fn route_message(route: &Route, index: &dyn Fn(&IfName) -> Index) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.addr());
    header.destination_prefix_length = route.dst.prefix_len();
    header.protocol = route.protocol.into();
    header.kind = route_kind(route.kind).into();
    header.scope = route_scope(route).into();
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    // The header has room for 8 bits of the table's number.
    match u8::try_from(route.table) {
        Ok(table) => header.table = table,
        Err(_) => {
            header.table = RouteHeader::RT_TABLE_UNSPEC;
            attributes.push(RouteAttribute::Table(route.table));
        }
    }
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
    attributes.extend(route.dev.as_ref().map(|dev| RouteAttribute::Oif(index(dev))));
    attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(src.into())));
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.extend(route.mtu_bytes.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// `RTN_*` of `linux/rtnetlink.h`.
fn route_kind(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Unicast => 1,
        RouteKind::Local => 2,
        RouteKind::Broadcast => 3,
        RouteKind::Multicast => 5,
        RouteKind::Blackhole => 6,
        RouteKind::Unreachable => 7,
        RouteKind::Prohibit => 8,
        RouteKind::Other(kind) => kind,
    }
}

/// `RT_SCOPE_*` of `linux/rtnetlink.h`; without one, what `ip route` takes (iproute2 `ip/iproute.c`, `iproute_modify()`).
fn route_scope(route: &Route) -> u8 {
    match route.scope {
        Some(RouteScope::Global) => 0,
        Some(RouteScope::Link) => 253,
        Some(RouteScope::Host) => 254,
        Some(RouteScope::Other(scope)) => scope,
        None if route.dst.addr().is_ipv6() => 0, // IPv6 knows no scopes
        None => match route.kind {
            RouteKind::Local => 254,
            RouteKind::Broadcast | RouteKind::Multicast => 253,
            RouteKind::Unicast if route.via.is_none() => 253,
            _ => 0,
        },
    }
}

fn neighbour_state(state: NeighbourState) -> u16 {
    // NUD_* of linux/neighbour.h
    match state {
        NeighbourState::Permanent => 0x80,
        NeighbourState::NoArp => 0x40,
        NeighbourState::Reachable => 0x02,
        NeighbourState::Stale => 0x04,
        NeighbourState::Other(state) => state,
    }
}

fn neighbour_message(entry: &Neighbour, index: &dyn Fn(&IfName) -> Index) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(entry.address);
    message.header.ifindex = index(&entry.dev);
    message.header.state = neighbour_state(entry.state).into();
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(entry.address)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.octets().to_vec()));
    message
}

fn fdb_message(entry: &FdbEntry, index: &dyn Fn(&IfName) -> Index) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index(&entry.dev);
    message.header.state = neighbour_state(entry.state).into();
    message.header.flags = match entry.owner {
        FdbOwner::Itself => NeighbourFlags::Own,
        FdbOwner::Master => NeighbourFlags::Controller,
    };
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.octets().to_vec()));
    message.attributes.extend(entry.dst.map(|dst| NeighbourAttribute::Destination(neighbour_address(dst))));
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

impl Op {
    /// The links that the operation's message names by number, and that must exist before it is made.
    pub(super) fn links_by_index(&self) -> Vec<&IfName> {
        match self {
            Op::AddVxlan(vxlan) => vxlan.dev.iter().collect(),
            Op::AddMacvlan(macvlan) => vec![&macvlan.parent],
            Op::SetMaster { master, .. } => master.iter().collect(),
            Op::PlugIn { master, .. } => vec![master],
            Op::AddVlans(vlans) | Op::DelVlans(vlans) => vec![&vlans.dev],
            Op::AddRedirect { dev, to } => vec![dev, to],
            Op::AddQdisc { dev, .. }
            | Op::DelQdisc { dev, .. }
            | Op::Rename { dev, .. }
            | Op::AddAddress { dev, .. }
            | Op::DelAddress { dev, .. } => vec![dev],
            Op::AddRoute(route) | Op::ReplaceRoute(route) | Op::DelRoute(route) => route.dev.iter().collect(),
            Op::ReplaceNeighbour(entry) | Op::DelNeighbour(entry) => vec![&entry.dev],
            Op::AppendFdb(entry) | Op::ReplaceFdb(entry) | Op::DelFdb(entry) => vec![&entry.dev],
            Op::AddBridge { .. }
            | Op::AddVeth(_)
            | Op::AddIfb(_)
            | Op::SetAllMulticast { .. }
            | Op::SetTxQueueLength { .. }
            | Op::SetIsolated { .. }
            | Op::SetVlanFiltering { .. }
            | Op::DelLink { .. }
            | Op::SetUp { .. }
            | Op::SetDown { .. }
            | Op::SetMtu { .. }
            | Op::SetMac { .. }
            | Op::SetAlias { .. }
            | Op::SetHairpin { .. }
            | Op::SetPromiscuous { .. }
            | Op::SetNetNs { .. } => Vec::new(),
        }
    }

    /// Whether a name may mean another link afterwards.
    pub(super) fn moves_indexes(&self) -> bool {
        matches!(self, Op::DelLink { .. } | Op::Rename { .. } | Op::SetNetNs { .. })
    }
}
