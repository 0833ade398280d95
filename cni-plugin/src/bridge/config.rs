//! What bridge reads of a configuration.

use linux_net::{IfName, MacAddr};
use serde::Deserialize;

use crate::bridge::vlan::{TrunkItem, VlanConfig};
use crate::conf::Conf;
use crate::env::{Environment, parse_ifname};
use crate::error::{Error, Result};
use crate::result::Dns;
use crate::result::wire::null_as_default;

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the netconf of the same name")]
pub struct Config {
    /// The bridge to attach to; made if it is not there.
    pub bridge: IfName,
    /// Give the bridge the gateway's address, and forward packets.
    pub is_gateway: bool,
    /// Make that gateway the container's default route.
    pub is_default_gateway: bool,
    /// Replace another address of the subnet that the bridge has.
    pub force_address: bool,
    /// Masquerade what the container sends out of its subnet.
    pub ip_masq: bool,
    /// The MTU of both ends of the veth in bytes, which the bridge follows; 0 for the kernel's default.
    pub mtu: u32,
    /// A packet may leave through the port it came in by: a pod reaching itself through a service.
    pub hairpin_mode: bool,
    /// The bridge takes every frame.
    pub promisc_mode: bool,
    /// Detect duplicate IPv6 addresses, which takes a second.
    pub enable_dad: bool,
    /// The MAC the container's interface must have.
    pub mac: Option<MacAddr>,
    /// The VLANs that reach the container.
    pub vlans: VlanConfig,
    /// Drop frames of the container that bear another MAC than its own.
    pub mac_spoof_check: bool,
    /// The container may not talk to other isolated ones, only through the gateway.
    pub port_isolation: bool,
    /// Leave the container's interface down: a virtual machine in there takes it.
    pub disable_container_interface: bool,
    /// What takes the place of IPAM's name servers, when it says anything.
    pub dns: Dns,
    /// The type of the IPAM plugin; empty for a pure layer-2 attachment.
    pub ipam: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the netconf of the same name")]
struct NetConf {
    #[serde(default)]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    vlan: i64,
    #[serde(default, deserialize_with = "null_as_default")]
    vlan_trunk: Vec<TrunkItem>,
    #[serde(default)]
    preserve_default_vlan: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    dns: Dns,
}

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    ///
    /// Code 7 for a field that is wrong, 4 for malformed `CNI_ARGS`.
    pub fn read(env: &Environment, conf: &Conf) -> Result<Self> {
        env.check_args()?;
        let net: NetConf = conf.read()?;
        check_masq_backend("bridge", net.ip_masq_backend.as_deref())?;
        if net.hairpin_mode && net.promisc_mode {
            return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time."));
        }
        let ipam = conf.ipam_type()?.to_owned();
        if !ipam.is_empty() && net.disable_container_interface {
            return Err(Error::config("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        Ok(Self {
            bridge: parse_ifname(if net.bridge.is_empty() { "cni0" } else { &net.bridge })
                .map_err(|error| Error::config(format!("bridge: {error}")))?,
            is_gateway: net.is_gateway || net.is_default_gateway,
            is_default_gateway: net.is_default_gateway,
            force_address: net.force_address,
            ip_masq: net.ip_masq,
            mtu: net.mtu,
            hairpin_mode: net.hairpin_mode,
            promisc_mode: net.promisc_mode,
            enable_dad: net.enabledad,
            mac: wanted_mac(env, conf)?,
            vlans: VlanConfig::new(net.vlan, &net.vlan_trunk, net.preserve_default_vlan)?,
            mac_spoof_check: net.macspoofchk,
            port_isolation: net.port_isolation,
            disable_container_interface: net.disable_container_interface,
            dns: net.dns,
            ipam,
        })
    }
}

/// `ipMasqBackend`: the Go plugins have two, of which iptables is the older and the default. Here both words mean the same rules, in nftables, so that a
/// configuration need not be changed.
///
/// # Errors
///
/// Code 7 for another word.
pub fn check_masq_backend(plugin: &str, backend: Option<&str>) -> Result<()> {
    match backend {
        None | Some("" | "iptables" | "nftables") => Ok(()),
        Some(other) => Err(Error::config(format!(
            "ipMasqBackend \"{other}\" is unknown to this {plugin} plugin; it masquerades with nftables"
        ))),
    }
}

/// Three may ask for a MAC; the runtime's word counts most, then `args.cni`, then `CNI_ARGS`.
fn wanted_mac(env: &Environment, conf: &Conf) -> Result<Option<MacAddr>> {
    let member = |path: &[&str]| {
        let mut value = conf.object().get(path[0])?;
        for key in &path[1..] {
            value = value.get(key)?;
        }
        value.as_str().filter(|mac| !mac.is_empty())
    };
    let text = member(&["runtimeConfig", "mac"]).or_else(|| member(&["args", "cni", "mac"])).or_else(|| env.arg("MAC"));
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| Error::config(format!("MAC \"{text}\" is no MAC address; write it as 02:00:00:00:00:01")))
    };
    text.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Code;

    fn read(mut conf: Value, args: &str) -> Result<Config> {
        conf["name"] = json!("n");
        let env = Environment::of("c1", "eth0", args)?;
        Config::read(&env, &Conf::parse(conf.to_string().as_bytes())?)
    }

    #[test]
    fn a_default_gateway_is_a_gateway() {
        let config = read(json!({"isDefaultGateway": true}), "").unwrap();
        assert!(config.is_gateway);
        assert_eq!(config.bridge.to_string(), "cni0");
    }

    #[test]
    fn an_interface_that_stays_down_gets_no_addresses() {
        let conf = json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}});
        assert_eq!(read(conf, "").unwrap_err().code, Code::InvalidConfig);
        assert!(read(json!({"disableContainerInterface": true, "ipam": {}}), "").unwrap().disable_container_interface);
    }

    #[test]
    fn the_runtime_has_the_last_word_on_the_mac() {
        let mac = |conf, args| read(conf, args).unwrap().mac.map(|mac: MacAddr| mac.to_string());
        let both =
            json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}});
        assert_eq!(mac(both, "MAC=02:00:00:00:00:03").as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(mac(json!({}), "MAC=02:00:00:00:00:03").as_deref(), Some("02:00:00:00:00:03"));
        assert_eq!(mac(json!({}), ""), None);
    }

    #[test]
    fn impossible_wishes_are_refused() {
        for conf in [
            json!({"hairpinMode": true, "promiscMode": true}),
            json!({"bridge": "../../etc"}),
            json!({"mtu": -1}),
            json!({"runtimeConfig": {"mac": "zz"}}),
        ] {
            assert_eq!(read(conf, "").unwrap_err().code, Code::InvalidConfig);
        }
    }
}
