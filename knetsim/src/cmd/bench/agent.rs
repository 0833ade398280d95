//! One life of an overlay agent on a worker, watched from outside: its subnet file, its routes, its memory, its CPU time.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use linux_net::{
    NetNs, Netlink,
    netlink::{Event, Group, Monitor, Route},
    process::CommandNamespaceExt as _,
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};
use tokio::{io::unix::AsyncFd, sync::oneshot};

use crate::{component::flannel, lab::Node, sandbox, supervisor::log_tail};

/// How often the subnet file is looked for.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often an agent that is waited for is looked at, whether it still runs.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

/// An implementation of the agent.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// Its program's name.
    pub(super) name: &'static str,
    /// Where that is.
    pub(super) program: PathBuf,
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Resident: all pages that it has in memory.
    pub(super) resident: u64,
    /// Proportional: of a page that several processes share, its part.
    pub(super) proportional: u64,
}

/// An agent that runs.
pub(super) struct Agent {
    child: Child,
    log: PathBuf,
    netns: NetNs,
    began: Instant,
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
        let log = directory.join(format!("{}.log", worker.name));
        let mut command = Command::new(&side.program);
        command
            .args(flannel::arguments(etcd, &worker.interface(), &subnet_file))
            .env("PATH", sandbox::path_variable()?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("write {}", log.display()))?)
            .in_netns(&netns)
            .die_with_parent();
        let began = Instant::now();
        let file = watch_for(subnet_file)?;
        let child = command.spawn().with_context(|| format!("start {}", side.program.display()))?;
        Ok(Self { child, log, netns, began, file, written: None, monitor, overrun: false, routes: BTreeMap::new() })
    }

    /// Waits for the subnet file; returns the time from the start of the process to its appearance.
    pub(super) async fn subnet_file(&mut self) -> anyhow::Result<Duration> {
        self.until("its subnet file", |agent| agent.written).await.map(|written| written - self.began)
    }

    /// Waits until the kernel has so many routes to peers; returns the time from the start of the process to the last one.
    pub(super) async fn routes(&mut self, count: usize) -> anyhow::Result<Duration> {
        let complete = |agent: &Self| {
            (agent.routes.len() >= count).then(|| agent.routes.values().max().copied().unwrap_or(agent.began))
        };
        self.until("its routes", complete).await.map(|last| last - self.began)
    }

    /// Waits for the route to a peer's subnet; returns the moment at which the kernel had it.
    pub(super) async fn route_to(&mut self, subnet: Ipv4Net) -> anyhow::Result<Instant> {
        self.until("a route", |agent| agent.routes.get(&subnet).copied()).await
    }

    /// Reads the process's memory.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let read = |file: &str, field: &str| {
            let path = format!("/proc/{}/{file}", self.child.id());
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(field)).context("a field is missing")?;
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            anyhow::Ok(kibibytes * 1024)
        };
        Ok(Memory { resident: read("status", "VmRSS:")?, proportional: read("smaps_rollup", "Pss:")? })
    }

    /// Ends the process; returns the CPU time of it and of the programs that it ran.
    pub(super) fn end(mut self) -> anyhow::Result<Duration> {
        let before = children_cpu_time()?;
        // Hard: nothing here is needed afterwards, and flanneld may take minutes for the soft way.
        self.child.kill()?;
        self.child.wait()?;
        Ok(children_cpu_time()?.saturating_sub(before))
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
                    if let Some(status) = self.child.try_wait()? {
                        bail!("it ended ({status}) before {what} was there; {}", self.last_words());
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    bail!("{what} not there after {PATIENCE:?}; {}", self.last_words());
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

    fn last_words(&self) -> String {
        format!("last lines of its log:\n{}", log_tail(&self.log, 12))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// CPU time, user and system, of all children that have ended and been waited for, and of theirs.
fn children_cpu_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let duration = |time: TimeVal| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(u64::try_from(time.tv_sec())?) + Duration::from_micros(u64::try_from(time.tv_usec())?))
    };
    Ok(duration(usage.user_time())? + duration(usage.system_time())?)
}
