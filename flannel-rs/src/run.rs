//! The agent's life: start, one event loop, shutdown.
//!
//! ```text
//!            start                                    the loop                                   shutdown
//!  configuration → interface → device →   ┌→ event: a lease came or went (etcd)      ┐     stop at once; device, routes,
//!  lease → rules → peers → subnet.env     │  event: a link, route, neighbour changed │     rules and lease stay, as pods do
//!  → READY=1                              │  event: the clock                        │     (--release-on-exit: lease deleted)
//!                                         └─ observe the kernel, plan, apply ←───────┘
//! ```
//!
//! Whatever happened, the answer is the same: compare what is with what should be, and change the difference. There is no
//! "handle this removal" that could be missed.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tracing::{error, info, warn};

use crate::apply::{Basis, Kernel};
use crate::config::Config;
use crate::error::{Error, chain};
use crate::health::{self, Health};
use crate::keeper;
use crate::lease::OwnLease;
use crate::masquerade::{self, Rules};
use crate::overlay::Overlays;
use crate::peer::PeerTable;
use crate::registry::Registry;
use crate::start::{claim_subnet_file, start};
use crate::watch::watch_subnets;

/// Batches of events that wait while one is programmed; more wait in etcd.
const EVENT_QUEUE: usize = 16;
/// Changes in the kernel come in bursts; they are answered together, and soon enough for a device to be back within a second.
const KERNEL_QUIET: Duration = Duration::from_millis(20);
/// Passes that keep finding something to change, as when two programs are at odds over one route, come ever more seldom, up to this; still
/// soon enough for a repair within a second.
const LONGEST_QUIET: Duration = Duration::from_millis(500);
/// The longest that giving the lease back may delay the end.
const RELEASE_LIMIT: Duration = Duration::from_millis(1500);

/// Runs the agent until `shutdown` completes.
///
/// # Errors
///
/// [`Error`] for what cannot be waited out: a second agent, no interface, no free subnet, a kernel that refuses the device.
/// An etcd that is away, at start or later, is waited for, and so is a network configuration that is missing or wrong.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    tokio::pin!(shutdown);
    let _only_agent = claim_subnet_file(&config.subnet_file)?;
    let health = Health::new();
    let mut tasks = JoinSet::new();
    if let Some(address) = config.health {
        tasks.spawn(health::serve(health::listen(address).await?, health.clone()));
    }
    let mut agent = tokio::select! {
        started = Box::pin(start(&config, &health)) => started?,
        () = &mut shutdown => return Ok(()),
    };

    let (events_in, mut events) = mpsc::channel(EVENT_QUEUE);
    tasks.spawn(watch_subnets(agent.registry.clone(), agent.revision, events_in));
    let (heard_in, heard) = mpsc::channel(EVENT_QUEUE);
    let (own_in, own) = watch::channel(agent.own.clone());
    let keeper = keeper::keep(agent.registry.clone(), own_in, config.renew_margin, heard, health.clone());
    tokio::pin!(keeper);

    let mut tick = interval_at(Instant::now() + config.resync, config.resync);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut due, mut quiet, mut last_repair) = (None, KERNEL_QUIET, Instant::now());
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            error = &mut keeper => return Err(error.into()),
            Some(batch) = events.recv() => {
                // What has arrived meanwhile is programmed in the same pass.
                let batches = std::iter::once(batch).chain(std::iter::from_fn(|| events.try_recv().ok()));
                if let Some(news) = agent.peers.handle_events(batches.flatten().collect()) {
                    // A full channel means that the keeper is about to look at our key anyway.
                    let _ = heard_in.try_send(news);
                }
                agent.reconcile(Basis::LastPass);
            }
            () = agent.kernel.changed(&agent.overlays) => {
                // Repairs far apart are no quarrel with another program.
                if last_repair.elapsed() > LONGEST_QUIET * 4 {
                    quiet = KERNEL_QUIET;
                }
                due = due.or(Some(Instant::now() + quiet));
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                last_repair = Instant::now();
                quiet = if agent.reconcile(Basis::Kernel) { LONGEST_QUIET.min(quiet * 2) } else { KERNEL_QUIET };
            }
            _ = tick.tick() => {
                agent.reconcile(Basis::Kernel);
                agent.restore_rules();
            }
        }
    }

    drop(tasks);
    if config.release_on_exit {
        let own = own.borrow().clone();
        match timeout(RELEASE_LIMIT, agent.registry.release(&own)).await {
            Ok(Ok(())) => info!(subnet = %own.subnet, "lease released"),
            Ok(Err(error)) => warn!(error = %chain(&error), "our lease is left to run out"),
            Err(_) => warn!("etcd did not answer in time; our lease is left to run out"),
        }
    }
    info!("ended; device, routes and rules stay for the pods that live on them");
    Ok(())
}

/// Completes when the process is asked to end, by SIGTERM or SIGINT.
///
/// # Errors
///
/// [`Error::System`] when the handlers cannot be set.
pub fn termination() -> Result<impl Future<Output = ()>, Error> {
    let handler = |kind| signal(kind).map_err(|source| Error::System { what: "handle signals", source });
    let (mut term, mut int) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// A started agent: what it knows, and the two sides that it stands between.
pub(crate) struct Agent {
    pub(crate) kernel: Kernel,
    pub(crate) registry: Registry,
    /// The revision of etcd up to which `peers` is complete.
    pub(crate) revision: i64,
    pub(crate) own: OwnLease,
    pub(crate) overlays: Overlays,
    pub(crate) peers: PeerTable,
    pub(crate) rules: Option<Rules>,
    pub(crate) health: Health,
}

impl Agent {
    /// Brings the kernel's state to the desired one and says whether that took any change. What fails is logged, and tried again with
    /// the next event or tick.
    pub(crate) fn reconcile(&mut self, basis: Basis) -> bool {
        match self.kernel.reconcile(&self.overlays, Some(&self.peers), basis, &self.health) {
            Ok(changes) => changes > 0,
            Err(error) => {
                error!(error = %chain(&error), "the overlay is not complete");
                true
            }
        }
    }

    /// Puts our firewall tables back if somebody flushed them.
    fn restore_rules(&self) {
        if let Some(Err(error)) = self.rules.as_ref().map(masquerade::restore) {
            error!(error = %chain(&error), "the firewall rules are not in place");
        }
    }
}
