//! `bandwidth`: how fast a pod may receive and send.
//!
//! ```json
//! {"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 4000000, "egressBurst": 400000}
//! ```
//!
//! Rates are in bits per second and bursts in bits, seen from the pod: *ingress* is what it receives. A link can only be slowed in what it sends.
//! What the pod receives, its veth on the node sends: a token bucket there is enough. What the pod sends, the veth receives, and hands to a link
//! that was made for the purpose, an ifb, which sends it on through a token bucket of its own:
//!
//! ```text
//! cni0 ──► veth1f00a2b3 (bucket: ingressRate) ──► pod eth0
//! pod eth0 ──► veth1f00a2b3 ─ redirect ─► bwp0a1b2c3d4e5f (bucket: egressRate) ──► cni0
//! ```
//!
//! Typed by hand ([`plan`] prints the same):
//!
//! ```text
//! tc qdisc add dev veth1f00a2b3 root handle 1: tbf rate 1000000bps burst 100000 limit 125000
//! ip link add bwp0a1b2c3d4e5f mtu 1450 txqueuelen 0 type ifb && ip link set bwp0a1b2c3d4e5f up
//! tc qdisc add dev veth1f00a2b3 handle ffff: ingress
//! tc filter add dev veth1f00a2b3 parent ffff: … action mirred egress redirect dev bwp0a1b2c3d4e5f
//! tc qdisc add dev bwp0a1b2c3d4e5f root handle 1: tbf rate 500000bps burst 50000 limit 62500
//! ```
//!
//! The veth goes with the pod, and its buckets with it. The ifb stays: DEL removes it by its name, which is a hash of network and container, and
//! GC by its alias, which says whose it is. In the kernel both are given in one message, so that there is no ifb without an owner.
//!
//! Beyond the Go plugin: GC, a CHECK that looks at the redirection too, and a failed ADD leaves nothing.
//!
//! Source: containernetworking/plugins, `plugins/meta/bandwidth`.

pub mod config;
pub mod plan;

use linux_net::IfName;
use linux_net::netlink::{Link, LinkKind, Netlink, Op, Qdisc};

use crate::attachment::{Mark, Valid};
use crate::bandwidth::config::{Config, Limit};
use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::namespace::{self, apply};
use crate::plugin::Plugin;
use crate::pod;
use crate::result::{CniResult, Interface};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(conf)?;
        let mut result = conf.prev_result()?.ok_or_else(|| Error::config("must be called as chained plugin"))?;
        if config.is_unlimited() {
            return Ok(result);
        }
        let mut host = Netlink::open()?;
        let veth = host_end(&mut host, env, &result)?;
        let ifb = plan::ifb_name(&conf.network, &env.container_id)?;
        if config.egress.is_some() && host.has_link(&ifb)? {
            let error = Error::config(format!("adding link: {ifb} is there already"));
            return Err(error.with_details("a container can have one interface with a limit on each network"));
        }
        let ops = plan::add(&config, &veth, &ifb, &Mark::of(env, conf)?);
        apply(&mut host, &ops).inspect_err(|_| take_back(&mut host, &config, &veth.name, &ifb))?;
        if config.egress.is_some() {
            let link = host.link(&ifb)?;
            result.interfaces.push(Interface {
                name: ifb.to_string(),
                mac: link.as_ref().and_then(|link| link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
                mtu: link.map(|link| link.mtu_bytes),
                ..Interface::default()
            });
        }
        Ok(result)
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        Config::read(conf)?;
        let ifb = plan::ifb_name(&conf.network, &env.container_id)?;
        let mut host = Netlink::open()?;
        match host.link(&ifb)? {
            // It may be that of another interface of the same container. One of the Go plugin has no alias.
            Some(link) if link.alias.is_none() || link.alias.as_deref() == Some(Mark::of(env, conf)?.as_str()) => {
                pod::remove(&mut host, &ifb)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(conf)?;
        let result = conf.prev_result()?.ok_or_else(|| Error::config("must be called as a chained plugin"))?;
        if config.is_unlimited() {
            return Ok(());
        }
        let mut host = Netlink::open()?;
        let veth = host_end(&mut host, env, &result)?.name;
        if let Some(limit) = config.ingress {
            check_bucket(&mut host, &veth, limit)?;
        }
        let Some(limit) = config.egress else { return Ok(()) };
        let ifb = plan::ifb_name(&conf.network, &env.container_id)?;
        if host.link(&ifb)?.is_none_or(|link| !link.up) {
            return Err(Error::check(format!("get ifb device: {ifb} is not there, or not up")));
        }
        check_bucket(&mut host, &ifb, limit)?;
        let has_ingress = host.qdiscs(&veth)?.contains(&Qdisc::Ingress);
        if !has_ingress || !host.redirects(&veth)?.contains(&ifb) {
            return Err(Error::check(format!("what {veth} receives is not redirected to {ifb}")));
        }
        Ok(())
    }

    fn gc(&self, _env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        let mut host = Netlink::open()?;
        let is_ifb = |link: &Link| link.kind == LinkKind::Other("ifb".to_owned());
        let is_stale = |link: &Link| link.alias.as_deref().is_some_and(|alias| valid.is_stale(alias));
        let links = host.links()?;
        links
            .iter()
            .filter(|link| is_ifb(link) && is_stale(link))
            .try_for_each(|link| pod::remove(&mut host, &link.name))
    }

    /// It needs nothing but the kernel, and finds out only by trying what that has.
    fn status(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        Ok(())
    }
}

/// The end of the pod's cable that is on the node, if the result of an earlier plugin names it.
fn host_end(host: &mut Netlink, env: &Environment, result: &CniResult) -> Result<Link> {
    if result.interfaces.is_empty() {
        return Err(Error::config("no interfaces provided"));
    }
    let ifname = env.ifname()?;
    let pod_end = Netlink::open_in(&namespace::open(env)?)?.link(ifname)?;
    let peer = pod_end.filter(|link| link.kind == LinkKind::Veth).and_then(|link| link.peer_index);
    let peer = peer.ok_or_else(|| Error::config(format!("container interface {ifname} has no veth peer")))?;
    for interface in result.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let Ok(name) = interface.name.parse::<IfName>() else { continue };
        if let Some(link) = host.link(&name)?.filter(|link| link.index == peer) {
            return Ok(link);
        }
    }
    Err(Error::config("no veth peer of container interface found in host ns"))
}

fn check_bucket(host: &mut Netlink, dev: &IfName, limit: Limit) -> Result<()> {
    let wanted = limit.bucket();
    let found = host.qdiscs(dev)?.into_iter().find_map(|qdisc| match qdisc {
        Qdisc::TokenBucket(bucket) => Some(bucket),
        Qdisc::Ingress | Qdisc::Other(_) => None,
    });
    let found = found.ok_or_else(|| Error::check(format!("Failed to find qdisc: {dev} has no token bucket")))?;
    let differs = |what: &str| Err(Error::check(format!("{what} doesn't match: {dev} has {found:?}, not {wanted:?}")));
    if found.rate_bytes != wanted.rate_bytes {
        return differs("Rate");
    }
    if found.queue_bytes != wanted.queue_bytes {
        return differs("Limit");
    }
    if found.fill_ticks != wanted.fill_ticks {
        return differs("Buffer");
    }
    Ok(())
}

/// Back to before an ADD that failed; the first error is the one to report.
fn take_back(host: &mut Netlink, config: &Config, veth: &IfName, ifb: &IfName) {
    if config.egress.is_some() {
        drop(pod::remove(host, ifb));
        drop(host.apply(&Op::DelQdisc { dev: veth.clone(), qdisc: Qdisc::Ingress }));
    }
    if let Some(limit) = config.ingress {
        drop(host.apply(&Op::DelQdisc { dev: veth.clone(), qdisc: Qdisc::TokenBucket(limit.bucket()) }));
    }
}
