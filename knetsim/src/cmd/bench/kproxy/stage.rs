//! The stage on which programs are measured: an etcd, and workers of which each is used once.

use std::{
    collections::BTreeSet,
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

/// How often one object is changed for one `--repeat`.
const CHANGES_PER_REPEAT: u32 = 60;
/// The same with kube-proxy, which waits a second between two syncs.
const REAL_CHANGES_PER_REPEAT: u32 = 6;
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

/// Workers that [`Stage::run`] takes: for each of three numbers of Services one a start and one for the changes; for kube-proxy; and for
/// two tables.
pub(super) fn workers(repeat: u32) -> u32 {
    3 * (repeat + 1) + 3
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

    /// Measures everything; kube-proxy, if it is there, with `peer` Services, and ours with as many, too.
    pub(super) async fn run(
        mut self,
        real: Option<Side>,
        repeat: u32,
        many: u32,
        peer: u32,
    ) -> anyhow::Result<Vec<Case>> {
        let ours = Side { name: "kproxy-rs", program: component::program("kproxy-rs")? };
        let mut cases = Vec::new();
        let mut beside_peer = Vec::new();
        for services in BTreeSet::from([many / 100, peer, many]) {
            let mut numbers = self.starts(&ours, services, repeat).await?;
            let (mut proxy, worker) = self.life(Kind::Ours, &ours, services, &mut Numbers::default()).await?;
            let client = &mut self.etcd.client;
            numbers.change = change::measure(client, &mut proxy, repeat * CHANGES_PER_REPEAT, services, PAUSE).await?;
            let measured = numbers.cases(services, &ours);
            if services == peer { &mut beside_peer } else { &mut cases }.extend(measured);
            if services == many {
                let connects = many * CONNECTS_PER_SERVICE;
                cases.extend(churn::measure(client, &mut proxy, &Pods::attach(worker)?, connects).await?);
            }
            proxy.end()?;
        }
        let worker = match &real {
            Some(side) => {
                let (numbers, worker) = self.real(side, repeat, peer).await?;
                for (case, peer) in beside_peer.into_iter().zip(numbers.cases(peer, side)) {
                    cases.extend([case.beside(&peer), peer]);
                }
                Some(worker)
            }
            None => {
                cases.append(&mut beside_peer);
                None
            }
        };
        cases.extend(self.connections(worker, repeat, many, peer)?);
        Ok(cases)
    }

    /// Starts a proxy of ours again and again.
    async fn starts(&mut self, side: &Side, services: u32, repeat: u32) -> anyhow::Result<Numbers> {
        self.fill(services).await?;
        let mut numbers = Numbers::default();
        for _ in 0..repeat {
            let (proxy, _) = self.life(Kind::Ours, side, services, &mut numbers).await?;
            numbers.cpu.push(milliseconds(proxy.end()?));
        }
        Ok(numbers)
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
    async fn real(&mut self, side: &Side, repeat: u32, services: u32) -> anyhow::Result<(Numbers, &'a Node)> {
        self.fill(services).await?;
        let worker = self.workers.as_slice().first().context("there are not enough workers")?;
        let (key, value) = services::node(worker);
        // Without it, kube-proxy would look for half a minute.
        self.etcd.client.put(format!("{}{key}", services::PREFIX), value.to_string(), None).await?;
        let _api = self.serve_api().await?;
        let mut numbers = Numbers::default();
        let (mut proxy, worker) = self.life(Kind::Real, side, services, &mut numbers).await?;
        // The changes come later, so that this is the CPU time of the start, as in the other's case.
        numbers.cpu.push(milliseconds(proxy.cpu_time()?));
        let changes = repeat * REAL_CHANGES_PER_REPEAT;
        let client = &mut self.etcd.client;
        numbers.change = change::measure(client, &mut proxy, changes, services, REAL_PAUSE).await?;
        proxy.end()?;
        Ok((numbers, worker))
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
    fn connections(&mut self, real: Option<&Node>, repeat: u32, many: u32, peer: u32) -> anyhow::Result<Vec<Case>> {
        connect::share_one_processor()?;
        let address = |number: u32| SocketAddrV4::new(services::address(number), services::PORT);
        let mut targets = Vec::new();
        for services in [many / 100, many * 3] {
            let worker = self.workers.next().context("there are not enough workers")?;
            NetNs::open(&worker.name)?.run(|| ruleset::load(services, &SERVERS[..2]))??;
            let name = format!("connect to any ClusterIP of {services}");
            targets.push(Target::new(name, Pods::attach(worker)?, (0..services).map(address).collect()));
        }
        let [small, large] = [0, 1].map(|number| targets[number].pods.clone());
        let one = vec![address(0)];
        targets.push(Target::new(format!("connect to one ClusterIP of {}", many * 3), large, one.clone()));
        if let Some(worker) = real {
            let name = format!("connect to one ClusterIP of {peer}: kube-proxy");
            targets.push(Target::new(name, Pods::attach(worker)?, one));
        }
        let direct = SERVERS[..2].iter().map(|server| SocketAddrV4::new(*server, services::TARGET_PORT)).collect();
        targets.push(Target::new("connect to an endpoint itself".to_owned(), small, direct));
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
        let name = |what: &str| format!("{services} Services, {what}: {}", side.name);
        quantities.map(|(what, unit, runs)| Case::new(&name(what), unit, runs)).into()
    }
}
