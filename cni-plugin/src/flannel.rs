//! `flannel`: turns the node's lease (`subnet.env`) into a configuration for another plugin, usually bridge.
//!
//! It touches no interface itself. It exists because the subnet of a node is known only at run time, while the files
//! in `/etc/cni/net.d` are the same on every node.
//!
//! ```text
//!   netconf {"type":"flannel", "delegate":{"isDefaultGateway":true}}  +  subnet.env
//!        └─► {"type":"bridge", "ipam":{"type":"host-local","ranges":[[{"subnet":"11.14.64.0/20"}]], …}, "mtu":1450, …}
//! ```
//!
//! Beyond the Go plugin: CHECK, STATUS and GC are passed on, a failed ADD leaves no state file, a lost state file is
//! made up for from `subnet.env`, and nothing is printed on standard error.
//!
//! Source: flannel-io/cni-plugin.

pub mod state;
pub mod subnet_env;

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::conf::Conf;
use crate::delegate;
use crate::env::{Command, Environment, parse_ifname};
use crate::error::{Code, Error, Result};
use crate::flannel::state::StateDir;
use crate::flannel::subnet_env::SubnetEnv;
use crate::plugin::Plugin;
use crate::result::CniResult;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Flannel;

/// What flannel reads of a configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Where the overlay agent writes.
    #[serde(default = "default_subnet_file")]
    pub subnet_file: PathBuf,
    /// Where state files are kept.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// The user's part of the delegate's configuration.
    #[serde(default)]
    pub delegate: Map<String, Value>,
    /// The user's part of the delegate's `ipam`.
    #[serde(default)]
    pub ipam: Map<String, Value>,
}

fn default_subnet_file() -> PathBuf {
    PathBuf::from("/run/flannel/subnet.env")
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/cni/flannel")
}

impl Plugin for Flannel {
    fn name(&self) -> &'static str {
        "flannel"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config: Config = conf.read()?;
        let delegate = delegate_conf(conf, &config, &SubnetEnv::read(&config.subnet_file)?)?;
        let states = StateDir::new(&config.data_dir);
        if states.load(env)?.is_some() {
            // Most likely a second ADD: the delegate refuses it, and what the first one made must stay. Where it does
            // not (the file is of an earlier boot), the new state takes the old one's place.
            let result = delegate::invoke_add(kind(&delegate)?, env, delegate.clone())?;
            return states.save(env, &delegate).map(|()| result);
        }
        states.save(env, &delegate)?;
        delegate::invoke_add(kind(&delegate)?, env, delegate.clone()).inspect_err(|_| {
            // CNI specification 1.1.0, section 4: DEL follows a delegate's failed ADD. The first error is reported.
            drop(delegate::invoke(kind(&delegate).unwrap_or_default(), Command::Del, env, delegate.clone()));
            drop(states.load(env).map(|state| state.map(state::State::remove)));
        })
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config: Config = conf.read()?;
        let state = StateDir::new(&config.data_dir).load(env)?;
        let saved = state.as_ref().and_then(|state| state.delegate.clone());
        if let Some(delegate) = saved.or_else(|| rebuilt(conf, &config)) {
            let delegate = with_member(delegate, conf, "prevResult");
            delegate::invoke(kind(&delegate)?, Command::Del, env, delegate.clone())?;
        }
        state.map_or(Ok(()), state::State::remove)
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config: Config = conf.read()?;
        let state = StateDir::new(&config.data_dir).load(env)?;
        let delegate = state.and_then(|state| state.delegate).ok_or_else(|| {
            Error::new(Code::UnknownContainer, format!("no state of container {} in dataDir", env.container_id))
                .with_details(config.data_dir.display().to_string())
        })?;
        let delegate = with_member(delegate, conf, "prevResult");
        delegate::invoke(kind(&delegate)?, Command::Check, env, delegate.clone()).map(|_| ())
    }

    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config: Config = conf.read()?;
        let valid = conf.valid_attachments()?;
        let mut known = None;
        for (container_id, ifname) in StateDir::new(&config.data_dir).list()? {
            let is_valid = valid.iter().any(|kept| kept.container_id == container_id.as_str() && kept.ifname == ifname);
            let env = Environment { container_id, ifname: Some(parse_ifname(&ifname)?), netns: None, ..env.clone() };
            let delegate = StateDir::new(&config.data_dir).load(&env)?.and_then(|state| state.delegate);
            let network = delegate.as_ref().and_then(|delegate| delegate.get("name")?.as_str());
            if network.is_some_and(|network| network != conf.network.as_str()) {
                continue;
            }
            known = delegate.or(known);
            if !is_valid {
                self.del(&env, conf)?;
            }
        }
        // While the agent has no lease, what an earlier ADD gave the delegate tells as well where to look.
        let delegate = match SubnetEnv::read(&config.subnet_file) {
            Ok(lease) => delegate_conf(conf, &config, &lease)?,
            Err(error) => known.ok_or(error)?,
        };
        let delegate = with_member(delegate, conf, "cni.dev/valid-attachments");
        delegate::invoke(kind(&delegate)?, Command::Gc, env, delegate.clone()).map(|_| ())
    }

    fn status(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config: Config = conf.read()?;
        let subnet_env =
            SubnetEnv::read(&config.subnet_file).map_err(|error| Error { code: Code::Unavailable, ..error })?;
        let delegate = delegate_conf(conf, &config, &subnet_env)?;
        delegate::invoke(kind(&delegate)?, Command::Status, env, delegate.clone()).map(|_| ())
    }
}

/// The delegate's configuration as ADD would make it now, for a DEL whose state file is lost.
fn rebuilt(conf: &Conf, config: &Config) -> Option<Map<String, Value>> {
    delegate_conf(conf, config, &SubnetEnv::read(&config.subnet_file).ok()?).ok()
}

fn with_member(mut delegate: Map<String, Value>, conf: &Conf, key: &str) -> Map<String, Value> {
    if let Some(value) = conf.object().get(key) {
        delegate.insert(key.to_owned(), value.clone());
    }
    delegate
}

fn kind(delegate: &Map<String, Value>) -> Result<&str> {
    delegate.get("type").and_then(Value::as_str).ok_or_else(|| Error::config("delegate has no \"type\""))
}

/// Makes the delegate's configuration: the user's `delegate`, filled up with what the lease says.
///
/// # Errors
///
/// Code 7 when `delegate` has a `name`, an `ipam`, or a `type` that is no text.
pub fn delegate_conf(conf: &Conf, config: &Config, lease: &SubnetEnv) -> Result<Map<String, Value>> {
    let mut delegate = config.delegate.clone();
    for reserved in ["name", "ipam"] {
        if delegate.contains_key(reserved) {
            return Err(Error::config(format!(
                "'delegate' dictionary must not have '{reserved}' field, it'll be set by flannel"
            )));
        }
    }
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(Error::config("'delegate' dictionary, if present, must have (string) 'type' field"));
    }
    delegate.insert("name".to_owned(), Value::from(conf.network.as_str()));
    let mut set_default = |key: &str, value: Value| {
        delegate.entry(key.to_owned()).or_insert(value);
    };
    set_default("type", Value::from("bridge"));
    // Exactly one of the two masquerades: the agent, or the bridge.
    set_default("ipMasq", Value::from(!lease.ip_masq));
    set_default("mtu", Value::from(lease.mtu));
    if kind(&delegate)? == "bridge" {
        delegate.entry("isGateway").or_insert(Value::from(true));
    }
    for key in ["cniVersion", "runtimeConfig"] {
        delegate = with_member(delegate, conf, key);
    }
    delegate.insert("ipam".to_owned(), Value::Object(ipam_conf(config, lease)?));
    Ok(delegate)
}

fn ipam_conf(config: &Config, lease: &SubnetEnv) -> Result<Map<String, Value>> {
    let mut ipam = config.ipam.clone();
    ipam.entry("type").or_insert(Value::from("host-local"));
    let ranges: Vec<_> = lease.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    ipam.insert("ranges".to_owned(), Value::from(ranges));
    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes,
        Some(other) => return Err(Error::config(format!("'ipam' has a 'routes' that is not a list but {other}"))),
    };
    routes.extend(lease.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".to_owned(), Value::from(routes));
    Ok(ipam)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(ip_masq: bool) -> SubnetEnv {
        SubnetEnv {
            networks: vec!["11.0.0.0/8".parse().unwrap()],
            subnets: vec!["11.14.64.0/20".parse().unwrap()],
            mtu: 1450,
            ip_masq,
        }
    }

    fn delegate(conf: &Value, lease: &SubnetEnv) -> Result<Value> {
        let conf = Conf::parse(conf.to_string().as_bytes())?;
        delegate_conf(&conf, &conf.read()?, lease).map(Value::Object)
    }

    #[test]
    fn the_lease_becomes_a_bridge_with_an_address_range() {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "C0w1", "type": "flannel",
            "delegate": {"isDefaultGateway": true, "hairpinMode": true},
        });
        assert_eq!(
            delegate(&conf, &lease(true)).unwrap(),
            json!({
                "cniVersion": "1.0.0", "name": "C0w1", "type": "bridge",
                "isDefaultGateway": true, "hairpinMode": true, "isGateway": true, "ipMasq": false, "mtu": 1450,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "11.14.64.0/20"}]],
                    "routes": [{"dst": "11.0.0.0/8"}],
                },
            })
        );
    }

    #[test]
    fn what_the_user_set_stays_and_the_bridge_masquerades_when_the_agent_does_not() {
        let conf = json!({
            "name": "n", "type": "flannel", "delegate": {"type": "ptp", "mtu": 1400},
            "ipam": {"routes": [{"dst": "192.0.2.0/24"}], "ranges": "overwritten"},
        });
        let delegate = delegate(&conf, &lease(false)).unwrap();
        assert_eq!(delegate["mtu"], 1400);
        assert_eq!(delegate["ipMasq"], true);
        assert_eq!(delegate.get("isGateway"), None, "only a bridge is made a gateway");
        assert_eq!(delegate["ipam"]["routes"], json!([{"dst": "192.0.2.0/24"}, {"dst": "11.0.0.0/8"}]));
    }

    #[test]
    fn fields_that_flannel_sets_itself_are_refused() {
        for delegate_value in [json!({"name": "x"}), json!({"ipam": {}}), json!({"type": 3})] {
            let conf = json!({"name": "n", "type": "flannel", "delegate": delegate_value});
            assert_eq!(delegate(&conf, &lease(true)).unwrap_err().code, Code::InvalidConfig);
        }
    }
}
