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

use ipnet::Ipv4Net;

use crate::error::AllocateError;
use crate::lease::{Entry, Subnet};
use crate::network::NetworkConfig;

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
/// `previous` is the subnet of a former run, if known. Only the IPv4 address is compared to recognise our own key, as flanneld does.
///
/// # Errors
///
/// [`AllocateError`] when no subnet of the configured range is free.
pub fn choose<'a>(
    config: &NetworkConfig,
    entries: &'a [Entry],
    public_ip: Ipv4Addr,
    previous: Option<Ipv4Net>,
) -> Result<Choice<'a>, AllocateError> {
    let ours =
        |entry: &&Entry| entry.is_held_by(public_ip) && entry.subnet.ipv6.is_none() && config.fits(entry.subnet.ipv4);
    if let Some(entry) = entries.iter().find(ours) {
        return Ok(Choice::TakeUp(entry));
    }
    let is_free = |subnet: &Ipv4Net| entries.iter().all(|entry| !entry.subnet.overlaps(*subnet));
    if let Some(previous) = previous.filter(|subnet| config.fits(*subnet)).filter(is_free) {
        return Ok(Choice::Create(Subnet::new(previous)));
    }
    let taken = entries.iter().map(|entry| entry.subnet.ipv4).collect();
    lowest_free(config, taken).map(|subnet| Choice::Create(Subnet::new(subnet)))
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
        .filter(move |entry| entry.is_held_by(public_ip) && !entry.is_reservation() && !config.fits(entry.subnet.ipv4))
}

/// Returns the lowest subnet of the configured range that overlaps none of `taken`, which may be of any length.
///
/// One walk over the sorted subnets: `candidate` moves up past each one that is in its way.
///
/// ```text
///   SubnetMin                                SubnetMax
///      |--------|--------|--------|--------|--------|
///        [taken ]  [t]               [ taken, longer than a subnet ]
///                          ^ lowest free
/// ```
fn lowest_free(config: &NetworkConfig, mut taken: Vec<Ipv4Net>) -> Result<Ipv4Net, AllocateError> {
    taken.sort_unstable_by_key(Ipv4Net::network);
    // In 64 bits, so that the step behind the last subnet of 255.0.0.0/8 does not wrap around.
    let size = 1_u64 << (32 - config.subnet_len);
    let mut candidate = u64::from(u32::from(config.subnet_min));
    for net in taken {
        let (first, last) = (u64::from(u32::from(net.network())), u64::from(u32::from(net.broadcast())));
        if first >= candidate + size {
            break; // The rest begins even further up.
        }
        if last >= candidate {
            candidate = (last + 1).next_multiple_of(size);
        }
    }
    let exhausted =
        || AllocateError { first: config.subnet_min, last: config.subnet_max, subnet_len: config.subnet_len };
    if candidate > u64::from(u32::from(config.subnet_max)) {
        return Err(exhausted());
    }
    let base = u32::try_from(candidate).map_err(|_| exhausted())?;
    Ipv4Net::new(base.into(), config.subnet_len).map_err(|_| exhausted())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn created(entries: &[Entry], previous: Option<&str>) -> String {
        match choose(&config(), entries, OURS, previous.map(|net| net.parse().unwrap())) {
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
        assert_eq!(choose(&config(), &entries, OURS, None).unwrap(), Choice::TakeUp(&entries[2]));
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
        let error = choose(&config(), &[entry("10.5.0.0/16", OTHER)], OURS, None).unwrap_err().to_string();
        assert!(error.contains("10.5.1.0") && error.contains("10.5.4.0") && error.contains("/24"), "{error}");
    }

    #[test]
    fn the_last_subnet_of_the_address_space_does_not_wrap_around() {
        let json = br#"{"Network": "255.255.0.0/16", "SubnetMin": "255.255.255.0", "Backend": {"Type": "vxlan"}}"#;
        let config = NetworkConfig::parse(json).unwrap();
        let last = "255.255.255.0/24".parse().unwrap();
        assert_eq!(lowest_free(&config, vec![]).unwrap(), last);
        assert!(lowest_free(&config, vec![last]).is_err());
    }

    proptest! {
        /// Compares with the obvious way to do it: try every subnet from the lowest up.
        #[test]
        fn the_walk_finds_what_trying_every_subnet_finds(nets in proptest::collection::vec((0_u32..0x600, 22_u8..=30), 0..12)) {
            let taken: Vec<_> = nets.iter().map(|(low, length)| Ipv4Net::new((0x0a05_0000 + low).into(), *length).unwrap().trunc()).collect();
            let all = (1..=4).map(|third| Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap());
            let expected = all.into_iter().find(|net| taken.iter().all(|taken| !Subnet::new(*net).overlaps(*taken)));
            prop_assert_eq!(lowest_free(&config(), taken).ok(), expected);
        }
    }
}
