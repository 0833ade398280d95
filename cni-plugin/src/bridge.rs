//! `bridge`: joins the container to a software switch of the node by a virtual cable (veth).
//!
//! ```text
//!   pod: eth0 11.14.64.2/20 ═══════ veth1f00a2b3 ┐
//!   pod: eth0 11.14.64.3/20 ═══════ veth77e0c1d4 ┤ cni0 11.14.64.1/20   (the pods' default gateway)
//!                                                └─► routing, flannel.100, the other nodes
//! ```
//!
//! Addresses come from an IPAM plugin that bridge calls itself, usually host-local. The pod end of the cable is born
//! inside the pod's namespace: moving it there afterwards costs the kernel 28 ms.
//!
//! Beyond the Go plugin: the pod's `lo` is brought up, masquerading needs no iptables and the MAC spoof check ([`spoof`]) no nft program, and CHECK
//! looks at the port too. VLANs ([`vlan`]) need a kernel whose bridge knows them; another one says so.
//!
//! Source: containernetworking/plugins, `plugins/main/bridge`.

pub mod check;
pub mod config;
pub mod link;
pub mod masquerade;
pub mod plan;
pub mod spoof;
pub mod vlan;

use linux_net::netlink::Netlink;

use crate::attachment::{Mark, Valid};
use crate::bridge::config::Config;
use crate::bridge::link::Cable;
use crate::conf::Conf;
use crate::delegate;
use crate::env::{Command, Environment};
use crate::error::Result;
use crate::plugin::Plugin;
use crate::pod;
use crate::result::CniResult;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(env, conf)?;
        let mark = Mark::of(env, conf)?;
        let mut cable = Cable::lay(env, &config, &mark)?;
        // Back to before the ADD when something fails; the first error is the one to report. An address is given back
        // only when it was this ADD that got it: a refusal may mean that an earlier one holds it.
        let undo_cable = |cable: &mut Cable| drop(cable.remove());
        let allocated = ipam(&config, Command::Add, env, conf).inspect_err(|_| undo_cable(&mut cable))?;
        attach(env, &config, &mark, &mut cable, allocated).inspect_err(|_| {
            undo_cable(&mut cable);
            if config.mac_spoof_check {
                drop(spoof::remove(&mark));
            }
            if config.ip_masq {
                drop(masquerade::remove(env, conf));
            }
            drop(ipam(&config, Command::Del, env, conf));
        })
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        pod::unplug(env, &Mark::of(env, conf)?)?;
        if config.mac_spoof_check {
            spoof::remove(&Mark::of(env, conf)?)?;
        }
        // Only now: an address that is free must not be on an interface any more.
        ipam(&config, Command::Del, env, conf)?;
        if config.ip_masq { masquerade::remove(env, conf) } else { Ok(()) }
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let result = conf.required_prev_result()?;
        ipam(&config, Command::Check, env, conf)?;
        check::check(env, &config, &Mark::of(env, conf)?, &result)
    }

    /// Cables are found by their marks, and what nftables knows of them too; the rest is the IPAM plugin's.
    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        pod::remove_marked(&mut Netlink::open()?, |alias| valid.is_stale(alias))?;
        spoof::remove_stale(&valid)?;
        masquerade::remove_stale(&valid)?;
        ipam(&Config::read(env, conf)?, Command::Gc, env, conf).map(|_| ())
    }

    fn status(&self, env: &Environment, conf: &Conf) -> Result<()> {
        ipam(&Config::read(env, conf)?, Command::Status, env, conf).map(|_| ())
    }
}

/// Everything of an ADD that comes after the cable and the addresses, and is undone with them.
fn attach(
    env: &Environment,
    config: &Config,
    mark: &Mark,
    cable: &mut Cable,
    allocated: Option<CniResult>,
) -> Result<CniResult> {
    let mut result = allocated.map(|allocated| plan::complete(config, allocated)).transpose()?.unwrap_or_default();
    if config.mac_spoof_check {
        cable.check_spoofing(mark)?;
    }
    cable.plug_in(config)?;
    if !config.disable_container_interface {
        cable.configure_pod(config, &result)?;
    }
    let gateway = link::configure_gateway(&mut cable.host, config, &plan::bridge_addresses(config, &result))?;
    if config.ip_masq && !result.ips.is_empty() {
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(&addresses, mark)?;
    }
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    cable.describe(env, config, &gateway, result)
}

/// Calls the IPAM plugin with the whole configuration; `None` when there is none, for a layer-2 attachment.
fn ipam(config: &Config, command: Command, env: &Environment, conf: &Conf) -> Result<Option<CniResult>> {
    if config.ipam.is_empty() {
        return Ok(None);
    }
    delegate::invoke(&config.ipam, command, env, conf.object().clone())
}
