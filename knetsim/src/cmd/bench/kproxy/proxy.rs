//! One life of a service proxy on a worker, watched from outside: when it is in sync, what it has in the kernel, its memory, its CPU time.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use linux_net::{
    NetNs,
    nft::{Family, Nft, Set, Spec, Table, Type},
};

use crate::{
    cmd::bench::process::{Memory, Process, Side},
    component::kproxy,
    lab::{Lab, Node},
};

/// How often the proxy is asked whether it is in sync.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// kube-proxy takes minutes for its first sync where Services are many.
const PATIENCE: Duration = Duration::from_mins(10);

/// Which implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `kproxy-rs`, which follows etcd.
    Ours,
    /// `kube-proxy`, which follows the API.
    Real,
}

/// A proxy that runs.
pub(super) struct Proxy {
    kind: Kind,
    process: Process,
    netns: NetNs,
}

impl Proxy {
    /// Starts a proxy on a worker of the lab's first cluster, with the lab's own command line.
    pub(super) fn start(
        kind: Kind,
        side: &Side,
        lab: &Lab,
        worker: &Node,
        etcd: &str,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let netns = NetNs::open(&worker.name)?;
        let mut command = Command::new(&side.program);
        match kind {
            Kind::Ours => command.args(kproxy::arguments(etcd, worker, &lab.pods)),
            Kind::Real => {
                let cluster = lab.clusters.first().context("the lab has no cluster")?;
                command.args(kproxy::real_arguments(cluster, worker, &lab.pods, &directory.join(&worker.name))?)
            }
        };
        let process = Process::start(command, &netns, &directory.join(format!("{}.log", worker.name)))?;
        Ok(Self { kind, process, netns })
    }

    /// Waits until it says that it is in sync and the kernel has so many Services; returns the time since its start.
    ///
    /// That it says so is not enough: kube-proxy is healthy until its first sync is overdue.
    pub(super) async fn in_sync(&mut self, services: u32) -> anyhow::Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if kproxy::is_healthy(&self.netns) {
                let time = self.process.began.elapsed();
                if self.served()? >= services as usize {
                    return Ok(time);
                }
            }
            self.process.check("the table")?;
            if Instant::now() > deadline {
                bail!("not in sync after {PATIENCE:?}; {}", self.process.last_words());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its namespace.
    pub(super) fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Makes sure that it still runs.
    pub(super) fn check(&mut self, what: &str) -> anyhow::Result<()> {
        self.process.check(what)
    }

    /// Reads its memory.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        self.process.memory()
    }

    /// The CPU time of it and of the programs that it ran, until now.
    pub(super) fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.process.cpu_time()
    }

    /// Ends it, and leaves its table; returns the CPU time of it and of the programs that it ran.
    pub(super) fn end(self) -> anyhow::Result<Duration> {
        self.process.end()
    }

    /// How many addresses with ports the kernel has.
    fn served(&self) -> anyhow::Result<usize> {
        let key = Spec::types([Type::Ipv4Addr, Type::InetProto, Type::InetService]);
        let map = match self.kind {
            Kind::Ours => Set::map(&Table::new(Family::Ip, "kproxy"), "front", key, Spec::types([Type::Mark])),
            Kind::Real => Set::verdict_map(&Table::new(Family::Ip, "kube-proxy"), "service-ips", key),
        };
        match Nft::open_in(&self.netns)?.elements(&map) {
            Err(error) if error.is_not_found() => Ok(0),
            elements => Ok(elements?.len()),
        }
    }
}
