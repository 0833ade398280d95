//! `knetsim bench boot`: how long a lab takes from the command to the prompt, what it costs in memory, and how long bare
//! topologies take beside the same made with the `ip` program.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    star,
    table::{Case, Unit},
};
use crate::{cli::BenchTopologyArgs, labdir::LabDir, prompt::execute::print, sandbox};

/// Sizes of the bare topologies: all nodes on one switch.
const TOPOLOGIES: [u32; 3] = [10, 100, 500];

/// Boots labs and builds bare topologies.
pub(super) fn measure(repeat: u32) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut memory = BTreeMap::new();
    let boots = (0..repeat).map(|_| boot(&mut memory)).collect::<anyhow::Result<Vec<_>>>()?;
    cases.push(Case::new("lab, command to prompt with all checks", Unit::Seconds, boots));
    for nodes in TOPOLOGIES {
        // Ours and the peer in turn, so that both meet the same noise.
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..repeat {
            ours.push(topology_run(nodes, false)?);
            peer.push(topology_run(nodes, true)?);
        }
        let peer = Case::new(&format!("{nodes} nodes on one switch, ip -batch"), Unit::Seconds, peer);
        cases.push(Case::new(&format!("{nodes} nodes on one switch"), Unit::Seconds, ours).beside(&peer));
        cases.push(peer);
    }
    cases.extend(memory.into_iter().map(|(program, runs)| Case::new(&program, Unit::Megabytes, runs)));
    Ok(cases)
}

/// Boots a lab, asks it for its memory, and lets it end. The time counts to the moment at which the first line runs.
fn boot(memory: &mut BTreeMap<String, Vec<f64>>) -> anyhow::Result<f64> {
    // The line runs in the lab and prints once the prompt would be there: then the memory of each program, in KiB.
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
    let mut totals: BTreeMap<String, u32> = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((program, kibibytes)) = line.rsplit_once(' ') else { continue };
        // The shell that counts is no part of the lab.
        if matches!(program, "sh" | "awk" | "cat") {
            continue;
        }
        let kibibytes: u32 = kibibytes.parse().unwrap_or(0);
        *totals.entry(format!("memory (PSS): {program}")).or_default() += kibibytes;
        if program != "etcd" {
            *totals.entry("memory (PSS): together, beside etcd".to_owned()).or_default() += kibibytes;
        }
    }
    let output = child.wait_with_output()?;
    // What went wrong stands in its standard error; the directory would only stay behind.
    let _ = std::fs::remove_dir_all(directory.path());
    let Some(up) = up else {
        bail!("the lab did not boot:\n{}", String::from_utf8_lossy(&output.stderr));
    };
    for (program, kibibytes) in totals {
        memory.entry(program).or_default().push(f64::from(kibibytes) / 1024.0);
    }
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
    super::own_namespaces()?;
    let began = Instant::now();
    if args.ip {
        topology_with_ip(args.nodes, &path)?;
    } else {
        crate::topology::wire(&star(0, args.nodes)?)?;
    }
    print(&format!("{}\n", seconds(began.elapsed())))?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// The same with the `ip` program: one batch for the namespaces, one for the links, one per namespace for the rest.
fn topology_with_ip(nodes: u32, path: &std::ffi::OsStr) -> anyhow::Result<()> {
    let lab = star(0, nodes)?;
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
