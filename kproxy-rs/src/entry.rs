//! An entry: one element of one of the table's maps and sets. A ruleset, apart from its fixed rules, is a set of entries.
//!
//! The value is part of the entry. So two rulesets differ by set difference alone, and a key whose value changes is one entry to
//! delete and one to add, which is also how nftables wants it: elements of a map cannot be changed in place.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;

use crate::service::Protocol;
use crate::tag::{Class, Id, Tag};

/// One element of one map or set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// `map front`: what is sent here belongs to the Service port of this tag.
    Front {
        /// The ClusterIP.
        address: Ipv4Addr,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// The port that clients use.
        port: NonZeroU16,
        /// Whose it is, and what becomes of it.
        tag: Tag,
    },
    /// `map any`: whatever else is sent to this address belongs to the Service of this tag.
    Any {
        /// The address of a VIP for all protocols.
        address: Ipv4Addr,
        /// Whose it is, and what becomes of it.
        tag: Tag,
    },
    /// `map class`: connections of this class have a chain; for all but drop and refuse the chain comes and goes with the entry.
    Class(Class),
    /// `map eps`: slot number `slot` of a Service port is this endpoint.
    Endpoint {
        /// Whose slot.
        id: Id,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// From 0.
        slot: u8,
        /// The endpoint.
        target: SocketAddrV4,
    },
    /// `map anyeps`: slot number `slot` of a VIP for all protocols is this endpoint.
    AnyEndpoint {
        /// Whose slot.
        id: Id,
        /// From 0.
        slot: u8,
        /// The endpoint.
        target: Ipv4Addr,
    },
    /// `set vips`: this is a live ClusterIP; ports that it does not serve are refused.
    Vip(Ipv4Addr),
    /// `set hairpin`: a pod of this worker that is an endpoint, and so may be sent to itself.
    Hairpin(Ipv4Addr),
}
