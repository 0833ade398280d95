//! What tuning reads of a configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use linux_net::MacAddr;
use linux_net::netlink::Link;
use serde::Deserialize;

use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::result::wire::null_as_default;

const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Kernel parameters and their values, as they were written.
    pub sysctl: BTreeMap<String, String>,
    /// Settings of the interface.
    pub settings: Settings,
    /// Where backups are kept.
    pub data_dir: PathBuf,
}

/// Settings of an interface; `None` for those that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Whether it takes every frame. A configuration can switch it on only.
    pub promiscuous: Option<bool>,
    /// Its MTU in bytes.
    pub mtu_bytes: Option<u32>,
    /// Whether it takes frames for every multicast group.
    pub all_multicast: Option<bool>,
    /// How many packets may wait in its queue.
    pub tx_queue_packets: Option<u32>,
}

impl Settings {
    /// What a link has of those settings that `wanted` has.
    #[must_use]
    pub fn of(link: &Link, wanted: &Self) -> Self {
        Self {
            mac: wanted.mac.and(link.mac),
            promiscuous: wanted.promiscuous.map(|_| link.promiscuous),
            mtu_bytes: wanted.mtu_bytes.map(|_| link.mtu_bytes),
            all_multicast: wanted.all_multicast.map(|_| link.all_multicast),
            tx_queue_packets: wanted.tx_queue_packets.map(|_| link.tx_queue_packets),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default, deserialize_with = "null_as_default")]
    sysctl: BTreeMap<String, String>,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    promisc: bool,
    #[serde(default)]
    mtu: u32,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_packets: Option<u32>,
    #[serde(default)]
    data_dir: PathBuf,
    #[serde(default, deserialize_with = "null_as_default")]
    runtime_config: RuntimeConfig,
    #[serde(default, deserialize_with = "null_as_default")]
    args: Args,
}

#[derive(Deserialize, Default)]
struct RuntimeConfig {
    #[serde(default)]
    mac: String,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default, deserialize_with = "null_as_default")]
    cni: CniArgs,
}

#[derive(Deserialize, Default)]
struct CniArgs {
    #[serde(default, deserialize_with = "null_as_default")]
    sysctl: BTreeMap<String, String>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_packets: Option<u32>,
}

impl Config {
    /// Reads and checks. `args.cni` says more than `runtimeConfig`, that more than `CNI_ARGS`, that more than the fields of the plugin.
    ///
    /// # Errors
    ///
    /// Code 7 for what is wrong in there, code 4 for malformed `CNI_ARGS`.
    pub fn read(env: &Environment, conf: &Conf) -> Result<Self> {
        env.check_args()?;
        let net: NetConf = conf.read()?;
        let args = net.args.cni;
        let mut sysctl = net.sysctl;
        sysctl.extend(args.sysctl);
        let macs = [args.mac.as_deref(), Some(&net.runtime_config.mac), env.arg("MAC"), Some(&net.mac)];
        let mac = macs.into_iter().flatten().find(|mac| !mac.is_empty());
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Error::config(format!("invalid args {text} for MAC addr: write it as 02:00:00:00:00:01")))
        };
        Ok(Self {
            sysctl,
            settings: Settings {
                mac: mac.map(parse).transpose()?,
                promiscuous: args.promisc.unwrap_or(net.promisc).then_some(true),
                mtu_bytes: Some(args.mtu.unwrap_or(net.mtu)).filter(|mtu| *mtu != 0),
                all_multicast: args.allmulti.or(net.allmulti),
                tx_queue_packets: args.tx_queue_packets.or(net.tx_queue_packets),
            },
            data_dir: if net.data_dir.as_os_str().is_empty() { DEFAULT_DATA_DIR.into() } else { net.data_dir },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mut conf: Value, args: &str) -> Result<Config> {
        conf["name"] = json!("n");
        let env = Environment::of("c1", "eth0", args)?;
        Config::read(&env, &Conf::parse(conf.to_string().as_bytes())?)
    }

    #[test]
    fn nothing_asked_for_is_nothing_to_set() {
        let config = read(json!({"mtu": 0, "promisc": false, "mac": "", "sysctl": null}), "").unwrap();
        assert_eq!(config.settings, Settings::default());
        assert_eq!(config.data_dir, PathBuf::from(DEFAULT_DATA_DIR));
    }

    #[test]
    fn the_more_specific_word_counts() {
        let mac = |conf, args| read(conf, args).unwrap().settings.mac.map(|mac| mac.to_string().chars().last());
        let base = json!({"mac": "02:00:00:00:00:01"});
        let runtime = json!({"mac": "02:00:00:00:00:01", "runtimeConfig": {"mac": "02:00:00:00:00:03"}});
        let args =
            json!({"runtimeConfig": {"mac": "02:00:00:00:00:03"}, "args": {"cni": {"mac": "02:00:00:00:00:04"}}});
        let from_env = "MAC=02:00:00:00:00:02";
        assert_eq!(mac(base.clone(), ""), Some(Some('1')));
        assert_eq!(mac(base, from_env), Some(Some('2')));
        assert_eq!(mac(runtime, from_env), Some(Some('3')));
        assert_eq!(mac(args, from_env), Some(Some('4')));
        let config = read(
            json!({
                "sysctl": {"a": "1", "b": "1"}, "mtu": 1400, "txQLen": 5,
                "args": {"cni": {"sysctl": {"b": "2"}, "mtu": 1300, "txQLen": 0, "allmulti": false, "promisc": true}},
            }),
            "",
        )
        .unwrap();
        assert_eq!(config.sysctl, [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(
            config.settings,
            Settings {
                mac: None,
                promiscuous: Some(true),
                mtu_bytes: Some(1300),
                all_multicast: Some(false),
                tx_queue_packets: Some(0),
            }
        );
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        assert!(read(json!({"mac": "eth0"}), "").unwrap_err().msg.contains("eth0"));
        read(json!({"sysctl": {"net.core.somaxconn": 5}}), "").unwrap_err();
    }
}
