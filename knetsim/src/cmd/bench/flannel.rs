//! `knetsim bench flannel`: what an overlay agent costs, `flannel-rs` beside `flanneld`.
//!
//! A real etcd with its data in memory stands on one node of a switch. Each run gets a worker of its own on that switch,
//! as fresh as after a reboot, and starts an agent there with the lab's own command line. It is measured:
//!
//! | what | from | to |
//! |---|---|---|
//! | subnet.env | the start of the process | the file is there |
//! | routes | the start of the process, with 1,000 leases in etcd | the kernel has told of the last of 1,000 routes |
//! | put to route | a lease's put begins, the agent runs, without other leases or with 1,000 | the kernel has told of its route |
//! | RSS, PSS | 300 ms after the agent was ready | |
//! | CPU | the start of the process | the same moment; programs that it runs (`iptables`) count |

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use linux_net::NetNs;

use super::{
    agent::Agent,
    etcd::endpoint,
    leases::{Leases, subnet},
    process::{Memory, Side},
    table::{Case, Unit},
};
use crate::{
    cli::BenchInsideArgs,
    component,
    impls::{self, Component, Impl},
    lab::Node,
    prompt::execute::print,
    topology,
};

/// Leases of other workers that are there when an agent starts.
pub(super) const LEASES: u32 = 1000;
/// Leases put one after the other while an agent runs.
pub(super) const PUTS: u32 = 30;
/// Workers that one implementation takes in one round: in each scene one to start an agent, and one to put leases beside it.
const RUNS_PER_ROUND: u32 = 4;
/// How long an agent is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);
/// Where the files of the measurement are: a tmpfs of its own.
const DIRECTORY: &str = "/run/bench";

/// Measures in a process of its own, which is gone afterwards with all it made.
pub(super) fn measure(repeat: u32) -> anyhow::Result<Vec<Case>> {
    if impls::find_for(Component::Flannel, Impl::Real, "flanneld").is_none() {
        super::warn("flanneld is not installed, so flannel-rs is measured alone; `knetsim doctor` says how to get it")?;
    }
    super::in_child("bench-flannel", &[repeat])
}

/// Measures in namespaces of this process and prints the cases as JSON.
///
/// # Errors
///
/// When an agent does not do its work.
pub fn inside(args: &BenchInsideArgs) -> anyhow::Result<ExitCode> {
    let mut sides = vec![Side { name: "flannel-rs", program: component::program("flannel-rs")? }];
    if let Some(program) = impls::find_for(Component::Flannel, Impl::Real, "flanneld") {
        sides.push(Side { name: "flanneld", program });
    }
    super::own_namespaces()?;
    std::fs::create_dir(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
    let lab = super::star(1, args.repeat * RUNS_PER_ROUND * u32::try_from(sides.len())?)?;
    let namespaces = topology::wire(&lab)?;
    topology::set_forwarding(&lab, &namespaces)?;
    let cluster = lab.clusters.first().context("the lab has no cluster")?;
    let member = cluster.etcd.first().context("the lab has no etcd member")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // etcd is spoken to from its own node.
    let bench = async {
        let leases = Leases::start(&lab, member, Path::new(DIRECTORY)).await?;
        let workers = cluster.workers.iter();
        Bench { leases, etcd: endpoint(member), workers }.run(&sides, args.repeat).await
    };
    let numbers = NetNs::open(&member.name)?.run(|| runtime.block_on(bench))??;
    print(&serde_json::to_string(&cases(&sides, &numbers))?)?;
    Ok(ExitCode::SUCCESS)
}

/// What the agent finds in etcd when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// No other worker.
    Alone,
    /// [`LEASES`] other workers.
    Leases,
}

impl Scene {
    fn leases(self) -> u32 {
        match self {
            Scene::Alone => 0,
            Scene::Leases => LEASES,
        }
    }
}

/// What is measured in a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    SubnetFile,
    Routes,
    PutToRoute,
    Resident,
    Proportional,
    Cpu,
}

impl Quantity {
    fn describe(self) -> (&'static str, Unit) {
        match self {
            Quantity::SubnetFile => ("start to subnet.env", Unit::Milliseconds),
            Quantity::Routes => ("start to all routes", Unit::Milliseconds),
            Quantity::PutToRoute => ("a lease's put to its route", Unit::Milliseconds),
            Quantity::Resident => ("RSS", Unit::Megabytes),
            Quantity::Proportional => ("PSS", Unit::Megabytes),
            Quantity::Cpu => ("CPU", Unit::Milliseconds),
        }
    }
}

/// What all runs of one implementation took.
#[derive(Debug, Default)]
struct Numbers(BTreeMap<(Scene, Quantity), Vec<f64>>);

impl Numbers {
    fn note_time(&mut self, scene: Scene, quantity: Quantity, time: Duration) {
        self.0.entry((scene, quantity)).or_default().push(time.as_secs_f64() * 1000.0);
    }

    fn note_memory(&mut self, scene: Scene, memory: Memory) {
        self.0.entry((scene, Quantity::Resident)).or_default().push(memory.resident_megabytes());
        self.0.entry((scene, Quantity::Proportional)).or_default().push(memory.proportional_megabytes());
    }
}

/// The first side is measured, the second, if there is one, is its peer.
fn cases(sides: &[Side], numbers: &[Numbers]) -> Vec<Case> {
    let Some((ours, peer)) = numbers.split_first() else { return Vec::new() };
    let case = |(scene, quantity): (Scene, Quantity), side: &Side, runs: &[f64]| {
        let (what, unit) = quantity.describe();
        let scene = match scene {
            Scene::Alone => String::new(),
            Scene::Leases => format!("{LEASES} leases, "),
        };
        Case::new(&format!("{scene}{what}: {}", side.name), unit, runs.to_vec())
    };
    let mut cases = Vec::new();
    for (key, runs) in &ours.0 {
        let peer = peer.first().and_then(|peer| peer.0.get(key)).zip(sides.get(1));
        let peer = peer.map(|(runs, side)| case(*key, side, runs));
        let ours = case(*key, &sides[0], runs);
        cases.push(match &peer {
            Some(peer) => ours.beside(peer),
            None => ours,
        });
        cases.extend(peer);
    }
    cases
}

/// The stage: an etcd, and workers of which each is used once.
struct Bench<'a> {
    leases: Leases,
    etcd: String,
    workers: std::slice::Iter<'a, Node>,
}

impl Bench<'_> {
    async fn run(mut self, sides: &[Side], rounds: u32) -> anyhow::Result<Vec<Numbers>> {
        let mut numbers: Vec<Numbers> = sides.iter().map(|_| Numbers::default()).collect();
        for _ in 0..rounds {
            for (side, numbers) in sides.iter().zip(&mut numbers) {
                self.round(side, numbers).await.with_context(|| format!("measure {}", side.name))?;
            }
        }
        Ok(numbers)
    }

    /// The runs of one implementation in one round.
    async fn round(&mut self, side: &Side, numbers: &mut Numbers) -> anyhow::Result<()> {
        for scene in [Scene::Alone, Scene::Leases] {
            let mut agent = self.start(side, scene).await?;
            numbers.note_time(scene, Quantity::SubnetFile, agent.subnet_file().await?);
            if scene.leases() > 0 {
                numbers.note_time(scene, Quantity::Routes, agent.routes(scene.leases() as usize).await?);
            }
            tokio::time::sleep(SETTLE).await;
            numbers.note_memory(scene, agent.memory()?);
            numbers.note_time(scene, Quantity::Cpu, agent.end()?);

            let mut agent = self.start(side, scene).await?;
            agent.subnet_file().await?;
            agent.routes(scene.leases() as usize).await?;
            tokio::time::sleep(SETTLE).await;
            for number in scene.leases()..scene.leases() + PUTS {
                let began = Instant::now();
                let (done, seen) = tokio::join!(self.leases.put(number), agent.route_to(subnet(number)));
                done?;
                numbers.note_time(scene, Quantity::PutToRoute, seen? - began);
            }
            agent.end()?;
        }
        Ok(())
    }

    /// Starts an agent on a fresh worker.
    async fn start(&mut self, side: &Side, scene: Scene) -> anyhow::Result<Agent> {
        self.leases.reset(scene.leases()).await?;
        let worker = self.workers.next().context("there are not enough workers")?;
        Agent::start(side, worker, &self.etcd, Path::new(DIRECTORY))
    }
}
