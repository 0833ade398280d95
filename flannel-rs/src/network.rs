//! The network configuration: one JSON document in etcd, written by the operator, read by every worker.
//!
//! ```json
//! { "Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
//!   "Backend": { "Type": "vxlan", "VNI": 100 } }
//! ```
//!
//! flanneld reads it with Go's decoder, so we do as that one does: names match in any case, of two spellings of one name the
//! later wins, `null` counts as absent, unknown names are ignored. Where flanneld says only that something is wrong, we say which
//! field, which value, and what would be right.
//!
//! Source: flannel `pkg/subnet/config.go`, `ParseConfig` and `CheckNetworkConfig`; `pkg/backend/vxlan/vxlan.go`, `RegisterNetwork`.

use std::fmt::Display;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux_net::Vni;
use serde_json::{Map, Value};

use crate::error::NetworkError;

/// The widest network that gets `/24` subnets when `SubnetLen` is not given; a narrower one is cut into four.
const WIDEST_DEFAULT: u8 = 22;
/// Four subnets of four addresses each: fewer would leave nothing to share out, because the first is skipped.
const NARROWEST_NETWORK: u8 = 28;
/// A subnet needs its base (the VXLAN device), a gateway (the bridge) and at least one pod.
const LONGEST_SUBNET: u8 = 30;
/// The VXLAN port of the Linux kernel, older than the 4789 of RFC 7348; flannel stays with it.
const DEFAULT_VXLAN_PORT: u16 = 8472;
/// The VNI that flannel takes when none is given.
const DEFAULT_VNI: u32 = 1;

/// The cluster's network and how it is shared out among the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The pod network of the whole cluster, host bits cleared.
    pub network: Ipv4Net,
    /// The prefix length of every worker's subnet.
    pub subnet_len: u8,
    /// The first subnet that may be handed out, by its base address.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be handed out, by its base address.
    pub subnet_max: Ipv4Addr,
    /// How packets travel between workers.
    pub backend: Backend,
}

/// How packets travel between workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In VXLAN: Ethernet frames in UDP, one device per worker.
    Vxlan(VxlanConfig),
}

/// The fields of a `vxlan` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// The identifier of the virtual network; it also names the device, `flannel.<VNI>`.
    pub vni: Vni,
    /// The UDP port that VTEPs listen on.
    pub port: u16,
    /// The MTU of the *underlay*, in bytes, before the VXLAN headers are taken off; by default that of the external interface.
    pub mtu_bytes: Option<u32>,
    /// Whether the device learns addresses from what it receives. flannel never needs it: every entry is static.
    pub learning: bool,
}

impl NetworkConfig {
    /// Parses and checks the document found under `<prefix>/config`.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] naming the field, its value, and what would be right.
    ///
    /// # Examples
    ///
    /// ```
    /// use flannel_rs::network::NetworkConfig;
    ///
    /// let config = NetworkConfig::parse(br#"{"network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
    /// assert_eq!(config.subnet_len, 24);
    /// assert_eq!(config.subnet_min.to_string(), "10.5.1.0"); // the first subnet is skipped
    /// # Ok::<(), flannel_rs::error::NetworkError>(())
    /// ```
    pub fn parse(json: &[u8]) -> Result<Self, NetworkError> {
        let document: Value = serde_json::from_slice(json).map_err(NetworkError::Json)?;
        let Value::Object(map) = &document else {
            return Err(wrong(
                "the document",
                kind_of(&document),
                "must be a JSON object such as {\"Network\": \"10.5.0.0/16\"}",
            ));
        };
        let fields = Fields { path: "", map };
        if fields.boolean("EnableIPv4")? == Some(false) {
            return Err(wrong(
                "EnableIPv4",
                false,
                "an overlay without IPv4 is not supported; leave it out or set it to true",
            ));
        }
        if fields.boolean("EnableIPv6")? == Some(true) {
            return Err(wrong("EnableIPv6", true, "dual stack is not supported; leave it out or set it to false"));
        }

        let network = fields.network("Network")?;
        let subnet_len = subnet_len(network, fields.integer("SubnetLen")?)?;
        let size = 1_u32 << (32 - subnet_len); // subnet_len is at least 2 here, see `subnet_len`
        let base = u32::from(network.network());
        let default_min = Ipv4Addr::from(base + size);
        let default_max = Ipv4Addr::from(u32::from(network.broadcast()) - (size - 1));
        let subnet_min = fields.bound("SubnetMin", default_min, network, subnet_len)?;
        let subnet_max = fields.bound("SubnetMax", default_max, network, subnet_len)?;
        if subnet_min > subnet_max {
            return Err(wrong(
                "SubnetMin",
                subnet_min,
                format!("lies behind SubnetMax {subnet_max}; exchange the two"),
            ));
        }
        let backend = backend(&fields)?;
        Ok(Self { network, subnet_len, subnet_min, subnet_max, backend })
    }

    /// Says whether `subnet` could have been handed out under this configuration.
    #[must_use]
    pub fn fits(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }
}

/// Takes the length that is given, or flannel's default for the network.
fn subnet_len(network: Ipv4Net, given: Option<u64>) -> Result<u8, NetworkError> {
    let shortest = network.prefix_len() + 2;
    match given {
        // Go's decoder leaves 0 where nothing is given, so flanneld cannot tell the two apart.
        None | Some(0) if network.prefix_len() > NARROWEST_NETWORK => Err(wrong(
            "Network",
            network,
            format!("leaves no room for four subnets of four addresses; use a /{NARROWEST_NETWORK} or wider"),
        )),
        None | Some(0) if network.prefix_len() <= WIDEST_DEFAULT => Ok(24),
        None | Some(0) => Ok(shortest),
        Some(length) => match u8::try_from(length) {
            Ok(length) if length > LONGEST_SUBNET => {
                Err(wrong("SubnetLen", length, format!("leaves no address for a pod; use {LONGEST_SUBNET} or less")))
            }
            Ok(length) if length < shortest => Err(wrong(
                "SubnetLen",
                length,
                format!(
                    "cuts {network} into fewer than four subnets, of which the first is skipped; use {shortest} or more"
                ),
            )),
            Ok(length) => Ok(length),
            Err(_) => {
                Err(wrong("SubnetLen", length, format!("is no prefix length; use {shortest} to {LONGEST_SUBNET}")))
            }
        },
    }
}

/// Reads `Backend`; without one flanneld means `udp`, its oldest.
fn backend(fields: &Fields<'_>) -> Result<Backend, NetworkError> {
    let absent = Map::new();
    let map = match fields.get("Backend") {
        None => &absent,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("Backend", kind_of(other), "must be an object such as {\"Type\": \"vxlan\"}")),
    };
    let fields = Fields { path: "Backend.", map };
    match fields.string("Type")? {
        Some("vxlan") => Ok(Backend::Vxlan(vxlan(&fields)?)),
        None => Err(wrong("Backend.Type", "absent", "means \"udp\", which is not supported; set it to \"vxlan\"")),
        Some(
            other @ ("udp" | "host-gw" | "wireguard" | "ipsec" | "ipip" | "extension" | "alloc" | "tencent-vpc"
            | "ali-vpc"),
        ) => Err(wrong(
            "Backend.Type",
            other,
            "is a backend of flanneld that is not supported here; set it to \"vxlan\"",
        )),
        Some(other) => Err(wrong("Backend.Type", other, "is no backend of flannel; set it to \"vxlan\"")),
    }
}

/// Reads what belongs to `vxlan`. `MacPrefix` and `Name` concern Windows only and pass unread.
fn vxlan(fields: &Fields<'_>) -> Result<VxlanConfig, NetworkError> {
    for unsupported in ["DirectRouting", "GBP"] {
        if fields.boolean(unsupported)? == Some(true) {
            return Err(fields.wrong(unsupported, true, "is not supported; leave it out or set it to false"));
        }
    }
    let vni = fields.integer("VNI")?.unwrap_or(DEFAULT_VNI.into());
    let vni = u32::try_from(vni).ok().and_then(|vni| Vni::new(vni).ok()).ok_or_else(|| {
        fields.wrong("VNI", vni, "does not fit into the 24 bits of a VXLAN header; use 1 to 16777215")
    })?;
    let port = match fields.integer("Port")?.unwrap_or(0) {
        0 => DEFAULT_VXLAN_PORT,
        port => u16::try_from(port)
            .map_err(|_| fields.wrong("Port", port, "is no UDP port; use 1 to 65535, or 0 for 8472"))?,
    };
    let mtu_bytes = match fields.integer("MTU")?.unwrap_or(0) {
        0 => None,
        mtu @ 618..=65_535 => Some(u32::try_from(mtu).unwrap_or(u32::MAX)),
        mtu => {
            return Err(fields.wrong(
                "MTU",
                mtu,
                "must leave IPv4's 568 bytes beside the 50 of VXLAN; use 618 to 65535",
            ));
        }
    };
    Ok(VxlanConfig { vni, port, mtu_bytes, learning: fields.boolean("Learning")?.unwrap_or(false) })
}

/// A JSON object looked at as Go's decoder does.
struct Fields<'a> {
    /// Where the object stands in the document, for error messages; with a trailing dot unless it is empty.
    path: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let same_name = self.map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        same_name.map(|(_, value)| value).rfind(|value| !value.is_null())
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(name, value, "must be true or false"))
    }

    fn integer(&self, name: &str) -> Result<Option<u64>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.wrong(name, value, "must be a whole number, without quotes"))
    }

    fn string(&self, name: &str) -> Result<Option<&'a str>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(name, value, "must be a string"))
    }

    fn network(&self, name: &str) -> Result<Ipv4Net, NetworkError> {
        let example = "must be an IPv4 network such as \"10.5.0.0/16\"";
        let text = self.string(name)?.ok_or_else(|| self.wrong(name, "absent", example))?;
        let network: Ipv4Net = text.parse().map_err(|_| self.wrong(name, text, example))?;
        Ok(network.trunc())
    }

    /// Reads `SubnetMin` or `SubnetMax`: inside the network, at the base of a subnet.
    fn bound(&self, name: &str, default: Ipv4Addr, network: Ipv4Net, subnet_len: u8) -> Result<Ipv4Addr, NetworkError> {
        let Some(text) = self.string(name)? else { return Ok(default) };
        let address: Ipv4Addr =
            text.parse().map_err(|_| self.wrong(name, text, "must be an IPv4 address such as \"10.5.1.0\""))?;
        if address.is_unspecified() {
            return Ok(default); // What Go's decoder leaves where nothing is given.
        }
        if !network.contains(&address) {
            return Err(self.wrong(name, address, format!("must lie in Network {network}")));
        }
        let subnet = Ipv4Net::new_assert(address, subnet_len).trunc();
        if subnet.addr() != address {
            return Err(self.wrong(
                name,
                address,
                format!("must be the base of a /{subnet_len}; use {}", subnet.addr()),
            ));
        }
        Ok(address)
    }

    fn wrong(&self, name: &str, value: impl Display, advice: impl Into<String>) -> NetworkError {
        wrong(format!("{}{name}", self.path), value, advice)
    }
}

fn wrong(field: impl Into<String>, value: impl Display, advice: impl Into<String>) -> NetworkError {
    NetworkError::Field { field: field.into(), value: value.to_string(), advice: advice.into() }
}

/// Names what a JSON value is, for values too long to print.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> NetworkConfig {
        NetworkConfig::parse(json.as_bytes()).unwrap()
    }

    fn error(json: &str) -> String {
        NetworkConfig::parse(json.as_bytes()).unwrap_err().to_string()
    }

    /// A document whose network part is right, with `more` in its backend.
    fn with_backend(more: &str) -> String {
        format!(r#"{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan"{more}}}}}"#)
    }

    #[test]
    fn the_lab_s_own_configuration_is_read() {
        let config = parse(
            r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
                "Backend": {"Type": "vxlan", "VNI": 100, "Port": 8472}}"#,
        );
        assert_eq!(config.network.to_string(), "11.0.0.0/8");
        assert_eq!((config.subnet_len, config.subnet_min.octets()), (20, [11, 10, 0, 0]));
        let Backend::Vxlan(vxlan) = config.backend;
        assert_eq!(
            (vxlan.vni.to_string().as_str(), vxlan.port, vxlan.mtu_bytes, vxlan.learning),
            ("100", 8472, None, false)
        );
    }

    #[test]
    fn defaults_are_those_of_flanneld() {
        // (Network, SubnetLen, SubnetMin, SubnetMax) as flanneld computes them.
        let table = [
            ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
            ("10.5.4.0/22", 24, "10.5.5.0", "10.5.7.0"),
            ("10.5.4.0/23", 25, "10.5.4.128", "10.5.5.128"),
            ("10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
            ("10.5.3.7/16", 24, "10.5.1.0", "10.5.255.0"), // host bits are cleared
            ("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0"),
        ];
        for (network, length, min, max) in table {
            let config = parse(&format!(r#"{{"Network": "{network}", "Backend": {{"Type": "vxlan"}}}}"#));
            let got = (config.subnet_len, config.subnet_min.to_string(), config.subnet_max.to_string());
            assert_eq!(got, (length, min.to_owned(), max.to_owned()), "{network}");
        }
    }

    #[test]
    fn names_match_in_any_case_the_later_wins_and_unknown_ones_are_ignored() {
        let config = parse(
            r#"{"NETWORK": "10.5.0.0/16", "subnetlen": 25, "SubnetLen": 26, "EnableNFTables": true, "Colour": "blue", "SubnetMin": null,
                "backend": {"type": "vxlan", "vni": 7, "MacPrefix": "0E-2A", "mtu": 1400, "LEARNING": true}}"#,
        );
        assert_eq!(config.subnet_len, 26);
        let Backend::Vxlan(vxlan) = config.backend;
        assert_eq!((vxlan.vni.to_string().as_str(), vxlan.mtu_bytes, vxlan.learning), ("7", Some(1400), true));
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_field_value_and_remedy() {
        let table = [
            (r#"{"Backend": {"Type": "vxlan"}}"#.to_owned(), "Network is absent: must be an IPv4 network"),
            (r#"{"Network": "10.5.0.0"}"#.to_owned(), "Network is 10.5.0.0: must be"),
            (r#"{"Network": "10.5.0.0/29"}"#.to_owned(), "Network is 10.5.0.0/29: leaves no room"),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetLen": 31}"#.to_owned(),
                "SubnetLen is 31: leaves no address for a pod; use 30",
            ),
            (r#"{"Network": "10.5.0.0/16", "SubnetLen": 17}"#.to_owned(), "use 18 or more"),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetLen": 300}"#.to_owned(),
                "SubnetLen is 300: is no prefix length; use 18 to 30",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetLen": "24"}"#.to_owned(),
                "SubnetLen is \"24\": must be a whole number",
            ),
            (r#"{"Network": "10.5.0.0/16", "SubnetLen": -1}"#.to_owned(), "SubnetLen is -1: must be a whole number"),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}"#.to_owned(),
                "SubnetMin is 10.6.0.0: must lie in Network 10.5.0.0/16",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.1"}"#.to_owned(),
                "SubnetMax is 10.5.9.1: must be the base of a /24; use 10.5.9.0",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"}"#.to_owned(),
                "lies behind SubnetMax",
            ),
            (r#"{"Network": "10.5.0.0/16"}"#.to_owned(), "Backend.Type is absent: means \"udp\""),
            (
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#.to_owned(),
                "Backend.Type is host-gw: is a backend of flanneld",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vlxan"}}"#.to_owned(),
                "Backend.Type is vlxan: is no backend",
            ),
            (r#"{"Network": "10.5.0.0/16", "Backend": "vxlan"}"#.to_owned(), "Backend is a string: must be an object"),
            (
                r#"{"Network": "10.5.0.0/16", "EnableIPv6": true}"#.to_owned(),
                "EnableIPv6 is true: dual stack is not supported",
            ),
            (with_backend(r#", "VNI": 16777216"#), "Backend.VNI is 16777216: does not fit into the 24 bits"),
            (with_backend(r#", "Port": 65536"#), "Backend.Port is 65536: is no UDP port"),
            (with_backend(r#", "MTU": 100"#), "Backend.MTU is 100: must leave"),
            (with_backend(r#", "DirectRouting": true"#), "Backend.DirectRouting is true: is not supported"),
            ("[]".to_owned(), "the document is an array"),
            ("{".to_owned(), "not JSON"),
        ];
        for (json, expected) in table {
            let error = error(&json);
            assert!(error.contains(expected), "{json}\n  gave     {error}\n  expected {expected}");
        }
    }

    #[test]
    fn a_subnet_outside_the_range_or_of_another_length_does_not_fit() {
        let config = parse(r#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.0", "Backend": {"Type": "vxlan"}}"#);
        assert!(config.fits("10.5.9.0/24".parse().unwrap()));
        assert!(!config.fits("10.5.10.0/24".parse().unwrap()));
        assert!(!config.fits("10.5.0.0/24".parse().unwrap()), "the first subnet is skipped");
        assert!(!config.fits("10.5.8.0/25".parse().unwrap()));
    }
}
