//! The network configuration: one JSON document in etcd, written by the operator, read by every worker.
//!
//! ```json
//! { "Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
//!   "EnableIPv6": true, "IPv6Network": "fd00:11::/48",
//!   "Backend": { "Type": "vxlan", "VNI": 100 } }
//! ```
//!
//! flanneld reads it with Go's decoder, so we do as that one does: names match in any case, of two spellings of one name the
//! later wins, `null` counts as absent, unknown names are ignored. Where flanneld says only that something is wrong, we say which
//! field, which value, and what would be right.
//!
//! Source: flannel `pkg/subnet/config.go`, `ParseConfig` and `CheckNetworkConfig`; `pkg/backend/vxlan/vxlan.go`, `parseVXLANConfig`.

mod fields;
mod range;

use ipnet::{Ipv4Net, Ipv6Net};
use linux_net::Vni;
use serde_json::{Map, Value};

use crate::error::NetworkError;
use crate::lease::{HOST_GW, VXLAN};

use fields::{Fields, kind_of, wrong};
pub use range::SubnetRange;

/// The VXLAN port of the Linux kernel, older than the 4789 of RFC 7348; flannel stays with it.
const DEFAULT_VXLAN_PORT: u16 = 8472;
/// The VNI that flannel takes when none is given.
const DEFAULT_VNI: u32 = 1;
/// `flannel-v6.` leaves four of the 15 bytes of an interface name.
const LONGEST_DUAL_STACK_VNI: u32 = 9999;
/// IPv6 wants 1280 bytes of every link (RFC 8200, section 5), IPv4 568 with its longest header (RFC 791).
const SMALLEST_MTU: [u32; 2] = [568 + 50, 1280 + 70];

/// The cluster's network and how it is shared out among the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Where IPv4 subnets come from.
    pub ipv4: SubnetRange<Ipv4Net>,
    /// Where IPv6 subnets come from, in a dual-stack cluster.
    pub ipv6: Option<SubnetRange<Ipv6Net>>,
    /// How packets travel between workers.
    pub backend: Backend,
}

/// How packets travel between workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In VXLAN: Ethernet frames in UDP, one device per worker and family.
    Vxlan(VxlanConfig),
    /// As they are, each worker being the others' router; all must be on one link.
    HostGw,
}

impl Backend {
    /// Its name, as configurations and leases spell it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => VXLAN,
            Self::HostGw => HOST_GW,
        }
    }
}

/// The fields of a `vxlan` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// The identifier of the virtual network; it also names the devices, `flannel.<VNI>` and `flannel-v6.<VNI>`.
    pub vni: Vni,
    /// The UDP port that VTEPs listen on.
    pub port: u16,
    /// The MTU of the *underlay*, in bytes, before the VXLAN headers are taken off; by default that of the external interface.
    pub mtu_bytes: Option<u32>,
    /// Whether the device learns addresses from what it receives. flannel never needs it: every entry is static.
    pub learning: bool,
    /// Whether packets carry a group policy identifier, the packet's mark.
    pub gbp: bool,
    /// Whether packets to a worker on our own link go there without VXLAN, as with host-gw.
    pub direct_routing: bool,
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
    /// assert_eq!(config.ipv4.min.to_string(), "10.5.1.0/24"); // the first subnet is skipped
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
            let advice = "a key in etcd begins with an IPv4 subnet, so flannel on etcd cannot do without; leave it out or set it to true";
            return Err(wrong("EnableIPv4", false, advice));
        }
        let ipv4 = SubnetRange::read(&fields)?;
        let is_dual_stack = fields.boolean("EnableIPv6")? == Some(true);
        let ipv6 = is_dual_stack.then(|| SubnetRange::read(&fields)).transpose()?;
        let backend = backend(&fields, is_dual_stack)?;
        Ok(Self { ipv4, ipv6, backend })
    }
}

/// Reads `Backend`; without one flanneld means `udp`, its oldest.
fn backend(fields: &Fields<'_>, is_dual_stack: bool) -> Result<Backend, NetworkError> {
    let absent = Map::new();
    let map = match fields.get("Backend") {
        None => &absent,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("Backend", kind_of(other), "must be an object such as {\"Type\": \"vxlan\"}")),
    };
    let fields = Fields { path: "Backend.", map };
    let advice = "set it to \"vxlan\" or \"host-gw\"";
    match fields.string("Type")? {
        Some(VXLAN) => Ok(Backend::Vxlan(vxlan(&fields, is_dual_stack)?)),
        Some(HOST_GW) => Ok(Backend::HostGw),
        None => Err(fields.wrong("Type", "absent", format!("means \"udp\", which is not supported here; {advice}"))),
        Some(other @ ("udp" | "wireguard" | "ipsec" | "ipip" | "extension" | "alloc" | "tencent-vpc" | "ali-vpc")) => {
            Err(fields.wrong("Type", other, format!("is a backend of flanneld that is not supported here; {advice}")))
        }
        Some(other) => Err(fields.wrong("Type", other, format!("is no backend of flannel; {advice}"))),
    }
}

/// Reads what belongs to `vxlan`. `MacPrefix` and `Name` concern Windows only and pass unread.
fn vxlan(fields: &Fields<'_>, is_dual_stack: bool) -> Result<VxlanConfig, NetworkError> {
    let vni = fields.integer("VNI")?.unwrap_or(DEFAULT_VNI.into());
    let vni = u32::try_from(vni).ok().and_then(|vni| Vni::new(vni).ok()).ok_or_else(|| {
        fields.wrong("VNI", vni, "does not fit into the 24 bits of a VXLAN header; use 1 to 16777215")
    })?;
    if is_dual_stack && vni.get() > LONGEST_DUAL_STACK_VNI {
        let advice = format!(
            "makes flannel-v6.{vni} longer than the 15 bytes of an interface name; use 1 to {LONGEST_DUAL_STACK_VNI}"
        );
        return Err(fields.wrong("VNI", vni, advice));
    }
    let port = match fields.integer("Port")?.unwrap_or(0) {
        0 => DEFAULT_VXLAN_PORT,
        port => u16::try_from(port)
            .map_err(|_| fields.wrong("Port", port, "is no UDP port; use 1 to 65535, or 0 for 8472"))?,
    };
    let smallest = SMALLEST_MTU[usize::from(is_dual_stack)];
    let mtu_bytes = match fields.integer("MTU")?.unwrap_or(0) {
        0 => None,
        mtu => match u32::try_from(mtu) {
            Ok(mtu) if (smallest..=65_535).contains(&mtu) => Some(mtu),
            _ => {
                let advice = format!("leaves too little beside the headers of VXLAN; use {smallest} to 65535");
                return Err(fields.wrong("MTU", mtu, advice));
            }
        },
    };
    let flag = |name: &str| Ok(fields.boolean(name)?.unwrap_or(false));
    let (learning, gbp, direct_routing) = (flag("Learning")?, flag("GBP")?, flag("DirectRouting")?);
    Ok(VxlanConfig { vni, port, mtu_bytes, learning, gbp, direct_routing })
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

    /// A dual-stack document, with `more` beside the IPv4 part.
    fn dual_stack(more: &str) -> String {
        format!(r#"{{"Network": "10.5.0.0/16", "EnableIPv6": true, {more}, "Backend": {{"Type": "vxlan"}}}}"#)
    }

    #[test]
    fn the_lab_s_own_configuration_is_read() {
        let config = parse(
            r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
                "Backend": {"Type": "vxlan", "VNI": 100, "Port": 8472}}"#,
        );
        assert_eq!(config.ipv4.network.to_string(), "11.0.0.0/8");
        assert_eq!((config.ipv4.min.to_string().as_str(), config.ipv6), ("11.10.0.0/20", None));
        let Backend::Vxlan(vxlan) = config.backend else { panic!("{:?}", config.backend) };
        assert_eq!(
            (vxlan.vni.to_string().as_str(), vxlan.port, vxlan.mtu_bytes, vxlan.learning),
            ("100", 8472, None, false)
        );
    }

    #[test]
    fn defaults_are_those_of_flanneld() {
        // (Network, SubnetLen, SubnetMin, SubnetMax) as flanneld computes them.
        let ipv4 = [
            ("10.5.0.0/16", "10.5.1.0/24", "10.5.255.0/24"),
            ("10.5.4.0/22", "10.5.5.0/24", "10.5.7.0/24"),
            ("10.5.4.0/23", "10.5.4.128/25", "10.5.5.128/25"),
            ("10.5.0.0/28", "10.5.0.4/30", "10.5.0.12/30"),
            ("10.5.3.7/16", "10.5.1.0/24", "10.5.255.0/24"), // host bits are cleared
            ("0.0.0.0/0", "0.0.1.0/24", "255.255.255.0/24"),
        ];
        for (network, min, max) in ipv4 {
            let range = parse(&format!(r#"{{"Network": "{network}", "Backend": {{"Type": "vxlan"}}}}"#)).ipv4;
            assert_eq!((range.min.to_string().as_str(), range.max.to_string().as_str()), (min, max), "{network}");
        }
        let ipv6 = [
            ("fd00:5::/48", "fd00:5:0:1::/64", "fd00:5:0:ffff::/64"),
            ("fd00:5::/62", "fd00:5:0:1::/64", "fd00:5:0:3::/64"),
            ("fd00:5::/63", "fd00:5:0:0:8000::/65", "fd00:5:0:1:8000::/65"),
            ("fd00:5::/124", "fd00:5::4/126", "fd00:5::c/126"),
        ];
        for (network, min, max) in ipv6 {
            let range = parse(&dual_stack(&format!(r#""IPv6Network": "{network}""#))).ipv6.unwrap();
            assert_eq!((range.min.to_string().as_str(), range.max.to_string().as_str()), (min, max), "{network}");
        }
    }

    #[test]
    fn a_dual_stack_underlay_must_carry_ipv6_s_smallest_packet() {
        let mtu = |mtu: u32| {
            format!(
                r#"{{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {{"Type": "vxlan", "MTU": {mtu}}}}}"#
            )
        };
        assert!(error(&mtu(1349)).contains("use 1350 to 65535"));
        assert!(parse(&mtu(1350)).ipv6.is_some());
    }

    #[test]
    fn host_gw_needs_nothing_but_its_name() {
        let config = parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw", "VNI": 7}}"#);
        assert_eq!(config.backend, Backend::HostGw);
    }

    #[test]
    fn names_match_in_any_case_the_later_wins_and_unknown_ones_are_ignored() {
        let config = parse(
            r#"{"NETWORK": "10.5.0.0/16", "subnetlen": 25, "SubnetLen": 26, "EnableNFTables": true, "Colour": "blue", "SubnetMin": null,
                "backend": {"type": "vxlan", "vni": 7, "MacPrefix": "0E-2A", "mtu": 1400, "LEARNING": true, "gbp": true, "directrouting": true}}"#,
        );
        assert_eq!(config.ipv4.subnet_len, 26);
        let Backend::Vxlan(vxlan) = config.backend else { panic!("{:?}", config.backend) };
        assert_eq!((vxlan.vni.to_string().as_str(), vxlan.mtu_bytes), ("7", Some(1400)));
        assert_eq!((vxlan.learning, vxlan.gbp, vxlan.direct_routing), (true, true, true));
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_field_value_and_remedy() {
        let table = [
            (r#"{"Backend": {"Type": "vxlan"}}"#.to_owned(), "Network is absent: must be a network"),
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
                "SubnetMin is 10.6.0.0: must lie in the network 10.5.0.0/16",
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
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}"#.to_owned(),
                "Backend.Type is wireguard: is a backend of flanneld",
            ),
            (
                r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vlxan"}}"#.to_owned(),
                "Backend.Type is vlxan: is no backend",
            ),
            (r#"{"Network": "10.5.0.0/16", "Backend": "vxlan"}"#.to_owned(), "Backend is a string: must be an object"),
            (r#"{"EnableIPv4": false}"#.to_owned(), "EnableIPv4 is false: a key in etcd begins with"),
            (
                r#"{"Network": "10.5.0.0/16", "EnableIPv6": true}"#.to_owned(),
                "IPv6Network is absent: must be a network such as \"fd00:5::/48\"",
            ),
            (dual_stack(r#""IPv6Network": "10.6.0.0/16""#), "IPv6Network is 10.6.0.0/16: must be a network"),
            (dual_stack(r#""IPv6Network": "fd00::/125""#), "IPv6Network is fd00::/125: leaves no room"),
            (dual_stack(r#""IPv6Network": "fd00::/48", "IPv6SubnetLen": 127"#), "use 126 or less"),
            (dual_stack(r#""IPv6Network": "fd00::/48", "IPv6SubnetLen": 49"#), "use 50 or more"),
            (
                dual_stack(r#""IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd00::1""#),
                "IPv6SubnetMin is fd00::1: must be the base of a /64; use fd00::",
            ),
            (
                dual_stack(r#""IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd01::""#),
                "IPv6SubnetMax is fd01::: must lie in the network fd00::/48",
            ),
            (with_backend(r#", "VNI": 16777216"#), "Backend.VNI is 16777216: does not fit into the 24 bits"),
            (with_backend(r#", "Port": 65536"#), "Backend.Port is 65536: is no UDP port"),
            (
                with_backend(r#", "MTU": 100"#),
                "Backend.MTU is 100: leaves too little beside the headers of VXLAN; use 618",
            ),
            (with_backend(r#", "DirectRouting": "yes""#), "Backend.DirectRouting is \"yes\": must be true or false"),
            ("[]".to_owned(), "the document is an array"),
            ("{".to_owned(), "not JSON"),
        ];
        for (json, expected) in table {
            let error = error(&json);
            assert!(error.contains(expected), "{json}\n  gave     {error}\n  expected {expected}");
        }
    }
}
