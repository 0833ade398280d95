//! `knetsim bench kproxy`: what a service proxy costs, `kproxy-rs` beside `kube-proxy`.
//!
//! *Many* are 10,000 Services if `--services` does not say otherwise, each with one port and two endpoints.
//!
//! | module | what is measured |
//! |---|---|
//! | `ruleset` | the core alone: objects to kernel, a restart, one change; beside `nft -f` |
//! | `proxy` | the program: its start, its memory, its CPU time |
//! | `change` | the program: from the put of one object in etcd to the kernel |
//! | `churn` | the program: connections while the endpoints of their Service change all the time |
//! | `connect` | the kernel: what a connection costs in a small table and in a large one |
//!
//! The program meets a real etcd whose data is in memory, on another node of the same switch, and each run gets a worker as fresh as after
//! a reboot. kube-proxy follows the API that `knetsim apiserver` serves from the same etcd. It is measured once and last,
//! and with a tenth of the Services: its first sync of 10,000 takes minutes. `--peer-services` says otherwise.

mod change;
mod churn;
mod connect;
mod pods;
mod proxy;
pub mod ruleset;
mod services;
mod stage;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use linux_net::NetNs;

use self::{ruleset::Times, stage::Stage};
use super::{
    process::Side,
    table::{Case, Unit},
};
use crate::{
    cli::BenchKproxyArgs,
    impls::{self, Component, Impl},
    prompt::execute::print,
    topology,
};

/// Where the files of the measurement are: a tmpfs of its own.
const DIRECTORY: &str = "/run/bench";

/// Measures in processes of their own, which are gone afterwards with all they made.
pub(super) fn measure(repeat: u32, many: u32, peer: u32) -> anyhow::Result<Vec<Case>> {
    if real_program().is_none() {
        super::warn(
            "kube-proxy is not installed, so kproxy-rs is measured alone; `knetsim doctor` says how to get it",
        )?;
    }
    let mut cases = Vec::new();
    for services in [many / 100, many / 10, many, many * 3] {
        let runs = (0..repeat).map(|_| ruleset::run(services)).collect::<anyhow::Result<Vec<_>>>()?;
        cases.extend(ruleset_cases(services, &runs));
    }
    cases.extend(super::in_child::<Vec<Case>>("bench-kproxy", &[repeat, many, peer])?);
    Ok(cases)
}

fn real_program() -> Option<PathBuf> {
    impls::find_for(Component::Kproxy, Impl::Real, "kube-proxy")
}

fn ruleset_cases(services: u32, runs: &[Times]) -> Vec<Case> {
    let case = |what: &str, of: fn(&Times) -> f64| {
        Case::new(&format!("{services} Services, {what}"), Unit::Milliseconds, runs.iter().map(of).collect())
    };
    let each = |what: &str, of: fn(&Times) -> &[f64]| {
        let times = runs.iter().flat_map(of).map(|milliseconds| milliseconds * 1000.0).collect();
        Case::new(&format!("{services} Services, {what}"), Unit::Microseconds, times)
    };
    let nft = case("the same ruleset with nft -f", |run| run.nft);
    vec![
        case("JSON to objects", |run| run.json),
        case("plan", |run| run.plan),
        case("commit", |run| run.commit).beside(&nft),
        nft,
        case("objects to kernel", |run| run.plan + run.commit),
        case("a restart finds its table", |run| run.restart),
        each("one change, plan", |run| &run.one_plan),
        each("one change, commit", |run| &run.one_commit),
    ]
}

/// Measures in namespaces of this process and prints the cases as JSON.
///
/// # Errors
///
/// When a proxy does not do its work.
pub fn inside(args: &BenchKproxyArgs) -> anyhow::Result<ExitCode> {
    super::own_namespaces()?;
    std::fs::create_dir(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
    let lab = super::star(1, stage::workers(args.repeat))?;
    let namespaces = topology::wire(&lab)?;
    topology::set_forwarding(&lab, &namespaces)?;
    let member = lab.clusters.first().and_then(|cluster| cluster.etcd.first()).context("the lab has no etcd member")?;
    let real = real_program().map(|program| Side { name: "kube-proxy", program });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // etcd is spoken to from its own node.
    let bench = async {
        let stage = Stage::start(&lab, Path::new(DIRECTORY)).await?;
        stage.run(real, args.repeat, args.services, args.peer_services).await
    };
    let cases = NetNs::open(&member.name)?.run(|| runtime.block_on(bench))??;
    print(&serde_json::to_string(&cases)?)?;
    Ok(ExitCode::SUCCESS)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
