//! The `vxlan` backend: one device per family, and three static entries on it for every peer.
//!
//! ```text
//!  pod 11.10.0.2 ──► 11.20.0.2 on another worker, whose lease says: 11.20.0.0/20, MAC 2e:36:…, at 10.0.0.4
//!
//!  1. route       11.20.0.0/20 via 11.20.0.0 dev flannel.100 onlink     which device, which next hop
//!  2. neighbour   11.20.0.0 is at 2e:36:… on flannel.100                the next hop's MAC: no ARP is ever sent
//!  3. FDB entry   2e:36:… is behind 10.0.0.4                            where the UDP packet goes: nothing is ever flooded
//! ```
//!
//! The next hop is the *base* of the peer's subnet, the one address in it that no pod gets; the peer's device bears it. `onlink` makes the
//! kernel take it for a neighbour although our own device has a `/32`. So an overlay of any size works without one broadcast.
//!
//! With IPv6 the same stands a second time: `flannel-v6.100`, a `/128`, a neighbour without neighbour discovery, UDP over IPv6.
//!
//! With `DirectRouting`, a peer on our own link gets a single plain route instead ([`crate::host_gw`]): its packets need no disguise.
//!
//! Source: flannel `pkg/backend/vxlan/device.go` and `vxlan_network.go`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::netlink::{FdbEntry, Neighbour, Route, Vxlan};
use linux_net::{IfName, MacAddr, Vni};

use crate::error::Error;
use crate::interface::ExternalInterface;
use crate::lease::VxlanData;
use crate::network::VxlanConfig;
use crate::overlay::ROUTE_PROTOCOL;
use linux_net::ip::Family;

/// Our VXLAN device for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`, or `flannel-v6.<VNI>`.
    pub name: IfName,
    /// The virtual network.
    pub vni: Vni,
    /// The UDP port, ours and that of all peers.
    pub port: u16,
    /// The interface that the UDP packets leave through.
    pub parent: IfName,
    /// The source address of the UDP packets; its family is that of the pods too.
    pub local: IpAddr,
    /// Whether the device learns from what it receives.
    pub learning: bool,
    /// Whether packets carry a group policy identifier.
    pub gbp: bool,
    /// Its MTU in bytes, which the pods get too.
    pub mtu_bytes: u32,
    /// Its MAC address, as our lease announces it.
    pub mac: MacAddr,
}

impl Device {
    /// Describes the device for the family of `local`, with a MAC address of zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] if the name were too long: `flannel-v6.` leaves room for the VNIs up to 9999.
    pub fn new(vxlan: &VxlanConfig, interface: &ExternalInterface, local: IpAddr) -> Result<Self, Error> {
        let family = Family::of(local);
        let name = match family {
            Family::V4 => format!("flannel.{}", vxlan.vni),
            Family::V6 => format!("flannel-v6.{}", vxlan.vni),
        };
        let name = name.parse().map_err(|source| Error::Kernel { what: format!("name a device {name}"), source })?;
        let underlay_mtu = vxlan.mtu_bytes.unwrap_or(interface.mtu_bytes);
        Ok(Self {
            name,
            vni: vxlan.vni,
            port: vxlan.port,
            parent: interface.name.clone(),
            local,
            learning: vxlan.learning,
            gbp: vxlan.gbp,
            mtu_bytes: underlay_mtu.saturating_sub(family.vxlan_overhead_bytes()),
            mac: MacAddr([0; 6]),
        })
    }

    /// The device as the kernel is asked for it.
    #[must_use]
    pub fn to_vxlan(&self) -> Vxlan {
        Vxlan {
            port: self.port,
            local: Some(self.local),
            dev: Some(self.parent.clone()),
            learning: self.learning,
            gbp: self.gbp,
            mtu_bytes: Some(self.mtu_bytes),
            mac: Some(self.mac),
            ..Vxlan::new(self.name.clone(), self.vni)
        }
    }

    /// Step 1 towards the pods in `subnet`: which device, which next hop.
    #[must_use]
    pub fn route(&self, subnet: IpNet) -> Route {
        let metric = Family::of(self.local).default_metric();
        let route = Route::to(subnet).via(subnet.network()).dev(self.name.clone()).onlink().protocol(ROUTE_PROTOCOL);
        Route { metric, ..route }
    }

    /// Step 2 towards the pods in `subnet`: the MAC address of the next hop.
    #[must_use]
    pub fn neighbour(&self, subnet: IpNet, vtep_mac: MacAddr) -> Neighbour {
        Neighbour::permanent(self.name.clone(), subnet.network(), vtep_mac)
    }

    /// Step 3: the worker behind that MAC address.
    #[must_use]
    pub fn fdb_entry(&self, vtep_mac: MacAddr, public_ip: IpAddr) -> FdbEntry {
        FdbEntry::permanent(self.name.clone(), vtep_mac, public_ip)
    }

    /// What our lease says about the device.
    #[must_use]
    pub fn lease_data(&self) -> VxlanData {
        VxlanData { vni: self.vni, vtep_mac: self.mac }
    }
}

/// Draws a MAC address: locally administered and not a group's, as flanneld draws one.
///
/// # Errors
///
/// [`Error::System`] when the kernel gives no random bytes.
pub fn random_mac() -> Result<MacAddr, Error> {
    let mut bytes = [0; 6];
    let drawn = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    drawn.map_err(|source| Error::System { what: "draw a random MAC address from /dev/urandom", source })?;
    // IEEE 802, section 8.2: bit 0 of the first octet marks a group, bit 1 a local assignment.
    bytes[0] = (bytes[0] & 0xfe) | 0x02;
    Ok(MacAddr(bytes))
}
