//! IPv4 and IPv6: an overlay is made twice, once for each, by the same code.
//!
//! A dual-stack cluster has two pod networks, and each family travels in packets of its own kind: IPv4 pods' packets between the
//! workers' IPv4 addresses on `flannel.100`, IPv6 pods' between their IPv6 addresses on `flannel-v6.100`. Nothing is shared but the key in etcd.
//! So most of this crate handles one family at a time ([`ipnet::IpNet`]), and what differs between the two stands in
//! [`Family`] and here.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use linux_net::ip::Family;

/// A network of one family as a stretch of numbers, so that subnets of both are found by the same arithmetic.
///
/// Implemented by [`Ipv4Net`] and [`Ipv6Net`].
pub trait Prefix: Copy + Ord + Debug + Display + FromStr + Into<IpNet> {
    /// An address of this family.
    type Address: Copy + Display + FromStr;
    /// Which family it is.
    const FAMILY: Family;

    /// Makes the network of this length that contains the address with this number; `None` beyond the end of the family.
    fn containing(address: u128, prefix_len: u8) -> Option<Self>;
    /// The number of its first address, host bits cleared.
    fn first(&self) -> u128;
    /// The number of its last address.
    fn last(&self) -> u128;
    /// How many leading bits all its addresses share.
    fn length(&self) -> u8;
    /// The number of an address.
    fn number(address: Self::Address) -> u128;

    /// Says whether the two have an address in common, whatever their lengths.
    fn overlaps(&self, other: &Self) -> bool {
        self.first() <= other.last() && other.first() <= self.last()
    }
}

impl Prefix for Ipv4Net {
    type Address = std::net::Ipv4Addr;
    const FAMILY: Family = Family::V4;

    fn containing(address: u128, prefix_len: u8) -> Option<Self> {
        let address = u32::try_from(address).ok()?;
        Some(Self::new(address.into(), prefix_len).ok()?.trunc())
    }

    fn first(&self) -> u128 {
        self.network().to_bits().into()
    }

    fn last(&self) -> u128 {
        self.broadcast().to_bits().into()
    }

    fn length(&self) -> u8 {
        self.prefix_len()
    }

    fn number(address: Self::Address) -> u128 {
        address.to_bits().into()
    }
}

impl Prefix for Ipv6Net {
    type Address = std::net::Ipv6Addr;
    const FAMILY: Family = Family::V6;

    fn containing(address: u128, prefix_len: u8) -> Option<Self> {
        Some(Self::new(address.into(), prefix_len).ok()?.trunc())
    }

    fn first(&self) -> u128 {
        self.network().to_bits()
    }

    fn last(&self) -> u128 {
        self.broadcast().to_bits()
    }

    fn length(&self) -> u8 {
        self.prefix_len()
    }

    fn number(address: Self::Address) -> u128 {
        address.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net<P: Prefix>(text: &str) -> P {
        text.parse().unwrap_or_else(|_| panic!("{text} is no network"))
    }

    #[test]
    fn networks_overlap_when_one_contains_the_other() {
        assert!(net::<Ipv4Net>("10.5.0.0/16").overlaps(&net("10.5.7.0/24")));
        assert!(net::<Ipv6Net>("fd00:1::/64").overlaps(&net("fd00::/16")));
        assert!(!net::<Ipv4Net>("10.5.0.0/24").overlaps(&net("10.5.1.0/24")));
        assert!(!net::<Ipv6Net>("fd00:1::/64").overlaps(&net("fd00:1:0:1::/64")));
    }

    #[test]
    fn the_address_space_ends_where_it_ends() {
        assert_eq!(Ipv4Net::containing(u128::from(u32::MAX), 24), Some(net("255.255.255.0/24")));
        assert_eq!(Ipv4Net::containing(u128::from(u32::MAX) + 1, 24), None);
        assert_eq!(Ipv6Net::containing(u128::MAX, 64), Some(net("ffff:ffff:ffff:ffff::/64")));
    }
}
