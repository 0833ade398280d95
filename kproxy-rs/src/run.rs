//! The one loop: what etcd says → objects → plan → kernel.
//!
//! ```text
//!   etcd ──watch──► Update ──► Objects ──► Planner ──► Change ──► Kernel
//!                   (task)     which?      what?       batch      commit
//! ```
//!
//! A lone change is committed at once. Those that follow keep `COMMIT_PAUSE` apart, and each commit takes all that has
//! come in since. In a burst it waits for the end of it, but not for long.

use std::future::Future;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::apply::{Adoption, Finding, Kernel};
use crate::config::{Config, LocalClients};
use crate::error::Error;
use crate::flow::Flows;
use crate::health::{self, Health, Port};
use crate::health_check::{self, Checks};
use crate::node::Node;
use crate::objects::Objects;
use crate::plan::{Planner, Side};
use crate::source::Source;
use crate::watch::Update;

/// The least time between two commits: two hundred a second leave most of a processor to others, and nobody waits noticeably.
const COMMIT_PAUSE: Duration = Duration::from_millis(5);
/// So many changes at once are a burst.
const BURST: usize = 64;
/// A burst is over when nothing comes for so long …
const BURST_PAUSE: Duration = Duration::from_millis(5);
/// … and no change waits longer than this for the others.
const BURST_LIMIT: Duration = Duration::from_millis(100);
/// How often the table is looked at: somebody else's change lasts no longer.
const INSPECT_EVERY: Duration = Duration::from_secs(2);
/// Updates that may wait while a commit is under way; the rest waits in etcd.
const MAX_UPDATES: usize = 256;

/// Runs the proxy until `shutdown`; the table stays then.
///
/// # Errors
///
/// [`Error`] when a port is taken, or the kernel lets us program nothing. Later trouble is logged, shown in `/healthz`, and tried again.
pub async fn run(config: &Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    let health = Health::new();
    for (address, flag, port) in [
        (config.healthz_bind_address, "--healthz-bind-address", Port::Health),
        (config.metrics_bind_address, "--metrics-bind-address", Port::Metrics),
    ] {
        let listener = health::listen(address, flag).await?;
        tasks.spawn(health::serve(listener, port, health.clone()));
    }
    let kernel = Kernel::open(config.layouts()?).map_err(Error::Kernel)?;
    let source = Source::connect(&config.etcd_endpoints, &config.etcd_prefix).await?;
    let (sender, updates) = mpsc::channel(MAX_UPDATES);
    tasks.spawn(crate::watch::follow(source, sender));
    let (checks, asked) = watch::channel(Checks::new());
    tasks.spawn(health_check::serve(asked, health.clone()));
    let node = config.node();
    if config.local_clients()? == LocalClients::Networks(Vec::new()) {
        warn!(
            "no --cluster-cidr: clients that are not pods are not masqueraded, and get no answer from endpoints on other workers"
        );
    }
    info!(node, etcd = config.etcd_endpoints.join(","), "kproxy-rs started");
    Proxy {
        objects: Objects::default(),
        planner: Planner::new(Node::new(node)),
        kernel,
        health,
        checks,
        has_listed: false,
        is_built: false,
        was_refused: false,
        began: Vec::new(),
    }
    .serve(updates, shutdown)
    .await;
    info!("kproxy-rs ends; the table stays and goes on to serve");
    Ok(())
}

struct Proxy {
    objects: Objects,
    planner: Planner,
    kernel: Kernel,
    health: Health,
    /// What load balancers ask about.
    checks: watch::Sender<Checks>,
    /// Whether etcd has told all its objects: before, the table of a former run knows better than we do.
    has_listed: bool,
    /// Whether the kernel has our tables, so that a change is enough.
    is_built: bool,
    /// Whether it has refused something, so that what it has is unknown.
    was_refused: bool,
    /// When changes began that are not in the kernel yet.
    began: Vec<SystemTime>,
}

impl Proxy {
    async fn serve(mut self, mut updates: mpsc::Receiver<Update>, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut inspection = interval(INSPECT_EVERY);
        inspection.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_commit = Instant::now();
        let mut is_pending = false;
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                update = updates.recv() => {
                    let Some(update) = update else { return };
                    is_pending |= self.handle_update(update);
                }
                () = sleep_until(next_commit), if is_pending => {
                    self.gather(&mut updates).await;
                    self.sync();
                    is_pending = false;
                    next_commit = Instant::now() + COMMIT_PAUSE;
                }
                _ = inspection.tick(), if self.has_listed && !is_pending => self.inspect(),
            }
        }
    }

    /// Takes in all that has come, and the rest of a burst.
    async fn gather(&mut self, updates: &mut mpsc::Receiver<Update>) {
        let (mut count, limit) = (0, Instant::now() + BURST_LIMIT);
        while Instant::now() < limit {
            let update = match updates.try_recv() {
                Err(_) if count >= BURST => timeout(BURST_PAUSE, updates.recv()).await.ok().flatten(),
                other => other.ok(),
            };
            let Some(update) = update else { return };
            count += if let Update::Events(events) = &update { events.len() } else { 0 };
            self.handle_update(update);
        }
    }

    /// Takes in what etcd says; returns whether the plan may change.
    fn handle_update(&mut self, update: Update) -> bool {
        match update {
            Update::Events(events) => {
                self.health.metrics().etcd_connected.set(1);
                self.health.status().etcd_connected = true;
                self.health.metrics().last_queued_seconds.set(health::now_seconds().cast_signed());
                self.has_listed = true; // The first event is the listing.
                for event in events {
                    self.objects.handle_event(event);
                }
                true
            }
            Update::Away(error) => {
                let error = anyhow::Error::from(error);
                warn!("{error:#}; the table stays as it is, and serves what was known");
                self.health.metrics().etcd_connected.set(0);
                self.health.status().etcd_connected = false;
                false
            }
            Update::Back => {
                info!("etcd is there again");
                self.health.metrics().etcd_connected.set(1);
                self.health.status().etcd_connected = true;
                false
            }
        }
    }

    /// Plans what has changed, and commits it.
    fn sync(&mut self) {
        let start = Instant::now();
        let dirty = self.plan();
        self.count_objects();
        let change = self.planner.take_change();
        if self.is_built && change.is_empty() {
            self.began.clear();
            self.publish_checks(); // Of these the table knows nothing.
            return;
        }
        let planned = start.elapsed();
        let result = match self.is_built {
            true => self.kernel.change(&change).or_else(|error| self.make_room(error)),
            false => self.build(),
        };
        match result {
            Ok(()) => {
                let (removed, added) = (change.removed.len(), change.added.len());
                info!(services = dirty, removed, added, ?planned, total = ?start.elapsed(), "table brought up to date");
                self.committed(start);
                let flows = self.planner.take_flows();
                self.end_flows(&flows);
                self.publish_checks();
            }
            Err(error) => self.refused(&error),
        }
    }

    /// Plans all Services that changed, and those that got or lost something by that. Returns how many.
    fn plan(&mut self) -> usize {
        let zone = self.objects.zone(&self.planner.node().name).map(str::to_owned);
        if zone != self.planner.node().zone {
            self.planner.set_zone(zone);
        }
        self.planner.update_changed(&mut self.objects)
    }

    /// Writes all of the tables: at a start only what differs from those of a former run, after a refusal everything.
    fn build(&mut self) -> linux_net::Result<()> {
        if self.was_refused {
            return self.kernel.replace(self.planner.entries());
        }
        match self.kernel.adopt(self.planner.entries())? {
            Adoption::Adopted { changed } => info!(changed, "went on with the tables of a former run"),
            Adoption::Replaced => info!("made new tables"),
        }
        match Kernel::end_contradictions(&self.planner) {
            Ok(0) => {}
            Ok(ended) => info!(ended, "UDP connections to endpoints that have gone ended"),
            Err(error) => warn!(%error, "cannot look for UDP connections to endpoints that have gone"),
        }
        Ok(())
    }

    /// Makes the tables anew if a set is full.
    fn make_room(&mut self, error: linux_net::Error) -> linux_net::Result<()> {
        if !error.is_full() {
            return Err(error);
        }
        info!("a set is full; writing the tables anew, with more room");
        self.kernel.replace(self.planner.entries())
    }

    /// Ends what the change contradicts. If that fails, it runs out by itself, as soon as the client is silent for a while.
    fn end_flows(&mut self, flows: &Flows) {
        if flows.is_empty() {
            return;
        }
        match self.kernel.end_flows(flows) {
            Ok(ended) => {
                debug!(ended, "connections to endpoints that have gone ended");
                self.health.metrics().ended_flows.inc_by(ended as u64);
            }
            Err(error) => warn!(%error, "connections to endpoints that have gone stay until they run out"),
        }
    }

    fn publish_checks(&self) {
        let checks =
            self.planner.health_checks().map(|(name, check)| (check.port, (name.clone(), check.local_endpoints)));
        let checks: Checks = checks.collect();
        self.checks.send_if_modified(|former| {
            let is_new = *former != checks;
            *former = checks;
            is_new
        });
    }

    /// Looks whether the table is as it should be, and puts a new one in its place if not.
    fn inspect(&mut self) {
        match self.kernel.inspect(self.planner.entries()) {
            Ok(Finding::Intact) => {}
            Ok(Finding::Damaged(what)) => {
                let start = Instant::now();
                warn!(what, "somebody else changed the table, or a commit failed; writing it anew");
                match self.kernel.replace(self.planner.entries()) {
                    Ok(()) => {
                        self.health.metrics().repairs.inc();
                        self.committed(start);
                    }
                    Err(error) => self.refused(&error),
                }
            }
            Err(error) => warn!(%error, "cannot look at the table"),
        }
    }

    fn committed(&mut self, start: Instant) {
        (self.is_built, self.was_refused) = (true, false);
        let metrics = self.health.metrics();
        let now = health::now_seconds();
        metrics.sync_seconds.0.observe(start.elapsed().as_secs_f64());
        metrics.last_sync_seconds.set(now.cast_signed());
        for began in self.began.drain(..) {
            // The clock of whoever wrote it may be ahead of ours.
            metrics.programming_seconds.0.observe(began.elapsed().unwrap_or_default().as_secs_f64());
        }
        for (name, side) in [("internal", Side::Internal), ("external", Side::External)] {
            let count = i64::try_from(self.planner.without_local(side)).unwrap_or(i64::MAX);
            metrics.no_local_endpoints.get_or_create(&[("traffic_policy", name)]).set(count);
        }
        metrics.entries.set(i64::try_from(self.planner.entry_count()).unwrap_or(i64::MAX));
        let mut status = self.health.status();
        (status.synced, status.last_error, status.last_updated_seconds) = (true, None, Some(now));
    }

    /// What the kernel has is unknown now, so the next attempt writes everything: the next inspection at the latest.
    fn refused(&mut self, error: &linux_net::Error) {
        error!(%error, "the kernel refused the table; trying again");
        (self.is_built, self.was_refused) = (false, true);
        self.health.metrics().failures.inc();
        let mut status = self.health.status();
        (status.synced, status.last_error) = (false, Some(error.to_string()));
    }

    fn count_objects(&mut self) {
        let changes = self.objects.take_changes();
        self.began.extend(&changes.began);
        let metrics = self.health.metrics();
        metrics.service_changes.inc_by(changes.services);
        metrics.endpoint_changes.inc_by(changes.slices);
        let skipped = self.objects.poisoned();
        metrics.skipped_objects.set(i64::try_from(skipped.len()).unwrap_or(i64::MAX));
        self.health.status().skipped_objects = skipped.iter().map(ToString::to_string).collect();
        debug!(services = changes.services, slices = changes.slices, "objects changed");
    }
}
