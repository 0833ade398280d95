//! The shapes a result has had: 0.1.0–0.2.0, 0.3.0–0.4.0, 1.0.0 and 1.1.0.
//!
//! | version | addresses | what else |
//! |---|---|---|
//! | 0.1.0, 0.2.0 | `ip4` and `ip6`, one each, with their routes inside | no interfaces |
//! | 0.3.0, 0.3.1, 0.4.0 | list `ips`, each with `version` "4" or "6" | |
//! | 1.0.0 | list `ips` without `version` | |
//! | 1.1.0 | the same | `mtu`, `socketPath`, `pciID` of interfaces; `mtu` … `scope` of routes |

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::result::{CniResult, Dns, IpConfig, Route};
use crate::version::SpecVersion;

/// A result of 0.1.0 or 0.2.0.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct V02 {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<V02Ip>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<V02Ip>,
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    dns: Dns,
}

/// The one address of a family, with the routes of that family.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct V02Ip {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    routes: Vec<V02Route>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct V02Route {
    dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_as_none")]
    gw: Option<IpAddr>,
}

impl From<V02> for CniResult {
    fn from(old: V02) -> Self {
        let mut result = Self { dns: old.dns, ..Self::default() };
        for family in [old.ip4, old.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: family.ip, gateway: family.gateway });
            result.routes.extend(family.routes.into_iter().map(|route| Route::new(route.dst, route.gw)));
        }
        result
    }
}

impl V02 {
    /// Keeps the first address of each family, and that family's routes.
    fn from_result(result: &CniResult) -> Result<Self> {
        let family = |is_v4: bool| {
            let ip = result.ips.iter().find(|ip| is_ipv4(&ip.address) == is_v4)?;
            let routes = result.routes.iter().filter(|route| is_ipv4(&route.dst) == is_v4);
            let routes = routes.map(|route| V02Route { dst: route.dst, gw: route.gw }).collect();
            Some(V02Ip { ip: ip.address, gateway: ip.gateway, routes })
        };
        let old = Self { ip4: family(true), ip6: family(false), dns: result.dns.clone() };
        if old.ip4.is_none() && old.ip6.is_none() {
            return Err(Error::config("cannot convert: no valid IP addresses"));
        }
        Ok(old)
    }
}

/// Encodes a result in the shape of `version`, `cniVersion` first.
pub(crate) fn encode(result: &CniResult, version: SpecVersion) -> Result<Value> {
    let body = if version < SpecVersion::V0_3_0 {
        serde_json::to_value(V02::from_result(result)?)
    } else if version < SpecVersion::V1_1_0 {
        serde_json::to_value(without_1_1_0_fields(result))
    } else {
        serde_json::to_value(result)
    };
    let body = body.map_err(|source| Error::decode("own result", &source))?;
    let mut object = Map::new();
    object.insert("cniVersion".to_owned(), Value::from(version.as_str()));
    if let Value::Object(members) = body {
        object.extend(members);
    }
    if (SpecVersion::V0_3_0..SpecVersion::V1_0_0).contains(&version) {
        let ips = object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten();
        for (value, ip) in ips.zip(&result.ips) {
            value["version"] = Value::from(if is_ipv4(&ip.address) { "4" } else { "6" });
        }
    }
    Ok(Value::Object(object))
}

fn without_1_1_0_fields(result: &CniResult) -> CniResult {
    let mut result = result.clone();
    for interface in &mut result.interfaces {
        interface.mtu = None;
        interface.socket_path = None;
        interface.pci_id = None;
    }
    for route in &mut result.routes {
        *route = Route::new(route.dst, route.gw);
    }
    result
}

/// Indents by four blanks.
pub(crate) fn pretty(value: &Value) -> Result<String> {
    let mut bytes = Vec::with_capacity(1024);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).map_err(|source| Error::decode("own result", &source))?;
    String::from_utf8(bytes).map_err(|source| Error::config(source.to_string()))
}

pub(crate) fn is_ipv4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// Go writes an empty slice as `null`; both mean "nothing".
pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Go writes an absent address as `""`; it means the same as leaving it out.
pub(crate) fn empty_as_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(d)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::error::Code;
    use crate::result::Interface;

    #[test]
    fn a_dual_stack_result_in_0_2_0_keeps_one_address_of_each_family() {
        let result = CniResult::from_value(
            &json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [
                    {"interface": 0, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                    {"interface": 0, "address": "10.2.0.2/24"},
                    {"interface": 0, "address": "fd00::2/64", "gateway": "fd00::1"},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}],
            }),
            SpecVersion::V1_0_0,
        )
        .unwrap();
        assert_eq!(
            result.to_value(SpecVersion::V0_2_0).unwrap(),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
                "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
            })
        );
    }

    #[test]
    fn the_oldest_shape_cannot_hold_a_result_without_addresses() {
        assert_eq!(CniResult::default().to_value(SpecVersion::V0_1_0).unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn only_0_3_and_0_4_name_the_family_of_an_address() {
        let result = CniResult {
            ips: vec![IpConfig { interface: None, address: "fd00::2/64".parse().unwrap(), gateway: None }],
            ..CniResult::default()
        };
        for (version, family) in
            [(SpecVersion::V0_3_0, Some("6")), (SpecVersion::V0_4_0, Some("6")), (SpecVersion::V1_0_0, None)]
        {
            let value = result.to_value(version).unwrap();
            assert_eq!(value["ips"][0].get("version").and_then(Value::as_str), family, "{version}");
        }
    }

    #[test]
    fn an_address_of_an_interface_that_is_not_there_is_refused() {
        let value = json!({"cniVersion": "1.0.0", "ips": [{"interface": 3, "address": "10.0.0.2/24"}]});
        assert_eq!(CniResult::from_value(&value, SpecVersion::V1_0_0).unwrap_err().code, Code::Decode);
    }

    #[test]
    fn what_go_writes_for_nothing_is_read_as_nothing() {
        let value = json!({"cniVersion": "0.4.0", "interfaces": null, "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": ""}], "dns": {}});
        let result = CniResult::from_value(&value, SpecVersion::V0_4_0).unwrap();
        assert_eq!(result.ips[0].gateway, None);
    }

    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..=32u8).prop_map(|(octets, len)| IpNet::new(IpAddr::from(octets), len).unwrap()),
            (any::<[u8; 16]>(), 0..=128u8).prop_map(|(octets, len)| IpNet::new(IpAddr::from(octets), len).unwrap()),
        ]
    }

    prop_compose! {
        fn result()(
            names in prop::collection::vec("[a-z0-9]{1,15}", 1..4),
            mtu in any::<Option<u32>>(),
            ips in prop::collection::vec((net(), any::<Option<bool>>()), 1..5),
            routes in prop::collection::vec((net(), any::<Option<[u8; 4]>>(), any::<Option<u32>>()), 0..5),
            search in prop::collection::vec("[a-z.]{1,20}", 0..3),
        ) -> CniResult {
            CniResult {
                interfaces: names.into_iter().map(|name| Interface { name, mtu, ..Interface::default() }).collect(),
                ips: ips.into_iter().map(|(address, gw)| IpConfig {
                    interface: gw.map(|_| 0), address, gateway: gw.filter(|gw| *gw).map(|_| address.network()),
                }).collect(),
                routes: routes.into_iter().map(|(dst, gw, table)| {
                    Route { table, ..Route::new(dst, gw.map(IpAddr::from)) }
                }).collect(),
                dns: Dns { search, ..Dns::default() },
            }
        }
    }

    proptest! {
        #[test]
        fn the_newest_shape_loses_nothing(result in result()) {
            let value = result.to_value(SpecVersion::V1_1_0).unwrap();
            prop_assert_eq!(CniResult::from_value(&value, SpecVersion::V1_1_0).unwrap(), result);
        }

        #[test]
        fn a_result_that_has_been_through_an_older_shape_goes_through_it_unchanged(
            result in result(), index in 0..SpecVersion::ALL.len(),
        ) {
            let version = SpecVersion::ALL[index];
            let once = CniResult::from_value(&result.to_value(version).unwrap(), version).unwrap();
            let twice = CniResult::from_value(&once.to_value(version).unwrap(), version).unwrap();
            prop_assert_eq!(&once, &twice);
            if version >= SpecVersion::V0_3_0 {
                prop_assert_eq!(once.ips, result.ips);
            }
        }
    }
}
