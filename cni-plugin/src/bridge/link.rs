//! The bridge and the cable, in the kernel.

use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux_net::netlink::{Link, LinkKind, Netlink, Op, Route, RouteScope, Veth};
use linux_net::{IfName, NetNs, sysctl};

use crate::bridge::config::Config;
use crate::bridge::plan::{self, BridgeAddress};
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::namespace::{self, apply};
use crate::result::{CniResult, Interface};

/// How long a new port may take to get its carrier. It has it at once; the bound is against waiting for ever.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// Duplicate address detection takes about one second (RFC 4862, section 5.4); the Go plugin waits ten.
const DAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A veth between the bridge and a pod.
pub struct Cable {
    /// The node's namespace.
    pub host: Netlink,
    pod: Netlink,
    netns: NetNs,
    bridge: IfName,
    host_end: IfName,
    pod_end: IfName,
}

impl Cable {
    /// Makes the bridge if need be, and a cable whose far end is born in the pod.
    ///
    /// # Errors
    ///
    /// Code 100 when the pod has an interface of that name (a second ADD), and whatever the kernel refuses. Nothing of
    /// a cable is left then.
    pub fn lay(env: &Environment, config: &Config) -> Result<Self> {
        let netns = namespace::open(env)?;
        let (mut host, mut pod) = (Netlink::open()?, Netlink::open_in(&netns)?);
        let pod_end = env.ifname()?.clone();
        if pod.link(&pod_end)?.is_some() {
            let msg = format!("container veth name provided ({pod_end}) already exists");
            return Err(Error::new(Code::Kernel, msg).with_details("ADD was called twice without a DEL between"));
        }
        ensure_bridge(&mut host, config)?;
        let host_end = add_veth(&mut host, config, &pod_end, &netns)?;
        Ok(Self { host, pod, netns, bridge: config.bridge.clone(), host_end, pod_end })
    }

    /// Takes the cable away again, both ends.
    ///
    /// # Errors
    ///
    /// Code 100 when the kernel refuses.
    pub fn remove(&mut self) -> Result<()> {
        remove(&mut self.host, &self.host_end)
    }

    /// Plugs the cable in at the bridge and brings that end up.
    ///
    /// # Errors
    ///
    /// Code 100 when the kernel refuses.
    pub fn plug_in(&mut self, config: &Config) -> Result<()> {
        // A router's advertisement on the bridge is for the pods, not for the node.
        set_if_there(&conf_key("ipv6", &self.host_end, "accept_ra"), "0")?;
        let dev = || self.host_end.clone();
        let mut ops = vec![Op::SetUp { dev: dev() }, Op::SetMaster { dev: dev(), master: Some(self.bridge.clone()) }];
        if config.hairpin_mode {
            ops.push(Op::SetHairpin { dev: dev(), on: true });
        }
        apply(&mut self.host, &ops)
    }

    /// Gives the pod its addresses, brings its end and its `lo` up, and adds the routes.
    ///
    /// # Errors
    ///
    /// Code 2 for a field of a route that cannot be set, code 100 when the kernel refuses.
    pub fn configure_pod(&mut self, config: &Config, result: &CniResult) -> Result<()> {
        let has_ipv6 = result.ips.iter().any(|ip| matches!(ip.address, IpNet::V6(_)));
        let pod_end = &self.pod_end;
        self.netns.run(|| {
            if result.ips.is_empty() {
                return Ok(());
            }
            if has_ipv6 {
                set_if_there(&conf_key("ipv6", pod_end, "disable_ipv6"), "0")?;
            }
            if !config.enable_dad {
                set_if_there(&conf_key("ipv6", pod_end, "accept_dad"), "0")?;
            }
            // A gratuitous ARP when the interface comes up corrects neighbours that knew the address's former owner.
            set_if_there(&conf_key("ipv4", pod_end, "arp_notify"), "1")
        })??;
        let dev = || pod_end.clone();
        let addresses = result.ips.iter().map(|ip| Op::AddAddress { dev: dev(), address: ip.address });
        let up = [Op::SetUp { dev: IfName::loopback() }, Op::SetUp { dev: dev() }];
        apply(&mut self.pod, &addresses.chain(up).collect::<Vec<_>>())?;
        if config.enable_dad && has_ipv6 {
            wait_for_dad(&self.netns, pod_end)?;
        }
        let routes = result.routes.iter().map(|route| kernel_route(route, result, pod_end).map(Op::AddRoute));
        apply(&mut self.pod, &routes.collect::<Result<Vec<_>>>()?)
    }

    /// Waits until the port works, and completes `result` with the three interfaces: bridge, host end, pod end.
    ///
    /// # Errors
    ///
    /// Code 100 when the port does not get a carrier, or when something has taken the interfaces away meanwhile.
    pub fn describe(&mut self, env: &Environment, mut result: CniResult) -> Result<CniResult> {
        let host_end = wait_for_carrier(&mut self.host, &self.host_end)?;
        // The bridge takes the MAC of a port as its own as long as none is set, so it is read at the end.
        let bridge = required(&mut self.host, &self.bridge)?;
        let pod_end = required(&mut self.pod, &self.pod_end)?;
        let sandbox = env.netns()?.display().to_string();
        result.interfaces = vec![describe(&bridge, ""), describe(&host_end, ""), describe(&pod_end, &sandbox)];
        Ok(result)
    }
}

fn describe(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.to_string(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu_bytes),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// Deletes a link that may be gone.
///
/// # Errors
///
/// Code 100 when the kernel refuses for another reason.
pub fn remove(netlink: &mut Netlink, name: &IfName) -> Result<()> {
    match netlink.apply(&Op::DelLink { name: name.clone() }) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the bridge, or takes the one that is there as it is.
fn ensure_bridge(host: &mut Netlink, config: &Config) -> Result<()> {
    let name = || config.bridge.clone();
    if let Some(link) = host.link(&config.bridge)? {
        if link.kind != LinkKind::Bridge {
            return Err(Error::config(format!("\"{}\" already exists but is not a bridge", config.bridge)));
        }
        let mut ops = Vec::new();
        if config.promisc_mode && !link.promiscuous {
            ops.push(Op::SetPromiscuous { dev: name(), on: true });
        }
        if !link.up {
            ops.push(Op::SetUp { dev: name() });
        }
        return apply(host, &ops);
    }
    match host.apply(&Op::AddBridge { name: name() }) {
        // Another ADD was faster; it does, or has done, the rest as well.
        Err(error) if !error.is_exists() => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    set_if_there(&conf_key("ipv6", &config.bridge, "accept_ra"), "0")?;
    // No MTU: a bridge takes the smallest of its ports', and one that was set by hand would stay when they have gone.
    let mut ops = Vec::new();
    if config.promisc_mode {
        ops.push(Op::SetPromiscuous { dev: name(), on: true });
    }
    ops.push(Op::SetUp { dev: name() });
    apply(host, &ops)
}

/// Makes the cable under a random name `veth` + 8 hex digits; tries another one when the name is taken.
fn add_veth(host: &mut Netlink, config: &Config, pod_end: &IfName, netns: &NetNs) -> Result<IfName> {
    const TRIES: u32 = 10;
    let mut tries = 0;
    loop {
        // The standard library's hasher is seeded at random: all the randomness that a name needs.
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let name: IfName = format!("veth{:08x}", random & 0xffff_ffff).parse()?;
        let mut veth = Veth::new(name.clone(), pod_end.clone(), Some(netns));
        veth.mtu_bytes = (config.mtu != 0).then_some(config.mtu);
        veth.peer.mac = config.mac;
        tries += 1;
        match host.apply(&Op::AddVeth(veth)) {
            Ok(()) => return Ok(name),
            Err(error) if error.is_exists() && tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes the bridge the gateway: its addresses, and forwarding for their families.
///
/// # Errors
///
/// Code 7 when another address is in the way, code 100 when the kernel refuses.
pub fn configure_bridge(host: &mut Netlink, config: &Config, wanted: &[IpNet]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let present: Vec<_> = host.addresses()?.into_iter().filter(|a| a.dev == config.bridge).map(|a| a.address).collect();
    for address in wanted {
        let BridgeAddress::Add { instead_of } = plan::bridge_address(config, *address, &present)? else {
            continue;
        };
        let dev = || config.bridge.clone();
        for old in instead_of {
            host.apply(&Op::DelAddress { dev: dev(), address: old })?;
        }
        match host.apply(&Op::AddAddress { dev: dev(), address: *address }) {
            // Another ADD was faster.
            Err(error) if !error.is_exists() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        // A MAC that was set stays; one that was not would change with the lowest port, and the pods' ARP entries of
        // their gateway would be wrong.
        if let Some(mac) = required(host, &config.bridge)?.mac {
            host.apply(&Op::SetMac { dev: dev(), mac })?;
        }
    }
    for address in wanted {
        let key = match address {
            IpNet::V4(_) => "net.ipv4.ip_forward",
            IpNet::V6(_) => "net.ipv6.conf.all.forwarding",
        };
        if sysctl::get(key)? != "1" {
            sysctl::set(key, "1")?;
        }
    }
    Ok(())
}

fn kernel_route(route: &crate::result::Route, result: &CniResult, dev: &IfName) -> Result<Route> {
    if route.advmss.is_some() {
        return Err(Error::unsupported("bridge", "routes.advmss"));
    }
    let mut kernel = Route::to(route.dst).dev(dev.clone());
    kernel.via = plan::next_hop(route, result);
    kernel.metric = route.priority.unwrap_or_default();
    kernel.table = route.table.unwrap_or(Route::MAIN_TABLE);
    kernel.mtu_bytes = route.mtu;
    kernel.scope = Some(match route.scope {
        None | Some(0) => RouteScope::Global,
        Some(253) => RouteScope::Link,
        Some(254) => RouteScope::Host,
        Some(other) => RouteScope::Other(other),
    });
    Ok(kernel)
}

fn required(netlink: &mut Netlink, name: &IfName) -> Result<Link> {
    netlink.link(name)?.ok_or_else(|| Error::new(Code::Kernel, format!("interface {name} has gone during ADD")))
}

/// A port forwards from the moment it has a carrier. Asking for the link makes the kernel settle it, so the first
/// answer is the last on current kernels.
fn wait_for_carrier(host: &mut Netlink, name: &IfName) -> Result<Link> {
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        let link = required(host, name)?;
        if link.carrier {
            return Ok(link);
        }
        if Instant::now() > deadline {
            return Err(Error::new(Code::Kernel, format!("bridge port {name} gets no carrier")));
        }
        sleep(Duration::from_millis(1));
    }
}

/// A tentative address cannot be a route's source yet. The flag is in `/proc/net/if_inet6`, fifth column.
fn wait_for_dad(netns: &NetNs, dev: &IfName) -> Result<()> {
    const IFA_F_TENTATIVE: u32 = 0x40; // linux/if_addr.h
    let deadline = Instant::now() + DAD_TIMEOUT;
    let is_tentative = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let flags = columns.get(4).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or_default();
        columns.get(5) == Some(&dev.as_str()) && flags & IFA_F_TENTATIVE != 0
    };
    loop {
        let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))?.unwrap_or_default();
        if !table.lines().any(is_tentative) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::new(Code::TryAgain, format!("IPv6 addresses of {dev} are still tentative")));
        }
        sleep(Duration::from_millis(20));
    }
}

/// With slashes, because an interface may have a dot in its name.
fn conf_key(family: &str, dev: &IfName, key: &str) -> String {
    format!("net/{family}/conf/{dev}/{key}")
}

/// Sets a parameter; one that is not there belongs to a protocol that this kernel does not have.
fn set_if_there(key: &str, value: &str) -> Result<()> {
    match sysctl::set(key, value) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
