//! `vlan` and `vlanTrunk`: which VLANs reach a pod. Pure: no kernel here.
//!
//! A bridge that looks at VLAN tags is many switches in one. `vlan` puts the pod into one of them, whose frames reach it without a tag;
//! `vlanTrunk` hands it several, with their tags, for pods that are routers or switches themselves.

use linux_net::IfName;
use linux_net::netlink::{Op, Vlans};
use serde::Deserialize;

use crate::error::{Error, Result};

/// The VLANs of a pod's port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VlanConfig {
    /// The VLAN whose frames bear no tag; 0 for none.
    pub native: u16,
    /// Ranges of VLANs whose frames bear their tags.
    pub trunk: Vec<(u16, u16)>,
    /// Whether the port stays in the VLAN that the bridge gives every new port.
    pub preserve_default: bool,
}

/// An item of `vlanTrunk`: a range, one VLAN, or both.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct TrunkItem {
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
    id: Option<i64>,
}

/// VLAN 4095 and 0 are reserved (IEEE 802.1Q, table 9-2).
const VLANS: std::ops::RangeInclusive<i64> = 1..=4094;

impl VlanConfig {
    /// Checks the numbers of a configuration.
    ///
    /// # Errors
    ///
    /// Code 7 for a number outside of 1 to 4094, half a range, and one that is upside down.
    pub fn new(native: i64, trunk: &[TrunkItem], preserve_default: bool) -> Result<Self> {
        if native != 0 && !VLANS.contains(&native) {
            return Err(Error::config(format!("invalid VLAN ID {native} (must be between 0 and 4094)")));
        }
        let number = |what: &str, value: i64| {
            let in_range = VLANS.contains(&value).then_some(value).and_then(|value| u16::try_from(value).ok());
            in_range
                .ok_or_else(|| Error::config(format!("incorrect trunk {what} parameter: {value}; VLANs are 1 to 4094")))
        };
        let mut ranges = Vec::new();
        for item in trunk {
            match (item.min, item.max) {
                (Some(min), Some(max)) => {
                    let (min, max) = (number("minID", min)?, number("maxID", max)?);
                    if max < min {
                        return Err(Error::config("minID is greater than maxID in trunk parameter"));
                    }
                    ranges.push((min, max));
                }
                (None, Some(_)) => {
                    return Err(Error::config("minID and maxID should be configured simultaneously, minID is missing"));
                }
                (Some(_), None) => {
                    return Err(Error::config("minID and maxID should be configured simultaneously, maxID is missing"));
                }
                (None, None) => {}
            }
            if let Some(id) = item.id {
                let id = number("id", id)?;
                ranges.push((id, id));
            }
        }
        ranges.sort_unstable();
        ranges.dedup();
        let native = u16::try_from(native).unwrap_or_default();
        Ok(Self { native, trunk: ranges, preserve_default })
    }

    /// Whether the bridge must look at tags.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.native != 0 || !self.trunk.is_empty()
    }

    /// The VLANs that a port must have. A trunk without a native VLAN keeps 1 as that, as it was before there was a choice.
    #[must_use]
    pub fn wanted(&self, port: &IfName) -> Vec<Vlans> {
        let untagged = |vlan| Vlans { untagged: true, ..Vlans::one(port.clone(), vlan) };
        let native = match self.native {
            0 if self.trunk.is_empty() => None,
            0 => Some(untagged(1)),
            native => Some(untagged(native)),
        };
        let trunk = self.trunk.iter().map(|(first, last)| Vlans { last: *last, ..Vlans::one(port.clone(), *first) });
        // The native one comes last: a range may hold it, and would give it tags.
        trunk.chain(native).collect()
    }

    /// What makes of a port with these VLANs one with the wanted ones.
    #[must_use]
    pub fn plan(&self, port: &IfName, present: &[Vlans]) -> Vec<Op> {
        if !self.is_needed() {
            return Vec::new();
        }
        let old = if self.preserve_default { &[] } else { present };
        let del = |vlans: &Vlans| Op::DelVlans(Vlans { untagged: false, ..vlans.clone() });
        old.iter().map(del).chain(self.wanted(port).into_iter().map(Op::AddVlans)).collect()
    }

    /// Whether a port with these VLANs (each one alone) has all that are wanted.
    #[must_use]
    pub fn is_met_by(&self, port: &IfName, present: &[Vlans]) -> bool {
        let has = |vlan: u16, untagged: bool| {
            present.iter().any(|found| found.first == vlan && (found.untagged || !untagged))
        };
        self.wanted(port).iter().all(|wanted| (wanted.first..=wanted.last).all(|vlan| has(vlan, wanted.untagged)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(native: i64, trunk: Value, preserve_default: bool) -> Result<VlanConfig> {
        let trunk: Vec<TrunkItem> = serde_json::from_value(trunk).unwrap();
        VlanConfig::new(native, &trunk, preserve_default)
    }

    fn planned(config: &VlanConfig) -> Vec<String> {
        let port: IfName = "veth0".parse().unwrap();
        let default = Vlans { untagged: true, ..Vlans::one(port.clone(), 1) };
        config.plan(&port, &[default]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_in_a_vlan_leaves_the_default_one_unless_it_is_to_stay() {
        let add = "bridge vlan add dev veth0 vid 100 pvid untagged";
        let config = |preserve| config(100, json!([]), preserve).unwrap();
        assert_eq!(planned(&config(false)), ["bridge vlan del dev veth0 vid 1", add]);
        assert_eq!(planned(&config(true)), [add]);
    }

    #[test]
    fn a_trunk_has_its_ranges_and_vlan_1_without_a_tag() {
        let trunk = json!([{"id": 200}, {"minID": 100, "maxID": 105}, {"id": 200}]);
        assert_eq!(
            planned(&config(0, trunk, true).unwrap()),
            [
                "bridge vlan add dev veth0 vid 100-105",
                "bridge vlan add dev veth0 vid 200",
                "bridge vlan add dev veth0 vid 1 pvid untagged",
            ]
        );
    }

    #[test]
    fn without_vlans_nothing_is_done() {
        let config = config(0, json!([]), false).unwrap();
        assert!(!config.is_needed());
        assert_eq!(planned(&config), Vec::<String>::new());
    }

    #[test]
    fn check_wants_every_vlan_of_a_range() {
        let port: IfName = "veth0".parse().unwrap();
        let config = config(7, json!([{"minID": 10, "maxID": 12}]), false).unwrap();
        let mut present: Vec<_> = [7, 10, 11, 12].map(|vlan| Vlans::one(port.clone(), vlan)).into();
        assert!(!config.is_met_by(&port, &present), "7 bears tags");
        present[0].untagged = true;
        assert!(config.is_met_by(&port, &present));
        assert!(!config.is_met_by(&port, &present[..3]));
    }

    #[test]
    fn impossible_vlans_are_refused() {
        for (native, trunk) in [
            (4095, json!([])),
            (-1, json!([])),
            (0, json!([{"minID": 1}])),
            (0, json!([{"maxID": 1}])),
            (0, json!([{"minID": 5, "maxID": 4}])),
            (0, json!([{"minID": 0, "maxID": 4}])),
            (0, json!([{"id": 4095}])),
        ] {
            config(native, trunk.clone(), false).unwrap_err();
        }
    }
}
