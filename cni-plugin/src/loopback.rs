//! `loopback`: brings `lo` up.
//!
//! A namespace is born with `lo` down, so that a container could not even reach 127.0.0.1. Runtimes therefore have a
//! network of this one plugin; our bridge brings `lo` up as well, for runtimes that do not (cnitool, `ctr --cni`).
//!
//! Source: containernetworking/plugins, `plugins/main/loopback`.

use linux_net::IfName;
use linux_net::netlink::{Netlink, Op};

use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::namespace;
use crate::plugin::Plugin;
use crate::result::{CniResult, Interface, IpConfig};

/// The plugin. Whatever `CNI_IFNAME` says, it works on `lo`.
#[derive(Debug, Clone, Copy)]
pub struct Loopback;

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let netns = namespace::open(env)?;
        let mut netlink = Netlink::open_in(&netns)?;
        netlink.apply(&Op::SetUp { dev: IfName::loopback() })?;
        if let Some(previous) = conf.prev_result()? {
            return Ok(previous);
        }
        let interface = Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: env.netns()?.display().to_string(),
            ..Interface::default()
        };
        let mut addresses: Vec<_> = netlink.addresses()?.into_iter().filter(|a| a.dev == IfName::loopback()).collect();
        addresses.sort();
        let to_ip = |address: linux_net::netlink::Address| IpConfig {
            interface: Some(0),
            address: address.address,
            gateway: None,
        };
        Ok(CniResult {
            interfaces: vec![interface],
            ips: addresses.into_iter().map(to_ip).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, env: &Environment, _conf: &Conf) -> Result<()> {
        match namespace::open_if_there(env)? {
            Some(netns) => Ok(Netlink::open_in(&netns)?.apply(&Op::SetDown { dev: IfName::loopback() })?),
            None => Ok(()),
        }
    }

    fn check(&self, env: &Environment, _conf: &Conf) -> Result<()> {
        let netns = namespace::open(env)?;
        match Netlink::open_in(&netns)?.link(&IfName::loopback())? {
            Some(link) if link.up => Ok(()),
            Some(_) | None => Err(Error::check("interface lo is not up")),
        }
    }

    /// There is nothing on the host that could be left behind.
    fn gc(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        Ok(())
    }

    /// It needs nothing but the kernel.
    fn status(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        Ok(())
    }
}
