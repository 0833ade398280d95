//! The other workers: what is known about them from their leases, and which of them can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::{MacAddr, Vni};
use tracing::{debug, info, warn};

use crate::error::chain;
use crate::lease::{Attributes, Entry, PublicAddresses, Subnet};
use crate::network::Backend;
use crate::watch::SubnetEvent;
use linux_net::ip::{FAMILIES, Family};

/// So many leases may change at once before the log counts them instead of naming them.
const LINES_PER_BATCH: usize = 10;

/// Another worker, as it is reached in one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The subnet of its pods.
    pub subnet: IpNet,
    /// The MAC address of its VXLAN device; `None` with host-gw, which has no device.
    pub vtep_mac: Option<MacAddr>,
    /// Its address in the underlay.
    pub public_ip: IpAddr,
}

/// What was heard about our own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnKey {
    /// It is gone: deleted by hand, or its lease ran out while etcd could not be reached.
    Lost,
    /// It was in a listing, made because the watch was interrupted.
    Listed(Entry),
    /// It was written, by us or by somebody else.
    Written(Entry),
}

/// What an event made of a lease.
#[derive(Debug)]
enum Change {
    Added(Subnet, Vec<Peer>),
    Removed(Subnet),
    /// With the reason.
    Ignored(Subnet, String),
}

/// The leases of all other workers.
#[derive(Debug)]
pub struct PeerTable {
    own: Subnet,
    public: PublicAddresses,
    backend: &'static str,
    vni: Option<Vni>,
    /// Empty for a lease whose worker cannot be reached; it is kept, so that each is complained about once.
    leases: BTreeMap<Subnet, Vec<Peer>>,
}

impl PeerTable {
    /// A table without peers, for the worker that holds `own` and is reached at `public` by this backend.
    #[must_use]
    pub fn new(own: Subnet, public: PublicAddresses, backend: &Backend) -> Self {
        let vni = match backend {
            Backend::Vxlan(vxlan) => Some(vxlan.vni),
            Backend::HostGw => None,
        };
        Self { own, public, backend: backend.name(), vni, leases: BTreeMap::new() }
    }

    /// Takes a batch of events in; returns the last thing it says about our own key.
    pub fn handle_events(&mut self, events: Vec<SubnetEvent>) -> Option<OwnKey> {
        let mut own_key = None;
        let mut changes = Vec::new();
        for event in events {
            match event {
                SubnetEvent::Listed(entries) => {
                    let own = entries.iter().find(|entry| entry.subnet == self.own);
                    own_key = Some(own.map_or(OwnKey::Lost, |own| OwnKey::Listed(own.clone())));
                    let listed: BTreeSet<Subnet> = entries.iter().map(|entry| entry.subnet).collect();
                    let gone: Vec<Subnet> =
                        self.leases.keys().filter(|subnet| !listed.contains(subnet)).copied().collect();
                    changes.extend(gone.into_iter().filter_map(|subnet| self.remove(subnet)));
                    changes.extend(entries.iter().filter_map(|entry| self.put(entry)));
                }
                SubnetEvent::Put(entry) if entry.subnet == self.own => own_key = Some(OwnKey::Written(entry)),
                SubnetEvent::Put(entry) => changes.extend(self.put(&entry)),
                SubnetEvent::Deleted(subnet) if subnet == self.own => own_key = Some(OwnKey::Lost),
                SubnetEvent::Deleted(subnet) => changes.extend(self.remove(subnet)),
            }
        }
        log(&changes);
        own_key
    }

    /// The workers that can be reached in a family, in the order of their subnets.
    ///
    /// There is one for each subnet: of two keys that share a half, the first counts.
    pub fn peers(&self, family: Family) -> impl Iterator<Item = &Peer> {
        let mut by_subnet = BTreeMap::new();
        for peer in self.leases.values().flatten().filter(|peer| Family::of(peer.subnet.addr()) == family) {
            by_subnet.entry(peer.subnet).or_insert(peer);
        }
        by_subnet.into_values()
    }

    /// How many workers can be reached.
    #[must_use]
    pub fn reachable_count(&self) -> usize {
        self.leases.values().filter(|peers| !peers.is_empty()).count()
    }

    fn put(&mut self, entry: &Entry) -> Option<Change> {
        let subnet = entry.subnet;
        if subnet == self.own {
            return None;
        }
        let peers = self.reachable(entry);
        let known = self.leases.insert(subnet, peers.as_ref().cloned().unwrap_or_default());
        match (peers, known) {
            // Renewed by a flanneld, which writes the same again.
            (Ok(peers), Some(known)) if known == peers => None,
            (Err(_), Some(known)) if known.is_empty() => None,
            (Ok(peers), _) => Some(Change::Added(subnet, peers)),
            (Err(reason), _) => Some(Change::Ignored(subnet, reason)),
        }
    }

    fn remove(&mut self, subnet: Subnet) -> Option<Change> {
        self.leases.remove(&subnet).map(|_| Change::Removed(subnet))
    }

    /// Finds out how to reach the worker that holds `entry` in each family that both have, or why it cannot be reached.
    fn reachable(&self, entry: &Entry) -> Result<Vec<Peer>, String> {
        let attributes = entry.attributes.as_ref().ok_or("its value cannot be read")?;
        if entry.is_held_by(self.public.ipv4) {
            return Err("it bears our own address; a left-over of ours, or two workers have one --public-ip".to_owned());
        }
        if entry.subnet.overlaps(&self.own) {
            return Err(format!("it overlaps our own {}", self.own));
        }
        attributes.check_backend(self.backend).map_err(|error| chain(&error))?;
        let mut peers = Vec::new();
        for family in FAMILIES {
            if let (Some(_), Some(subnet)) = (self.own.half(family), entry.subnet.half(family)) {
                peers.push(self.peer(family, subnet, attributes)?);
            }
        }
        Ok(peers)
    }

    fn peer(&self, family: Family, subnet: IpNet, attributes: &Attributes) -> Result<Peer, String> {
        let public_ip = attributes.public_address(family).ok_or("it has an IPv6 subnet and its PublicIPv6 is null")?;
        let Some(vni) = self.vni else { return Ok(Peer { subnet, vtep_mac: None, public_ip }) };
        let data = attributes.vxlan_data(family).map_err(|error| chain(&error))?;
        if data.vni != vni {
            return Err(format!("it is in VNI {}, we are in {vni}", data.vni));
        }
        Ok(Peer { subnet, vtep_mac: Some(data.vtep_mac), public_ip })
    }
}

/// Writes what changed to the log: a line each, or, when an agent starts among many others, one line in all.
fn log(changes: &[Change]) {
    if changes.len() > LINES_PER_BATCH {
        let count = |is: fn(&Change) -> bool| changes.iter().filter(|change| is(change)).count();
        let added = count(|change| matches!(change, Change::Added(..)));
        let removed = count(|change| matches!(change, Change::Removed(_)));
        info!(added, removed, ignored = changes.len() - added - removed, "many leases changed; --v=2 names them");
    }
    for change in changes {
        match change {
            _ if changes.len() > LINES_PER_BATCH => debug!(?change),
            Change::Added(subnet, peers) => {
                let addresses: Vec<_> = peers.iter().map(|peer| peer.public_ip.to_string()).collect();
                let macs: Vec<_> = peers.iter().filter_map(|peer| Some(peer.vtep_mac?.to_string())).collect();
                info!(%subnet, public_ip = addresses.join(" "), vtep_mac = macs.join(" "), "lease added");
            }
            Change::Removed(subnet) => info!(%subnet, "lease removed"),
            Change::Ignored(subnet, reason) => warn!(%subnet, reason, "lease ignored"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::VxlanData;
    use crate::network::NetworkConfig;

    const OWN_IP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 0, 3);

    fn subnet(third: u8) -> Subnet {
        format!("10.5.{third}.0-24").parse().unwrap()
    }

    fn entry(third: u8, public_ip: [u8; 4], vni: u32) -> Entry {
        let data = VxlanData { vni: Vni::new(vni).unwrap(), vtep_mac: MacAddr([2, 0, 0, 0, 0, third]) };
        Entry {
            subnet: subnet(third),
            attributes: Some(Attributes::vxlan(addresses(public_ip), data, None)),
            lease_id: 1,
            mod_revision: 1,
        }
    }

    fn addresses(public_ip: [u8; 4]) -> PublicAddresses {
        PublicAddresses { ipv4: public_ip.into(), ipv6: None }
    }

    fn backend(json: &str) -> Backend {
        let json = format!(r#"{{"Network": "10.5.0.0/16", "Backend": {json}}}"#);
        NetworkConfig::parse(json.as_bytes()).unwrap().backend
    }

    fn table() -> PeerTable {
        PeerTable::new(subnet(1), addresses(OWN_IP.octets()), &backend(r#"{"Type": "vxlan", "VNI": 100}"#))
    }

    /// The table of a worker in a dual-stack cluster.
    fn dual_stack_table() -> PeerTable {
        let own = "10.5.1.0-24&fd00:5:0:1::-64".parse().unwrap();
        let public = PublicAddresses { ipv6: Some("fd00:aa::3".parse().unwrap()), ..addresses(OWN_IP.octets()) };
        PeerTable::new(own, public, &backend(r#"{"Type": "vxlan", "VNI": 100}"#))
    }

    /// A lease of a dual-stack worker.
    fn dual_entry(number: u8) -> Entry {
        let data = |last| VxlanData { vni: Vni::new(100).unwrap(), vtep_mac: MacAddr([2, 0, 0, 0, last, number]) };
        let public = PublicAddresses {
            ipv6: Some(format!("fd00:aa::{number}").parse().unwrap()),
            ..addresses([10, 0, 0, number])
        };
        Entry {
            subnet: format!("10.5.{number}.0-24&fd00:5:0:{number}::-64").parse().unwrap(),
            attributes: Some(Attributes::vxlan(public, data(4), Some(data(6)))),
            lease_id: 1,
            mod_revision: 1,
        }
    }

    fn subnets(table: &PeerTable) -> Vec<String> {
        table.peers(Family::V4).map(|peer| peer.subnet.to_string()).collect()
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
        let own = entry(1, OWN_IP.octets(), 100);
        let listed = SubnetEvent::Listed(vec![own.clone(), entry(3, [10, 0, 0, 5], 100)]);
        assert_eq!(table.handle_events(vec![listed]), Some(OwnKey::Listed(own)));
        assert_eq!(subnets(&table), ["10.5.3.0/24"]);
    }

    #[test]
    fn our_own_lease_is_no_peer_and_what_becomes_of_it_is_told() {
        let mut table = table();
        let own = || entry(1, OWN_IP.octets(), 100);
        assert_eq!(table.handle_events(vec![SubnetEvent::Put(own())]), Some(OwnKey::Written(own())));
        assert_eq!(subnets(&table), [""; 0]);
        let (gone, back) = (SubnetEvent::Deleted(subnet(1)), SubnetEvent::Put(own()));
        assert_eq!(table.handle_events(vec![gone.clone()]), Some(OwnKey::Lost));
        assert_eq!(table.handle_events(vec![gone, back]), Some(OwnKey::Written(own())));
        assert_eq!(table.handle_events(vec![SubnetEvent::Listed(vec![])]), Some(OwnKey::Lost));
        assert_eq!(table.handle_events(vec![SubnetEvent::Put(entry(2, [10, 0, 0, 4], 100))]), None);
    }

    #[test]
    fn a_lease_that_leads_nowhere_is_ignored() {
        let foreign =
            Attributes { backend_type: Some("host-gw".to_owned()), ..entry(2, [10, 0, 0, 4], 100).attributes.unwrap() };
        let wider = "10.5.0.0-16".parse().unwrap();
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

    #[test]
    fn a_dual_stack_peer_is_reached_in_both_families_and_an_ipv4_peer_in_one() {
        let mut table = dual_stack_table();
        table.handle_events(vec![SubnetEvent::Put(dual_entry(2)), SubnetEvent::Put(entry(3, [10, 0, 0, 5], 100))]);
        assert_eq!(subnets(&table), ["10.5.2.0/24", "10.5.3.0/24"]);
        let ipv6: Vec<&Peer> = table.peers(Family::V6).collect();
        let expected = Peer {
            subnet: "fd00:5:0:2::/64".parse().unwrap(),
            vtep_mac: Some(MacAddr([2, 0, 0, 0, 6, 2])),
            public_ip: "fd00:aa::2".parse().unwrap(),
        };
        assert_eq!(ipv6, [&expected]);
        // A worker with one family reaches the other half of a dual-stack peer all the same.
        let mut single = self::table();
        single.handle_events(vec![SubnetEvent::Put(dual_entry(2))]);
        assert_eq!((subnets(&single), single.peers(Family::V6).count()), (vec!["10.5.2.0/24".to_owned()], 0));
    }

    #[test]
    fn with_host_gw_an_address_is_enough() {
        let mut table = PeerTable::new(subnet(1), addresses(OWN_IP.octets()), &backend(r#"{"Type": "host-gw"}"#));
        let mut lease = entry(2, [10, 0, 0, 4], 100);
        table.handle_events(vec![SubnetEvent::Put(lease.clone())]);
        assert_eq!(table.reachable_count(), 0, "a worker with vxlan is not reached by host-gw");
        lease.attributes = Some(Attributes::host_gw(addresses([10, 0, 0, 4])));
        table.handle_events(vec![SubnetEvent::Put(lease)]);
        assert_eq!(table.peers(Family::V4).map(|peer| peer.vtep_mac).collect::<Vec<_>>(), [None]);
    }
}
