//! The bridge and the cable, in the kernel.

use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use linux_net::netlink::{Link, LinkKind, Netlink, Op};
use linux_net::{IfName, NetNs};

use crate::attachment::Mark;
use crate::bridge::config::Config;
use crate::bridge::plan::{self, BridgeAddress};
use crate::bridge::spoof;
use crate::bridge::vlan::VlanConfig;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::namespace::{self, apply};
use crate::pod;
use crate::result::CniResult;

/// How long a new port may take to get its carrier. It has it at once; the bound is against waiting for ever.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(2);

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
    pub fn lay(env: &Environment, config: &Config, mark: &Mark) -> Result<Self> {
        let netns = namespace::open(env)?;
        let (mut host, mut pod) = (Netlink::open()?, Netlink::open_in(&netns)?);
        let pod_end = env.ifname()?.clone();
        pod::must_be_free(&mut pod, &pod_end)?;
        ensure_bridge(&mut host, config)?;
        let host_end = pod::add_veth(&mut host, &pod_end, &netns, config.mtu, config.mac, Some(mark))?;
        Ok(Self { host, pod, netns, bridge: config.bridge.clone(), host_end, pod_end })
    }

    /// Takes the cable away again, both ends.
    ///
    /// # Errors
    ///
    /// Code 100 when the kernel refuses.
    pub fn remove(&mut self) -> Result<()> {
        pod::remove(&mut self.host, &self.host_end)
    }

    /// Plugs the cable in at the bridge and brings that end up.
    ///
    /// # Errors
    ///
    /// Code 100 when the kernel refuses.
    pub fn plug_in(&mut self, config: &Config) -> Result<()> {
        // A router's advertisement on the bridge is for the pods, not for the node.
        pod::set_if_there(&pod::conf_key("ipv6", &self.host_end, "accept_ra"), "0")?;
        let dev = || self.host_end.clone();
        let mut ops = vec![Op::PlugIn { dev: dev(), master: self.bridge.clone() }];
        if config.hairpin_mode {
            ops.push(Op::SetHairpin { dev: dev(), on: true });
        }
        if config.port_isolation {
            ops.push(Op::SetIsolated { dev: dev(), on: true });
        }
        apply(&mut self.host, &ops)?;
        set_vlans(&mut self.host, config, &self.host_end)
    }

    /// From now on the pod sends from its own MAC address only.
    ///
    /// # Errors
    ///
    /// Code 100 when the kernel refuses.
    pub fn check_spoofing(&mut self, mark: &Mark) -> Result<()> {
        match pod::required(&mut self.pod, &self.pod_end)?.mac {
            Some(mac) => spoof::add(&self.host_end, mac, mark),
            None => Ok(()),
        }
    }

    /// Gives the pod its addresses, brings its end and its `lo` up, and adds the routes.
    ///
    /// # Errors
    ///
    /// Code 2 for a field of a route that cannot be set, code 100 when the kernel refuses.
    pub fn configure_pod(&mut self, config: &Config, result: &CniResult) -> Result<()> {
        let pod_end = &self.pod_end;
        if !result.ips.is_empty() {
            pod::prepare(&self.netns, pod_end, result, config.enable_dad)?;
        }
        let mut ops = pod::address_ops(pod_end, result);
        if pod::has_ipv6(result) {
            apply(&mut self.pod, &ops)?;
            pod::wait_for_addresses(&self.netns, pod_end)?;
            ops.clear();
        }
        ops.extend(pod::route_ops("bridge", pod_end, result)?);
        apply(&mut self.pod, &ops)
    }

    /// Waits until the port works, and completes `result` with the interfaces: bridge, host end, pod end, and the one that bears the gateway's address
    /// when that is not the bridge.
    ///
    /// # Errors
    ///
    /// Code 100 when the port does not get a carrier, or when something has taken the interfaces away meanwhile.
    pub fn describe(
        &mut self,
        env: &Environment,
        config: &Config,
        gateway: &IfName,
        mut result: CniResult,
    ) -> Result<CniResult> {
        let host_end = if config.disable_container_interface {
            pod::required(&mut self.host, &self.host_end)?
        } else {
            wait_for_carrier(&mut self.host, &self.host_end)?
        };
        // The bridge takes the MAC of a port as its own as long as none is set, so it is read at the end.
        let bridge = pod::required(&mut self.host, &self.bridge)?;
        let pod_end = pod::required(&mut self.pod, &self.pod_end)?;
        let sandbox = env.netns()?.display().to_string();
        result.interfaces =
            vec![pod::describe(&bridge, ""), pod::describe(&host_end, ""), pod::describe(&pod_end, &sandbox)];
        if *gateway != self.bridge {
            result.interfaces.push(pod::describe(&pod::required(&mut self.host, gateway)?, ""));
        }
        Ok(result)
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
        if config.vlans.is_needed() {
            ops.push(Op::SetVlanFiltering { bridge: name(), on: true });
        }
        return apply(host, &ops);
    }
    match host.apply(&Op::AddBridge { name: name() }) {
        // Another ADD was faster; it does, or has done, the rest as well.
        Err(error) if !error.is_exists() => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    if config.vlans.is_needed()
        && let Err(error) = host.apply(&Op::SetVlanFiltering { bridge: name(), on: true })
    {
        // A kernel without VLANs; what was made for them goes again, and the first error is the one to report.
        drop(pod::remove(host, &config.bridge));
        return Err(error.into());
    }
    pod::set_if_there(&pod::conf_key("ipv6", &config.bridge, "accept_ra"), "0")?;
    if !config.enable_dad {
        // Else the first pods could not reach their gateway for as long as the node asks whether somebody else has its address.
        pod::set_if_there(&pod::conf_key("ipv6", &config.bridge, "accept_dad"), "0")?;
    }
    // No MTU: a bridge takes the smallest of its ports', and one that was set by hand would stay when they have gone.
    let mut ops = Vec::new();
    if config.promisc_mode {
        ops.push(Op::SetPromiscuous { dev: name(), on: true });
    }
    ops.push(Op::SetUp { dev: name() });
    apply(host, &ops)
}

fn set_vlans(host: &mut Netlink, config: &Config, port: &IfName) -> Result<()> {
    if !config.vlans.is_needed() {
        return Ok(());
    }
    let ops = config.vlans.plan(port, &host.vlans(port)?);
    apply(host, &ops)
}

/// Makes the node the gateway: its addresses, and forwarding for their families. Gives the interface that bears them: the bridge, or its port in
/// the pod's VLAN.
///
/// # Errors
///
/// Code 7 when another address is in the way, code 100 when the kernel refuses.
pub fn configure_gateway(host: &mut Netlink, config: &Config, wanted: &[IpNet]) -> Result<IfName> {
    if wanted.is_empty() {
        return Ok(config.bridge.clone());
    }
    let gateway = if config.vlans.native == 0 { config.bridge.clone() } else { vlan_interface(host, config)? };
    let present: Vec<_> = host.addresses_of(&gateway)?.into_iter().map(|a| a.address).collect();
    for address in wanted {
        let BridgeAddress::Add { instead_of } = plan::bridge_address(config, *address, &present)? else {
            continue;
        };
        let dev = || gateway.clone();
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
        if let Some(mac) = pod::required(host, &gateway)?.mac {
            host.apply(&Op::SetMac { dev: dev(), mac })?;
        }
    }
    pod::forward(wanted)?;
    Ok(gateway)
}

/// The node's own port in a VLAN of the bridge, `cni0.100`: the end of a cable of which the other one is plugged in there.
fn vlan_interface(host: &mut Netlink, config: &Config) -> Result<IfName> {
    let name = format!("{}.{}", config.bridge, config.vlans.native);
    let name: IfName = name.parse().map_err(|error| Error::config(format!("interface of the VLAN: {error}")))?;
    if host.has_link(&name)? {
        return Ok(name);
    }
    let mtu = pod::required(host, &config.bridge)?.mtu_bytes;
    let port = pod::add_veth(host, &name, &NetNs::current()?, mtu, None, None)?;
    let ops = [
        Op::SetMaster { dev: port.clone(), master: Some(config.bridge.clone()) },
        Op::SetUp { dev: port.clone() },
        Op::SetUp { dev: name.clone() },
    ];
    let native = VlanConfig { trunk: Vec::new(), ..config.vlans.clone() };
    let made = apply(host, &ops).and_then(|()| {
        let ops = native.plan(&port, &host.vlans(&port)?);
        apply(host, &ops)
    });
    made.inspect_err(|_| drop(pod::remove(host, &port)))?;
    Ok(name)
}

/// A port forwards from the moment it has a carrier. Asking for the link makes the kernel settle it, so the first
/// answer is the last on current kernels.
fn wait_for_carrier(host: &mut Netlink, name: &IfName) -> Result<Link> {
    let deadline = Instant::now() + CARRIER_TIMEOUT;
    loop {
        let link = pod::required(host, name)?;
        if link.carrier {
            return Ok(link);
        }
        if Instant::now() > deadline {
            return Err(Error::new(Code::Kernel, format!("bridge port {name} gets no carrier")));
        }
        sleep(Duration::from_millis(1));
    }
}
