//! A small cluster: an etcd and some workers, each in a network namespace of its own, joined by one bridge.
//!
//! ```text
//!   w1 ── eth0 10.9.0.1 ┐
//!   w2 ── eth0 10.9.0.2 ┤ bridge t0, 10.9.0.254: etcd
//!   w3 ── eth0 10.9.0.3 ┘
//! ```
//!
//! All of it lies inside the sandbox of one test and goes with it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{Etcd, wait_for};

/// Where etcd listens.
const ETCD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 254);
/// A lab's network configuration.
pub const CONFIG: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "Backend": {"Type": "vxlan", "VNI": 100, "Port": 8472}}"#;

/// The bridge, the namespaces and the etcd.
pub struct Lab {
    pub etcd: Etcd,
    directory: TempDir,
}

impl Lab {
    /// Builds a lab with `workers` namespaces, `w1` and so on, and an etcd without configuration.
    pub fn new(workers: u8) -> Self {
        shell(
            "ip link set lo up && ip link add t0 type bridge && ip addr add 10.9.0.254/24 dev t0 && ip link set t0 up",
        );
        for n in 1..=workers {
            shell(&format!(
                "ip netns add w{n} && ip link add w{n}-eth0 type veth peer name eth0 netns w{n} && \
                 ip link set w{n}-eth0 master t0 up && ip -n w{n} link set lo up && \
                 ip -n w{n} addr add 10.9.0.{n}/24 dev eth0 && ip -n w{n} link set eth0 up"
            ));
        }
        Self { etcd: Etcd::start(ETCD), directory: tempfile::tempdir().unwrap() }
    }

    /// Builds a lab whose network is configured.
    pub fn configured(workers: u8) -> Self {
        let lab = Self::new(workers);
        lab.etcd.configure(CONFIG);
        lab
    }

    /// Where worker `n`'s subnet file is.
    pub fn subnet_file(&self, n: u8) -> PathBuf {
        self.directory.path().join(format!("w{n}/subnet.env"))
    }

    /// Starts the agent of worker `n`.
    pub fn start(&self, n: u8, more: &[&str]) -> Agent {
        let log = self.directory.path().join(format!("w{n}.log"));
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/w{n}"))
            .arg(env!("CARGO_BIN_EXE_flannel-rs"))
            .args(["-iface", "eth0", "--etcd-endpoints", &self.etcd.endpoint(), "--subnet-file"])
            .arg(self.subnet_file(n))
            .args(["--healthz-port", "8471"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Agent { child, n, log, subnet_file: self.subnet_file(n) }
    }

    /// Starts the agent of worker `n` afresh and waits until pods may start there.
    pub fn start_ready(&self, n: u8, more: &[&str]) -> Agent {
        let _ = fs::remove_file(self.subnet_file(n));
        self.restart_ready(n, more)
    }

    /// Starts the agent of worker `n` on the subnet file of its former run.
    pub fn restart_ready(&self, n: u8, more: &[&str]) -> Agent {
        let agent = self.start(n, more);
        wait_for("an agent to be ready", || (agent.http("/readyz").0 == 200).then_some(()));
        agent
    }
}

/// A running agent, killed when dropped.
pub struct Agent {
    child: Child,
    n: u8,
    log: PathBuf,
    subnet_file: PathBuf,
}

impl Agent {
    /// Runs a command in the worker's namespace and returns what it prints.
    pub fn run(&self, command: &str) -> String {
        run_in(self.n, command).unwrap_or_else(|error| panic!("w{}: {command}: {error}", self.n))
    }

    /// Says whether a command in the worker's namespace succeeds.
    pub fn succeeds(&self, command: &str) -> bool {
        run_in(self.n, command).is_ok()
    }

    /// Runs an `ip` command that prints JSON; nothing printed counts as an empty list.
    pub fn ip_json(&self, arguments: &str) -> Value {
        let text = run_in(self.n, &format!("ip -j {arguments}")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_else(|_| Value::Array(vec![]))
    }

    /// The subnet of the worker, from its subnet file: `11.10.0.0-20`.
    pub fn subnet(&self) -> String {
        let subnet = flannel_rs::subnet_env::previous_subnet(&self.subnet_file).unwrap();
        flannel_rs::lease::Subnet::new(subnet).to_string()
    }

    /// The base of the worker's subnet.
    pub fn base(&self) -> String {
        self.subnet().split('-').next().unwrap().to_owned()
    }

    /// The MAC address of the worker's VXLAN device.
    pub fn mac(&self) -> Option<String> {
        self.ip_json("link show flannel.100")[0]["address"].as_str().map(ToOwned::to_owned)
    }

    /// The neighbour, FDB entry and route that lead to `peer`, as iproute2 shows them: how many of the three are there.
    pub fn entries_towards(&self, peer_base: &str, peer_mac: &str, peer_ip: &str) -> usize {
        // While there is no device there are no entries.
        let show = |command: &str| run_in(self.n, command).unwrap_or_default();
        let neighbours = show("ip neigh show dev flannel.100");
        let fdb = show("bridge fdb show dev flannel.100");
        let routes = show("ip route show dev flannel.100");
        let has = |text: &str, start: String, end: &str| {
            text.lines().any(|line| line.starts_with(&start) && line.contains(end))
        };
        usize::from(has(&neighbours, format!("{peer_base} lladdr {peer_mac} "), "PERMANENT"))
            + usize::from(has(&fdb, format!("{peer_mac} dst {peer_ip} "), "self permanent"))
            + usize::from(has(&routes, format!("{peer_base}/20 via {peer_base} proto 70 "), "onlink"))
    }

    /// Says whether all three entries lead to `peer`.
    pub fn reaches(&self, peer: &Agent) -> bool {
        let peer_mac = peer.mac().unwrap_or_default();
        self.entries_towards(&peer.base(), &peer_mac, &format!("10.9.0.{}", peer.n)) == 3
    }

    /// Gives the worker a pod's address, the second of its subnet, on a bridge as the CNI plugin makes one.
    pub fn add_pod(&self) -> String {
        let octets: Ipv4Addr = self.base().parse().unwrap();
        let pod = Ipv4Addr::from(u32::from(octets) + 2);
        self.run(&format!("ip link add cni0 type bridge && ip addr add {pod}/20 dev cni0 && ip link set cni0 up"));
        pod.to_string()
    }

    /// Asks the agent over HTTP; status 0 when nobody answers.
    pub fn http(&self, path: &str) -> (u16, String) {
        let answer =
            run_in(self.n, &format!("curl -s -w '\\n%{{http_code}}' http://127.0.0.1:8471{path}")).unwrap_or_default();
        match answer.rsplit_once('\n') {
            Some((body, status)) => (status.parse().unwrap_or(0), body.to_owned()),
            None => (0, String::new()),
        }
    }

    /// What the agent has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the agent as a supervisor does, and says how it ended and how long it took.
    pub fn terminate(mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        shell(&format!("kill -TERM {}", self.child.id()));
        let status = self.child.wait().unwrap();
        (status, start.elapsed())
    }

    /// Waits for an agent that ends by itself.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let log = self.log();
        (status, log)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            super::say(&format!("log of w{}:\n{}", self.n, self.log()));
        }
    }
}

/// Hears of every change of the routes of a worker.
pub struct RouteMonitor {
    child: Child,
    n: u8,
    output: TempDir,
}

impl RouteMonitor {
    /// Starts listening in the namespace of worker `n`.
    pub fn start(n: u8) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = fs::File::create(output.path().join("routes")).unwrap();
        let child =
            Command::new("ip").args(["-n", &format!("w{n}"), "-o", "monitor", "route"]).stdout(file).spawn().unwrap();
        let monitor = Self { child, n, output };
        monitor.synchronise();
        monitor
    }

    /// The routes that were deleted so far, one a line.
    pub fn deleted(self) -> Vec<String> {
        self.synchronise();
        self.lines().into_iter().filter(|line| line.starts_with("Deleted")).collect()
    }

    /// Waits until all that has happened is written down: makes a change of its own until that one shows.
    fn synchronise(&self) {
        let before = self.lines().len();
        wait_for("the monitor to listen", || {
            run_in(self.n, "ip route replace blackhole 198.51.100.0/24; ip route del blackhole 198.51.100.0/24")
                .unwrap();
            self.lines()[before..].iter().any(|line| line.contains("198.51.100.0/24")).then_some(())
        });
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.output.path().join("routes")).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command line and insists that it succeeds.
pub fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command line in the namespace of worker `n`.
pub fn run_in(n: u8, command: &str) -> Result<String, String> {
    let output =
        Command::new("nsenter").arg(format!("--net=/run/netns/w{n}")).args(["sh", "-c", command]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
