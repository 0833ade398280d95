//! What the kernel should look like: the whole desired state of one family, made anew from our lease and the peers every time.
//!
//! The two backends differ in what leads to a peer, and in nothing else:
//!
//! | peer | entries |
//! |---|---|
//! | with `vxlan` | route through our device, neighbour, FDB entry ([`crate::vxlan`]) |
//! | with `vxlan` and `DirectRouting`, on our own link | route through the peer itself ([`crate::host_gw`]) |
//! | with `host-gw` | the same |
//!
//! Which peers are on our own link is the kernel's to say (`ip route get`), and is asked with every pass: when the underlay changes, the way
//! to a peer changes with it. flanneld asks once, when the lease comes, and again when it goes; if the two answers differ, entries stay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::netlink::{FdbEntry, Neighbour, Route, RouteKind};
use linux_net::{IfName, MacAddr};

use crate::host_gw;
use crate::peer::Peer;
use crate::vxlan::Device;
use linux_net::ip::Family;

/// Marks our routes, so that a restarted agent knows its own from anybody else's: `ip route show proto 70`. The number is an `F` in
/// ASCII and unassigned in `rtnetlink.h` and in iproute2's `rt_protos`; flanneld sets none, which shows as `boot`.
pub const ROUTE_PROTOCOL: u8 = b'F';

/// The last resort among routes to our own subnet: behind that of the pods' bridge, whenever there is one.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// The overlay of one family on this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The pod network of the cluster.
    pub network: IpNet,
    /// Our part of it; `None` until we have a lease.
    pub subnet: Option<IpNet>,
    /// How packets reach the peers.
    pub transport: Transport,
    /// Whether packets to pods that are not there are dropped here, where they would leave by the default route.
    pub blackhole: bool,
}

/// How packets reach the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Inside UDP packets.
    Vxlan {
        /// Where they are wrapped.
        device: Device,
        /// Whether peers on our own link are reached without.
        direct_routing: bool,
    },
    /// As they are.
    HostGw {
        /// The interface towards the peers.
        interface: IfName,
        /// Its MTU in bytes.
        mtu_bytes: u32,
    },
}

/// The overlays of this worker, one for each family that the cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlays {
    /// That of IPv4.
    pub ipv4: Overlay,
    /// That of IPv6, in a dual-stack cluster.
    pub ipv6: Option<Overlay>,
}

/// All that the kernel should have for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired<'a> {
    /// Our device, if packets are wrapped.
    pub device: Option<&'a Device>,
    /// The pod network: what the addresses of our device, and routes that a flanneld left, lie in.
    pub network: Option<IpNet>,
    /// What shall be on the device and in the routing table; `None` as long as our subnet is not known.
    pub entries: Option<Entries>,
}

/// What shall be on the device and in the routing table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Our subnet; `None` when the cluster does not have this family.
    pub subnet: Option<IpNet>,
    /// The routes, by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// The device's static neighbours, by address.
    pub neighbours: BTreeMap<IpAddr, Neighbour>,
    /// The device's static FDB entries, by MAC address.
    pub fdb: BTreeMap<MacAddr, FdbEntry>,
}

/// What the last pass left in the kernel, in each family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// In IPv4.
    pub ipv4: Entries,
    /// In IPv6.
    pub ipv6: Entries,
}

impl Expected {
    /// What was left in one family, to be changed.
    pub fn of_mut(&mut self, family: Family) -> &mut Entries {
        match family {
            Family::V4 => &mut self.ipv4,
            Family::V6 => &mut self.ipv6,
        }
    }

    fn of(&self, address: IpAddr) -> &Entries {
        match Family::of(address) {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }

    /// What there should be to the destination of `route`.
    #[must_use]
    pub fn route(&self, route: &Route) -> Option<&Route> {
        self.of(route.dst.addr()).routes.get(&route.dst)
    }

    /// What there should be for the address of `neighbour` on its device.
    #[must_use]
    pub fn neighbour(&self, neighbour: &Neighbour) -> Option<&Neighbour> {
        let wanted = self.of(neighbour.address).neighbours.get(&neighbour.address);
        wanted.filter(|wanted| wanted.dev == neighbour.dev)
    }

    /// What there should be for the MAC address of `entry` on its device.
    #[must_use]
    pub fn fdb_entry(&self, entry: &FdbEntry) -> Option<&FdbEntry> {
        let wanted = [&self.ipv4, &self.ipv6].into_iter().filter_map(|entries| entries.fdb.get(&entry.mac));
        wanted.into_iter().find(|wanted| wanted.dev == entry.dev)
    }
}

impl Overlays {
    /// That of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<&Overlay> {
        match family {
            Family::V4 => Some(&self.ipv4),
            Family::V6 => self.ipv6.as_ref(),
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, family: Family) -> Option<&mut Overlay> {
        match family {
            Family::V4 => Some(&mut self.ipv4),
            Family::V6 => self.ipv6.as_mut(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Overlay> {
        std::iter::once(&self.ipv4).chain(&self.ipv6)
    }

    /// The MTU that pods must have, in bytes: the smaller of the two families', since a pod has one interface.
    #[must_use]
    pub fn mtu_bytes(&self) -> u32 {
        self.iter().map(Overlay::mtu_bytes).min().unwrap_or_default()
    }
}

impl Overlay {
    /// Our device, if packets are wrapped.
    #[must_use]
    pub fn device(&self) -> Option<&Device> {
        match &self.transport {
            Transport::Vxlan { device, .. } => Some(device),
            Transport::HostGw { .. } => None,
        }
    }

    /// The interface towards the peers.
    #[must_use]
    pub fn interface(&self) -> &IfName {
        match &self.transport {
            Transport::Vxlan { device, .. } => &device.parent,
            Transport::HostGw { interface, .. } => interface,
        }
    }

    /// Whether it matters which peers are on our own link.
    #[must_use]
    pub fn routes_directly(&self) -> bool {
        matches!(self.transport, Transport::Vxlan { direct_routing: true, .. })
    }

    fn mtu_bytes(&self) -> u32 {
        match &self.transport {
            Transport::Vxlan { device, .. } => device.mtu_bytes,
            Transport::HostGw { mtu_bytes, .. } => *mtu_bytes,
        }
    }

    /// Returns all that the kernel should have for `peers`, those of this family.
    ///
    /// `on_link` says which addresses are on our own link, and which link that is; it is asked for with [`Overlay::routes_directly`] only.
    ///
    /// Two peers that announce one MAC address cannot both be reached: the first counts, as the device has one entry for each.
    pub fn desired<'a>(
        &self,
        peers: impl Iterator<Item = &'a Peer>,
        on_link: &BTreeMap<IpAddr, IfName>,
    ) -> Desired<'_> {
        let (device, network) = (self.device(), Some(self.network));
        let Some(subnet) = self.subnet else { return Desired { device, network, entries: None } };
        let mut entries = Entries { subnet: Some(subnet), ..Entries::default() };
        let mut macs = BTreeSet::new();
        for peer in peers {
            let tunnel = device.zip(peer.vtep_mac);
            let direct = match &self.transport {
                Transport::HostGw { interface, .. } => Some(interface),
                Transport::Vxlan { .. } => on_link.get(&peer.public_ip),
            };
            match (direct, tunnel) {
                (Some(dev), _) => {
                    entries.routes.insert(peer.subnet, host_gw::route(peer.subnet, peer.public_ip, dev));
                }
                (None, Some((device, mac))) if macs.insert(mac) => {
                    entries.routes.insert(peer.subnet, device.route(peer.subnet));
                    entries.neighbours.insert(peer.subnet.network(), device.neighbour(peer.subnet, mac));
                    entries.fdb.insert(mac, device.fdb_entry(mac, peer.public_ip));
                }
                // A second peer with one MAC; a peer without one is none of this backend's, and `peer` sorts those out.
                (None, Some(_) | None) => {}
            }
        }
        if self.blackhole {
            entries.routes.insert(subnet, blackhole(subnet));
        }
        Desired { device, network, entries: Some(entries) }
    }
}

impl Desired<'_> {
    /// What a worker should have for a family that its cluster does not have: nothing of ours.
    #[must_use]
    pub fn nothing() -> Self {
        Self { entries: Some(Entries::default()), ..Self::default() }
    }
}

/// The route that swallows packets to addresses of our own subnet that no pod has. flanneld gives it no metric, so that it cannot be made
/// while the pods' bridge is there, and takes its place when it was first.
fn blackhole(subnet: IpNet) -> Route {
    let kind = RouteKind::Blackhole;
    Route { kind, metric: BLACKHOLE_METRIC, ..Route::to(subnet).protocol(ROUTE_PROTOCOL) }
}
