//! A small cluster: an etcd and some workers, each in a network namespace of its own, joined by one bridge.
//!
//! ```text
//!   w1 ── eth0 10.9.0.1, fd09::1 ┐
//!   w2 ── eth0 10.9.0.2, fd09::2 ┤ bridge t0, 10.9.0.254: etcd
//!   w3 ── eth0 10.9.0.3, fd09::3 ┘
//! ```
//!
//! All of it lies inside the sandbox of one test and goes with it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use super::agent::{Agent, Program};
use super::pki::Pki;
use super::{Etcd, shell, wait_for};

/// Where etcd listens.
pub const ETCD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 254);
/// A lab's network configuration.
pub const CONFIG: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "Backend": {"Type": "vxlan", "VNI": 100, "Port": 8472}}"#;
/// The same network with IPv6 beside it.
pub const DUAL_STACK: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "EnableIPv6": true, "IPv6Network": "fd00:11::/32", "Backend": {"Type": "vxlan", "VNI": 100}}"#;
/// The same network without an overlay: the workers are each other's routers.
pub const HOST_GW: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "Backend": {"Type": "host-gw"}}"#;
/// The same network with a VXLAN only where a router lies in between, which in this lab is nowhere.
pub const DIRECT_ROUTING: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "Backend": {"Type": "vxlan", "VNI": 100, "DirectRouting": true}}"#;

/// The bridge, the namespaces and the etcd.
pub struct Lab {
    pub etcd: Etcd,
    directory: TempDir,
}

impl Lab {
    /// Builds a lab with `workers` namespaces, `w1` and so on, and an etcd without configuration.
    pub fn new(workers: u8) -> Self {
        Self::with_pki(workers, None)
    }

    /// The same with an etcd that serves TLS, if a `pki` is given.
    pub fn with_pki(workers: u8, pki: Option<Pki>) -> Self {
        shell(
            "ip link set lo up && ip link add t0 type bridge && ip addr add 10.9.0.254/24 dev t0 && ip link set t0 up",
        );
        for n in 1..=workers {
            shell(&format!("ip netns add w{n} && ip -n w{n} link set lo up"));
            plug_in(n);
        }
        Self { etcd: Etcd::start_with(ETCD, pki), directory: tempfile::tempdir().unwrap() }
    }

    /// Builds a lab whose network is configured as an overlay.
    pub fn configured(workers: u8) -> Self {
        Self::with_config(workers, CONFIG)
    }

    /// Builds a lab with a network configuration.
    pub fn with_config(workers: u8, json: &str) -> Self {
        let lab = Self::new(workers);
        lab.etcd.configure(json);
        lab
    }

    /// Where worker `n`'s subnet file is.
    pub fn subnet_file(&self, n: u8) -> PathBuf {
        self.directory.path().join(format!("w{n}/subnet.env"))
    }

    /// Writes the subnet file that a former run may have left, so that the agent wishes for this subnet.
    pub fn plant_subnet_file(&self, n: u8, text: &str) {
        let path = self.subnet_file(n);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Starts a program as the agent of worker `n`.
    pub fn launch(&self, program: Program, n: u8, more: &[&str]) -> Agent {
        let endpoint = self.etcd.endpoint();
        let arguments = ["-iface", "eth0", "-etcd-endpoints", &endpoint];
        let arguments: Vec<&str> = arguments.into_iter().chain(more.iter().copied()).collect();
        self.launch_with(program, n, &arguments)
    }

    /// The same without the usual interface and endpoints.
    pub fn launch_with(&self, program: Program, n: u8, arguments: &[&str]) -> Agent {
        Agent::spawn(program, n, &self.directory.path().join(format!("w{n}.log")), &self.subnet_file(n), arguments)
    }

    /// Starts our agent on worker `n`.
    pub fn start(&self, n: u8, more: &[&str]) -> Agent {
        self.launch(Program::Ours, n, more)
    }

    /// Starts the agent of worker `n` afresh and waits until pods may start there.
    pub fn start_ready(&self, n: u8, more: &[&str]) -> Agent {
        let _ = fs::remove_file(self.subnet_file(n));
        self.restart_ready(n, more)
    }

    /// Starts the agent of worker `n` on the subnet file of its former run.
    pub fn restart_ready(&self, n: u8, more: &[&str]) -> Agent {
        self.start(n, more).ready()
    }
}

/// Gives worker `n` its external interface.
pub fn plug_in(n: u8) {
    shell(&format!(
        "ip link add w{n}-eth0 type veth peer name eth0 netns w{n} && ip link set w{n}-eth0 master t0 up && \
         ip -n w{n} addr add 10.9.0.{n}/24 dev eth0 && ip -n w{n} addr add fd09::{n}/64 dev eth0 nodad && \
         ip -n w{n} link set eth0 up"
    ));
}

/// Runs a command line in the namespace of worker `n`.
pub fn run_in(n: u8, command: &str) -> Result<String, String> {
    let output =
        Command::new("nsenter").arg(format!("--net=/run/netns/w{n}")).args(["sh", "-c", command]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The route of a [`RouteMonitor`]'s own.
const MARK: &str = "198.51.100.0/24";

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
        let file = fs::File::create(Self::file(output.path())).unwrap();
        let child =
            Command::new("ip").args(["-n", &format!("w{n}"), "-o", "monitor", "route"]).stdout(file).spawn().unwrap();
        let monitor = Self { child, n, output };
        monitor.synchronise();
        monitor
    }

    /// The routes that were deleted so far, one a line.
    pub fn deleted(self) -> Vec<String> {
        self.synchronise();
        let deleted = |line: &String| line.starts_with("Deleted") && !line.contains(MARK);
        self.lines().into_iter().filter(deleted).collect()
    }

    /// Waits until all that has happened is written down: makes a change of its own until that one shows.
    fn synchronise(&self) {
        let before = self.lines().len();
        wait_for("the monitor to listen", || {
            run_in(self.n, &format!("ip route replace blackhole {MARK}; ip route del blackhole {MARK}")).unwrap();
            self.lines()[before..].iter().any(|line| line.contains(MARK)).then_some(())
        });
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(Self::file(self.output.path())).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn file(directory: &Path) -> PathBuf {
        directory.join("routes")
    }
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
