//! Constants, and the elements of sets and maps.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Verdict;
use crate::name::{IfName, MacAddr};

/// A constant, typed as `nft` types it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// An IPv4 address (`ipv4_addr`).
    Ipv4(Ipv4Addr),
    /// An IPv4 network, in interval sets and matches.
    Ipv4Net(Ipv4Net),
    /// An IPv6 address (`ipv6_addr`).
    Ipv6(Ipv6Addr),
    /// An IPv6 network, in interval sets and matches.
    Ipv6Net(Ipv6Net),
    /// A transport protocol (`inet_proto`): 1 icmp, 6 tcp, 17 udp, 132 sctp.
    Protocol(u8),
    /// A port (`inet_service`).
    Port(u16),
    /// Ports from one to another, both included, in interval sets and matches.
    PortRange(u16, u16),
    /// A packet's or connection's mark (`mark`).
    Mark(u32),
    /// A number without a meaning of its own (`integer`), as numgen and jhash give it.
    Integer(u32),
    /// An interface name (`ifname`).
    IfName(IfName),
    /// The beginning of interface names, in matches: `iifname "veth*"`.
    IfNamePrefix(IfName),
    /// A hardware address (`ether_addr`).
    Mac(MacAddr),
    /// States of a connection, any of which matches (`ct_state`): bits of [`Ct::STATE_NEW`](super::Ct::STATE_NEW) and the like.
    CtState(u32),
    /// Status bits of a connection, any of which matches (`ct_status`): [`Ct::STATUS_DNAT`](super::Ct::STATUS_DNAT) and the like.
    CtStatus(u32),
    /// The type of an address (`fib_addrtype`): 1 unicast, 2 local, 3 broadcast, 5 multicast.
    FibType(u32),
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::Ipv4(address),
            IpAddr::V6(address) => Self::Ipv6(address),
        }
    }
}

/// The host bits go. A network of one address is that address, which is also how the kernel gives it back.
impl From<IpNet> for Value {
    fn from(network: IpNet) -> Self {
        match network.trunc() {
            network if network.prefix_len() == network.max_prefix_len() => network.addr().into(),
            IpNet::V4(network) => Self::Ipv4Net(network),
            IpNet::V6(network) => Self::Ipv6Net(network),
        }
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// One value for each component of the key.
    pub key: Vec<Value>,
    /// What the key stands for, in a map.
    pub data: Option<Data>,
    /// After how long it goes, in a set with timeouts; the set's own when `None`.
    pub timeout: Option<Duration>,
    /// What is left of that; all of it when `None`.
    pub expires: Option<Duration>,
    /// A remark that the kernel keeps, at most 127 bytes; of whom the element is, for those who share a set.
    pub comment: Option<String>,
}

/// What a key of a map stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// One value for each component.
    Value(Vec<Value>),
    /// A verdict.
    Verdict(Verdict),
}

impl Element {
    /// An element of a set.
    #[must_use]
    pub fn key(key: impl Into<Vec<Value>>) -> Self {
        Self { key: key.into(), data: None, timeout: None, expires: None, comment: None }
    }

    /// An element of a map.
    #[must_use]
    pub fn map(key: impl Into<Vec<Value>>, data: impl Into<Vec<Value>>) -> Self {
        Self { key: key.into(), data: Some(Data::Value(data.into())), timeout: None, expires: None, comment: None }
    }

    /// An element of a verdict map.
    #[must_use]
    pub fn verdict(key: impl Into<Vec<Value>>, verdict: Verdict) -> Self {
        Self { key: key.into(), data: Some(Data::Verdict(verdict)), timeout: None, expires: None, comment: None }
    }

    /// The same element with a remark.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}
