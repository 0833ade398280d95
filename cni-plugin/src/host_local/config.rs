//! What host-local reads of a configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::host_local::range::{RangeConf, RangeSet};
use crate::result::Route;
use crate::version::SpecVersion;

/// Where reservations are kept when the configuration does not say.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// One address is given from each.
    pub range_sets: Vec<RangeSet>,
    /// Passed on to the result as they are.
    pub routes: Vec<Route>,
    /// The directory of the directories of networks.
    pub data_dir: PathBuf,
    /// A file in the format of resolv.conf whose content goes into the result.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses asked for, each once, in the order they were asked for.
    pub requested: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct NetConf {
    ipam: Option<IpamConf>,
    #[serde(default, rename = "runtimeConfig", deserialize_with = "crate::result::wire::null_as_default")]
    runtime_config: RuntimeConfig,
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    args: Args,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpamConf {
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    ranges: Vec<Vec<RangeConf>>,
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    routes: Vec<Route>,
    #[serde(default)]
    data_dir: String,
    #[serde(default)]
    resolv_conf: String,
    /// The form from before range sets: the fields of one range, directly in `ipam`.
    subnet: Option<IpNet>,
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    range_start: Option<IpAddr>,
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    range_end: Option<IpAddr>,
    #[serde(default, deserialize_with = "crate::result::wire::empty_as_none")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    ip_ranges: Vec<Vec<RangeConf>>,
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    ips: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    cni: CniArgs,
}

#[derive(Deserialize, Default)]
struct CniArgs {
    #[serde(default, deserialize_with = "crate::result::wire::null_as_default")]
    ips: Vec<String>,
}

impl Config {
    /// Reads and checks. Ranges come from `runtimeConfig.ipRanges`, the old single range, then `ipam.ranges`.
    ///
    /// # Errors
    ///
    /// Code 7 for anything that is wrong in there, code 4 for a malformed `CNI_ARGS`.
    pub fn read(env: &Environment, conf: &Conf) -> Result<Self> {
        env.check_args()?;
        let net: NetConf = conf.read()?;
        let ipam = net.ipam.ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
        let single = ipam.subnet.map(|subnet| {
            vec![RangeConf { subnet, range_start: ipam.range_start, range_end: ipam.range_end, gateway: ipam.gateway }]
        });
        let range_sets = check_sets(net.runtime_config.ip_ranges.into_iter().chain(single).chain(ipam.ranges))?;
        let several = |is_ipv4| range_sets.iter().filter(|set| set.is_ipv4() == is_ipv4).count() > 1;
        if (several(true) || several(false)) && conf.version()? < SpecVersion::V0_3_0 {
            let version = conf.version()?;
            return Err(Error::config(format!(
                "CNI version {version} does not support more than 1 address per family"
            )));
        }
        let from_env = env.arg("IP").into_iter().flat_map(|list| list.split(','));
        let others = net.args.cni.ips.iter().chain(&net.runtime_config.ips).map(String::as_str);
        Ok(Self {
            range_sets,
            routes: ipam.routes,
            data_dir: PathBuf::from(if ipam.data_dir.is_empty() { DEFAULT_DATA_DIR } else { &ipam.data_dir }),
            resolv_conf: Some(PathBuf::from(ipam.resolv_conf)).filter(|path| !path.as_os_str().is_empty()),
            requested: requested(from_env.chain(others).filter(|text| !text.is_empty()))?,
        })
    }
}

fn check_sets(confs: impl Iterator<Item = Vec<RangeConf>>) -> Result<Vec<RangeSet>> {
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, conf) in confs.enumerate() {
        let set =
            RangeSet::new(&conf).map_err(|error| Error::config(format!("invalid range set {index}: {}", error.msg)))?;
        if let Some(other) = sets.iter().position(|other| other.overlaps(&set)) {
            return Err(Error::config(format!("range set {other} overlaps with {index}")));
        }
        sets.push(set);
    }
    if sets.is_empty() {
        return Err(Error::config("no IP ranges specified"));
    }
    Ok(sets)
}

/// Reads the wanted addresses, with or without a prefix length. One that is asked for twice counts once: podman sends
/// the same address through `CNI_ARGS` and through `runtimeConfig`.
fn requested<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for text in texts {
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        let address: IpAddr = address.parse().map_err(|_| Error::config(format!("cannot understand ip: {text}")))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
