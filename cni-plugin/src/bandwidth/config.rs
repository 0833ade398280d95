//! What bandwidth reads of a configuration.

use std::time::Duration;

use linux_net::netlink::TokenBucket;
use serde::Deserialize;

use crate::conf::{Conf, any_case};
use crate::error::{Error, Result};
use crate::result::wire::null_as_default;

/// How long a packet may wait for tokens, as the Go plugin has it.
const LATENCY: Duration = Duration::from_millis(25);

/// The configuration, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// What the pod receives; `None` is unlimited.
    pub ingress: Option<Limit>,
    /// What the pod sends; `None` is unlimited.
    pub egress: Option<Limit>,
}

/// A limit in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second, at least 8.
    pub rate_bits: u64,
    /// Bits that may be sent at once, at least 8.
    pub burst_bits: u64,
}

impl Limit {
    /// The token bucket that keeps the limit.
    #[must_use]
    pub fn bucket(self) -> TokenBucket {
        let burst = u32::try_from(self.burst_bits / 8).unwrap_or(u32::MAX);
        TokenBucket::new(self.rate_bits / 8, burst, LATENCY)
    }
}

/// The fields of [`Config`], once in the netconf itself and once in `runtimeConfig.bandwidth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    ingress_rate: u64,
    #[serde(default)]
    ingress_burst: u64,
    #[serde(default)]
    egress_rate: u64,
    #[serde(default)]
    egress_burst: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    #[serde(default, deserialize_with = "null_as_default")]
    runtime_config: RuntimeConfig,
}

#[derive(Deserialize, Default)]
struct RuntimeConfig {
    bandwidth: Option<Entry>,
}

const FIELDS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// Fields of some releases of the Go plugin (1.5 and 1.6), which limited what goes to some subnets only.
const UNSUPPORTED: [&str; 2] = ["unshapedSubnets", "shapedSubnets"];

impl Config {
    /// Reads and checks. The netconf's own fields count more than the runtime's.
    ///
    /// # Errors
    ///
    /// Code 2 for a field that is not supported, code 7 for a rate without a burst, a burst without a rate, and one of either that is too small or
    /// too large.
    pub fn read(conf: &Conf) -> Result<Self> {
        let of_runtime: NetConf = conf.read()?;
        for field in UNSUPPORTED {
            let in_runtime = conf.object().get("runtimeConfig").and_then(|config| config.get("bandwidth")?.get(field));
            let wanted = any_case::get(conf.object(), field).or(in_runtime);
            if wanted.is_some_and(|subnets| subnets.as_array().is_none_or(|list| !list.is_empty())) {
                return Err(Error::unsupported("bandwidth", field));
            }
        }
        let is_static = FIELDS.iter().any(|field| any_case::get(conf.object(), field).is_some());
        let entry = if is_static { conf.read()? } else { of_runtime.runtime_config.bandwidth.unwrap_or_default() };
        Ok(Self {
            ingress: limit(entry.ingress_rate, entry.ingress_burst)?,
            egress: limit(entry.egress_rate, entry.egress_burst)?,
        })
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

fn limit(rate_bits: u64, burst_bits: u64) -> Result<Option<Limit>> {
    match (rate_bits, burst_bits) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Error::config("if rate is set, burst must also be set")),
        (0, _) => Err(Error::config("if burst is set, rate must also be set")),
        (_, burst) if burst / 8 >= u64::from(u32::MAX) => Err(Error::config("burst cannot be more than 4GB")),
        (rate, burst) if rate < 8 || burst < 8 => {
            let msg = format!("rate {rate} and burst {burst} are in bits and must be at least 8, which is one byte");
            Err(Error::config(msg))
        }
        (rate_bits, burst_bits) => Ok(Some(Limit { rate_bits, burst_bits })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Code;

    fn read(mut conf: Value) -> Result<Config> {
        conf["name"] = json!("n");
        Config::read(&Conf::parse(conf.to_string().as_bytes())?)
    }

    #[test]
    fn the_netconf_counts_more_than_the_runtime() {
        let runtime = json!({"bandwidth": {"ingressRate": 80, "ingressBurst": 800}});
        let limit = |rate_bits, burst_bits| Some(Limit { rate_bits, burst_bits });
        let config = read(json!({"runtimeConfig": runtime})).unwrap();
        assert_eq!(config, Config { ingress: limit(80, 800), egress: None });
        let config = read(json!({"runtimeConfig": runtime, "egressRate": 16, "egressBurst": 160})).unwrap();
        assert_eq!(config, Config { ingress: None, egress: limit(16, 160) });
        assert!(read(json!({})).unwrap().is_unlimited());
        assert!(read(json!({"ingressRate": 0, "ingressBurst": 0, "runtimeConfig": runtime})).unwrap().is_unlimited());
    }

    #[test]
    fn impossible_limits_are_refused() {
        for (conf, word) in [
            (json!({"ingressRate": 8}), "burst must also be set"),
            (json!({"egressBurst": 8}), "rate must also be set"),
            (json!({"ingressRate": 8, "ingressBurst": 8 * u64::from(u32::MAX)}), "4GB"),
            (json!({"ingressRate": 7, "ingressBurst": 8}), "at least 8"),
            (json!({"runtimeConfig": {"bandwidth": {"egressRate": 8}}}), "burst must also be set"),
            (json!({"ingressRate": -8, "ingressBurst": 8}), "netconf"),
        ] {
            let error = read(conf).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(word), "{error}");
        }
    }

    #[test]
    fn subnets_are_refused_by_name() {
        for conf in [
            json!({"unshapedSubnets": ["10.0.0.0/8"]}),
            json!({"runtimeConfig": {"bandwidth": {"unshapedSubnets": ["10.0.0.0/8"]}}}),
        ] {
            let error = read(conf).unwrap_err();
            assert!(error.code == Code::UnsupportedField && error.msg.contains("unshapedSubnets"), "{error}");
        }
        read(json!({"unshapedSubnets": [], "shapedSubnets": null})).unwrap();
    }
}
