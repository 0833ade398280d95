//! Ranges of addresses and the order in which they are tried. Pure: no files here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::{Error, Result};

/// A range as the configuration has it; everything but the subnet has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// The subnet, with no host bits set.
    pub subnet: IpNet,
    /// The first address to give; the subnet's first by default.
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    pub range_start: Option<IpAddr>,
    /// The last address to give; by default the subnet's last (IPv4: the one before broadcast).
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never given; the subnet's first address by default.
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    pub gateway: Option<IpAddr>,
}

/// A checked range: `start..=end` without `gateway`, inside `subnet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    /// The gateway of the subnet.
    pub gateway: IpAddr,
}

impl Range {
    /// Fills in the defaults and checks.
    ///
    /// # Errors
    ///
    /// Code 7 for a subnet with host bits or fewer than four addresses, and for a bound outside of it.
    pub fn new(conf: &RangeConf) -> Result<Self> {
        let subnet = conf.subnet;
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(Error::config(format!("Network {subnet} too small to allocate from")));
        }
        if subnet.addr() != subnet.network() {
            return Err(Error::config(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            )));
        }
        let first = from_number(to_number(subnet.network()) + 1, subnet);
        let last = to_number(subnet.broadcast()) - u128::from(matches!(subnet, IpNet::V4(_)));
        let range = Self {
            subnet,
            start: conf.range_start.unwrap_or(first),
            end: conf.range_end.unwrap_or(from_number(last, subnet)),
            gateway: conf.gateway.unwrap_or(first),
        };
        if !subnet.contains(&range.start) {
            return Err(Error::config(format!("RangeStart {} not in network {subnet}", range.start)));
        }
        if !subnet.contains(&range.end) || range.end < range.start {
            return Err(Error::config(format!("RangeEnd {} not in network {subnet} or before RangeStart", range.end)));
        }
        Ok(range)
    }

    /// Whether `address` is between the bounds, both included.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.start <= address && address <= self.end
    }

    /// The address with the prefix length of the subnet, as a result names it.
    ///
    /// # Panics
    ///
    /// Never for an address of this range: an address of the other family could not bear the prefix length.
    #[must_use]
    pub fn with_prefix(&self, address: IpAddr) -> IpNet {
        IpNet::new_assert(address, self.subnet.prefix_len())
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family of which the container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// An address that may be tried, with the range it comes from.
pub type Candidate<'a> = (IpAddr, &'a Range);

impl RangeSet {
    /// Checks every range and that they agree.
    ///
    /// # Errors
    ///
    /// Code 7 for an empty set, mixed families, or ranges that overlap.
    pub fn new(confs: &[RangeConf]) -> Result<Self> {
        let ranges = confs.iter().map(Range::new).collect::<Result<Vec<_>>>()?;
        let Some(first) = ranges.first() else {
            return Err(Error::config("empty range set"));
        };
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(Error::config("mixed address families"));
        }
        for (index, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges[..index].iter().find(|other| other.overlaps(range)) {
                return Err(Error::config(format!("subnets {other} and {range} overlap")));
            }
        }
        Ok(Self(ranges))
    }

    /// Whether the set gives IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().all(|range| range.start.is_ipv4())
    }

    /// The range that holds `address`.
    #[must_use]
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Whether an address could come from either set.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|theirs| range.overlaps(theirs)))
    }

    /// Every address of the set but the gateways, once each, beginning after `last` and going round.
    ///
    /// An address that was just released is thus given again as late as possible, so that a peer's stale ARP entry or
    /// connection does not meet another pod. A `last` outside of the set (ranges were edited) begins at the start.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = Candidate<'_>> {
        let at = last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, last)));
        let (index, last) = at.map_or((0, None), |(index, last)| (index, Some(to_number(last))));
        let here = &self.0[index];
        let (start, end) = (to_number(here.start), to_number(here.end));
        let tail = (here, last.map_or(start, |last| last + 1), end);
        let others = self.0.iter().cycle().skip(index + 1).take(self.0.len() - 1);
        let others = others.map(|range| (range, to_number(range.start), to_number(range.end)));
        let head = last.map(|last| (here, start, last));
        std::iter::once(tail)
            .chain(others)
            .chain(head)
            .flat_map(|(range, from, to)| (from..=to).map(move |number| (from_number(number, range.subnet), range)))
            .filter(|(address, range)| *address != range.gateway)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address of that number in the family of `subnet`; only called with numbers inside `subnet`.
fn from_number(number: u128, subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(confs: &str) -> Result<RangeSet> {
        RangeSet::new(&serde_json::from_str::<Vec<RangeConf>>(confs).unwrap())
    }

    fn addresses(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|last| last.parse().unwrap())).map(|(address, _)| address.to_string()).collect()
    }

    #[test]
    fn the_first_address_is_the_gateways_and_the_last_is_broadcast() {
        let set = set(r#"[{"subnet": "10.1.2.0/29"}]"#).unwrap();
        assert_eq!(addresses(&set, None), ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(set.to_string(), "10.1.2.1-10.1.2.6");
    }

    #[test]
    fn the_search_goes_on_after_the_last_one_and_round_through_all_ranges() {
        let set = set(
            r#"[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.9", "rangeEnd": "10.2.0.11"}]"#,
        );
        let set = set.unwrap();
        assert_eq!(addresses(&set, Some("10.2.0.9")), ["10.2.0.10", "10.2.0.11", "10.1.0.2", "10.2.0.9"]);
    }

    #[test]
    fn a_last_address_outside_of_the_set_begins_at_the_start() {
        let set = set(r#"[{"subnet": "10.1.0.0/30"}]"#).unwrap();
        assert_eq!(addresses(&set, Some("192.0.2.1")), ["10.1.0.2"]);
    }

    #[test]
    fn an_ipv6_subnet_has_no_broadcast_address() {
        let set = set(r#"[{"subnet": "fd00::/126"}]"#).unwrap();
        assert_eq!(addresses(&set, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn impossible_ranges_are_refused() {
        for (confs, reason) in [
            ("[]", "empty range set"),
            (r#"[{"subnet": "10.0.0.0/31"}]"#, "too small"),
            (r#"[{"subnet": "10.0.0.1/24"}]"#, "host bits"),
            (r#"[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]"#, "RangeStart"),
            (r#"[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.3"}]"#, "RangeEnd"),
            (r#"[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]"#, "mixed"),
            (r#"[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]"#, "overlap"),
        ] {
            assert!(set(confs).unwrap_err().msg.contains(reason), "{confs}");
        }
    }
}
