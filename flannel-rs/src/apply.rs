//! The kernel's side: observes it, carries plans out, and hears when somebody else changes it.

use linux_net::netlink::{Group, Monitor, Netlink};
use linux_net::{MacAddr, Op};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::health::Health;
use crate::interface::{self, ExternalInterface};
use crate::plan::{self, Observed};
use crate::vxlan::{Device, Overlay};

/// The kernel of this worker, seen from the network namespace that the agent was started in.
pub struct Kernel {
    netlink: Netlink,
    monitor: AsyncFd<Monitor>,
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
        Ok(Self { netlink, monitor })
    }

    /// Finds the interface that leads to the other workers, see [`interface::choose`].
    ///
    /// # Errors
    ///
    /// [`Error::Interface`] when there is none; [`Error::Kernel`] when the kernel does not answer.
    pub fn external_interface(&mut self, wanted: &[String]) -> Result<ExternalInterface, Error> {
        let links = self.netlink.links().map_err(|source| kernel("list the links", source))?;
        let addresses = self.netlink.addresses().map_err(|source| kernel("list the addresses", source))?;
        let routes = self.netlink.routes().map_err(|source| kernel("list the routes", source))?;
        Ok(interface::choose(&links, &addresses, &routes, wanted)?)
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
    /// # Errors
    ///
    /// [`Error::Incomplete`] when the kernel refused a change; all others were made. [`Error::Kernel`] when it could not be observed.
    pub fn reconcile(&mut self, desired: &Overlay<'_>, health: &Health) -> Result<usize, Error> {
        let metrics = health.metrics();
        let observed = self.observe(desired.device).map_err(|source| kernel("read the state of our device", source))?;
        let ops = plan::plan(desired, &observed);
        metrics.reconciliations.inc();
        metrics.peers.set(i64::try_from(desired.peers.len()).unwrap_or(i64::MAX));
        if ops.is_empty() {
            return Ok(0);
        }
        for op in &ops {
            debug!("{op}");
        }
        let results = self.netlink.apply_all(&ops);
        let failures =
            ops.iter().zip(results).filter_map(|(op, result)| result.err().filter(|error| !is_done_already(op, error)));
        let mut failures: Vec<linux_net::Error> = failures.collect();
        metrics.changes.inc_by(ops.len() as u64);
        metrics.failures.inc_by(failures.len() as u64);
        let (total, failed) = (ops.len(), failures.len());
        if failed == 0 {
            info!(device = %desired.device.name, peers = desired.peers.len(), changes = total, "overlay brought up to date");
            return Ok(total);
        }
        Err(Error::Incomplete { failed, total, first: failures.swap_remove(0) })
    }

    /// Waits until somebody, perhaps we, changed something that concerns `device`.
    pub async fn changed(&mut self, device: &Device) {
        loop {
            let Ok(mut guard) = self.monitor.readable_mut().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            match guard.get_inner_mut().try_recv() {
                Ok(Some(events)) if events.iter().any(|event| plan::concerns(device, event)) => return,
                Ok(Some(_)) => {}
                Ok(None) => guard.clear_ready(),
                Err(error) => {
                    warn!(%error, "changes of the network went unheard; the clock will show them");
                    guard.clear_ready();
                }
            }
        }
    }

    fn observe(&mut self, device: &Device) -> linux_net::Result<Observed> {
        let routes = self.netlink.routes()?;
        let Some(link) = self.netlink.link(&device.name)? else {
            return Ok(Observed { routes, ..Observed::default() });
        };
        let on_device = (|| {
            Ok((self.netlink.addresses()?, self.netlink.neighbours(&device.name)?, self.netlink.fdb(&device.name)?))
        })();
        match on_device {
            Ok((addresses, neighbours, fdb)) => Ok(Observed { link: Some(link), addresses, routes, neighbours, fdb }),
            // It was deleted while we looked.
            Err(error) if linux_net::Error::is_not_found(&error) => Ok(Observed { routes, ..Observed::default() }),
            Err(error) => Err(error),
        }
    }
}

/// Says whether an operation failed because somebody else has done it in the meantime.
fn is_done_already(op: &Op, error: &linux_net::Error) -> bool {
    match op {
        Op::DelLink { .. } | Op::DelAddress { .. } | Op::DelRoute(_) | Op::DelNeighbour(_) | Op::DelFdb(_) => {
            error.is_not_found()
        }
        Op::AddAddress { .. } | Op::AppendFdb(_) => error.is_exists(),
        _ => false,
    }
}

fn kernel(what: &str, source: linux_net::Error) -> Error {
    Error::Kernel { what: what.to_owned(), source }
}
