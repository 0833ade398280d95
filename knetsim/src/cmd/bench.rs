//! `knetsim bench`: measures a part of the lab, beside its peer where there is one, and prints a table for each.
//!
//! A measurement and its peer take turns within one run, so that both meet the same noise of the machine; a ratio is one of
//! medians. Each file below measures one thing, and says in its first lines what exactly.

mod agent;
pub mod boot;
pub mod cni;
mod etcd;
pub mod flannel;
pub mod kproxy;
mod leases;
mod process;
mod table;

use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail};
use linux_net::{
    process::CommandNamespaceExt as _,
    sandbox::{self as namespaces, Namespaces, mount},
};
use serde::de::DeserializeOwned;

use crate::{cli::BenchArgs, lab::Lab, prompt::execute::print};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum What {
    /// A whole lab from the command to the prompt, and bare topologies of 10, 100 and 500 nodes
    Boot,
    /// The overlay agent: start, 1,000 leases, a lease put while it runs, memory; beside flanneld where that is installed
    Flannel,
    /// The CNI plugins: ADD and DEL of a pod, masquerade, host ports, a full range; beside the Go plugins
    Cni,
    /// The service proxy: objects to kernel, restart, one change, start, connections, churn; beside kube-proxy where that is
    /// installed
    Kproxy,
}

/// Measures and prints a table for each part.
///
/// # Errors
///
/// When what is measured does not work.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        warn("this is a debug build: its numbers say nothing; `make build` makes the other")?;
    }
    // Each in the order of the enum, once.
    for what in args.what.iter().copied().collect::<BTreeSet<_>>() {
        let load = load();
        let (name, cases) = match what {
            What::Boot => ("boot", boot::measure(args.repeat)?),
            What::Flannel => ("flannel", flannel::measure(args.repeat)?),
            What::Cni => ("cni", cni::measure(args.repeat)?),
            What::Kproxy => (
                "kproxy",
                kproxy::measure(args.repeat, args.services, args.peer_services.unwrap_or(args.services / 10))?,
            ),
        };
        print(&format!("{name}: {} runs each; {}\n{}", args.repeat, load, table::render(&cases)))?;
        if let Some(directory) = &args.out {
            write_json(directory, name, &cases)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a hidden subcommand that measures in namespaces of its own, and reads what it prints: cases, or bare numbers.
fn in_child<T: DeserializeOwned>(subcommand: &str, numbers: &[u32]) -> anyhow::Result<T> {
    let output = Command::new(std::env::current_exe()?)
        .arg(subcommand)
        .args(numbers.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .die_with_parent()
        .output()
        .with_context(|| format!("start {subcommand}"))?;
    if !output.status.success() {
        bail!("the measurement failed; what went wrong stands above");
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("read what {subcommand} printed"))
}

/// Tells what makes the numbers less than they seem.
fn warn(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stderr(), "NOTE: {text}")?)
}

/// How busy the machine is beside us: numbers from a loaded one are no numbers.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {} in the minute before", text.split(' ').next().unwrap_or("unknown"))
}

fn write_json(directory: &Path, name: &str, cases: &[table::Case]) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let file = directory.join(format!("{name}.json"));
    std::fs::write(&file, serde_json::to_string_pretty(cases)?).with_context(|| format!("write {}", file.display()))
}

/// Moves this process into mount and network namespaces of its own with an empty `/run`.
fn own_namespaces() -> anyhow::Result<()> {
    let mut own = Namespaces::lab(!nix::unistd::geteuid().is_root());
    own.pid = false; // what is started dies with this process
    namespaces::unshare(own)?;
    mount::make_all_private()?;
    mount::tmpfs(Path::new("/run"))?;
    mount::make_shared(Path::new("/run"))?;
    std::fs::create_dir("/run/netns").context("make /run/netns")
}

/// A lab of one cluster whose nodes all hang on one switch: the first `etcd` members of the default lab, and workers.
fn star(etcd: usize, workers: u32) -> anyhow::Result<Lab> {
    let mut lab = Lab::default_lab();
    lab.clusters.truncate(1);
    let cluster = lab.clusters.first_mut().context("the default lab has no cluster")?;
    cluster.etcd.truncate(etcd);
    cluster.workers = (1..=workers)
        .map(|number| crate::lab::Node {
            name: format!("C0w{number}"),
            address: std::net::Ipv4Addr::from(0x0a00_0000 + number),
            rate: None,
            impls: crate::impls::WorkerImpls::default(),
        })
        .collect();
    Ok(lab)
}
