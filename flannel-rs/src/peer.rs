//! The other workers: what is known about them from their leases, and which of them can be reached.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux_net::{MacAddr, Vni};
use tracing::{info, warn};

use crate::error::chain;
use crate::lease::{Entry, Subnet};
use crate::watch::SubnetEvent;

/// Another worker, reachable by VXLAN.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The subnet of its pods.
    pub subnet: Ipv4Net,
    /// The MAC address of its VXLAN device.
    pub vtep_mac: MacAddr,
    /// Its address in the underlay.
    pub public_ip: Ipv4Addr,
}

/// What became of our own key in a batch of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnKey {
    /// Nothing to worry about.
    Kept,
    /// It is gone: deleted by hand, or its lease ran out while etcd could not be reached.
    Lost,
}

/// The leases of all other workers.
#[derive(Debug)]
pub struct PeerTable {
    own: Subnet,
    public_ip: Ipv4Addr,
    vni: Vni,
    /// `None` for a lease whose worker cannot be reached; it is kept, so that each is complained about once.
    leases: BTreeMap<Subnet, Option<Peer>>,
}

impl PeerTable {
    /// A table without peers, for the worker that holds `own` and is reached at `public_ip` in the virtual network `vni`.
    #[must_use]
    pub fn new(own: Subnet, public_ip: Ipv4Addr, vni: Vni) -> Self {
        Self { own, public_ip, vni, leases: BTreeMap::new() }
    }

    /// Takes a batch of events in.
    pub fn handle_events(&mut self, events: Vec<SubnetEvent>) -> OwnKey {
        let mut own_key = OwnKey::Kept;
        for event in events {
            match event {
                SubnetEvent::Listed(entries) => {
                    let is_listed = entries.iter().any(|entry| entry.subnet == self.own);
                    own_key = if is_listed { OwnKey::Kept } else { OwnKey::Lost };
                    self.leases.retain(|subnet, _| entries.iter().any(|entry| entry.subnet == *subnet));
                    for entry in entries {
                        self.put(&entry);
                    }
                }
                SubnetEvent::Put(entry) => {
                    if entry.subnet == self.own {
                        own_key = OwnKey::Kept;
                    }
                    self.put(&entry);
                }
                SubnetEvent::Deleted(subnet) if subnet == self.own => own_key = OwnKey::Lost,
                SubnetEvent::Deleted(subnet) => {
                    if self.leases.remove(&subnet).is_some() {
                        info!(%subnet, "lease removed");
                    }
                }
            }
        }
        own_key
    }

    /// The workers that can be reached, in the order of their subnets.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.leases.values().flatten()
    }

    fn put(&mut self, entry: &Entry) {
        let subnet = entry.subnet;
        if subnet == self.own {
            if !entry.is_held_by(self.public_ip) {
                warn!(%subnet, "another worker has written over our lease; check that no two workers share a subnet file");
            }
            return;
        }
        let peer = self.reachable(entry);
        match (&peer, self.leases.get(&subnet)) {
            // Renewed by a flanneld, which writes the same again.
            (Ok(peer), Some(Some(known))) if known == peer => {}
            (Err(_), Some(None)) => {}
            (Ok(peer), _) => info!(%subnet, vtep = %peer.public_ip, mac = %peer.vtep_mac, "lease added"),
            (Err(reason), _) => warn!(%subnet, reason, "lease ignored"),
        }
        self.leases.insert(subnet, peer.ok());
    }

    /// Finds out how to reach the worker that holds `entry`, or why it cannot be reached.
    fn reachable(&self, entry: &Entry) -> Result<Peer, String> {
        let attributes = entry.attributes.as_ref().ok_or("its value cannot be read")?;
        let public_ip = attributes.public_ip;
        if public_ip == self.public_ip {
            return Err("it bears our own address; a left-over of ours, or two workers have one --public-ip".to_owned());
        }
        if entry.subnet.overlaps(self.own.ipv4) {
            return Err(format!("it overlaps our own {}", self.own.ipv4));
        }
        let data = attributes.vxlan_data().map_err(|error| chain(&error))?;
        if data.vni != self.vni {
            return Err(format!("it is in VNI {}, we are in {}", data.vni, self.vni));
        }
        Ok(Peer { subnet: entry.subnet.ipv4, vtep_mac: data.vtep_mac, public_ip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Attributes, VxlanData};

    const OWN_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    fn subnet(third: u8) -> Subnet {
        Subnet::new(Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap())
    }

    fn entry(third: u8, public_ip: [u8; 4], vni: u32) -> Entry {
        let data = VxlanData { vni: Vni::new(vni).unwrap(), vtep_mac: MacAddr([2, 0, 0, 0, 0, third]) };
        Entry {
            subnet: subnet(third),
            attributes: Some(Attributes::vxlan(public_ip.into(), data)),
            lease_id: 1,
            mod_revision: 1,
        }
    }

    fn table() -> PeerTable {
        PeerTable::new(subnet(1), OWN_IP, Vni::new(100).unwrap())
    }

    fn subnets(table: &PeerTable) -> Vec<String> {
        table.peers().map(|peer| peer.subnet.to_string()).collect()
    }

    #[test]
    fn a_peer_comes_and_goes_with_its_key() {
        let mut table = table();
        table.handle_events(vec![
            SubnetEvent::Put(entry(3, [10, 0, 0, 5], 100)),
            SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100)),
        ]);
        assert_eq!(subnets(&table), ["10.5.2.0/24", "10.5.3.0/24"]);
        table.handle_events(vec![SubnetEvent::Deleted(subnet(3))]);
        assert_eq!(subnets(&table), ["10.5.2.0/24"]);
    }

    #[test]
    fn a_new_listing_replaces_what_was_known() {
        let mut table = table();
        table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100))]);
        let listed = SubnetEvent::Listed(vec![entry(1, OWN_IP.octets(), 100), entry(3, [10, 0, 0, 5], 100)]);
        assert_eq!(table.handle_events(vec![listed]), OwnKey::Kept);
        assert_eq!(subnets(&table), ["10.5.3.0/24"]);
    }

    #[test]
    fn our_own_lease_is_no_peer_and_its_loss_is_noticed() {
        let mut table = table();
        let own = || entry(1, OWN_IP.octets(), 100);
        assert_eq!(table.handle_events(vec![SubnetEvent::Put(own())]), OwnKey::Kept);
        assert_eq!(subnets(&table), [""; 0]);
        assert_eq!(table.handle_events(vec![SubnetEvent::Deleted(subnet(1))]), OwnKey::Lost);
        assert_eq!(table.handle_events(vec![SubnetEvent::Deleted(subnet(1)), SubnetEvent::Put(own())]), OwnKey::Kept);
        assert_eq!(table.handle_events(vec![SubnetEvent::Listed(vec![])]), OwnKey::Lost);
    }

    #[test]
    fn a_lease_that_leads_nowhere_is_ignored() {
        let foreign =
            Attributes { backend_type: Some("host-gw".to_owned()), ..entry(2, [10, 0, 0, 4], 100).attributes.unwrap() };
        let wider = Subnet::new("10.5.0.0/16".parse().unwrap());
        let mut table = table();
        table.handle_events(vec![
            SubnetEvent::Put(Entry { attributes: Some(foreign), ..entry(2, [10, 0, 0, 4], 100) }),
            SubnetEvent::Put(Entry { attributes: None, ..entry(3, [10, 0, 0, 5], 100) }),
            SubnetEvent::Put(entry(4, [10, 0, 0, 6], 101)),
            SubnetEvent::Put(entry(5, OWN_IP.octets(), 100)),
            SubnetEvent::Put(Entry { subnet: wider, ..entry(6, [10, 0, 0, 7], 100) }),
        ]);
        assert_eq!(subnets(&table), [""; 0]);
    }

    #[test]
    fn a_peer_that_becomes_unreachable_is_dropped() {
        let mut table = table();
        table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100))]);
        table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 7))]);
        assert_eq!(subnets(&table), [""; 0]);
    }
}
