//! `host-local`: gives out addresses of the node's subnet and remembers them in files.
//!
//! It is called by a plugin that makes interfaces (bridge), never by the runtime itself: an IPAM plugin. Its result
//! holds addresses and routes only; putting them on an interface is the caller's work.
//!
//! Source: containernetworking/plugins, `plugins/ipam/host-local`.

pub mod config;
pub mod index;
pub mod range;
pub mod store;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::host_local::config::Config;
use crate::host_local::range::RangeSet;
use crate::host_local::store::{Owner, Store};
use crate::plugin::Plugin;
use crate::result::{CniResult, Dns, IpConfig};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct HostLocal;

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(env, conf)?;
        let dns = config.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
        let mut store = Store::open(&config.data_dir, &conf.network)?;
        let owner = Owner::of(env)?;
        let ips = allocate(&mut store, &owner, &config);
        store.commit();
        Ok(CniResult { ips: ips?, routes: config.routes, dns, ..CniResult::default() })
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let mut store = Store::open(&config.data_dir, &conf.network)?;
        let released = store.release(&Owner::of(env)?);
        store.commit();
        released
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let store = Store::open(&config.data_dir, &conf.network)?;
        if store.addresses_of(&Owner::of(env)?)?.is_empty() {
            return Err(Error::check(format!(
                "host-local: Failed to find address added by container {}",
                env.container_id
            )));
        }
        Ok(())
    }

    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let valid = conf.valid_attachments()?;
        let mut store = Store::open(&config.data_dir, &conf.network)?;
        let released = store.release_all_but(|owner| {
            valid.iter().any(|attachment| {
                attachment.container_id == owner.container_id
                    && (owner.ifname.is_empty() || attachment.ifname == owner.ifname)
            })
        });
        store.commit();
        released
    }

    fn status(&self, env: &Environment, conf: &Conf) -> Result<()> {
        Config::read(env, conf).map(|_| ()).map_err(|error| Error { code: Code::Unavailable, ..error })
    }
}

/// Reserves one address of every range set, or none at all.
///
/// # Errors
///
/// Code 101 when a set is exhausted, when a wanted address is taken, a gateway's, or in no range, and when the owner
/// has an address already: by the specification a second ADD without a DEL is the runtime's mistake.
pub fn allocate(store: &mut Store, owner: &Owner, config: &Config) -> Result<Vec<IpConfig>> {
    let held = store.addresses_of(owner)?;
    let mut wanted = config.requested.clone();
    let mut ips = Vec::with_capacity(config.range_sets.len());
    let mut failure = None;
    for (index, set) in config.range_sets.iter().enumerate() {
        let request = wanted.iter().position(|address| set.range_of(*address).is_some()).map(|at| wanted.remove(at));
        match allocate_from(store, owner, (index, set), request, &held) {
            Ok(ip) => ips.push(ip),
            Err(error) => {
                failure = Some(Error { msg: format!("failed to allocate for range {index}: {}", error.msg), ..error });
                break;
            }
        }
    }
    if failure.is_none() && !wanted.is_empty() {
        let list: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let msg = format!("failed to allocate all requested IPs: {}", list.join(" "));
        failure = Some(Error::new(Code::Allocation, msg));
    }
    match failure {
        None => Ok(ips),
        Some(error) => {
            // Only what this ADD has reserved; what an earlier one holds is not ours to give back.
            for ip in &ips {
                store.release_address(owner, ip.address.addr())?;
            }
            Err(error)
        }
    }
}

fn allocate_from(
    store: &mut Store,
    owner: &Owner,
    (index, set): (usize, &RangeSet),
    request: Option<IpAddr>,
    held: &[IpAddr],
) -> Result<IpConfig> {
    let refuse = |msg: String| Err(Error::new(Code::Allocation, msg));
    if let Some(address) = held.iter().find(|address| set.range_of(**address).is_some()) {
        let id = &owner.container_id;
        return refuse(format!("{address} has been allocated to {id}, duplicate allocation is not allowed"));
    }
    if let Some((address, range)) = request.and_then(|address| Some((address, set.range_of(address)?))) {
        if address == range.gateway {
            return refuse(format!("requested ip {address} is subnet's gateway"));
        }
        if !store.reserve(owner, address, index)? {
            return refuse(format!("requested IP address {address} is not available in range set {set}"));
        }
        return Ok(IpConfig { interface: None, address: range.with_prefix(address), gateway: Some(range.gateway) });
    }
    // A second round only when the first found nothing, and reservations of containers that no machine runs any more could be freed.
    for _ in 0..2 {
        for (address, range) in set.candidates(store.last_reserved(index)) {
            if store.reserve(owner, address, index)? {
                return Ok(IpConfig {
                    interface: None,
                    address: range.with_prefix(address),
                    gateway: Some(range.gateway),
                });
            }
        }
        if !store.release_earlier_boots()? {
            break;
        }
    }
    refuse(format!("no IP addresses available in range set: {set}"))
}

/// Reads a file in the format of resolv.conf(5).
fn read_resolv_conf(path: &Path) -> Result<Dns> {
    let text = fs::read_to_string(path).map_err(|source| Error::io("read", path, &source))?;
    Ok(parse_resolv_conf(&text))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            Some(_) | None => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests;
