//! What stands in the kernel, as read back from it.

use ipnet::IpNet;

use super::{Macvlan, Vxlan};
use crate::name::{IfName, MacAddr};

/// A network interface, as `ip -d link show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the link that can be set or not, whatever the others are"
)]
pub struct Link {
    /// The kernel's number for it, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its hardware address, when it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// The largest packet it sends, in bytes.
    pub mtu_bytes: u32,
    /// Whether it is administratively up (`IFF_UP`, what `ip link set up` sets).
    pub up: bool,
    /// Whether it has carrier (`IFF_LOWER_UP`): for a veth, whether the other end is up too.
    pub carrier: bool,
    /// Whether it takes frames for anybody's address (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Whether it takes frames for every multicast group (`IFF_ALLMULTI`).
    pub all_multicast: bool,
    /// How many packets may wait in its queue.
    pub tx_queue_packets: u32,
    /// The bridge it is a port of.
    pub master: Option<IfName>,
    /// The text an administrator or a program marked it with.
    pub alias: Option<String>,
    /// What kind of device it is.
    pub kind: LinkKind,
    /// The index of its other end (veth) or its lower device (macvlan), perhaps in another namespace.
    pub peer_index: Option<u32>,
    /// Whether, as a port of a bridge, it may send a frame back where it came from; `None` when not a port.
    pub hairpin: Option<bool>,
    /// Whether, as a port of a bridge, it may not talk to other ports of which the same is true; `None` when not a port.
    pub isolated: Option<bool>,
}

/// What kind of device a link is (`IFLA_INFO_KIND`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The loopback device.
    Loopback,
    /// One end of a virtual cable.
    Veth,
    /// A software switch.
    Bridge,
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// A second MAC address on another device.
    Macvlan(Macvlan),
    /// Another kind, by the kernel's name for it; empty for a physical device.
    Other(String),
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub dev: IfName,
    /// The address with its prefix length.
    pub address: IpNet,
    /// Whether it stays until somebody takes it away, unlike one from DHCP or a router advertisement (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// Whether it is an IPv6 privacy address, or an IPv4 one beside another of the same network (`IFA_F_TEMPORARY`, `IFA_F_SECONDARY`).
    pub temporary: bool,
    /// Whether nothing new shall use it (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
}

impl Address {
    /// Describes an address that somebody assigned, to stay.
    #[must_use]
    pub fn permanent(dev: IfName, address: IpNet) -> Self {
        Self { dev, address, permanent: true, temporary: false, deprecated: false }
    }
}
