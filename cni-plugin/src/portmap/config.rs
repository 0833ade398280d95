//! What portmap reads of a configuration.

use std::net::IpAddr;

use serde::Deserialize;

use crate::conf::Conf;
use crate::error::{Code, Error, Result};

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Masquerade where answers would not come back otherwise.
    pub snat: bool,
    /// Masquerade everything that goes to a mapped port.
    pub masq_all: bool,
    /// The ports of this container.
    pub mappings: Vec<Mapping>,
}

/// One port of the node that leads to one of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The node's address; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 132
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    fn parse(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(Error::config(format!("portMappings: protocol \"{text}\" has no ports; use tcp, udp or sctp"))),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    backend: Option<String>,
    snat: Option<bool>,
    #[serde(default)]
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    #[serde(default)]
    conditions_v4: Vec<String>,
    #[serde(default)]
    conditions_v6: Vec<String>,
    external_set_mark_chain: Option<String>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<PortMapping>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortMapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
}

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    ///
    /// Code 2 for a field that only rules of iptables could hold, 7 for one that is wrong.
    pub fn read(conf: &Conf) -> Result<Self> {
        let net: NetConf = conf.read()?;
        if net.mark_masq_bit.is_some() && net.external_set_mark_chain.is_some() {
            return Err(Error::config("Cannot specify externalSetMarkChain and markMasqBit"));
        }
        if !(0..=31).contains(&net.mark_masq_bit.unwrap_or_default()) {
            return Err(Error::config("MasqMarkBit must be between 0 and 31"));
        }
        if let Some(backend) = net.backend.filter(|backend| !matches!(backend.as_str(), "iptables" | "nftables")) {
            return Err(Error::config(format!("unrecognized backend \"{backend}\""))
                .with_details("use nftables; iptables is taken to mean the same"));
        }
        let words_of_iptables = [
            ("conditionsV4", net.conditions_v4.iter().any(|word| !word.is_empty())),
            ("conditionsV6", net.conditions_v6.iter().any(|word| !word.is_empty())),
            ("externalSetMarkChain", net.external_set_mark_chain.is_some_and(|chain| !chain.is_empty())),
        ];
        if let Some((field, _)) = words_of_iptables.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Error::new(Code::UnsupportedField, format!("field \"{field}\" is not supported by this portmap plugin"))
                .with_details("it is about an iptables chain of this container, and there is none: ports are elements of a map of nftables"));
        }
        let mappings = net.runtime_config.port_mappings.iter().map(PortMapping::check).collect::<Result<_>>()?;
        Ok(Self { snat: net.snat.unwrap_or(true), masq_all: net.masq_all, mappings })
    }
}

impl PortMapping {
    fn check(&self) -> Result<Mapping> {
        let port = |what: &str, number: i64| {
            let valid = u16::try_from(number).ok().filter(|port| *port > 0);
            valid.ok_or_else(|| Error::config(format!("Invalid {what} port number: {number}")))
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                Error::config(format!(
                    "portMappings: hostIP \"{text}\" is no IP address; leave it out for all of the node's"
                ))
            })?),
        };
        Ok(Mapping {
            container_port: port("container", self.container_port)?,
            host_port: port("host", self.host_port)?,
            protocol: Protocol::parse(&self.protocol)?,
            host_ip,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mut conf: Value) -> Result<Config> {
        conf["name"] = json!("lab");
        Config::read(&Conf::parse(conf.to_string().as_bytes()).unwrap())
    }

    fn mapping(mapping: &Value) -> Result<Config> {
        read(json!({"runtimeConfig": {"portMappings": [mapping]}}))
    }

    #[test]
    fn a_mapping_is_read_as_runtimes_write_it() {
        let config =
            mapping(&json!({"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "::1"})).unwrap();
        let expected = Mapping {
            protocol: Protocol::Udp,
            host_ip: Some("::1".parse().unwrap()),
            host_port: 53,
            container_port: 5353,
        };
        assert_eq!(config, Config { snat: true, masq_all: false, mappings: vec![expected] });
    }

    #[test]
    fn what_is_wrong_is_refused_with_code_7() {
        for wrong in [
            json!({"hostPort": 0, "containerPort": 80, "protocol": "tcp"}),
            json!({"hostPort": 8080, "protocol": "tcp"}),
            json!({"hostPort": 65536, "containerPort": 80, "protocol": "tcp"}),
            json!({"hostPort": -1, "containerPort": 80, "protocol": "tcp"}),
            json!({"hostPort": 8080, "containerPort": 80, "protocol": "icmp"}),
            json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "localhost"}),
        ] {
            assert_eq!(mapping(&wrong).unwrap_err().code, Code::InvalidConfig, "{wrong}");
        }
        for wrong in [
            json!({"backend": "ebpf"}),
            json!({"markMasqBit": 32}),
            json!({"markMasqBit": -1}),
            json!({"markMasqBit": 3, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
            json!({"snat": "yes"}),
        ] {
            assert_eq!(read(wrong.clone()).unwrap_err().code, Code::InvalidConfig, "{wrong}");
        }
    }

    #[test]
    fn what_only_iptables_could_do_is_refused_by_name() {
        for (field, value) in [
            ("conditionsV4", json!(["!", "-d", "192.0.2.0/24"])),
            ("conditionsV6", json!(["-i", "eth0"])),
            ("externalSetMarkChain", json!("KUBE-MARK-MASQ")),
        ] {
            let error = read(json!({field: value})).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField);
            assert!(error.msg.contains(field), "{error}");
        }
        read(json!({"conditionsV4": [], "conditionsV6": null, "backend": "iptables", "markMasqBit": 13})).unwrap();
    }
}
