//! The words of the prompt that look at the network as a whole, printed as Mininet prints them.

use std::{
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use linux_net::{IfName, NetNs, Netlink, process::CommandNamespaceExt as _};
use serde_json::Value;

use crate::{component, impls, lab::Node, prompt::line::Names, topology, world::World};

/// How many pings run at once.
const PINGS_AT_ONCE: usize = 16;
/// How long `iperf` measures.
const IPERF_SECONDS: u32 = 5;
/// The port of `iperf3`.
const IPERF_PORT: u16 = 5201;

/// `nodes`
pub(super) fn nodes(world: &World) -> String {
    format!("available nodes are: \n{}\n", world.nodes().join(" "))
}

/// `net`: each node's interfaces, and what each is linked to.
pub(super) fn net(world: &World) -> String {
    let links = topology::links(&world.lab);
    let mut text = String::new();
    for (_, node) in world.lab.nodes() {
        let _ = write!(text, "{}", node.name);
        for link in links.iter().filter(|link| link.a == node.name) {
            let _ = write!(text, " {}:{}", link.a_interface, link.b_interface);
        }
        text.push('\n');
    }
    for switch in world.lab.switches() {
        let _ = write!(text, "{switch} lo: ");
        for link in &links {
            if link.a == switch {
                let _ = write!(text, " {}:{}", link.a_interface, link.b_interface);
            } else if link.b == switch {
                let _ = write!(text, " {}:{}", link.b_interface, link.a_interface);
            }
        }
        text.push('\n');
    }
    text
}

/// `links`: each link and whether its ends are up.
pub(super) fn links(world: &World) -> anyhow::Result<String> {
    let state = |node: &str, interface: &str| -> anyhow::Result<&'static str> {
        let link = Netlink::open_in(&world.netns(node, None)?)?.link(&IfName::new(interface)?)?;
        Ok(match link {
            Some(link) if link.up => "OK",
            Some(_) => "MISSING (down)",
            None => "MISSING (gone)",
        })
    };
    let mut text = String::new();
    for link in topology::links(&world.lab) {
        let (a, b) = (state(&link.a, &link.a_interface)?, state(&link.b, &link.b_interface)?);
        let _ = writeln!(text, "{}<->{} ({a} {b})", link.a_interface, link.b_interface);
    }
    Ok(text)
}

/// `dump`: nodes with their addresses, containers, and daemons with their process ids.
pub(super) fn dump(world: &World) -> String {
    let daemons = world.supervisor.status();
    let mut text = String::new();
    for (cluster, node) in world.lab.nodes() {
        let _ = write!(text, "<Node {}: {}:{}", node.name, node.interface(), node.address);
        for (name, running) in world.containers_of(cluster).iter().filter(|(_, running)| running.worker == node.name) {
            let address = running.address.map_or("-".to_owned(), |address| address.to_string());
            let _ = write!(text, ", {name}:{address}");
        }
        for daemon in daemons.iter().filter(|daemon| daemon.node == node.name) {
            let pid = daemon.pid.map_or("-".to_owned(), |pid| pid.to_string());
            let _ = write!(text, " {} pid={pid}", daemon.daemon);
        }
        text.push_str(">\n");
    }
    for switch in world.lab.switches() {
        let _ = writeln!(text, "<LinuxBridge {switch}>");
    }
    text
}

/// `pingall`: every node pings every other one. Returns the exit status: 1 when a ping was lost.
pub(super) fn ping_all(world: &World) -> anyhow::Result<i32> {
    super::execute::print("*** Ping: testing ping reachability\n")?;
    let nodes: Vec<&Node> = world.lab.nodes().map(|(_, node)| node).collect();
    let (mut sent, mut received) = (0_u32, 0_u32);
    for from in &nodes {
        let netns = NetNs::open(&from.name)?;
        let others: Vec<&&Node> = nodes.iter().filter(|to| to.name != from.name).collect();
        let mut line = format!("{} ->", from.name);
        for batch in others.chunks(PINGS_AT_ONCE) {
            let answered = ping_batch(world, &netns, batch)?;
            for (to, answered) in batch.iter().zip(answered) {
                sent += 1;
                received += u32::from(answered);
                let _ = write!(line, " {}", if answered { &to.name } else { "X" });
            }
        }
        super::execute::print(&line)?;
    }
    let dropped = (sent - received) * 100 / sent.max(1);
    super::execute::print(&format!("*** Results: {dropped}% dropped ({received}/{sent} received)\n"))?;
    Ok(i32::from(received < sent))
}

fn ping_batch(world: &World, netns: &NetNs, to: &[&&Node]) -> anyhow::Result<Vec<bool>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = to
            .iter()
            .map(|node| {
                scope.spawn(move || {
                    let mut ping = Command::new("ping");
                    ping.args(["-c1", "-W1", &node.address.to_string()]).in_netns(netns);
                    world.processes.output(&mut ping).map(|(status, ..)| status.success())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?.context("run ping"))
            .collect()
    })
}

/// `iperf A B`: TCP bandwidth from A to B, with `iperf3`.
pub(super) fn iperf(world: &World, from: &str, to: &str) -> anyhow::Result<String> {
    let (Some((_, client)), Some((_, server))) = (world.node(from), world.node(to)) else {
        bail!("iperf runs between nodes; a switch has no address");
    };
    let program = impls::find("iperf3").context("the program iperf3 is missing; run `make deps` as root")?;
    let server_netns = NetNs::open(&server.name)?;
    let mut serve = Command::new(&program);
    // -1: it ends by itself after one client.
    serve.args(["-s", "-1", "-p", &IPERF_PORT.to_string()]).in_netns(&server_netns).own_process_group();
    serve.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let (ended, end) = std::sync::mpsc::channel();
    let pid = world.processes.spawn(&mut serve, ended)?;
    let mut measure = Command::new(&program);
    measure
        .args([
            "-J",
            "-t",
            &IPERF_SECONDS.to_string(),
            "-p",
            &IPERF_PORT.to_string(),
            "-c",
            &server.address.to_string(),
        ])
        .in_netns(&NetNs::open(&client.name)?);
    // A probe connection would be taken for the one client, so the listening socket is looked for instead.
    let listening = wait_for_listener(&server_netns, IPERF_PORT);
    let result =
        if listening { world.processes.output(&mut measure) } else { Err(std::io::ErrorKind::TimedOut.into()) };
    crate::process::signal_group(pid, nix::sys::signal::Signal::SIGTERM);
    let _ = end.recv_timeout(Duration::from_secs(2));
    let (status, output, errors) = result.context("run iperf3")?;
    let report: Value = serde_json::from_str(&output).with_context(|| format!("iperf3 said {output}{errors}"))?;
    if !status.success() {
        bail!("iperf3: {}", report["error"].as_str().unwrap_or(&errors));
    }
    let rate = |which: &str| {
        let bits = report["end"][which]["bits_per_second"].as_f64().unwrap_or(0.0);
        if bits >= 1e9 { format!("{:.2} Gbits/sec", bits / 1e9) } else { format!("{:.2} Mbits/sec", bits / 1e6) }
    };
    Ok(format!(
        "*** Iperf: testing TCP bandwidth between {from} and {to} \n*** Results: ['{}', '{}']\n",
        rate("sum_sent"),
        rate("sum_received")
    ))
}

fn wait_for_listener(netns: &NetNs, port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    // /proc/net/tcp and tcp6: the local port in hexadecimal, then the state; 0A is LISTEN (Linux Documentation/networking/proc_net_tcp).
    let wanted = format!(":{port:04X} ");
    let listens = || {
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|file| {
            let table = std::fs::read_to_string(file).unwrap_or_default();
            table.lines().any(|line| line.contains(&wanted) && line.contains(" 0A "))
        })
    };
    while Instant::now() < deadline {
        if netns.run(listens).unwrap_or(false) {
            return true;
        }
        std::thread::sleep(component::LOOK_EVERY);
    }
    false
}
