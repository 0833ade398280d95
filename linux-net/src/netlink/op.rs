//! The operations, as data.

use std::net::IpAddr;

use ipnet::IpNet;

use super::traffic::Qdisc;
use crate::{
    name::{IfName, MacAddr, Vni},
    netns::NetNs,
};

/// One change of links, addresses, routes, neighbours or forwarding entries.
///
/// It prints as the `ip` or `bridge` command that does the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates a bridge, a software switch.
    AddBridge {
        /// The bridge.
        name: IfName,
    },
    /// Creates a virtual cable, the far end in another namespace from its birth.
    AddVeth(Veth),
    /// Creates a VXLAN device.
    AddVxlan(Vxlan),
    /// Creates a macvlan device: a second MAC address on another device.
    AddMacvlan(Macvlan),
    /// Creates an intermediate functional block: a link that exists only to have a queue.
    AddIfb(Ifb),
    /// Deletes a link; of a veth, both ends.
    DelLink {
        /// The link.
        name: IfName,
    },
    /// Brings a link up.
    SetUp {
        /// The link.
        dev: IfName,
    },
    /// Takes a link down; its routes go with it.
    SetDown {
        /// The link.
        dev: IfName,
    },
    /// Makes a link a port of a bridge, or, with `None`, of none.
    SetMaster {
        /// The port.
        dev: IfName,
        /// The bridge.
        master: Option<IfName>,
    },
    /// Makes a link a port of a bridge and brings it up, in one step.
    PlugIn {
        /// The port.
        dev: IfName,
        /// The bridge.
        master: IfName,
    },
    /// Sets the largest packet a link sends.
    SetMtu {
        /// The link.
        dev: IfName,
        /// In bytes, without the Ethernet header.
        mtu_bytes: u32,
    },
    /// Sets a link's hardware address.
    SetMac {
        /// The link.
        dev: IfName,
        /// The address.
        mac: MacAddr,
    },
    /// Marks a link with a text, by which its owner finds it again; empty removes it.
    SetAlias {
        /// The link.
        dev: IfName,
        /// At most 255 bytes.
        alias: String,
    },
    /// Lets a bridge send a frame back through the port it came from.
    SetHairpin {
        /// The port.
        dev: IfName,
        /// On or off.
        on: bool,
    },
    /// Lets a link take frames for anybody's address.
    SetPromiscuous {
        /// The link.
        dev: IfName,
        /// On or off.
        on: bool,
    },
    /// Lets a link take frames for every multicast group.
    SetAllMulticast {
        /// The link.
        dev: IfName,
        /// On or off.
        on: bool,
    },
    /// Sets how many packets may wait in a link's queue.
    SetTxQueueLength {
        /// The link.
        dev: IfName,
        /// How many.
        packets: u32,
    },
    /// Forbids a port of a bridge to talk to other ports that are forbidden it.
    SetIsolated {
        /// The port.
        dev: IfName,
        /// On or off.
        on: bool,
    },
    /// Lets a bridge look at the VLAN tags of frames.
    SetVlanFiltering {
        /// The bridge.
        bridge: IfName,
        /// On or off.
        on: bool,
    },
    /// Lets frames of some VLANs through a port of a bridge, or through the bridge's own.
    AddVlans(Vlans),
    /// Takes VLANs from a port again.
    DelVlans(Vlans),
    /// Gives a link a queueing discipline.
    AddQdisc {
        /// The link.
        dev: IfName,
        /// The discipline.
        qdisc: Qdisc,
    },
    /// Takes a queueing discipline from a link, with its filters.
    DelQdisc {
        /// The link.
        dev: IfName,
        /// The discipline.
        qdisc: Qdisc,
    },
    /// Sends everything that a link receives through another one. The link needs [`Qdisc::Ingress`].
    AddRedirect {
        /// The link that receives.
        dev: IfName,
        /// The link that sends.
        to: IfName,
    },
    /// Renames a link, which must be down.
    Rename {
        /// Its name so far.
        dev: IfName,
        /// Its name from now on.
        name: IfName,
    },
    /// Moves a link into another namespace. Slow (the kernel waits for RCU): see [`Op::AddVeth`].
    SetNetNs {
        /// The link.
        dev: IfName,
        /// Where it goes.
        netns: NetNs,
    },
    /// Gives a link an address.
    AddAddress {
        /// The link.
        dev: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Takes an address from a link.
    DelAddress {
        /// The link.
        dev: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Adds a route; fails when one to the same destination with the same metric is there.
    AddRoute(Route),
    /// Adds a route or changes the one that is there.
    ReplaceRoute(Route),
    /// Deletes a route.
    DelRoute(Route),
    /// Adds a neighbour entry or changes the one that is there.
    ReplaceNeighbour(Neighbour),
    /// Deletes a neighbour entry.
    DelNeighbour(Neighbour),
    /// Adds a forwarding entry beside those that the same MAC address has.
    AppendFdb(FdbEntry),
    /// Adds a forwarding entry in the place of that which the same MAC address has.
    ReplaceFdb(FdbEntry),
    /// Deletes a forwarding entry.
    DelFdb(FdbEntry),
}

/// A virtual cable with two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// The near end, in the namespace of the socket.
    pub name: IfName,
    /// Its hardware address; the kernel picks a random one when `None`.
    pub mac: Option<MacAddr>,
    /// The MTU of both ends, in bytes; 1500 when `None`.
    pub mtu_bytes: Option<u32>,
    /// The far end.
    pub peer: VethPeer,
}

/// The far end of a virtual cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPeer {
    /// Its name.
    pub name: IfName,
    /// The namespace in which it is born; that of the socket when `None`.
    pub netns: Option<NetNs>,
    /// Its hardware address; the kernel picks a random one when `None`.
    pub mac: Option<MacAddr>,
}

impl Veth {
    /// Describes a cable between `name` here and `peer` in `netns` (or here too, when `None`).
    #[must_use]
    pub fn new(name: IfName, peer: IfName, netns: Option<&NetNs>) -> Self {
        Self { name, mac: None, mtu_bytes: None, peer: VethPeer { name: peer, netns: netns.cloned(), mac: None } }
    }
}

/// A VXLAN device: Ethernet frames in UDP packets.
///
/// Source: RFC 7348; Linux `drivers/net/vxlan/vxlan_core.c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The device.
    pub name: IfName,
    /// The network identifier in each packet.
    pub vni: Vni,
    /// The UDP destination port. IANA gave 4789; Linux and flannel use 8472.
    pub port: u16,
    /// The outer source address.
    pub local: Option<IpAddr>,
    /// The underlay device.
    pub dev: Option<IfName>,
    /// Whether it learns from what it receives; flannel fills its tables itself and says `false`.
    pub learning: bool,
    /// Whether packets carry a group policy identifier (the packet's mark).
    pub gbp: bool,
    /// The MTU in bytes; the kernel takes that of `dev` less 50 when `None`.
    pub mtu_bytes: Option<u32>,
    /// Its hardware address; the kernel picks a random one when `None`.
    pub mac: Option<MacAddr>,
}

impl Vxlan {
    /// The UDP port of Linux and flannel, older than IANA's.
    pub const DEFAULT_PORT: u16 = 8472;

    /// Describes a device with Linux's default port that does not learn.
    #[must_use]
    pub fn new(name: IfName, vni: Vni) -> Self {
        Self {
            name,
            vni,
            port: Self::DEFAULT_PORT,
            local: None,
            dev: None,
            learning: false,
            gbp: false,
            mtu_bytes: None,
            mac: None,
        }
    }
}

/// A macvlan device: a second MAC address on another device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// The device.
    pub name: IfName,
    /// The device below it.
    pub parent: IfName,
    /// Who among its siblings it may talk to.
    pub mode: MacvlanMode,
    /// The namespace in which it is born; that of the socket when `None`.
    pub netns: Option<NetNs>,
    /// Its hardware address; the kernel picks a random one when `None`.
    pub mac: Option<MacAddr>,
}

/// Who among the macvlan devices of one parent may talk to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Nobody.
    Private,
    /// Through the switch outside.
    Vepa,
    /// Directly.
    Bridge,
    /// There is only one, and it takes the parent's place.
    Passthru,
}

/// An intermediate functional block. Its queue is what it is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ifb {
    /// The device.
    pub name: IfName,
    /// The MTU in bytes; 1500 when `None`.
    pub mtu_bytes: Option<u32>,
    /// How many packets may wait in its queue; 32 when `None`.
    pub tx_queue_packets: Option<u32>,
}

/// A range of VLANs on a port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlans {
    /// The port, or the bridge.
    pub dev: IfName,
    /// The first VLAN of the range, 1 to 4094.
    pub first: u16,
    /// The last VLAN of the range.
    pub last: u16,
    /// Whether frames without a tag are of this VLAN, and its frames leave without one.
    pub untagged: bool,
    /// Whether `dev` is a bridge, and its own port is meant (`self`).
    pub on_bridge: bool,
}

impl Vlans {
    /// Describes one VLAN whose frames bear tags.
    #[must_use]
    pub fn one(dev: IfName, vlan: u16) -> Self {
        Self { dev, first: vlan, last: vlan, untagged: false, on_bridge: false }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` is the default route.
    pub dst: IpNet,
    /// What happens to packets.
    pub kind: RouteKind,
    /// The next router.
    pub via: Option<IpAddr>,
    /// The link.
    pub dev: Option<IfName>,
    /// Whether `via` counts as reachable on `dev` although no address of `dev` says so.
    pub onlink: bool,
    /// The source address of packets that start here.
    pub src: Option<IpAddr>,
    /// The lower wins; 0 is the kernel's default. For IPv6 that is 1024, and reads back so.
    pub metric: u32,
    /// The table, [`Route::MAIN_TABLE`] unless policy rules say otherwise.
    pub table: u32,
    /// How far away the destination is; `None` lets the rule of `ip` decide: link without `via`, else global. Read back, it is always there.
    pub scope: Option<RouteScope>,
    /// Who installed it: 2 kernel, 3 boot, 4 static; `ip` uses 3. A component marks its own with a number of its own.
    pub protocol: u8,
    /// The MTU of the path, in bytes.
    pub mtu_bytes: Option<u32>,
}

impl Route {
    /// The table that `ip route` shows.
    pub const MAIN_TABLE: u32 = 254;
    /// `RTPROT_KERNEL`: the kernel made the route itself, with an address.
    pub const PROTOCOL_KERNEL: u8 = 2;
    /// `RTPROT_BOOT`: what `ip route add` marks its routes with.
    pub const PROTOCOL_BOOT: u8 = 3;
    /// `RTPROT_STATIC`: an administrator installed it.
    pub const PROTOCOL_STATIC: u8 = 4;

    /// Describes a unicast route to `dst` in the main table, without a next router or link yet.
    #[must_use]
    pub fn to(dst: IpNet) -> Self {
        Self {
            dst,
            kind: RouteKind::Unicast,
            via: None,
            dev: None,
            onlink: false,
            src: None,
            metric: 0,
            table: Self::MAIN_TABLE,
            scope: None,
            protocol: Self::PROTOCOL_BOOT,
            mtu_bytes: None,
        }
    }

    /// Sends it through the router `via`.
    #[must_use]
    pub fn via(mut self, via: IpAddr) -> Self {
        self.via = Some(via);
        self
    }

    /// Sends it out of the link `dev`.
    #[must_use]
    pub fn dev(mut self, dev: IfName) -> Self {
        self.dev = Some(dev);
        self
    }

    /// Takes the router for reachable on the link.
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// Marks it with the number of who installed it.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }
}

/// What happens to packets that take a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// They go on.
    Unicast,
    /// They are for this machine.
    Local,
    /// They are for everybody on the link.
    Broadcast,
    /// They are for a group.
    Multicast,
    /// They vanish.
    Blackhole,
    /// They vanish, and the sender hears "host unreachable".
    Unreachable,
    /// They vanish, and the sender hears "administratively prohibited".
    Prohibit,
    /// Another kind, by its number (`RTN_*`).
    Other(u8),
}

/// How far away the destination of a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteScope {
    /// Behind a router.
    Global,
    /// On the link itself.
    Link,
    /// On this machine.
    Host,
    /// Another distance, by its number (`RT_SCOPE_*`).
    Other(u8),
}

/// A neighbour entry: which hardware address an IP address on a link has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The link.
    pub dev: IfName,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddr,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Describes an entry that never expires.
    #[must_use]
    pub fn permanent(dev: IfName, address: IpAddr, mac: MacAddr) -> Self {
        Self { dev, address, mac, state: NeighbourState::Permanent }
    }
}

/// How sure the kernel is of a neighbour or forwarding entry (`NUD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NeighbourState {
    /// Somebody said so; it never expires.
    Permanent,
    /// Somebody said so, and no answer is needed (`noarp`); in an FDB, what `bridge` calls `static`.
    NoArp,
    /// Confirmed lately.
    Reachable,
    /// Known, not confirmed lately.
    Stale,
    /// Another state, by its number.
    Other(u16),
}

/// A forwarding entry: behind which port, or which VXLAN peer, a MAC address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The link: a VXLAN device, or a port of a bridge.
    pub dev: IfName,
    /// The address that is looked for; [`MacAddr::ZERO`] is the answer for all that are unknown.
    pub mac: MacAddr,
    /// The VXLAN peer's underlay address.
    pub dst: Option<IpAddr>,
    /// Whose table it is in.
    pub owner: FdbOwner,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
}

impl FdbEntry {
    /// Describes an entry of a VXLAN device that never expires: frames for `mac` go to the peer `dst`.
    #[must_use]
    pub fn permanent(dev: IfName, mac: MacAddr, dst: IpAddr) -> Self {
        Self { dev, mac, dst: Some(dst), owner: FdbOwner::Itself, state: NeighbourState::Permanent }
    }
}

/// Whose table a forwarding entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FdbOwner {
    /// The device's own (`self`, `NTF_SELF`), as of a VXLAN device.
    Itself,
    /// That of the bridge whose port the device is (`master`, `NTF_MASTER`).
    Master,
}
