//! IPv4 and IPv6: what differs between the two families, for code that treats both alike.

use std::{fmt, net::IpAddr};

/// One of the two families of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both, in the order in which they are handled.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The length of the prefix of a single address, in bits.
    #[must_use]
    pub const fn host_prefix_len(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The metric that the kernel gives a route without one; it reads back so.
    #[must_use]
    pub const fn default_metric(self) -> u32 {
        match self {
            Self::V4 => 0,
            Self::V6 => 1024, // IP6_RT_PRIO_USER of include/uapi/linux/ipv6_route.h
        }
    }

    /// What VXLAN adds to a packet, in bytes: inner Ethernet 14 + VXLAN 8 + UDP 8 + the outer header, 20 or 40.
    #[must_use]
    pub const fn vxlan_overhead_bytes(self) -> u32 {
        match self {
            Self::V4 => 14 + 8 + 8 + 20,
            Self::V6 => 14 + 8 + 8 + 40,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_headers_are_counted() {
        assert_eq!(FAMILIES.map(Family::vxlan_overhead_bytes), [50, 70]);
    }
}
