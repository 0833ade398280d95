//! One running agent, ours or flanneld, and what can be seen of its worker.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::run_in;
use super::{shell, wait_for, wait_within};

/// The port of the health checks, in the namespace of the worker.
const HEALTH_PORT: &str = "8471";

/// How long an agent counts as just started, and a little more.
const NEWCOMER: Duration = Duration::from_millis(2500);

/// Who plays the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The program under test.
    Ours,
    /// The original, from `PATH`.
    Flanneld,
}

/// A running agent, killed when dropped.
pub struct Agent {
    child: Child,
    started: Instant,
    program: Program,
    n: u8,
    log: PathBuf,
    subnet_file: PathBuf,
}

impl Agent {
    /// Starts `program` in the namespace of worker `n`.
    pub fn spawn(program: Program, n: u8, log: &Path, subnet_file: &Path, arguments: &[&str]) -> Self {
        let file = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/w{n}"))
            .arg(match program {
                Program::Ours => env!("CARGO_BIN_EXE_flannel-rs"),
                Program::Flanneld => "flanneld",
            })
            .args(["-healthz-port", HEALTH_PORT, "-subnet-file"])
            .arg(subnet_file)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, started: Instant::now(), program, n, log: log.to_owned(), subnet_file: subnet_file.to_owned() }
    }

    /// Waits until pods may start.
    #[track_caller]
    pub fn ready(self) -> Self {
        wait_for("an agent to be ready", || self.is_ready().then_some(()));
        self
    }

    /// Says whether `/readyz` says so.
    pub fn is_ready(&self) -> bool {
        self.http("/readyz").0 == 200
    }

    /// Waits until the agent runs for so long that nobody takes it for a newcomer.
    pub fn outlives_its_start(&self) {
        wait_for("the agent to have run for a while", || (self.started.elapsed() > NEWCOMER).then_some(()));
    }

    /// Who plays this agent.
    pub fn program(&self) -> Program {
        self.program
    }

    /// The number of the worker.
    pub fn number(&self) -> u8 {
        self.n
    }

    /// Runs a command in the worker's namespace and returns what it prints.
    #[track_caller]
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

    /// A value of the subnet file.
    pub fn subnet_env(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(&self.subnet_file).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(ToOwned::to_owned)
    }

    /// The key of the worker, from its subnet file: `11.10.0.0-20`, `11.10.0.0-20&fd00:11:0:1::-64`.
    #[track_caller]
    pub fn subnet(&self) -> String {
        let length = |value: &str| value.split_once('/').unwrap().1.to_owned();
        let ipv4 = format!("{}-{}", self.base(), length(&self.subnet_env("FLANNEL_SUBNET").unwrap()));
        match (self.base6(), self.subnet_env("FLANNEL_IPV6_SUBNET")) {
            (Some(base), Some(value)) => format!("{ipv4}&{base}-{}", length(&value)),
            _ => ipv4,
        }
    }

    /// The base of the worker's subnet, one below the address of its bridge.
    #[track_caller]
    pub fn base(&self) -> String {
        let value = self.subnet_env("FLANNEL_SUBNET").expect("a subnet file with FLANNEL_SUBNET");
        let gateway: Ipv4Addr = value.split('/').next().unwrap().parse().unwrap();
        Ipv4Addr::from(u32::from(gateway) - 1).to_string()
    }

    /// The base of the worker's IPv6 subnet, if it has one.
    pub fn base6(&self) -> Option<String> {
        let value = self.subnet_env("FLANNEL_IPV6_SUBNET")?;
        let gateway: Ipv6Addr = value.split('/').next().unwrap().parse().unwrap();
        Some(Ipv6Addr::from(u128::from(gateway) - 1).to_string())
    }

    /// The MAC address of the worker's VXLAN device.
    pub fn mac(&self) -> Option<String> {
        self.mac_of("flannel.100")
    }

    /// The MAC address of a device.
    pub fn mac_of(&self, device: &str) -> Option<String> {
        self.ip_json(&format!("link show {device}"))[0]["address"].as_str().map(ToOwned::to_owned)
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
            + usize::from(has(&routes, format!("{peer_base}/20 via {peer_base} "), "onlink"))
    }

    /// Says whether all three entries lead to `peer`, and no FDB entry leads to its address that should not.
    pub fn reaches(&self, peer: &Agent) -> bool {
        let (peer_mac, peer_ip) = (peer.mac().unwrap_or_default(), format!("10.9.0.{}", peer.n));
        let fdb = run_in(self.n, "bridge fdb show dev flannel.100").unwrap_or_default();
        let towards = fdb.lines().filter(|line| line.contains(&format!(" dst {peer_ip} "))).count();
        towards == 1 && self.entries_towards(&peer.base(), &peer_mac, &peer_ip) == 3
    }

    /// Says whether a plain route over the external interface leads to `peer`, as without an overlay.
    pub fn routes_directly_to(&self, peer: &Agent) -> bool {
        let routes = run_in(self.n, "ip route show dev eth0").unwrap_or_default();
        let start = format!("{}/20 via 10.9.0.{} ", peer.base(), peer.n);
        routes.lines().any(|line| line.starts_with(&start))
    }

    /// Gives the worker a pod's address, the second of its subnet, on a bridge as the CNI plugin makes one.
    pub fn add_pod(&self) -> String {
        let base: Ipv4Addr = self.base().parse().unwrap();
        let pod = Ipv4Addr::from(u32::from(base) + 2);
        self.run("ip link show cni0 >/dev/null 2>&1 || ip link add cni0 type bridge; ip link set cni0 up");
        self.run(&format!("ip addr replace {pod}/20 dev cni0"));
        pod.to_string()
    }

    /// The same for IPv6.
    pub fn add_pod6(&self) -> String {
        let base: Ipv6Addr = self.base6().unwrap().parse().unwrap();
        let pod = Ipv6Addr::from(u128::from(base) + 2);
        self.run("ip link show cni0 >/dev/null 2>&1 || ip link add cni0 type bridge; ip link set cni0 up");
        self.run(&format!("ip addr replace {pod}/64 dev cni0 nodad"));
        pod.to_string()
    }

    /// Asks the agent over HTTP; status 0 when nobody answers.
    pub fn http(&self, path: &str) -> (u16, String) {
        let url = format!("http://127.0.0.1:{HEALTH_PORT}{path}");
        let answer = run_in(self.n, &format!("curl -s -m 2 -w '\\n%{{http_code}}' {url}")).unwrap_or_default();
        match answer.rsplit_once('\n') {
            Some((body, status)) => (status.parse().unwrap_or(0), body.to_owned()),
            None => (0, String::new()),
        }
    }

    /// What the agents of this worker have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The number of lines of the log.
    pub fn log_lines(&self) -> usize {
        self.log().lines().count()
    }

    /// Sends a signal by its name, e.g. `STOP`.
    pub fn signal(&self, name: &str) {
        shell(&format!("kill -{name} {}", self.child.id()));
    }

    /// Says whether the program still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends the agent as a supervisor does, and says how it ended and how long it took.
    pub fn terminate(mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal("TERM");
        let status = self.wait_until_ended(Duration::from_secs(10));
        (status, start.elapsed())
    }

    /// Ends the agent whoever it is: flanneld may hang at its end, so it is killed after three seconds.
    pub fn stop(mut self) {
        self.signal("TERM");
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an agent that ends by itself.
    #[track_caller]
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.wait_until_ended(Duration::from_secs(20));
        let log = self.log();
        (status, log)
    }

    #[track_caller]
    fn wait_until_ended(&mut self, limit: Duration) -> ExitStatus {
        wait_within(limit, "the agent to end", || self.child.try_wait().unwrap())
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
