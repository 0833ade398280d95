//! An entry: one element of one of the table's maps and sets. A ruleset, apart from its fixed rules, is a set of entries.
//!
//! The value is part of the entry. So two rulesets differ by set difference alone, and a key whose value changes is one entry to
//! delete and one to add, which is also how nftables wants it: elements of a map cannot be changed in place.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::service::Protocol;
use crate::tag::{Id, Spread, Tag};
use linux_net::ip::Family;

/// An address and a port of an endpoint, in less room than a [`SocketAddr`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The pod's address.
    pub address: IpAddr,
    /// The port that it listens on.
    pub port: NonZeroU16,
}

/// One element of one map or set of the table of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// `map front`: what is sent here belongs to the Service port of this tag.
    Front {
        /// A ClusterIP, an external IP or a load balancer's.
        address: IpAddr,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// The port that clients use.
        port: NonZeroU16,
        /// Whose it is, and what becomes of it.
        tag: Tag,
    },
    /// `map nodeports`: what is sent to this port of the worker itself belongs to the Service port of this tag.
    NodePort {
        /// The family of the worker's addresses.
        family: Family,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// The port that clients use.
        port: NonZeroU16,
        /// Whose it is, and what becomes of it.
        tag: Tag,
    },
    /// `map anyview`: pods and the worker itself, sent to a tag of policy Local, have all endpoints.
    AnyView {
        /// The table.
        family: Family,
        /// The tag with policy Local.
        local: Tag,
        /// The tag that they get instead.
        cluster: Tag,
    },
    /// `map any`: whatever else is sent to this address belongs to the Service of this tag.
    Any {
        /// The address of a VIP for all protocols.
        address: IpAddr,
        /// Whose it is, and what becomes of it.
        tag: Tag,
    },
    /// `map class`: connections of this class have a chain, which comes and goes with the entry.
    Class {
        /// The table.
        family: Family,
        /// The class.
        spread: Spread,
    },
    /// `map eps`: slot number `slot` of a Service port is this endpoint.
    Endpoint {
        /// Whose slot.
        id: Id,
        /// Whether its clients are remembered: the mark that they keep says so.
        is_sticky: bool,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// From 0.
        slot: u16,
        /// The endpoint.
        target: Target,
    },
    /// `map anyeps`: slot number `slot` of a VIP for all protocols is this endpoint.
    AnyEndpoint {
        /// Whose slot.
        id: Id,
        /// From 0.
        slot: u16,
        /// The endpoint.
        address: IpAddr,
    },
    /// `map sticky`: a client of this id is remembered for so long, by a chain that [`Entry::Learn`] makes.
    Sticky {
        /// The table.
        family: Family,
        /// Whose clients.
        id: Id,
        /// For how long after its last connection.
        seconds: u32,
    },
    /// The chain that remembers clients for so long.
    Learn {
        /// The table.
        family: Family,
        /// For how long.
        seconds: u32,
    },
    /// `set ranged`: connections of this tag are for clients of certain networks only.
    Ranged {
        /// The table.
        family: Family,
        /// The tag.
        tag: Tag,
    },
    /// `set ranges`: clients of this network may have connections of this tag.
    Range {
        /// The tag.
        tag: Tag,
        /// The clients.
        network: IpNet,
    },
    /// `set vips`: this is a live ClusterIP; ports that it does not serve are refused.
    Vip(IpAddr),
    /// `set hairpin`: a pod of this worker that is an endpoint, and so may be sent to itself.
    Hairpin(IpAddr),
}

impl Entry {
    /// Says whether several Services can hold it, and it must stay as long as one does.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Class { .. } | Self::Learn { .. } | Self::Hairpin(_) | Self::Vip(_))
    }

    /// The family whose table it stands in.
    #[must_use]
    pub fn family(&self) -> Family {
        match *self {
            Self::Front { address, .. } | Self::Any { address, .. } | Self::AnyEndpoint { address, .. } => {
                Family::of(address)
            }
            Self::Vip(address) | Self::Hairpin(address) => Family::of(address),
            Self::Endpoint { target, .. } => Family::of(target.address),
            Self::Range { network, .. } => Family::of(network.addr()),
            Self::NodePort { family, .. }
            | Self::AnyView { family, .. }
            | Self::Class { family, .. }
            | Self::Sticky { family, .. }
            | Self::Learn { family, .. }
            | Self::Ranged { family, .. } => family,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port.get()).fmt(f)
    }
}
