//! The stage on which programs are measured: an etcd, and workers of which each is used once.

use std::{
    net::SocketAddrV4,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use etcd_client::{DeleteOptions, Txn, TxnOp};
use linux_net::NetNs;
use serde_json::Value;

use super::{
    change, churn,
    connect::{self, Target},
    milliseconds,
    pods::{Pods, SERVERS},
    proxy::{Kind, Proxy},
    ruleset, services,
};
use crate::{
    cmd::bench::{
        etcd::{Etcd, endpoint},
        process::{Process, Side},
        table::{Case, Unit},
    },
    component::{self, apiserver},
    lab::{Cluster, Lab, Node},
};

/// How often one object is changed beside kube-proxy, which waits a second between two syncs.
const REAL_CHANGES: u32 = 30;
/// Between two changes, longer than either proxy's own pause: a change that waits for the one before would measure that.
const PAUSE: Duration = Duration::from_millis(20);
const REAL_PAUSE: Duration = Duration::from_millis(1100);
/// Connections under churn: 100,000 where many Services are 10,000.
const CONNECTS_PER_SERVICE: u32 = 10;
/// How long a proxy is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);
/// Objects that one transaction writes; etcd allows 128 operations.
const PER_TRANSACTION: usize = 100;
/// How long the API may take until it serves.
const API_PATIENCE: Duration = Duration::from_secs(30);

/// Workers that [`Stage::run`] takes in `repeat` rounds: two starts a round, a proxy that stays, kube-proxy, and three tables.
pub(super) fn workers(repeat: u32) -> u32 {
    repeat * 2 + 4
}

/// The stage.
pub(super) struct Stage<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster,
    member: &'a Node,
    workers: std::slice::Iter<'a, Node>,
    etcd: Etcd,
    directory: &'a Path,
}

/// What is measured of a proxy that runs, in milliseconds and megabytes.
#[derive(Debug, Default)]
struct Numbers {
    start: Vec<f64>,
    resident: Vec<f64>,
    cpu: Vec<f64>,
    change: Vec<f64>,
}

impl<'a> Stage<'a> {
    /// Starts etcd on the lab's first member. The calling thread must be in the member's namespace.
    pub(super) async fn start(lab: &'a Lab, directory: &'a Path) -> anyhow::Result<Self> {
        let cluster = lab.clusters.first().context("the lab has no cluster")?;
        let member = cluster.etcd.first().context("the lab has no etcd member")?;
        let etcd = Etcd::start(member, directory).await?;
        Ok(Self { lab, cluster, member, workers: cluster.workers.iter(), etcd, directory })
    }

    /// Measures everything.
    pub(super) async fn run(mut self, real: Option<Side>, repeat: u32, many: u32) -> anyhow::Result<Vec<Case>> {
        let ours = Side { name: "kproxy-rs", program: component::program("kproxy-rs")? };
        let mut cases = Vec::new();
        for services in [many / 100, many] {
            self.fill(services).await?;
            let mut numbers = Numbers::default();
            for _ in 0..repeat {
                let proxy = self.life(Kind::Ours, &ours, services, &mut numbers).await?.0;
                numbers.cpu.push(milliseconds(proxy.end()?));
            }
            if services == many {
                let (mut proxy, worker) = self.life(Kind::Ours, &ours, services, &mut Numbers::default()).await?;
                let client = &mut self.etcd.client;
                numbers.change = change::measure(client, &mut proxy, super::CHANGES, services, PAUSE).await?;
                let connects = many * CONNECTS_PER_SERVICE;
                cases.extend(churn::measure(client, &mut proxy, &Pods::attach(worker)?, connects).await?);
            }
            cases.extend(numbers.cases(services, &ours));
        }
        let peer = match &real {
            Some(side) => Some(self.real(side, many, &mut cases).await?),
            None => None,
        };
        cases.extend(self.connections(peer, repeat, many)?);
        Ok(cases)
    }

    /// Starts a proxy on a fresh worker, and measures until it has settled.
    async fn life(
        &mut self,
        kind: Kind,
        side: &Side,
        services: u32,
        numbers: &mut Numbers,
    ) -> anyhow::Result<(Proxy, &'a Node)> {
        let worker = self.workers.next().context("there are not enough workers")?;
        let etcd = endpoint(self.member);
        let mut proxy = Proxy::start(kind, side, self.lab, worker, &etcd, self.directory)?;
        let start = proxy.in_sync(services).await.with_context(|| format!("measure {}", side.name))?;
        tokio::time::sleep(SETTLE).await;
        numbers.start.push(milliseconds(start));
        numbers.resident.push(proxy.memory()?.resident_megabytes());
        Ok((proxy, worker))
    }

    /// Measures kube-proxy once; returns the worker on which its table stays.
    async fn real(&mut self, side: &Side, services: u32, cases: &mut Vec<Case>) -> anyhow::Result<&'a Node> {
        self.fill(services).await?;
        let worker = self.workers.as_slice().first().context("there are not enough workers")?;
        let (key, value) = services::node(worker);
        // Without it, kube-proxy would look for half a minute.
        self.etcd.client.put(format!("{}{key}", services::PREFIX), value.to_string(), None).await?;
        let _api = self.serve_api().await?;
        let mut numbers = Numbers::default();
        let (mut proxy, worker) = self.life(Kind::Real, side, services, &mut numbers).await?;
        let client = &mut self.etcd.client;
        numbers.change = change::measure(client, &mut proxy, REAL_CHANGES, services, REAL_PAUSE).await?;
        numbers.cpu.push(milliseconds(proxy.end()?));
        cases.extend(numbers.cases(services, side));
        Ok(worker)
    }

    /// Starts the API on etcd's node.
    async fn serve_api(&self) -> anyhow::Result<Process> {
        let spec = apiserver::spec(self.cluster, &self.lab.pods)?;
        let mut command = Command::new(&spec.program);
        command.args(&spec.arguments);
        let process = Process::start(command, &spec.netns, &self.directory.join("apiserver.log"))?;
        let deadline = Instant::now() + API_PATIENCE;
        while !apiserver::is_healthy(&spec.netns, self.member) {
            if Instant::now() > deadline {
                bail!("the API is not healthy after {API_PATIENCE:?}; {}", process.last_words());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(process)
    }

    /// Lets etcd have so many Services and nothing else. The first has endpoints that exist.
    async fn fill(&mut self, services: u32) -> anyhow::Result<()> {
        let client = &mut self.etcd.client;
        client.delete(services::PREFIX, Some(DeleteOptions::new().with_prefix())).await?;
        let mut objects: Vec<(String, Value)> = services::all(services).collect();
        objects.push(services::slice(0, &SERVERS[..2]));
        // etcd refuses to write a key twice in a transaction.
        let (last, objects) = objects.split_last().context("there is always one")?;
        for chunk in objects.chunks(PER_TRANSACTION).chain([std::slice::from_ref(last)]) {
            let puts = chunk
                .iter()
                .map(|(key, value)| TxnOp::put(format!("{}{key}", services::PREFIX), value.to_string(), None));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await?;
        }
        Ok(())
    }

    /// Connects through tables of ours, small and large, past them, and through kube-proxy's.
    fn connections(&mut self, peer: Option<&Node>, repeat: u32, many: u32) -> anyhow::Result<Vec<Case>> {
        connect::share_one_processor()?;
        let address = |number: u32| SocketAddrV4::new(services::address(number), services::PORT);
        let mut targets = Vec::new();
        for services in [many / 100, many * 3] {
            let worker = self.workers.next().context("there are not enough workers")?;
            NetNs::open(&worker.name)?.run(|| ruleset::load(services, &SERVERS[..2]))??;
            let name = format!("connect to a ClusterIP of {services}");
            targets.push(Target::new(name, Pods::attach(worker)?, (0..services).map(address).collect()));
        }
        let direct = SERVERS[..2].iter().map(|server| SocketAddrV4::new(*server, services::TARGET_PORT)).collect();
        targets.push(Target::new("connect to an endpoint itself".to_owned(), targets[0].pods.clone(), direct));
        if let Some(worker) = peer {
            let name = format!("connect to one ClusterIP of {many}: kube-proxy");
            targets.push(Target::new(name, Pods::attach(worker)?, vec![address(0)]));
        }
        connect::measure(&mut targets, repeat)?;
        Ok(connect::cases(targets))
    }
}

impl Numbers {
    fn cases(self, services: u32, side: &Side) -> Vec<Case> {
        let quantities = [
            ("start to in sync", Unit::Milliseconds, self.start),
            ("RSS", Unit::Megabytes, self.resident),
            ("CPU", Unit::Milliseconds, self.cpu),
            ("put to kernel", Unit::Milliseconds, self.change),
        ];
        let measured = quantities.into_iter().filter(|(_, _, runs)| !runs.is_empty());
        let name = |what: &str| format!("{services} Services, {what}: {}", side.name);
        measured.map(|(what, unit, runs)| Case::new(&name(what), unit, runs)).collect()
    }
}
