//! From objects to the kernel, without a program around it: what the core of `kproxy-rs` takes, in one process for each run, in a network
//! namespace that no table was in before.
//!
//! | what | from | to |
//! |---|---|---|
//! | JSON | the values as they stand in etcd, in memory | objects |
//! | plan | objects | entries of the maps, of which the kernel knows none |
//! | commit | entries | a batch was built, sent and acknowledged, and the numbers of the rules are read back |
//! | together | objects | acknowledged: plan and commit |
//! | a restart | entries, and a table that a former run left | it is read back, found to be right, and nothing is written |
//! | one change | one EndpointSlice is replaced by one with another endpoint | planned; acknowledged |
//! | `nft -f` | a file with the same ruleset | the program has ended |

use std::{
    io::Write as _,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use clap::Parser as _;
use kproxy_rs::{
    apply::{Adoption, Kernel},
    config::CommandLine,
    diff::{Change, Layouts, replacement},
    node::Node,
    objects::{Event, Key, Objects},
    plan::Planner,
    service::ServiceName,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::services;
use crate::{
    cli::BenchRulesetArgs,
    component::{kproxy, real_program},
    lab::Lab,
    prompt::execute::print,
};

/// How often one object is changed in a run.
const CHANGES: u32 = 60;

/// What one run took, in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Times {
    pub(super) json: f64,
    pub(super) plan: f64,
    pub(super) commit: f64,
    pub(super) restart: f64,
    pub(super) one_plan: Vec<f64>,
    pub(super) one_commit: Vec<f64>,
    pub(super) nft: f64,
}

/// Measures one run in a process of its own.
pub(super) fn run(services: u32) -> anyhow::Result<Times> {
    crate::cmd::bench::in_child("bench-ruleset", &[services])
}

/// Measures in a namespace of this process and prints the times as JSON.
///
/// # Errors
///
/// When the kernel refuses something.
pub fn inside(args: &BenchRulesetArgs) -> anyhow::Result<ExitCode> {
    crate::cmd::bench::own_namespaces()?;
    let mut run = Run { objects: Objects::default(), planner: Planner::new(Node::new("C0w1")), kernel: open()? };
    let mut times = Times::default();
    let listed = services::all(args.services).map(|object| event_object(&object)).collect();
    times.json = milliseconds(|| run.objects.handle_event(Event::Listed(listed))).1;
    times.plan = milliseconds(|| run.plan()).1;
    times.commit = run.adopt(Adoption::Replaced)?;
    run.kernel = open()?;
    times.restart = run.adopt(Adoption::Adopted { changed: 0 })?;
    for number in 0..CHANGES {
        let (plan, commit) = run.change(number, args.services)?;
        times.one_plan.push(plan);
        times.one_commit.push(commit);
    }
    let text = replacement(&layouts()?, run.planner.entries()).to_string();
    run.kernel.delete()?;
    times.nft = load_with_nft(&text)?;
    print(&serde_json::to_string(&times)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The core of the proxy, as the daemon holds it.
struct Run {
    objects: Objects,
    planner: Planner,
    kernel: Kernel,
}

impl Run {
    /// What the daemon does between objects and kernel.
    fn plan(&mut self) -> Change {
        self.planner.update_changed(&mut self.objects);
        self.planner.take_change()
    }

    /// What the daemon does when it has planned for the first time. Returns what it took.
    fn adopt(&mut self, expected: Adoption) -> anyhow::Result<f64> {
        let (adoption, time) = milliseconds(|| self.kernel.adopt(self.planner.entries()));
        let adoption = adoption?;
        ensure!(adoption == expected, "the start should have found {expected:?}, and found {adoption:?}");
        Ok(time)
    }

    /// Replaces an endpoint of one Service. Returns what planning and commit took.
    fn change(&mut self, number: u32, services: u32) -> anyhow::Result<(f64, f64)> {
        let service = number % services;
        let [_, kept] = services::endpoints(service);
        let slice = services::slice(service, &[services::changed_endpoint(number), kept]);
        let (key, value) = event_object(&slice);
        self.objects.handle_event(Event::Put(key, value));
        let (change, plan) = milliseconds(|| self.plan());
        ensure!(!change.is_empty(), "another endpoint changed nothing");
        let (result, commit) = milliseconds(|| self.kernel.change(&change));
        result?;
        Ok((plan, commit))
    }
}

/// The table of `count` Services, all with the same endpoints, made in the namespace that this thread is in.
pub(super) fn load(count: u32, endpoints: &[std::net::Ipv4Addr]) -> anyhow::Result<()> {
    let mut run = Run { objects: Objects::default(), planner: Planner::new(Node::new("C0w1")), kernel: open()? };
    let objects = (0..count).flat_map(|number| {
        [services::service(number), services::slice(number, endpoints)].map(|object| event_object(&object))
    });
    run.objects.handle_event(Event::Listed(objects.collect()));
    run.plan();
    run.adopt(Adoption::Replaced).map(|_| ())
}

fn open() -> anyhow::Result<Kernel> {
    Ok(Kernel::open(layouts()?)?)
}

/// What the daemon makes of the lab's command line.
fn layouts() -> anyhow::Result<Layouts> {
    let lab = Lab::default_lab();
    let (_, worker) = lab.workers().next().context("the lab has no worker")?;
    let arguments = kproxy::arguments("http://127.0.0.1:2379", worker, &lab.pods);
    let line = CommandLine::try_parse_from(["kproxy-rs".to_owned()].into_iter().chain(arguments))?;
    Ok(line.config.layouts()?)
}

/// An object as the proxy hears of it: by the last parts of its key.
fn event_object((key, value): &(String, Value)) -> (Key, Vec<u8>) {
    let mut parts = key.rsplit('/');
    let (name, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is_service = value["kind"] == "Service";
    let key = match is_service {
        true => Key::Service(ServiceName::new(namespace, name)),
        false => Key::Slice { namespace: namespace.to_owned(), name: name.to_owned() },
    };
    (key, value.to_string().into_bytes())
}

fn load_with_nft(text: &str) -> anyhow::Result<f64> {
    let file = "/run/ruleset.nft";
    std::fs::File::create(file)?.write_all(text.as_bytes())?;
    let mut nft = Command::new(real_program("nft")?);
    nft.args(["-f", file]).stdin(Stdio::null());
    let (output, time) = milliseconds(|| nft.output());
    let output = output.context("run nft")?;
    if !output.status.success() {
        bail!("nft -f {file}: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default());
    }
    Ok(time)
}

/// Does something, and says how long it took.
fn milliseconds<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let result = work();
    (result, super::milliseconds(began.elapsed()))
}
