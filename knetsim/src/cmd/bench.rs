//! `knetsim bench boot`: how long a lab takes from the command to the prompt, what it costs in memory, and how long bare
//! topologies take beside the same made with the `ip` program.

use std::{
    io::Write,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use linux_net::sandbox::{self as namespaces, Namespaces};
use serde::Serialize;

use crate::{
    cli::{BenchArgs, BenchTopologyArgs},
    impls::WorkerImpls,
    labdir::LabDir,
    prompt::execute::print,
    sandbox,
};

/// Sizes of the bare topologies: all nodes on one switch.
const TOPOLOGIES: [u32; 3] = [10, 100, 500];

/// Numbers of one case, in seconds.
#[derive(Debug, Serialize)]
struct Case {
    name: String,
    runs_seconds: Vec<f64>,
    median_seconds: f64,
    /// This case's median over that of the peer beside it.
    ratio_to_peer: Option<f64>,
}

/// Measures and prints a table.
///
/// # Errors
///
/// When a lab does not boot.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let mut cases = Vec::new();
    let mut memory = Vec::new();
    let boots = (0..args.repeat).map(|_| boot(&mut memory)).collect::<anyhow::Result<Vec<_>>>()?;
    cases.push(case("lab, command to prompt with all checks", boots, None));
    for nodes in TOPOLOGIES {
        // Ours and the peer in turn, so that both meet the same noise.
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..args.repeat {
            ours.push(topology_run(nodes, false)?);
            peer.push(topology_run(nodes, true)?);
        }
        let peer = case(&format!("{nodes} nodes on one switch, ip -batch"), peer, None);
        cases.push(case(&format!("{nodes} nodes on one switch"), ours, Some(&peer)));
        cases.push(peer);
    }
    let mut text = format!("{:<44} {:>9} {:>9} {:>9} {:>7}\n", "case", "median s", "min s", "max s", "ratio");
    for case in &cases {
        let min = case.runs_seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let max = case.runs_seconds.iter().copied().fold(0.0, f64::max);
        let ratio = case.ratio_to_peer.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        text.push_str(&format!("{:<44} {:>9.3} {min:>9.3} {max:>9.3} {ratio:>7}\n", case.name, case.median_seconds));
    }
    for (name, kilobytes) in memory.last().into_iter().flatten() {
        text.push_str(&format!("{name:<44} {:>9.1} MB PSS\n", f64::from(*kilobytes) / 1024.0));
    }
    print(&text)?;
    if let Some(directory) = &args.out {
        write_json(directory, &cases)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_json(directory: &Path, cases: &[Case]) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let file = directory.join("boot.json");
    std::fs::write(&file, serde_json::to_string_pretty(cases)?).with_context(|| format!("write {}", file.display()))
}

fn case(name: &str, mut runs_seconds: Vec<f64>, peer: Option<&Case>) -> Case {
    runs_seconds.sort_by(f64::total_cmp);
    let median_seconds = runs_seconds.get(runs_seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let ratio_to_peer = peer.map(|peer| median_seconds / peer.median_seconds);
    Case { name: name.to_owned(), runs_seconds, median_seconds, ratio_to_peer }
}

/// Boots a lab, asks it for its memory, and lets it end. The time counts to the moment at which the first line runs.
fn boot(memory: &mut Vec<Vec<(String, u32)>>) -> anyhow::Result<f64> {
    // The line runs in the lab and prints once the prompt would be there: then the memory of each program, in kB.
    let line = "sh echo UP; for p in /proc/[0-9]*; do \
                pss=$(awk '/^Pss:/ {print $2}' $p/smaps_rollup 2>/dev/null); \
                [ -n \"$pss\" ] && echo $(cat $p/comm) $pss; done";
    let directory = LabDir::new(&format!("bench-{}", std::process::id()))?;
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe()?)
        .args(["up", "--name", directory.name(), "-c", line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a lab")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().context("no output")?));
    let up = lines.next().transpose()?.filter(|line| line == "UP").map(|_| began.elapsed());
    let mut totals: std::collections::BTreeMap<String, u32> = std::collections::BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((program, kilobytes)) = line.rsplit_once(' ') else { continue };
        // The shell that counts is no part of the lab.
        if matches!(program, "sh" | "awk" | "cat") {
            continue;
        }
        let kilobytes: u32 = kilobytes.parse().unwrap_or(0);
        *totals.entry(format!("memory: {program}")).or_default() += kilobytes;
        if program != "etcd" {
            *totals.entry("memory: together, beside etcd".to_owned()).or_default() += kilobytes;
        }
    }
    let output = child.wait_with_output()?;
    // What went wrong stands in its standard error; the directory would only stay behind.
    let _ = std::fs::remove_dir_all(directory.path());
    let Some(up) = up else {
        bail!("the lab did not boot:\n{}", String::from_utf8_lossy(&output.stderr));
    };
    memory.push(totals.into_iter().collect());
    Ok(up.as_secs_f64())
}

/// One topology in a process of its own, which is gone afterwards with all it made.
fn topology_run(nodes: u32, with_ip: bool) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench-topology", &nodes.to_string()]);
    if with_ip {
        command.arg("--ip");
    }
    let output = command.stdin(Stdio::null()).output().context("start bench-topology")?;
    if !output.status.success() {
        bail!("bench-topology {nodes}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("bench-topology printed {text:?}"))
}

/// Builds one switch with nodes and prints the seconds it took.
///
/// # Errors
///
/// When the kernel refuses something.
pub fn topology(args: &BenchTopologyArgs) -> anyhow::Result<ExitCode> {
    let path = sandbox::path_variable()?;
    let mut own = Namespaces::lab(!nix::unistd::geteuid().is_root());
    own.pid = false; // nothing is started that must end with this process
    namespaces::unshare(own)?;
    namespaces::mount::make_all_private()?;
    namespaces::mount::tmpfs(Path::new("/run"))?;
    namespaces::mount::make_shared(Path::new("/run"))?;
    std::fs::create_dir("/run/netns").context("make /run/netns")?;
    let began = Instant::now();
    if args.ip {
        topology_with_ip(args.nodes, &path)?;
    } else {
        crate::topology::wire(&star(args.nodes)?)?;
    }
    print(&format!("{}\n", seconds(began.elapsed())))?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// The same with the `ip` program: one batch for the namespaces, one for the links, one per namespace for the rest.
fn topology_with_ip(nodes: u32, path: &std::ffi::OsStr) -> anyhow::Result<()> {
    let lab = star(nodes)?;
    let links = crate::topology::links(&lab);
    let is_node = |name: &str| lab.nodes().any(|(_, node)| node.name == name);
    let namespaces: String = lab.nodes().map(|(_, node)| format!("netns add {}\n", node.name)).collect();
    ip(path, &["-batch", "-"], &namespaces)?;
    let mut batch: String =
        lab.switches().map(|switch| format!("link add {switch} type bridge\nlink set {switch} up\n")).collect();
    for link in &links {
        let netns = if is_node(&link.a) { format!(" netns {}", link.a) } else { String::new() };
        batch.push_str(&format!("link add {} type veth peer name {}{netns}\n", link.b_interface, link.a_interface));
        batch.push_str(&format!("link set {} master {} up\n", link.b_interface, link.b));
        if !is_node(&link.a) {
            batch.push_str(&format!("link set {} master {} up\n", link.a_interface, link.a));
        }
    }
    ip(path, &["-batch", "-"], &batch)?;
    for (_, node) in lab.nodes() {
        let interface = node.interface();
        let batch = format!("link set lo up\naddr add {}/8 dev {interface}\nlink set {interface} up\n", node.address);
        ip(path, &["-n", &node.name, "-batch", "-"], &batch)?;
    }
    Ok(())
}

fn ip(path: &std::ffi::OsStr, arguments: &[&str], batch: &str) -> anyhow::Result<()> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "exec ip \"$@\"", "ip"])
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip")?;
    child.stdin.take().context("ip has no input")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A lab of one cluster whose nodes all hang on one switch.
fn star(nodes: u32) -> anyhow::Result<crate::lab::Lab> {
    let mut lab = crate::lab::Lab::default_lab();
    lab.clusters.truncate(1);
    let cluster = lab.clusters.first_mut().context("the default lab has no cluster")?;
    cluster.etcd.clear();
    cluster.workers = (1..=nodes)
        .map(|number| crate::lab::Node {
            name: format!("C0w{number}"),
            address: std::net::Ipv4Addr::from(0x0a00_0000 + number),
            rate: None,
            impls: WorkerImpls::default(),
        })
        .collect();
    Ok(lab)
}
