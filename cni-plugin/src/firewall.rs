//! `firewall`: lets a container's traffic through the node, and keeps containers of other networks out.
//!
//! It is chained behind the plugin that gave the container its addresses. Many a node forwards nothing unless it is told to
//! (`iptables -P FORWARD DROP`, which Docker sets too). So the answers to a container, and all that comes from it, are accepted by name:
//!
//! ```text
//! table ip cni {
//!     set firewall_pods        { type ipv4_addr;                  elements = { 10.22.0.2 comment "lab c1 eth0" } }
//!     map firewall_admin       { type ipv4_addr : verdict;        elements = { 10.22.0.2 : jump admin } }
//!     map ingress_same_bridge  { type ipv4_addr . ifname : verdict; elements = { 10.22.0.2 . "cni0" : return } }
//!     set ingress_restricted   { type ipv4_addr;                  elements = { 10.22.0.2 } }
//!     chain admin { }                                             # the administrator's
//!     chain firewall_ingress { ip daddr . iifname vmap @ingress_same_bridge
//!                              ip saddr @ingress_restricted ip daddr @ingress_restricted drop }
//!     chain firewall_forward { type filter hook forward priority filter - 1
//!                              jump firewall_ingress
//!                              ip daddr vmap @firewall_admin
//!                              ip saddr vmap @firewall_admin
//!                              ct state established,related ip daddr @firewall_pods meta mark set mark | 0x1000 accept
//!                              ip saddr @firewall_pods meta mark set mark | 0x1000 accept }
//! }
//! ```
//!
//! # What `accept` is worth
//!
//! In nftables a packet passes *every* chain of a hook, and one `drop` anywhere is the end of it; an `accept` only ends the chain it stands in.
//! An `accept` of ours therefore cannot lift the `drop` of another table. The Go plugin can, because its rules stand in iptables' own chain
//! `FORWARD`. So where that chain exists, it gets one rule from us, the same for all containers: what bears the mark is accepted
//! ([`iptables`]). It is a rule that `iptables -S` shows and understands.
//!
//! # Ingress policies
//!
//! `open` keeps nobody out. With `same-bridge` a container is reached from its own bridge, but not by containers of other bridges that have such
//! a policy; with `isolated` not from its own bridge either. (Frames between two ports of one bridge are switched, not routed, and come here
//! only where `net.bridge.bridge-nf-call-iptables` is 1; `portIsolation` of bridge separates them in any case.)
//!
//! # What differs from the Go plugin
//!
//! `backend` may be empty, `iptables` or `nftables`; all three mean the above. `firewalld` is refused by name: it is a service with rules of its
//! own, spoken to over D-Bus. `iptablesAdminChainName` names a chain of the table `cni`, `admin` if there is none: a
//! place for rules of the administrator (`nft add rule ip cni admin ip daddr 10.22.0.2 drop`), passed by what comes from or goes
//! to a container before it is accepted. A chain of that name (else `CNI-ADMIN`) in iptables, where the Go plugin has
//! such rules, is passed as well. Policies are elements too, which go with their container.
//!
//! Source: containernetworking/plugins, `plugins/meta/firewall`.

pub mod config;
pub mod iptables;
pub mod plan;

use std::net::IpAddr;

use linux_net::nft::{Element, Value};

use crate::attachment::{Mark, Valid};
use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::firewall::config::Config;
use crate::firewall::plan::Plan;
use crate::nftables::{self, foreign};
use crate::plugin::Plugin;
use crate::result::CniResult;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Firewall;

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(conf)?;
        let result = previous(conf)?;
        let plan = Plan::new(&config, &result)?;
        let mark = Mark::of(env, conf)?;
        // An address that is in a set belongs to this container now; the one that had it before never got a DEL.
        if let Err(taken) = nftables::claim(&plan.frame, &plan.claims, &mark, |_| true)? {
            return Err(Error::config(format!("element {} is in the way", taken.element)));
        }
        iptables::ensure(&config, &plan.families)
            .inspect_err(|_| drop(nftables::release(&plan::sets(), |text| text == mark.as_str())))?;
        Ok(result)
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let mark = Mark::of(env, conf)?;
        let released = nftables::release(&plan::sets(), |text| text == mark.as_str())?;
        let told = conf.prev_result().ok().flatten().unwrap_or_default();
        let mut addresses: Vec<_> = told.ips.iter().map(|ip| ip.address.addr()).collect();
        addresses.extend(released.iter().filter_map(address));
        if addresses.is_empty() { Ok(()) } else { foreign::firewall(&addresses) }
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(conf)?;
        let plan = Plan::new(&config, &previous(conf)?)?;
        nftables::check(&plan.frame, &plan.claims, &Mark::of(env, conf)?)?;
        iptables::check(&config, &plan.families)
    }

    fn gc(&self, _env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        nftables::release(&plan::sets(), |text| valid.is_stale(text)).map(drop)
    }

    fn status(&self, _env: &Environment, conf: &Conf) -> Result<()> {
        Config::read(conf)?;
        nftables::status()
    }
}

fn previous(conf: &Conf) -> Result<CniResult> {
    conf.prev_result()?.ok_or_else(|| Error::config("missing prevResult from earlier plugin"))
}

/// The address an element is about.
fn address(element: &Element) -> Option<IpAddr> {
    match element.key.first()? {
        Value::Ipv4(address) => Some(IpAddr::V4(*address)),
        Value::Ipv6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
