//! `static`: an IPAM plugin that gives the addresses it is told, and remembers nothing.
//!
//! ```json
//! {"ipam": {"type": "static", "routes": [{"dst": "0.0.0.0/0"}],
//!           "addresses": [{"address": "10.10.0.7/24", "gateway": "10.10.0.254"}]}}
//! ```
//!
//! Whoever writes the configuration, or the runtime through `runtimeConfig.ips`, sees to it that no address is given twice. Since nothing is
//! kept, there is nothing to free.
//!
//! Beyond the Go plugin: CHECK fails when an address is missing from the result, not only when its gateway is another.
//!
//! Source: containernetworking/plugins, `plugins/ipam/static`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::plugin::Plugin;
use crate::result::wire::{empty_as_none, is_ipv4, null_as_default};
use crate::result::{CniResult, Dns, IpConfig, Route};
use crate::version::SpecVersion;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Static;

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        read(env, conf)
    }

    fn del(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        Ok(())
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let wanted = read(env, conf)?;
        let result = conf.required_prev_result()?;
        for ip in &wanted.ips {
            let is_it = |found: &&IpConfig| {
                found.address.addr() == ip.address.addr() && (ip.gateway.is_none() || ip.gateway == found.gateway)
            };
            if result.ips.iter().find(is_it).is_none() {
                let ifname = env.ifname()?;
                return Err(Error::check(format!("static: Failed to match addr {} on interface {ifname}", ip.address)));
            }
        }
        Ok(())
    }

    fn gc(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        Ok(())
    }

    fn status(&self, env: &Environment, conf: &Conf) -> Result<()> {
        read(env, conf).map(|_| ()).map_err(|error| Error { code: Code::Unavailable, ..error })
    }
}

#[derive(Deserialize)]
struct NetConf {
    ipam: Option<IpamConf>,
    #[serde(default, rename = "runtimeConfig", deserialize_with = "null_as_default")]
    runtime_config: Addresses,
    #[serde(default, deserialize_with = "null_as_default")]
    args: Args,
}

#[derive(Deserialize)]
struct IpamConf {
    #[serde(default, deserialize_with = "null_as_default")]
    routes: Vec<Route>,
    #[serde(default, deserialize_with = "null_as_default")]
    addresses: Vec<AddressConf>,
    #[serde(default, deserialize_with = "null_as_default")]
    dns: Dns,
}

#[derive(Deserialize)]
struct AddressConf {
    #[serde(default)]
    address: String,
    #[serde(default, deserialize_with = "empty_as_none")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default, deserialize_with = "null_as_default")]
    cni: Addresses,
}

#[derive(Deserialize, Default)]
struct Addresses {
    #[serde(default, deserialize_with = "null_as_default")]
    ips: Vec<String>,
}

/// Reads the configuration, which is the result. Addresses in `CNI_ARGS` (`IP=10.10.0.7/24,…;GATEWAY=10.10.0.254`) come on top of those in the
/// configuration; those in `args.cni`, and then those in `runtimeConfig`, take the place of both.
fn read(env: &Environment, conf: &Conf) -> Result<CniResult> {
    env.check_args()?;
    let net: NetConf = conf.read()?;
    let ipam = net.ipam.ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
    let configured = ipam.addresses.iter().map(|conf| Ok(ip(with_prefix("address", &conf.address)?, conf.gateway)));
    let mut ips = configured.collect::<Result<Vec<_>>>()?;
    for text in list(env.arg("IP")) {
        ips.push(ip(with_prefix("ip", text)?, None));
    }
    for text in list(env.arg("GATEWAY")) {
        let gateway: IpAddr = text.parse().map_err(|_| Error::config(format!("invalid gateway address: {text}")))?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    for instead in [&net.args.cni.ips, &net.runtime_config.ips].into_iter().filter(|ips| !ips.is_empty()) {
        ips = instead.iter().map(|text| Ok(ip(with_prefix("ips", text)?, None))).collect::<Result<_>>()?;
    }
    let several = |v4| ips.iter().filter(|ip| is_ipv4(&ip.address) == v4).count() > 1;
    let version = conf.version()?;
    if (several(true) || several(false)) && version < SpecVersion::V0_3_0 {
        return Err(Error::config(format!("CNI version {version} does not support more than 1 address per family")));
    }
    Ok(CniResult { ips, routes: ipam.routes, dns: ipam.dns, ..CniResult::default() })
}

fn ip(address: IpNet, gateway: Option<IpAddr>) -> IpConfig {
    IpConfig { interface: None, address, gateway }
}

fn list(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty())
}

fn with_prefix(field: &str, text: &str) -> Result<IpNet> {
    text.parse().map_err(|_| {
        Error::config(format!("the '{field}' field is expected to be in CIDR notation, got: '{text}'"))
            .with_details("write it as 10.10.0.7/24")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(mut conf: Value, args: &str) -> Result<Value> {
        conf["name"] = json!("n");
        let env = Environment::of("c1", "eth0", args)?;
        let conf = Conf::parse(conf.to_string().as_bytes())?;
        Static.add(&env, &conf)?.to_value(SpecVersion::V1_0_0)
    }

    fn ipam() -> Value {
        json!({
            "addresses": [{"address": "10.10.0.7/24", "gateway": "10.10.0.254"}, {"address": "fd00::7/64"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.10.0.1"]},
        })
    }

    #[test]
    fn the_configuration_is_the_result() {
        assert_eq!(
            answer(json!({"cniVersion": "1.0.0", "ipam": ipam()}), "").unwrap(),
            json!({
                "cniVersion": "1.0.0",
                "ips": [{"address": "10.10.0.7/24", "gateway": "10.10.0.254"}, {"address": "fd00::7/64"}],
                "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.10.0.1"]},
            })
        );
    }

    #[test]
    fn arguments_come_on_top_and_the_runtimes_addresses_instead() {
        let ips = |more: Value, args: &str| {
            let mut conf = json!({"cniVersion": "1.0.0", "ipam": ipam()});
            conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            answer(conf, args).unwrap()["ips"].clone()
        };
        let third = ips(json!({}), "IP=10.20.0.7/24, 10.30.0.7/24;GATEWAY=10.20.0.1,fd00::1");
        assert_eq!(third.as_array().unwrap().len(), 4);
        assert_eq!((&third[1]["gateway"], &third[2]["gateway"]), (&json!("fd00::1"), &json!("10.20.0.1")));
        let runtime = json!({"runtimeConfig": {"ips": ["10.9.0.1/24"]}, "args": {"cni": {"ips": ["10.8.0.1/24"]}}});
        assert_eq!(ips(runtime, "IP=10.20.0.7/24"), json!([{"address": "10.9.0.1/24"}]));
        assert_eq!(ips(json!({"args": {"cni": {"ips": ["10.8.0.1/24"]}}}), ""), json!([{"address": "10.8.0.1/24"}]));
    }

    #[test]
    fn an_address_needs_its_prefix_length_and_an_old_version_takes_one_of_a_family() {
        for (conf, args) in [
            (json!({"ipam": {"addresses": [{"address": "10.10.0.7"}]}}), ""),
            (json!({"ipam": {"addresses": [{}]}}), ""),
            (json!({"ipam": {}}), "IP=10.10.0.7"),
            (json!({"ipam": {}}), "GATEWAY=nonsense"),
            (json!({"runtimeConfig": {"ips": ["nonsense"]}, "ipam": {}}), ""),
            (json!({}), ""),
            (json!({"cniVersion": "0.2.0", "ipam": ipam()}), "IP=10.20.0.7/24"),
        ] {
            assert_eq!(answer(conf.clone(), args).unwrap_err().code, Code::InvalidConfig, "{conf}");
        }
        answer(json!({"cniVersion": "0.2.0", "ipam": ipam()}), "").unwrap();
    }
}
