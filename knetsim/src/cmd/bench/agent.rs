//! One life of an overlay agent on a worker, watched from outside: its subnet file, its routes, its memory, its CPU time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use linux_net::{
    NetNs, Netlink,
    netlink::{Event, Group, Monitor, Route},
};
use tokio::{io::unix::AsyncFd, sync::oneshot};

use super::process::{Memory, Process, Side};
use crate::{component::flannel, lab::Node};

/// How often the subnet file is looked for.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an agent that is waited for is looked at, whether it still runs.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

/// An agent that runs.
pub(super) struct Agent {
    process: Process,
    netns: NetNs,
    file: oneshot::Receiver<Instant>,
    written: Option<Instant>,
    monitor: AsyncFd<Monitor>,
    /// Whether the kernel had more to tell than the monitor could hold.
    overrun: bool,
    /// The peers' routes, with the moment at which the kernel told of them.
    routes: BTreeMap<Ipv4Net, Instant>,
}

impl Agent {
    /// Starts an agent on a worker, with the lab's own command line.
    pub(super) fn start(side: &Side, worker: &Node, etcd: &str, directory: &Path) -> anyhow::Result<Self> {
        let netns = NetNs::open(&worker.name)?;
        // Of links too, so that it knows the name of the device that the agent makes.
        let monitor = Monitor::open_in(&netns, &[Group::Links, Group::Routes])?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that give away a descriptor they do not own; a monitor owns its socket"
        )]
        let monitor = AsyncFd::new(monitor)?;
        let subnet_file = directory.join(format!("{}.env", worker.name));
        let mut command = Command::new(&side.program);
        command.args(flannel::arguments(etcd, &worker.interface(), &subnet_file));
        let file = watch_for(subnet_file)?;
        let process = Process::start(command, &netns, &directory.join(format!("{}.log", worker.name)))?;
        Ok(Self { process, netns, file, written: None, monitor, overrun: false, routes: BTreeMap::new() })
    }

    /// Waits for the subnet file; returns the time from the start of the process to its appearance.
    pub(super) async fn subnet_file(&mut self) -> anyhow::Result<Duration> {
        self.until("its subnet file", |agent| agent.written).await.map(|written| written - self.process.began)
    }

    /// Waits until the kernel has so many routes to peers; returns the time from the start of the process to the last one.
    pub(super) async fn routes(&mut self, count: usize) -> anyhow::Result<Duration> {
        let complete = |agent: &Self| {
            (agent.routes.len() >= count).then(|| agent.routes.values().max().copied().unwrap_or(agent.process.began))
        };
        self.until("its routes", complete).await.map(|last| last - self.process.began)
    }

    /// Waits for the route to a peer's subnet; returns the moment at which the kernel had it.
    pub(super) async fn route_to(&mut self, subnet: Ipv4Net) -> anyhow::Result<Instant> {
        self.until("a route", |agent| agent.routes.get(&subnet).copied()).await
    }

    /// Reads the process's memory.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        self.process.memory()
    }

    /// Ends the process; returns the CPU time of it and of the programs that it ran.
    pub(super) fn end(self) -> anyhow::Result<Duration> {
        self.process.end()
    }

    /// Takes in what the kernel and the watched file say until `look` finds what it looks for.
    async fn until<T>(&mut self, what: &str, look: impl Fn(&Self) -> Option<T>) -> anyhow::Result<T> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            tokio::select! {
                written = &mut self.file, if self.written.is_none() => {
                    self.written = Some(written.with_context(|| format!("{what} did not appear"))?);
                }
                ready = self.monitor.readable_mut() => {
                    let mut ready = ready?;
                    match ready.get_inner_mut().try_recv()? {
                        Some(events) => self.take_in(events),
                        None => {
                            ready.clear_ready();
                            self.make_up_for_lost_events()?;
                        }
                    }
                }
                _ = alive.tick() => {
                    self.process.check(what)?;
                }
                () = tokio::time::sleep_until(deadline) => {
                    bail!("{what} not there after {PATIENCE:?}; {}", self.process.last_words());
                }
            }
        }
    }

    fn take_in(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        for event in events {
            match event {
                Event::NewRoute(route) => self.note(&route, now),
                Event::Overrun => self.overrun = true,
                Event::NewLink(_)
                | Event::DelLink(_)
                | Event::NewAddress(_)
                | Event::DelAddress(_)
                | Event::DelRoute(_)
                | Event::NewNeighbour(_)
                | Event::DelNeighbour(_)
                | Event::NewFdb(_)
                | Event::DelFdb(_) => {}
            }
        }
    }

    /// When more came than the socket could hold, what is missing is in the kernel. To be called once the socket is empty:
    /// after an overrun the kernel drops whatever comes before that, without a further word.
    fn make_up_for_lost_events(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.overrun) {
            let routes = Netlink::open_in(&self.netns)?.routes()?;
            let now = Instant::now();
            for route in &routes {
                self.note(route, now);
            }
        }
        Ok(())
    }

    /// A peer's route leads through the overlay's device and has a next hop; the device's own routes have none.
    fn note(&mut self, route: &Route, now: Instant) {
        if let (IpNet::V4(subnet), Some(_), Some(dev)) = (route.dst, route.via, &route.dev)
            && dev.as_str().starts_with("flannel.")
        {
            self.routes.entry(subnet).or_insert(now);
        }
    }
}

/// Looks for a file in a thread of its own: the clock of an async runtime is too coarse for that.
fn watch_for(file: PathBuf) -> anyhow::Result<oneshot::Receiver<Instant>> {
    let (found, receiver) = oneshot::channel();
    std::thread::Builder::new().name("subnet file".to_owned()).spawn(move || {
        while !file.exists() {
            if found.is_closed() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // Nobody may care any more.
        let _ = found.send(Instant::now());
    })?;
    Ok(receiver)
}
