//! Expressions: where a value of a rule comes from.

use super::Value;
use crate::ip;

/// Where a value comes from: the packet, its connection, a table of the kernel, a number generator, a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expr {
    /// A field of the packet: `ip daddr`.
    Payload(Field),
    /// Something about the packet that is not in it: `meta mark`.
    Meta(Meta),
    /// Something about the packet's connection: `ct mark`.
    Ct(Ct),
    /// What the routing table says of an address: `fib daddr type`.
    Fib {
        /// Which address.
        address: FibAddress,
        /// What about it.
        result: FibResult,
    },
    /// A number from 0 (plus `offset`) below `modulus`: `numgen random mod 3`. The counter of `inc` belongs to the rule.
    Numgen {
        /// Random, or one after the other.
        mode: NumgenMode,
        /// How many numbers there are.
        modulus: u32,
        /// The first of them.
        offset: u32,
    },
    /// A hash of `of`, from 0 below `modulus`: `jhash ip saddr mod 3`.
    Jhash {
        /// What is hashed.
        of: Box<Expr>,
        /// How many numbers there are.
        modulus: u32,
        /// What makes two hashes of the same value differ; the kernel picks one when `None`.
        seed: Option<u32>,
        /// The first of them.
        offset: u32,
    },
    /// A hash of the packet that is the same in both directions: `symhash mod 3`.
    Symhash {
        /// How many numbers there are.
        modulus: u32,
        /// The first of them.
        offset: u32,
    },
    /// Several values side by side: `ip daddr . th dport`.
    Concat(Vec<Expr>),
    /// What a map says of a key: `ip daddr map @name`. A key that is not there ends the rule.
    Map {
        /// The key.
        key: Box<Expr>,
        /// The map's name, in the rule's table.
        map: String,
    },
    /// The bits that are in both: `ct mark & 0xff`.
    And(Box<Expr>, u32),
    /// The bits that are in either: `ct mark | 0x4000`.
    Or(Box<Expr>, u32),
    /// The bits that are in one only: `ct mark ^ 0x1`.
    Xor(Box<Expr>, u32),
    /// A constant.
    Const(Value),
}

/// A field of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ip saddr`
    IpSaddr,
    /// `ip daddr`
    IpDaddr,
    /// `ip protocol`
    IpProtocol,
    /// `ip checksum`
    IpChecksum,
    /// `ip6 saddr`
    Ip6Saddr,
    /// `ip6 daddr`
    Ip6Daddr,
    /// `th sport`: the source port, whatever the transport protocol.
    ThSport,
    /// `th dport`: the destination port, whatever the transport protocol.
    ThDport,
    /// `tcp sport`; the rule must match the protocol before.
    TcpSport,
    /// `tcp dport`; the rule must match the protocol before.
    TcpDport,
    /// `udp sport`; the rule must match the protocol before.
    UdpSport,
    /// `udp dport`; the rule must match the protocol before.
    UdpDport,
    /// `ether saddr`
    EtherSaddr,
    /// `ether daddr`
    EtherDaddr,
}

impl Field {
    /// `ip saddr` or `ip6 saddr`.
    #[must_use]
    pub const fn source(family: ip::Family) -> Self {
        match family {
            ip::Family::V4 => Self::IpSaddr,
            ip::Family::V6 => Self::Ip6Saddr,
        }
    }

    /// `ip daddr` or `ip6 daddr`.
    #[must_use]
    pub const fn destination(family: ip::Family) -> Self {
        match family {
            ip::Family::V4 => Self::IpDaddr,
            ip::Family::V6 => Self::Ip6Daddr,
        }
    }
}

/// Something about a packet that is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meta {
    /// `meta l4proto`: the transport protocol.
    L4proto,
    /// `meta nfproto`: IPv4 (2) or IPv6 (10).
    Nfproto,
    /// `meta mark`: a number of 32 bits for the administrator's use.
    Mark,
    /// `iifname`: the interface it came in by.
    Iifname,
    /// `oifname`: the interface it goes out by.
    Oifname,
    /// `meta nftrace`: whether `nft monitor trace` shows its way; set it to [`Value::Integer`] 1.
    Nftrace,
}

/// Something about the connection a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ct {
    /// `ct state`: new, established, …
    State,
    /// `ct status`: which kinds of NAT it has, whether it saw a reply, …
    Status,
    /// `ct mark`: a number of 32 bits for the administrator's use.
    Mark,
    /// `ct direction`: 0 as the first packet, 1 as the reply.
    Direction,
}

impl Ct {
    /// `invalid`
    pub const STATE_INVALID: u32 = 1;
    /// `established`
    pub const STATE_ESTABLISHED: u32 = 2;
    /// `related`
    pub const STATE_RELATED: u32 = 4;
    /// `new`
    pub const STATE_NEW: u32 = 8;
    /// `untracked`
    pub const STATE_UNTRACKED: u32 = 64;
    /// `seen-reply`
    pub const STATUS_SEEN_REPLY: u32 = 1 << 1;
    /// `assured`
    pub const STATUS_ASSURED: u32 = 1 << 2;
    /// `confirmed`
    pub const STATUS_CONFIRMED: u32 = 1 << 3;
    /// `snat`
    pub const STATUS_SNAT: u32 = 1 << 4;
    /// `dnat`
    pub const STATUS_DNAT: u32 = 1 << 5;
}

/// Which address `fib` asks the routing table about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FibAddress {
    /// The packet's source.
    Saddr,
    /// The packet's destination.
    Daddr,
}

/// What `fib` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FibResult {
    /// The type of the address: local, unicast, …
    Type,
    /// The interface name towards it; empty when there is no route.
    Oifname,
}

/// How `numgen` goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumgenMode {
    /// At random.
    Random,
    /// One after the other.
    Incremental,
}

impl Expr {
    /// What `map` says of `self`.
    #[must_use]
    pub fn map(self, map: impl Into<String>) -> Self {
        Self::Map { key: Box::new(self), map: map.into() }
    }

    /// The bits of `self` that are in `mask`.
    #[must_use]
    pub fn and(self, mask: u32) -> Self {
        Self::And(Box::new(self), mask)
    }

    /// The bits of `self` and those of `bits`.
    #[must_use]
    pub fn or(self, bits: u32) -> Self {
        Self::Or(Box::new(self), bits)
    }
}

impl From<Field> for Expr {
    fn from(field: Field) -> Self {
        Self::Payload(field)
    }
}

impl From<Meta> for Expr {
    fn from(meta: Meta) -> Self {
        Self::Meta(meta)
    }
}

impl From<Ct> for Expr {
    fn from(ct: Ct) -> Self {
        Self::Ct(ct)
    }
}

impl From<Value> for Expr {
    fn from(value: Value) -> Self {
        Self::Const(value)
    }
}
