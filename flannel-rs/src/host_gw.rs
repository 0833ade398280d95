//! The `host-gw` backend: every worker is the router to its own pods, and one plain route per peer is all.
//!
//! ```text
//!  pod 11.10.0.2 ──► 11.20.0.2 on another worker, whose lease says: 11.20.0.0/20, at 10.0.0.4
//!
//!  route  11.20.0.0/20 via 10.0.0.4 dev eth0        the next router is the worker itself: nothing is wrapped, nothing is lost of the MTU
//! ```
//!
//! That works only where the workers share a link: a router between them would not know where 11.20.0.0/20 is. The kernel says so, by
//! refusing a next router that it cannot reach directly, and the peer is then reported and tried again with every pass.
//!
//! Source: flannel `pkg/backend/hostgw/hostgw.go` and `pkg/backend/route_network.go`. That one looks every ten seconds whether routes are
//! missing; here an event of the kernel brings them back at once.

use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::IfName;
use linux_net::netlink::Route;

use crate::error::InterfaceError;
use crate::interface::ExternalInterface;
use crate::lease::PublicAddresses;
use crate::overlay::ROUTE_PROTOCOL;
use linux_net::ip::{FAMILIES, Family};

/// The whole way to the pods in `subnet`: through the worker `public_ip` on our own link `dev`.
#[must_use]
pub fn route(subnet: IpNet, public_ip: IpAddr, dev: &IfName) -> Route {
    let metric = Family::of(public_ip).default_metric();
    Route { metric, ..Route::to(subnet).via(public_ip).dev(dev.clone()).protocol(ROUTE_PROTOCOL) }
}

/// Checks that what we announce is on the interface itself: an address that a router translates is no next hop.
///
/// # Errors
///
/// [`InterfaceError::BehindTranslation`] when it is another.
pub fn check(interface: &ExternalInterface) -> Result<(), InterfaceError> {
    let pick = |addresses: &PublicAddresses, family| match family {
        Family::V4 => Some(IpAddr::from(addresses.ipv4)),
        Family::V6 => addresses.ipv6.map(IpAddr::from),
    };
    for family in FAMILIES {
        let (own, public) = (pick(&interface.addresses, family), pick(&interface.public, family));
        if let (Some(own), Some(public)) = (own, public)
            && own != public
        {
            return Err(InterfaceError::BehindTranslation {
                name: interface.name.to_string(),
                public: public.to_string(),
                own: own.to_string(),
            });
        }
    }
    Ok(())
}
