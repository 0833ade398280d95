//! The stretch of the pod network that is shared out, in subnets of one length.

use crate::error::NetworkError;
use crate::family::Prefix;
use linux_net::ip::Family;

use super::fields::Fields;

/// Where the subnets of one family come from.
///
/// ```text
///   Network 10.5.0.0/16, SubnetLen 24
///   |--------|--------|--------| … |--------|
///    10.5.0.0 10.5.1.0               10.5.255.0
///    skipped  SubnetMin              SubnetMax
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange<P> {
    /// The pod network of the whole cluster, host bits cleared.
    pub network: P,
    /// The prefix length of every worker's subnet.
    pub subnet_len: u8,
    /// The first subnet that may be handed out.
    pub min: P,
    /// The last subnet that may be handed out.
    pub max: P,
}

/// What flannel allows, and takes when nothing is said.
struct Limits {
    /// What stands before the names of the fields.
    field_prefix: &'static str,
    /// For error messages.
    example: &'static str,
    /// The length of a subnet when none is given.
    default_len: u8,
    /// The longest prefix of a network that gets subnets of that length; a narrower one is cut into four.
    widest_default: u8,
    /// Four subnets of four addresses each: fewer would leave nothing to share out, because the first is skipped.
    narrowest_network: u8,
    /// A subnet needs its base (the VXLAN device), a gateway (the bridge) and at least one pod.
    longest_subnet: u8,
}

const IPV4: Limits = Limits {
    field_prefix: "",
    example: "10.5.0.0/16",
    default_len: 24,
    widest_default: 22,
    narrowest_network: 28,
    longest_subnet: 30,
};

const IPV6: Limits = Limits {
    field_prefix: "IPv6",
    example: "fd00:5::/48",
    default_len: 64,
    widest_default: 62,
    narrowest_network: 124,
    longest_subnet: 126,
};

impl<P: Prefix> SubnetRange<P> {
    /// Reads `Network`, `SubnetLen`, `SubnetMin` and `SubnetMax`, or the same with `IPv6` before them.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, NetworkError> {
        let limits = match P::FAMILY {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        };
        let name = |suffix: &str| format!("{}{suffix}", limits.field_prefix);
        let network: P = fields.network(&name("Network"), limits.example)?;
        let subnet_len = limits.subnet_len(fields, network)?;
        let advice = || format!("has no room for subnets of /{subnet_len}");
        let subnet = |number: Option<u128>| {
            let subnet = number.and_then(|number| P::containing(number, subnet_len));
            subnet.ok_or_else(|| fields.wrong(&name("Network"), network, advice()))
        };
        // The length of a subnet is at least 2 here, so that this is no shift by the whole width.
        let size = 1_u128 << (P::FAMILY.host_prefix_len() - subnet_len);
        let whole = Self {
            network,
            subnet_len,
            min: subnet(network.first().checked_add(size))?,
            max: subnet(Some(network.last()))?,
        };
        let min = fields.bound(&name("SubnetMin"), whole.min, &whole)?;
        let max = fields.bound(&name("SubnetMax"), whole.max, &whole)?;
        if min > max {
            let advice = format!("lies behind {} {max}; exchange the two", name("SubnetMax"));
            return Err(fields.wrong(&name("SubnetMin"), min, advice));
        }
        Ok(Self { min, max, ..whole })
    }

    /// Says whether `subnet` could have been handed out from this range.
    #[must_use]
    pub fn fits(&self, subnet: P) -> bool {
        subnet.length() == self.subnet_len && (self.min..=self.max).contains(&subnet)
    }

    /// Returns the lowest subnet of the range that overlaps none of `taken`, which may be of any length; `None` when there is none.
    ///
    /// One walk over the sorted subnets: `candidate` moves up past each one that is in its way.
    ///
    /// ```text
    ///   min                                      max
    ///    |--------|--------|--------|--------|--------|
    ///      [taken ]  [t]               [ taken, longer than a subnet ]
    ///                        ^ lowest free
    /// ```
    #[must_use]
    pub fn lowest_free(&self, mut taken: Vec<P>) -> Option<P> {
        taken.sort_unstable_by_key(Prefix::first);
        let mut candidate = self.min;
        for net in taken {
            if net.first() > candidate.last() {
                break; // The rest begins even further up.
            }
            if net.overlaps(&candidate) {
                // The subnet that contains the first address behind whichever of the two ends later.
                let behind = net.last().max(candidate.last()).checked_add(1)?;
                candidate = P::containing(behind, self.subnet_len)?;
            }
        }
        (candidate <= self.max).then_some(candidate)
    }
}

impl Limits {
    /// Takes the length that is given, or flannel's default for the network.
    fn subnet_len<P: Prefix>(&self, fields: &Fields<'_>, network: P) -> Result<u8, NetworkError> {
        let (field, network_field) =
            (format!("{}SubnetLen", self.field_prefix), format!("{}Network", self.field_prefix));
        let shortest = network.length() + 2;
        match fields.integer(&field)? {
            // Go's decoder leaves 0 where nothing is given, so flanneld cannot tell the two apart.
            None | Some(0) if network.length() > self.narrowest_network => Err(fields.wrong(
                &network_field,
                network,
                format!(
                    "leaves no room for four subnets of four addresses; use a /{} or wider",
                    self.narrowest_network
                ),
            )),
            None | Some(0) if network.length() <= self.widest_default => Ok(self.default_len),
            None | Some(0) => Ok(shortest),
            Some(length) => match u8::try_from(length) {
                Ok(length) if length > self.longest_subnet => {
                    let advice = format!("leaves no address for a pod; use {} or less", self.longest_subnet);
                    Err(fields.wrong(&field, length, advice))
                }
                Ok(length) if length < shortest => {
                    let advice = format!(
                        "cuts {network} into fewer than four subnets, of which the first is skipped; use {shortest} or more"
                    );
                    Err(fields.wrong(&field, length, advice))
                }
                Ok(length) => Ok(length),
                Err(_) => {
                    let advice = format!("is no prefix length; use {shortest} to {}", self.longest_subnet);
                    Err(fields.wrong(&field, length, advice))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn range<P: Prefix>(network: &str, min: &str, max: &str) -> SubnetRange<P> {
        let net = |text: &str| text.parse::<P>().unwrap_or_else(|_| panic!("{text}"));
        let (network, min, max) = (net(network), net(min), net(max));
        SubnetRange { network, subnet_len: min.length(), min, max }
    }

    fn ipv4() -> SubnetRange<Ipv4Net> {
        range("10.5.0.0/16", "10.5.1.0/24", "10.5.4.0/24")
    }

    #[test]
    fn the_last_subnet_of_the_address_space_does_not_wrap_around() {
        let range4 = range::<Ipv4Net>("255.255.0.0/16", "255.255.255.0/24", "255.255.255.0/24");
        assert_eq!(range4.lowest_free(vec![]), Some(range4.max));
        assert_eq!(range4.lowest_free(vec![range4.max]), None);
        let last = "ffff:ffff:ffff:ffff::/64";
        let range6 = range::<Ipv6Net>("ffff::/16", last, last);
        assert_eq!(range6.lowest_free(vec![]), Some(range6.max));
        assert_eq!(range6.lowest_free(vec![range6.max]), None);
    }

    #[test]
    fn a_subnet_outside_the_range_or_of_another_length_does_not_fit() {
        assert!(ipv4().fits("10.5.4.0/24".parse().unwrap()));
        assert!(!ipv4().fits("10.5.5.0/24".parse().unwrap()));
        assert!(!ipv4().fits("10.5.0.0/24".parse().unwrap()), "the first subnet is skipped");
        assert!(!ipv4().fits("10.5.2.0/25".parse().unwrap()));
    }

    proptest! {
        /// Compares with the obvious way to do it: try every subnet from the lowest up.
        #[test]
        fn the_walk_finds_what_trying_every_subnet_finds(nets in proptest::collection::vec((0_u32..0x600, 22_u8..=30), 0..12)) {
            let taken: Vec<_> = nets.iter().map(|(low, length)| Ipv4Net::new((0x0a05_0000 + low).into(), *length).unwrap().trunc()).collect();
            let all = (1..=4).map(|third| Ipv4Net::new([10, 5, third, 0].into(), 24).unwrap());
            let expected = all.into_iter().find(|net| !taken.iter().any(|taken| taken.overlaps(net)));
            prop_assert_eq!(ipv4().lowest_free(taken), expected);
        }
    }
}
