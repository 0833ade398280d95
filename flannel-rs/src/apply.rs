//! The kernel's side: observes it, carries plans out, and hears when somebody else changes it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use linux_net::netlink::{Group, Monitor, Netlink, Route, RouteKind};
use linux_net::{IfName, MacAddr, Op, sysctl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::health::Health;
use crate::interface::{self, ExternalInterface, Seen, Wishes};
use crate::overlay::{Desired, Expected, Overlay, Overlays};
use crate::peer::PeerTable;
use crate::plan::{self, Observed};
use crate::vxlan::Device;
use linux_net::ip::{FAMILIES, Family};

/// The kernel of this worker, seen from the network namespace that the agent was started in.
pub struct Kernel {
    netlink: Netlink,
    monitor: AsyncFd<Monitor>,
    /// What the last pass left, to tell the echo of our own changes by.
    expected: Expected,
    /// Whether the last pass left all of it.
    is_settled: bool,
    /// Which peers are on our own link, and which link that is, as far as it was asked since the last look at the kernel.
    on_link: BTreeMap<IpAddr, Option<IfName>>,
}

/// What a pass compares the desired state with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// What the kernel has: after an event of the kernel, and periodically.
    Kernel,
    /// What the last pass left: enough for news from etcd, and much faster beside a thousand peers.
    LastPass,
}

impl Kernel {
    /// Opens the sockets; must be called inside a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the kernel gives none.
    pub fn open() -> Result<Self, Error> {
        let groups = [Group::Links, Group::Addresses, Group::Routes, Group::Neighbours];
        let monitor = Monitor::open(&groups).map_err(|source| kernel("listen to changes of the network", source))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that give away a descriptor they do not own; a monitor owns its socket"
        )]
        let monitor = AsyncFd::with_interest(monitor, Interest::READABLE)
            .map_err(|source| Error::System { what: "wait for changes of the network", source })?;
        let netlink = Netlink::open().map_err(|source| kernel("talk to the kernel's routing", source))?;
        let (expected, on_link) = (Expected::default(), BTreeMap::new());
        Ok(Self { netlink, monitor, expected, is_settled: false, on_link })
    }

    /// Finds the interface that leads to the other workers, see [`interface::choose`].
    ///
    /// # Errors
    ///
    /// [`Error::Interface`] when there is none; [`Error::Kernel`] when the kernel does not answer.
    pub fn external_interface(&mut self, wishes: &Wishes, is_dual_stack: bool) -> Result<ExternalInterface, Error> {
        let links = self.netlink.links().map_err(|source| kernel("list the links", source))?;
        let addresses = self.netlink.addresses().map_err(|source| kernel("list the addresses", source))?;
        let routes = self.netlink.routes().map_err(|source| kernel("list the routes", source))?;
        let way = match wishes.can_reach {
            Some(address) => {
                let way = self.netlink.route_to(address);
                way.map_err(|source| kernel("look for the way to --iface-can-reach", source))?
            }
            None => None,
        };
        Ok(interface::choose(&Seen { links, addresses, routes, way }, wishes, is_dual_stack)?)
    }

    /// Reads the MAC address of a device that a former run left and that can be used again; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] when the kernel does not answer.
    pub fn mac_of(&mut self, device: &Device) -> Result<Option<MacAddr>, Error> {
        let link = self.netlink.link(&device.name).map_err(|source| kernel("look for our device", source))?;
        Ok(link.filter(|link| plan::is_usable(device, link)).and_then(|link| link.mac))
    }

    /// Brings the kernel's state to the desired one, observe, plan, apply, and returns how many changes that took.
    ///
    /// Without `peers`, as long as our subnet is not known, only the devices are put right.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] when the kernel refused a change; all others were made. [`Error::Kernel`] when it could not be observed.
    pub fn reconcile(
        &mut self,
        overlays: &Overlays,
        peers: Option<&PeerTable>,
        basis: Basis,
        health: &Health,
    ) -> Result<usize, Error> {
        let metrics = health.metrics();
        metrics.reconciliations.inc();
        let ops = match basis {
            Basis::LastPass if self.is_settled => self.plan_news(overlays, peers),
            Basis::LastPass | Basis::Kernel => self.plan(overlays, peers),
        };
        self.is_settled = false;
        let ops = ops.map_err(|source| kernel("read the state of the network", source))?;
        let reachable = peers.map_or(0, PeerTable::reachable_count);
        metrics.peers.set(i64::try_from(reachable).unwrap_or(i64::MAX));
        overlays.iter().filter_map(Overlay::device).for_each(ignore_router_advertisements);
        if ops.is_empty() {
            self.is_settled = peers.is_some();
            return Ok(0);
        }
        for op in &ops {
            debug!("{op}");
        }
        let results = self.netlink.apply_all(&ops);
        overlays.iter().filter_map(Overlay::device).for_each(ignore_router_advertisements);
        let failures =
            ops.iter().zip(results).filter_map(|(op, result)| result.err().filter(|error| !is_done_already(op, error)));
        let mut failures: Vec<linux_net::Error> = failures.collect();
        metrics.changes.inc_by(ops.len() as u64);
        metrics.failures.inc_by(failures.len() as u64);
        let (total, failed) = (ops.len(), failures.len());
        if failed == 0 {
            self.is_settled = peers.is_some();
            info!(peers = reachable, changes = total, "overlay brought up to date");
            return Ok(total);
        }
        Err(Error::Incomplete { failed, total, first: failures.swap_remove(0) })
    }

    /// Compares what the last pass left with what should be, one family after the other.
    fn plan_news(&mut self, overlays: &Overlays, peers: Option<&PeerTable>) -> linux_net::Result<Vec<Op>> {
        let mut ops = Vec::new();
        for family in FAMILIES {
            let Some(overlay) = overlays.of(family) else { continue };
            let on_link = self.on_link(overlay, peers, family)?;
            let peers = peers.into_iter().flat_map(|table| table.peers(family));
            let desired = overlay.desired(peers, &on_link);
            let last = self.expected.of_mut(family);
            ops.extend(plan::plan_news(&desired, last));
            *last = desired.entries.unwrap_or_default();
        }
        Ok(ops)
    }

    /// Compares what is with what should be, one family after the other.
    fn plan(&mut self, overlays: &Overlays, peers: Option<&PeerTable>) -> linux_net::Result<Vec<Op>> {
        self.on_link.clear();
        let (mut routes, mut addresses) = (self.netlink.routes()?, self.netlink.addresses()?);
        let mut ops = Vec::new();
        for family in FAMILIES {
            let of_family = |address: IpAddr| Family::of(address) == family;
            let observed = Observed {
                routes: routes.extract_if(.., |route| of_family(route.dst.addr())).collect(),
                addresses: addresses.extract_if(.., |address| of_family(address.address.addr())).collect(),
                ..Observed::default()
            };
            let (desired, observed) = match overlays.of(family) {
                Some(overlay) => {
                    let on_link = self.on_link(overlay, peers, family)?;
                    let observed = self.observe(overlay.device(), observed)?;
                    let peers = peers.into_iter().flat_map(|table| table.peers(family));
                    (overlay.desired(peers, &on_link), observed)
                }
                // What a former run left of a family that the cluster has no more.
                None if peers.is_some() => (Desired::nothing(), observed),
                None => continue,
            };
            ops.extend(plan::plan(&desired, &observed));
            *self.expected.of_mut(family) = desired.entries.unwrap_or_default();
        }
        Ok(ops)
    }

    /// Asks the kernel which peers are on our own link, where that matters.
    fn on_link(
        &mut self,
        overlay: &Overlay,
        peers: Option<&PeerTable>,
        family: Family,
    ) -> linux_net::Result<BTreeMap<IpAddr, IfName>> {
        let mut on_link = BTreeMap::new();
        let Some(peers) = peers.filter(|_| overlay.routes_directly()) else { return Ok(on_link) };
        for peer in peers.peers(family) {
            let address = peer.public_ip;
            if !self.on_link.contains_key(&address) {
                let way = self.netlink.route_to(address)?;
                let way = way.filter(|way: &Route| way.kind == RouteKind::Unicast && way.via.is_none());
                self.on_link.insert(address, way.and_then(|way| way.dev));
            }
            on_link.extend(self.on_link[&address].clone().map(|dev| (address, dev)));
        }
        Ok(on_link)
    }

    /// Waits until somebody, perhaps we, changed something that concerns the overlays.
    pub async fn changed(&mut self, overlays: &Overlays) {
        loop {
            let Ok(mut guard) = self.monitor.readable_mut().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            match guard.get_inner_mut().try_recv() {
                Ok(Some(events)) if events.iter().any(|event| plan::concerns(overlays, &self.expected, event)) => {
                    return;
                }
                Ok(Some(_)) => {}
                Ok(None) => guard.clear_ready(),
                Err(error) => {
                    warn!(%error, "changes of the network went unheard; the clock will show them");
                    guard.clear_ready();
                }
            }
        }
    }

    /// Adds to `observed` what is on our device.
    fn observe(&mut self, device: Option<&Device>, observed: Observed) -> linux_net::Result<Observed> {
        let Some(device) = device else { return Ok(observed) };
        let Some(link) = self.netlink.link(&device.name)? else { return Ok(observed) };
        let on_device = (|| Ok((self.netlink.neighbours(&device.name)?, self.netlink.fdb(&device.name)?)))();
        match on_device {
            Ok((neighbours, fdb)) => Ok(Observed { link: Some(link), neighbours, fdb, ..observed }),
            // It was deleted while we looked.
            Err(error) if linux_net::Error::is_not_found(&error) => Ok(observed),
            Err(error) => Err(error),
        }
    }
}

/// Keeps a device from taking routes from whoever sends router advertisements through the overlay, as flanneld does. Without IPv6 in the
/// kernel there is nothing to do.
fn ignore_router_advertisements(device: &Device) {
    let key = sysctl::interface_key(6, &device.name, "accept_ra");
    match sysctl::get(&key) {
        Ok(value) if value != "0" => {
            if let Err(error) = sysctl::set(&key, "0") {
                debug!(%error, "the device takes router advertisements");
            }
        }
        Ok(_) => {}
        Err(error) => debug!(%error, "the kernel does not say whether the device takes router advertisements"),
    }
}

/// Says whether an operation failed because somebody else has done it in the meantime.
fn is_done_already(op: &Op, error: &linux_net::Error) -> bool {
    match op {
        Op::DelLink { .. } | Op::DelAddress { .. } | Op::DelRoute(_) | Op::DelNeighbour(_) | Op::DelFdb(_) => {
            error.is_not_found()
        }
        Op::AddAddress { .. } => error.is_exists(),
        _ => false,
    }
}

fn kernel(what: &str, source: linux_net::Error) -> Error {
    Error::Kernel { what: what.to_owned(), source }
}
