//! From the kernel's messages to what a caller wants to see.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridgePort, InfoData, InfoKind, InfoMacVlan,
        InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric},
};

use super::{
    Address, FdbEntry, FdbOwner, Link, LinkKind, Macvlan, MacvlanMode, Neighbour, NeighbourState, Route, RouteKind,
    RouteScope, Vlans, Vxlan,
};
use crate::{
    error::{Error, Result},
    name::{IfName, MacAddr, Vni},
};

/// The names of a namespace's links by their numbers.
#[derive(Default)]
pub(super) struct Names(BTreeMap<u32, IfName>);

impl Names {
    pub(super) fn of(messages: &[LinkMessage]) -> Self {
        Self(messages.iter().filter_map(|message| Some((message.header.index, name(message)?))).collect())
    }

    pub(super) fn one(index: u32, name: &IfName) -> Self {
        Self([(index, name.clone())].into())
    }

    pub(super) fn get(&self, index: u32) -> Option<IfName> {
        self.0.get(&index).cloned()
    }

    /// Adds what `newer` knows, which wins.
    pub(super) fn extend(&mut self, newer: Self) {
        self.0.extend(newer.0);
    }
}

fn name(message: &LinkMessage) -> Option<IfName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => IfName::new(name.as_str()).ok(),
        _ => None,
    })
}

/// The numbers of other links in the message whose names are wanted.
pub(super) fn referred(message: &LinkMessage) -> Vec<u32> {
    let mut indexes = Vec::new();
    let mut lower = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => indexes.push(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Data(InfoData::Vxlan(data)) => {
                            indexes.extend(data.iter().filter_map(|attribute| match attribute {
                                InfoVxlan::Link(index) => Some(*index),
                                _ => None,
                            }));
                        }
                        LinkInfo::Data(InfoData::MacVlan(_)) => indexes.extend(lower),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    indexes
}

pub(super) fn link(message: &LinkMessage, names: &Names) -> Result<Link> {
    let name = name(message).ok_or_else(|| Error::Malformed {
        what: "a link",
        reason: format!("link {} has no name", message.header.index),
    })?;
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        mac: None,
        mtu_bytes: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        tx_queue_packets: 0,
        master: None,
        alias: None,
        kind: if flags.contains(LinkFlags::Loopback) { LinkKind::Loopback } else { LinkKind::Other(String::new()) },
        peer_index: None,
        hairpin: None,
        isolated: None,
        name,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu_bytes = *mtu,
            LinkAttribute::TxQueueLen(packets) => link.tx_queue_packets = *packets,
            LinkAttribute::Controller(index) => link.master = names.get(*index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            // 0: while a veth is made, the second end is not there yet.
            LinkAttribute::Link(index) if *index != 0 => link.peer_index = Some(*index),
            _ => {}
        }
    }
    // The kind needs the attributes above, so it comes after them.
    for attribute in &message.attributes {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            read_info(&mut link, infos, names);
        }
    }
    Ok(link)
}

fn read_info(link: &mut Link, infos: &[LinkInfo], names: &Names) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
            LinkInfo::Kind(kind) => link.kind = LinkKind::Other(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => link.kind = LinkKind::Vxlan(vxlan(link, data, names)),
            LinkInfo::Data(InfoData::MacVlan(data)) => {
                if let Some(macvlan) = macvlan(link, data, names) {
                    link.kind = LinkKind::Macvlan(macvlan);
                }
            }
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                for attribute in data {
                    match attribute {
                        InfoBridgePort::HairpinMode(on) => link.hairpin = Some(*on),
                        InfoBridgePort::Isolated(on) => link.isolated = Some(*on),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn vxlan(link: &Link, data: &[InfoVxlan], names: &Names) -> Vxlan {
    let mut vxlan = Vxlan::new(link.name.clone(), Vni::new(0).expect("0 has fewer than 24 bits"));
    vxlan.mtu_bytes = Some(link.mtu_bytes);
    vxlan.mac = link.mac;
    for attribute in data {
        match attribute {
            InfoVxlan::Id(id) => vxlan.vni = Vni::new(*id).unwrap_or(vxlan.vni),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Link(index) => vxlan.dev = names.get(*index),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

fn macvlan(link: &Link, data: &[InfoMacVlan], names: &Names) -> Option<Macvlan> {
    let mode = data.iter().find_map(|attribute| match attribute {
        InfoMacVlan::Mode(MacVlanMode::Private) => Some(MacvlanMode::Private),
        InfoMacVlan::Mode(MacVlanMode::Vepa) => Some(MacvlanMode::Vepa),
        InfoMacVlan::Mode(MacVlanMode::Bridge) => Some(MacvlanMode::Bridge),
        InfoMacVlan::Mode(MacVlanMode::Passthrough) => Some(MacvlanMode::Passthru),
        _ => None,
    })?;
    let parent = names.get(link.peer_index?)?;
    Some(Macvlan { name: link.name.clone(), parent, mode, netns: None, mac: link.mac })
}

/// The VLANs of a port, from the answer to a request of the bridge's own family; each one alone.
pub(super) fn vlans(message: &LinkMessage, dev: &IfName) -> Vec<Vlans> {
    let specifications = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(specification) => Some(specification),
        _ => None,
    });
    let vlans = specifications.flatten().filter_map(|attribute| match attribute {
        AfSpecBridge::VlanInfo(info) => Some(info),
        _ => None,
    });
    let to_vlans = |info: &BridgeVlanInfo| Vlans {
        untagged: info.flags.contains(BridgeVlanInfoFlags::Untagged | BridgeVlanInfoFlags::Pvid),
        ..Vlans::one(dev.clone(), info.vid)
    };
    vlans.map(to_vlans).collect()
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

pub(super) fn address(message: &AddressMessage, names: &Names) -> Option<Address> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // IPv4 gives both, where Local is the link's own and Address the peer's; IPv6 gives Address only.
    let address = find(true).or_else(|| find(false))?;
    let flags = message.header.flags;
    Some(Address {
        dev: names.get(message.header.index)?,
        address: IpNet::new(address, message.header.prefix_len).ok()?,
        permanent: flags.contains(AddressHeaderFlags::Permanent),
        temporary: flags.contains(AddressHeaderFlags::Secondary),
        deprecated: flags.contains(AddressHeaderFlags::Deprecated),
    })
}

/// The table of the addresses that are this machine's own.
const LOCAL_TABLE: u32 = 255;

pub(super) fn route(message: &RouteMessage, names: &Names) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0, 0, 0, 0]),
        AddressFamily::Inet6 => IpAddr::from([0_u16; 8]),
        _ => return None,
    };
    let mut dst = unspecified;
    let mut route = Route::to(IpNet::new(unspecified, header.destination_prefix_length).ok()?);
    route.table = header.table.into();
    route.protocol = header.protocol.into();
    route.onlink = header.flags.contains(RouteFlags::Onlink);
    route.kind = match u8::from(header.kind) {
        1 => RouteKind::Unicast,
        2 => RouteKind::Local,
        3 => RouteKind::Broadcast,
        5 => RouteKind::Multicast,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        other => RouteKind::Other(other),
    };
    route.scope = Some(match u8::from(header.scope) {
        0 => RouteScope::Global,
        253 => RouteScope::Link,
        254 => RouteScope::Host,
        other => RouteScope::Other(other),
    });
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => route.via = ip(address),
            RouteAttribute::PrefSource(address) => route.src = ip(address),
            RouteAttribute::Oif(index) => route.dev = names.get(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.mtu_bytes = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
    (route.table != LOCAL_TABLE).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn neighbour_state(state: u16) -> NeighbourState {
    match state {
        // In an FDB, `bridge` writes permanent and noarp together, flannel permanent only; both mean the same.
        0x80 | 0xc0 => NeighbourState::Permanent,
        0x40 => NeighbourState::NoArp,
        0x02 => NeighbourState::Reachable,
        0x04 => NeighbourState::Stale,
        other => NeighbourState::Other(other),
    }
}

fn entry(message: &NeighbourMessage) -> (Option<IpAddr>, Option<MacAddr>) {
    let (mut address, mut hardware) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            // The addresses of bridge entries come without a family that the library reads.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = match bytes.len() {
                    4 => <[u8; 4]>::try_from(&bytes[..]).ok().map(IpAddr::from),
                    16 => <[u8; 16]>::try_from(&bytes[..]).ok().map(IpAddr::from),
                    _ => None,
                };
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
            _ => {}
        }
    }
    (address, hardware)
}

/// A neighbour as an event tells of it: one that was deleted, or was never found, comes without a hardware address.
pub(super) fn neighbour_event(message: &NeighbourMessage, names: &Names) -> Option<Neighbour> {
    let (address, mac) = entry(message);
    Some(Neighbour {
        dev: names.get(message.header.ifindex)?,
        address: address?,
        mac: mac.unwrap_or(MacAddr::ZERO),
        state: neighbour_state(message.header.state.into()),
    })
}

pub(super) fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<Neighbour> {
    let (_, mac) = entry(message);
    mac.and_then(|_| neighbour_event(message, names))
}

pub(super) fn fdb(message: &NeighbourMessage, names: &Names) -> Option<FdbEntry> {
    let (dst, mac) = entry(message);
    let own = message.header.flags.contains(NeighbourFlags::Own);
    Some(FdbEntry {
        dev: names.get(message.header.ifindex)?,
        mac: mac?,
        dst,
        owner: if own { FdbOwner::Itself } else { FdbOwner::Master },
        state: neighbour_state(message.header.state.into()),
    })
}
