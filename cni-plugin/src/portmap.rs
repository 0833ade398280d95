//! `portmap`: makes a port of the node lead to a port of a container.
//!
//! It is chained behind the plugin that gave the container its addresses. A packet to the node's port gets the container's address and port
//! as its destination, before it is routed; answers are translated back by connection tracking. The rules are the same for all
//! containers and look into two maps; an ADD adds elements to them:
//!
//! ```text
//! table ip cni {
//!     map hostports        { type inet_proto . inet_service : ipv4_addr . inet_service
//!                            elements = { tcp . 8080 comment "lab c1 eth0" : 10.22.0.2 . 80 } }
//!     map hostip_hostports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }   # with hostIP
//!     set hostport_sources { type ipv4_addr . ipv4_addr; flags interval        # from where . to which container
//!                            elements = { 10.22.0.0/24 . 10.22.0.2, 127.0.0.0/8 . 10.22.0.2 } }
//!     chain hostports { dnat ip to ip daddr . meta l4proto . th dport map @hostip_hostports
//!                       dnat ip to meta l4proto . th dport map @hostports }
//!     chain hostport_prerouting  { type nat hook prerouting…; fib daddr type local jump hostports }    # from elsewhere
//!     chain hostport_output      { type nat hook output…;   fib daddr type local jump hostports }    # from the node
//!     chain hostport_postrouting { type nat hook postrouting…
//!                                  ct status dnat ip saddr . ip daddr @hostport_sources masquerade }
//! }
//! ```
//!
//! # Three ways that need more
//!
//! The destination alone is not enough where answers would not come back to the node, which alone can translate them back. There the source is
//! masqueraded as well (`snat`, on unless it is `false`):
//!
//! - *hairpin*: the container, or another one of its subnet, uses the host port. The answer would go to it directly, over the bridge, from an
//!   address it never spoke to. (To come back out of the port it went in by, a packet also needs `hairpinMode` of bridge.)
//! - *loopback*: a program of the node uses `127.0.0.1:PORT`. The container would answer to its own loopback; and the kernel lets no packet with such
//!   an address leave by a real interface unless its `route_localnet` is 1, which ADD sets. For `::1` there is no such switch.
//! - `masqAll`: everything, for networks whose containers have another way out than this node.
//!
//! UDP knows no connections, so an entry of connection tracking lives as long as a client keeps sending, past the end of a container: ADD and
//! DEL delete those that contradict the new rules.
//!
//! # What differs from the Go plugin
//!
//! `backend` may be `iptables` or `nftables`; both are done here in nftables, no iptables program is needed. Nothing is marked, so
//! `markMasqBit` is checked and has nothing to do. `conditionsV4`, `conditionsV6` and `externalSetMarkChain` are words of iptables for
//! a chain of this container, which does not exist: refused by name. Two containers that want one port: the first keeps it, and the
//! second is told whose it is (the Go plugin takes both, and one of them is dead). DEL flushes UDP too. DEL finds what Go plugins
//! left ([`crate::nftables::foreign`]). CHECK is right for containers of one family.
//!
//! Source: containernetworking/plugins, `plugins/meta/portmap`.

pub mod config;
pub mod plan;

use linux_net::conntrack;
use linux_net::netlink::Netlink;
use linux_net::nft::{Data, Element, Value};

use crate::attachment::{Mark, Valid};
use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::nftables::{self, Taken, foreign};
use crate::plugin::Plugin;
use crate::pod;
use crate::portmap::config::{Config, Protocol};
use crate::portmap::plan::{Plan, container_addresses};
use crate::result::CniResult;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Portmap;

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(conf)?;
        let result = conf.prev_result()?.ok_or_else(|| Error::config("must be called as chained plugin"))?;
        if config.mappings.is_empty() {
            return Ok(result);
        }
        let addresses = container_addresses(env, &result)?;
        let mark = Mark::of(env, conf)?;
        let plan = Plan::new(&config, &addresses)?;
        // An element of the container's own address is one that an attachment left which had the address before.
        let gives_way = |there: &Element| plan.leads_to_the_container(there);
        nftables::claim(&plan.frame, &plan.claims, &mark, gives_way)?.map_err(|taken| is_taken(&taken))?;
        let undo = |_: &Error| drop(nftables::release(&plan::sets(), |remark| remark == mark.as_str()));
        if plan.needs_route_localnet {
            route_localnet(&addresses).inspect_err(undo)?;
        }
        forget(&plan.contradicted);
        Ok(result)
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let mark = Mark::of(env, conf)?;
        let released = nftables::release(&plan::sets(), |remark| remark == mark.as_str())?;
        foreign::portmap(&conf.network, &env.container_id)?;
        let mut ended: Vec<_> = released.iter().filter_map(plan::ended).collect();
        // A DEL that was killed after the rules had gone has left the connections: those that the configuration tells.
        if let (Ok(config), Ok(Some(result))) = (Config::read(conf), conf.prev_result()) {
            ended.extend(plan::ended_of(&config, &container_addresses(env, &result)?));
        }
        ended.sort();
        ended.dedup();
        forget(&ended);
        Ok(())
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(conf)?;
        let result = conf.required_prev_result()?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        let plan = Plan::new(&config, &container_addresses(env, &result)?)?;
        nftables::check(&plan.frame, &plan.claims, &Mark::of(env, conf)?)
    }

    fn gc(&self, _env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        let released = nftables::release(&plan::sets(), |remark| valid.is_stale(remark))?;
        forget(&released.iter().filter_map(plan::ended).collect::<Vec<_>>());
        Ok(())
    }

    fn status(&self, _env: &Environment, conf: &Conf) -> Result<()> {
        Config::read(conf)?;
        nftables::status()
    }
}

fn is_taken(taken: &Taken) -> Error {
    let Element { key, data, comment, .. } = &taken.element;
    let words: Vec<_> = key.iter().map(ToString::to_string).collect();
    let whose = comment.as_deref().unwrap_or("nobody we know");
    let msg =
        format!("host port {} is taken by another container: {whose} (network, container, interface)", words.join(" "));
    let leads_to = match data {
        Some(Data::Value(values)) => values.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
        Some(Data::Verdict(_)) | None => String::new(),
    };
    Error::new(Code::Allocation, msg).with_details(format!("it leads to {leads_to}; choose another host port"))
}

/// Lets packets from 127.0.0.0/8 leave by the interface behind which the container is.
fn route_localnet(addresses: &[ipnet::IpNet]) -> Result<()> {
    let mut netlink = Netlink::open()?;
    for address in addresses.iter().filter(|address| address.addr().is_ipv4()) {
        let Some(dev) = netlink.route_to(address.addr())?.and_then(|route| route.dev) else { continue };
        pod::switch_on(&pod::conf_key("ipv4", &dev, "route_localnet"))?;
    }
    Ok(())
}

/// Deletes entries of connection tracking. The rules are right without it, so that a kernel that cannot do it is no reason to fail.
fn forget(filters: &[conntrack::Filter]) {
    if let Err(error) = conntrack::delete(filters) {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "portmap: UDP connections to the host port are not forgotten: {error}");
    }
}

impl Protocol {
    /// Whether clients keep an entry of connection tracking alive across containers.
    const fn lingers(self) -> bool {
        matches!(self, Self::Udp)
    }
}
