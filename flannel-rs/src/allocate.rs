//! Which subnet a worker shall have: a pure decision over the keys that stand in etcd.
//!
//! Three wishes, in this order, as in flanneld:
//!
//! 1. the key that already bears our public IP, so that a restarted agent finds its subnet again;
//! 2. the subnet in the `subnet.env` of a former run, so that the pods of a worker whose lease ran out keep their addresses;
//! 3. any free one. flanneld draws one of the first hundred at random; we take the lowest, so that two runs of the lab look alike.
//!
//! Source: flannel `pkg/subnet/etcd/local_manager.go`, `tryAcquireLease` and `allocateSubnet`.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use crate::error::AllocateError;
use crate::family::Prefix;
use crate::lease::{Entry, Subnet};
use crate::network::{NetworkConfig, SubnetRange};
use crate::subnet_env::FormerSubnets;

/// What to do to get a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Go on with the key that bears our address already.
    TakeUp(&'a Entry),
    /// Create this key, which overlaps no other.
    Create(Subnet),
}

/// Chooses the subnet of the worker `public_ip` among `entries`, the keys of all workers.
///
/// The two halves of a dual-stack subnet are chosen independently. Only the IPv4 address is compared to recognise our own key, as
/// flanneld does.
///
/// # Errors
///
/// [`AllocateError`] when no subnet of the configured range is free.
pub fn choose<'a>(
    config: &NetworkConfig,
    entries: &'a [Entry],
    public_ip: Ipv4Addr,
    former: FormerSubnets,
) -> Result<Choice<'a>, AllocateError> {
    let is_ours = |entry: &&Entry| entry.is_held_by(public_ip) && fits(config, entry.subnet);
    if let Some(entry) = entries.iter().find(is_ours) {
        return Ok(Choice::TakeUp(entry));
    }
    let taken = || entries.iter().map(|entry| entry.subnet);
    let ipv4 = free_subnet(&config.ipv4, taken().map(|subnet| subnet.ipv4).collect(), former.ipv4)?;
    let ipv6 = match &config.ipv6 {
        Some(range) => Some(free_subnet(range, taken().filter_map(|subnet| subnet.ipv6).collect(), former.ipv6)?),
        None => None,
    };
    Ok(Choice::Create(Subnet { ipv4, ipv6 }))
}

/// Finds the keys that bear our address but do not fit the configuration, e.g. because it has changed since they were written.
///
/// Reservations are left out: whoever made one wants it to stay.
pub fn outgrown<'a>(
    config: &NetworkConfig,
    entries: &'a [Entry],
    public_ip: Ipv4Addr,
) -> impl Iterator<Item = &'a Entry> {
    entries
        .iter()
        .filter(move |entry| entry.is_held_by(public_ip) && !entry.is_reservation() && !fits(config, entry.subnet))
}

/// Says whether `subnet` could have been handed out under this configuration, with both halves or one as it wants.
fn fits(config: &NetworkConfig, subnet: Subnet) -> bool {
    let ipv6_fits = match (&config.ipv6, subnet.ipv6) {
        (Some(range), Some(ipv6)) => range.fits(ipv6),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    config.ipv4.fits(subnet.ipv4) && ipv6_fits
}

/// Takes the former subnet if it is free and fits, else the lowest that is free.
fn free_subnet<P: Prefix>(range: &SubnetRange<P>, taken: Vec<P>, former: Option<P>) -> Result<P, AllocateError> {
    let is_free = |subnet: &P| taken.iter().all(|other| !other.overlaps(subnet));
    if let Some(former) = former.filter(|subnet| range.fits(*subnet)).filter(is_free) {
        return Ok(former);
    }
    let exhausted = || AllocateError { first: Into::<IpNet>::into(range.min), last: range.max.into() };
    range.lowest_free(taken).ok_or_else(exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Attributes;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

    fn config() -> NetworkConfig {
        let json = br#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.4.0", "Backend": {"Type": "vxlan"}}"#;
        NetworkConfig::parse(json).unwrap()
    }

    fn entry(subnet: &str, public_ip: Ipv4Addr) -> Entry {
        let json = format!(r#"{{"PublicIP":"{public_ip}"}}"#);
        let attributes: Attributes = serde_json::from_str(&json).unwrap();
        Entry {
            subnet: Subnet::new(subnet.parse().unwrap()),
            attributes: Some(attributes),
            lease_id: 7,
            mod_revision: 1,
        }
    }

    fn dual_stack() -> NetworkConfig {
        let json =
            br#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}"#;
        NetworkConfig::parse(json).unwrap()
    }

    fn dual_entry(key: &str, public_ip: Ipv4Addr) -> Entry {
        Entry { subnet: key.parse().unwrap(), ..entry("10.5.1.0/24", public_ip) }
    }

    fn created(entries: &[Entry], former: Option<&str>) -> String {
        let former = FormerSubnets { ipv4: former.map(|net| net.parse().unwrap()), ipv6: None };
        match choose(&config(), entries, OURS, former) {
            Ok(Choice::Create(subnet)) => subnet.to_string(),
            other => panic!("expected a new subnet, got {other:?}"),
        }
    }

    #[test]
    fn the_first_worker_gets_the_second_subnet_of_the_network() {
        assert_eq!(created(&[], None), "10.5.1.0-24");
    }

    #[test]
    fn a_gap_is_filled_before_the_end_is_used() {
        assert_eq!(created(&[entry("10.5.1.0/24", OTHER), entry("10.5.3.0/24", OTHER)], None), "10.5.2.0-24");
    }

    #[test]
    fn leases_of_other_lengths_are_respected() {
        assert_eq!(created(&[entry("10.5.0.0/23", OTHER)], None), "10.5.2.0-24");
        assert_eq!(created(&[entry("10.5.1.128/26", OTHER), entry("10.5.2.0/30", OTHER)], None), "10.5.3.0-24");
    }

    #[test]
    fn a_key_whose_value_is_unreadable_is_taken_all_the_same() {
        let unreadable = Entry { attributes: None, ..entry("10.5.1.0/24", OTHER) };
        assert_eq!(created(&[unreadable], None), "10.5.2.0-24");
    }

    #[test]
    fn a_worker_finds_its_own_key_again_if_it_still_fits() {
        let entries = [entry("10.5.1.0/24", OTHER), entry("10.5.2.0/25", OURS), entry("10.5.3.0/24", OURS)];
        assert_eq!(choose(&config(), &entries, OURS, FormerSubnets::default()).unwrap(), Choice::TakeUp(&entries[2]));
        assert_eq!(outgrown(&config(), &entries, OURS).collect::<Vec<_>>(), [&entries[1]]);
    }

    #[test]
    fn a_reservation_that_does_not_fit_is_not_outgrown() {
        let reservation = Entry { lease_id: 0, ..entry("10.5.2.0/25", OURS) };
        assert_eq!(outgrown(&config(), &[reservation], OURS).count(), 0);
    }

    #[test]
    fn the_former_subnet_is_wanted_unless_it_is_taken_or_does_not_fit() {
        assert_eq!(created(&[], Some("10.5.4.0/24")), "10.5.4.0-24");
        assert_eq!(created(&[entry("10.5.4.64/26", OTHER)], Some("10.5.4.0/24")), "10.5.1.0-24");
        assert_eq!(created(&[], Some("10.5.9.0/24")), "10.5.1.0-24");
    }

    #[test]
    fn a_full_range_is_an_error_that_names_it() {
        let error =
            choose(&config(), &[entry("10.5.0.0/16", OTHER)], OURS, FormerSubnets::default()).unwrap_err().to_string();
        assert!(error.contains("10.5.1.0/24") && error.contains("10.5.4.0/24"), "{error}");
    }

    #[test]
    fn the_halves_of_a_dual_stack_subnet_are_chosen_independently() {
        let entries = [dual_entry("10.5.2.0-24&fd00:5:0:1::-64", OTHER), dual_entry("10.5.1.0-24", OTHER)];
        let chosen = |former| match choose(&dual_stack(), &entries, OURS, former) {
            Ok(Choice::Create(subnet)) => subnet.to_string(),
            other => panic!("expected a new subnet, got {other:?}"),
        };
        assert_eq!(chosen(FormerSubnets::default()), "10.5.3.0-24&fd00:5:0:2::-64");
        let former = FormerSubnets { ipv4: Some("10.5.4.0/24".parse().unwrap()), ipv6: None };
        assert_eq!(chosen(former), "10.5.4.0-24&fd00:5:0:2::-64");
        let former = FormerSubnets { ipv4: None, ipv6: Some("fd00:5:0:9::/64".parse().unwrap()) };
        assert_eq!(chosen(former), "10.5.3.0-24&fd00:5:0:9::-64");
    }

    #[test]
    fn a_key_with_one_family_does_not_fit_a_cluster_with_two_nor_the_reverse() {
        let entries = [dual_entry("10.5.1.0-24", OURS), dual_entry("10.5.2.0-24&fd00:5:0:1::-64", OURS)];
        let taken_up = |config: NetworkConfig| match choose(&config, &entries, OURS, FormerSubnets::default()) {
            Ok(Choice::TakeUp(entry)) => entry.subnet.to_string(),
            other => panic!("expected a key of ours, got {other:?}"),
        };
        assert_eq!(taken_up(config()), "10.5.1.0-24");
        assert_eq!(taken_up(dual_stack()), "10.5.2.0-24&fd00:5:0:1::-64");
        assert_eq!(outgrown(&dual_stack(), &entries, OURS).collect::<Vec<_>>(), [&entries[0]]);
    }
}
