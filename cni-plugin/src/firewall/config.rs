//! What firewall reads of a configuration.

use serde::Deserialize;

use crate::conf::Conf;
use crate::error::{Code, Error, Result};

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The chain of the administrator's rules, if it is not the usual one.
    pub admin_chain: Option<String>,
    /// Who is kept out.
    pub ingress_policy: IngressPolicy,
}

/// Who may begin a connection to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngressPolicy {
    /// Everybody whom nothing else on the node keeps out.
    Open,
    /// No container of another bridge that has a policy.
    SameBridge,
    /// Nor one of the same bridge.
    Isolated,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    iptables_admin_chain_name: String,
    #[serde(default)]
    ingress_policy: String,
}

/// As long as a name of nftables may be is 127 bytes; 28 is what iptables allows.
const MAX_CHAIN_NAME_BYTES: usize = 28;

impl Config {
    /// Reads and checks.
    ///
    /// # Errors
    ///
    /// Code 2 for firewalld, 7 for a value that is wrong.
    pub fn read(conf: &Conf) -> Result<Self> {
        let net: NetConf = conf.read()?;
        match net.backend.as_str() {
            "" | "iptables" | "nftables" => {}
            "firewalld" => {
                let msg = "backend \"firewalld\" is not supported by this firewall plugin, which speaks no D-Bus";
                return Err(Error::new(Code::UnsupportedField, msg)
                    .with_details("leave it out for rules of nftables, or use the Go plugin"));
            }
            other => {
                return Err(Error::config(format!("unrecognized backend \"{other}\""))
                    .with_details("use nftables; iptables is taken to mean the same"));
            }
        }
        let ingress_policy = match net.ingress_policy.as_str() {
            "" | "open" => IngressPolicy::Open,
            "same-bridge" => IngressPolicy::SameBridge,
            "isolated" => IngressPolicy::Isolated,
            other => {
                return Err(Error::config(format!("unknown ingress policy: \"{other}\""))
                    .with_details("use open, same-bridge or isolated"));
            }
        };
        Ok(Self { admin_chain: chain_name(&net.iptables_admin_chain_name)?, ingress_policy })
    }
}

fn chain_name(text: &str) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphabetic());
    if text.len() > MAX_CHAIN_NAME_BYTES || !text.bytes().all(is_plain) || !starts_well {
        return Err(Error::config(format!("iptablesAdminChainName \"{text}\" is no name of a chain"))
            .with_details("use a letter, then letters, digits, -, _ and ., at most 28"));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mut conf: Value) -> Result<Config> {
        conf["name"] = json!("lab");
        Config::read(&Conf::parse(conf.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn nothing_asked_for_is_an_open_door() {
        let open = Config { admin_chain: None, ingress_policy: IngressPolicy::Open };
        for conf in [json!({}), json!({"backend": "iptables", "ingressPolicy": "open", "firewalldZone": "trusted"})] {
            assert_eq!(read(conf).unwrap(), open);
        }
        let named = read(json!({"iptablesAdminChainName": "CNI-ADMIN", "ingressPolicy": "isolated"})).unwrap();
        assert_eq!(named.admin_chain.as_deref(), Some("CNI-ADMIN"));
        assert_eq!(named.ingress_policy, IngressPolicy::Isolated);
    }

    #[test]
    fn what_is_wrong_is_refused_and_firewalld_by_name() {
        for wrong in [
            json!({"backend": "ebpf"}),
            json!({"ingressPolicy": "closed"}),
            json!({"iptablesAdminChainName": "a; flush ruleset"}),
            json!({"iptablesAdminChainName": "-j"}),
            json!({"iptablesAdminChainName": "x".repeat(29)}),
        ] {
            assert_eq!(read(wrong.clone()).unwrap_err().code, Code::InvalidConfig, "{wrong}");
        }
        let error = read(json!({"backend": "firewalld"})).unwrap_err();
        assert_eq!(error.code, Code::UnsupportedField);
        assert!(error.msg.contains("firewalld"), "{error}");
    }
}
