//! What the kernel should look like: one VXLAN device, and three static entries on it for every peer.
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
//! Source: flannel `pkg/backend/vxlan/device.go` and `vxlan_network.go`.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux_net::netlink::{FdbEntry, Neighbour, Route, Vxlan};
use linux_net::{IfName, MacAddr, Vni};

use crate::error::Error;
use crate::interface::ExternalInterface;
use crate::lease::VxlanData;
use crate::network::VxlanConfig;
use crate::peer::Peer;

/// What VXLAN adds to a packet in an IPv4 underlay: inner Ethernet 14 + VXLAN 8 + UDP 8 + outer IPv4 20.
pub const VXLAN_OVERHEAD_BYTES: u32 = 50;

/// Marks our routes, so that a restarted agent knows its own from anybody else's: `ip route show proto 70`. The number is an `F` in
/// ASCII and unassigned in `rtnetlink.h` and in iproute2's `rt_protos`; flanneld sets none, which shows as `boot`.
pub const ROUTE_PROTOCOL: u8 = b'F';

/// Our VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`.
    pub name: IfName,
    /// The virtual network.
    pub vni: Vni,
    /// The UDP port, ours and that of all peers.
    pub port: u16,
    /// The interface that the UDP packets leave through.
    pub parent: IfName,
    /// The source address of the UDP packets.
    pub local: Ipv4Addr,
    /// Whether the device learns from what it receives.
    pub learning: bool,
    /// Its MTU in bytes, which the pods get too.
    pub mtu_bytes: u32,
    /// Its MAC address, as our lease announces it.
    pub mac: MacAddr,
    /// The pod network: what the device's addresses and routes lie in.
    pub network: Ipv4Net,
    /// Its address, the base of our subnet; `None` until we have one.
    pub address: Option<Ipv4Net>,
}

/// The device and the peers on it: all that there should be.
#[derive(Debug, Clone)]
pub struct Overlay<'a> {
    /// Our device.
    pub device: &'a Device,
    /// Those who can be reached through it.
    pub peers: Vec<&'a Peer>,
}

impl Device {
    /// Describes the device for a configuration, with a MAC address of zeros and without an address.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] if the name were too long, which no 24-bit VNI makes it.
    pub fn new(
        vxlan: &VxlanConfig,
        interface: &ExternalInterface,
        network: Ipv4Net,
        public_ip: Ipv4Addr,
    ) -> Result<Self, Error> {
        let name = format!("flannel.{}", vxlan.vni);
        let name = name.parse().map_err(|source| Error::Kernel { what: format!("name a device {name}"), source })?;
        Ok(Self {
            name,
            vni: vxlan.vni,
            port: vxlan.port,
            parent: interface.name.clone(),
            local: public_ip,
            learning: vxlan.learning,
            mtu_bytes: vxlan.mtu_bytes.unwrap_or(interface.mtu_bytes).saturating_sub(VXLAN_OVERHEAD_BYTES),
            mac: MacAddr([0; 6]),
            network,
            address: None,
        })
    }

    /// Gives the device the base of `subnet` as its address, alone: the rest of the subnet is behind the pods' bridge.
    pub fn set_subnet(&mut self, subnet: Ipv4Net) {
        self.address = Some(Ipv4Net::from(subnet.network()));
    }

    /// The device as the kernel is asked for it.
    #[must_use]
    pub fn to_vxlan(&self) -> Vxlan {
        Vxlan {
            port: self.port,
            local: Some(self.local.into()),
            dev: Some(self.parent.clone()),
            learning: self.learning,
            mtu_bytes: Some(self.mtu_bytes),
            mac: Some(self.mac),
            ..Vxlan::new(self.name.clone(), self.vni)
        }
    }

    /// Step 1 towards a peer: which device, which next hop.
    #[must_use]
    pub fn route(&self, peer: &Peer) -> Route {
        Route::to(peer.subnet.into())
            .via(peer.subnet.network().into())
            .dev(self.name.clone())
            .onlink()
            .protocol(ROUTE_PROTOCOL)
    }

    /// Step 2 towards a peer: the MAC address of the next hop.
    #[must_use]
    pub fn neighbour(&self, peer: &Peer) -> Neighbour {
        Neighbour::permanent(self.name.clone(), peer.subnet.network().into(), peer.vtep_mac)
    }

    /// Step 3 towards a peer: the worker behind that MAC address.
    #[must_use]
    pub fn fdb_entry(&self, peer: &Peer) -> FdbEntry {
        FdbEntry::permanent(self.name.clone(), peer.vtep_mac, peer.public_ip.into())
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
