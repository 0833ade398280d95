//! The other workers: what is known about them from their leases, and which of them can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux_net::{MacAddr, Vni};
use tracing::{debug, info, warn};

use crate::error::chain;
use crate::lease::{Entry, Subnet};
use crate::watch::SubnetEvent;

/// So many leases may change at once before the log counts them instead of naming them.
const LINES_PER_BATCH: usize = 10;

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

/// What an event made of a lease.
#[derive(Debug)]
enum Change {
    Added(Peer),
    Removed(Subnet),
    /// With the reason.
    Ignored(Subnet, String),
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
        let mut changes = Vec::new();
        for event in events {
            match event {
                SubnetEvent::Listed(entries) => {
                    let listed: BTreeSet<Subnet> = entries.iter().map(|entry| entry.subnet).collect();
                    own_key = if listed.contains(&self.own) { OwnKey::Kept } else { OwnKey::Lost };
                    let gone: Vec<Subnet> =
                        self.leases.keys().filter(|subnet| !listed.contains(subnet)).copied().collect();
                    changes.extend(gone.into_iter().filter_map(|subnet| self.remove(subnet)));
                    changes.extend(entries.iter().filter_map(|entry| self.put(entry)));
                }
                SubnetEvent::Put(entry) => {
                    if entry.subnet == self.own {
                        own_key = OwnKey::Kept;
                    }
                    changes.extend(self.put(&entry));
                }
                SubnetEvent::Deleted(subnet) if subnet == self.own => own_key = OwnKey::Lost,
                SubnetEvent::Deleted(subnet) => changes.extend(self.remove(subnet)),
            }
        }
        log(&changes);
        own_key
    }

    /// The workers that can be reached, in the order of their subnets.
    ///
    /// There is one for each IPv4 subnet: of two keys that differ in their IPv6 half only, the first counts.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        let mut last = None;
        self.leases.values().flatten().filter(move |peer| last.replace(peer.subnet) != Some(peer.subnet))
    }

    fn put(&mut self, entry: &Entry) -> Option<Change> {
        let subnet = entry.subnet;
        if subnet == self.own {
            if !entry.is_held_by(self.public_ip) {
                warn!(%subnet, "another worker has written over our lease; check that no two workers share a subnet file");
            }
            return None;
        }
        let peer = self.reachable(entry);
        let known = self.leases.insert(subnet, peer.as_ref().ok().cloned());
        match (peer, known) {
            // Renewed by a flanneld, which writes the same again.
            (Ok(peer), Some(Some(known))) if known == peer => None,
            (Err(_), Some(None)) => None,
            (Ok(peer), _) => Some(Change::Added(peer)),
            (Err(reason), _) => Some(Change::Ignored(subnet, reason)),
        }
    }

    fn remove(&mut self, subnet: Subnet) -> Option<Change> {
        self.leases.remove(&subnet).map(|_| Change::Removed(subnet))
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

/// Writes what changed to the log: a line each, or, when an agent starts among many others, one line in all.
fn log(changes: &[Change]) {
    if changes.len() > LINES_PER_BATCH {
        let count = |is: fn(&Change) -> bool| changes.iter().filter(|change| is(change)).count();
        let added = count(|change| matches!(change, Change::Added(_)));
        let removed = count(|change| matches!(change, Change::Removed(_)));
        info!(added, removed, ignored = changes.len() - added - removed, "many leases changed; --v=2 names them");
    }
    for change in changes {
        match change {
            _ if changes.len() > LINES_PER_BATCH => debug!(?change),
            Change::Added(Peer { subnet, vtep_mac, public_ip }) => info!(%subnet, %public_ip, %vtep_mac, "lease added"),
            Change::Removed(subnet) => info!(%subnet, "lease removed"),
            Change::Ignored(subnet, reason) => warn!(%subnet, reason, "lease ignored"),
        }
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
    fn of_two_keys_for_one_ipv4_subnet_one_counts() {
        let mut dual = entry(2, [10, 0, 0, 9], 100);
        dual.subnet.ipv6 = Some("fd00:2::/64".parse().unwrap());
        let mut table = table();
        table.handle_events(vec![SubnetEvent::Put(dual), SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100))]);
        assert_eq!(subnets(&table), ["10.5.2.0/24"]);
    }

    #[test]
    fn a_peer_that_becomes_unreachable_is_dropped() {
        let mut table = table();
        table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100))]);
        table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 7))]);
        assert_eq!(subnets(&table), [""; 0]);
    }
}
