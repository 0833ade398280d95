//! What the tests share: a real etcd that lives as long as its value.

#![expect(clippy::unwrap_used, reason = "these are helpers of tests, whose failures are panics")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

pub mod lab;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flannel_rs::config::EtcdConfig;
use flannel_rs::registry::Registry;
use tempfile::TempDir;

/// The prefix of all keys, flanneld's default.
pub const PREFIX: &str = "/coreos.com/network";

/// A single etcd member with its data in a directory of its own.
pub struct Etcd {
    child: Child,
    address: Ipv4Addr,
    client_port: u16,
    peer_port: u16,
    directory: TempDir,
}

impl Etcd {
    /// Starts a member that serves clients on `address` and waits until it answers.
    pub fn start(address: Ipv4Addr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(address), free_port(Ipv4Addr::LOCALHOST));
        let child = spawn(directory.path(), address, client_port, peer_port);
        let etcd = Self { child, address, client_port, peer_port, directory };
        etcd.wait_until_healthy();
        etcd
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.address, self.client_port)
    }

    /// Kills the member; its data stays.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the member again on the data that it left.
    pub fn restart(&mut self) {
        self.child = spawn(self.directory.path(), self.address, self.client_port, self.peer_port);
        self.wait_until_healthy();
    }

    /// Starts the member again on no data at all: as if restored from a snapshot taken before anything was written.
    pub fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.restart();
    }

    /// Runs `etcdctl` against the member and returns what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.ctl_command(arguments).output().unwrap();
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes the network configuration.
    pub fn configure(&self, json: &str) {
        self.ctl(&["put", &format!("{PREFIX}/config"), json]);
    }

    /// The names of the subnet keys, without their prefix.
    pub fn subnets(&self) -> Vec<String> {
        let prefix = format!("{PREFIX}/subnets/");
        let keys = self.ctl(&["get", "--prefix", "--keys-only", &prefix]);
        keys.lines().filter_map(|key| key.strip_prefix(&prefix)).map(ToOwned::to_owned).collect()
    }

    /// The value of a subnet key.
    pub fn value(&self, subnet: &str) -> String {
        self.ctl(&["get", "--print-value-only", &format!("{PREFIX}/subnets/{subnet}")]).trim_end().to_owned()
    }

    /// The etcd lease of a subnet key, 0 for none.
    pub fn lease_id(&self, subnet: &str) -> i64 {
        let json = self.ctl(&["get", "-w", "json", &format!("{PREFIX}/subnets/{subnet}")]);
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        answer["kvs"][0]["lease"].as_i64().unwrap_or(0)
    }

    /// The present revision.
    pub fn revision(&self) -> i64 {
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&["get", "-w", "json", "x"])).unwrap();
        answer["header"]["revision"].as_i64().unwrap()
    }

    /// A client as the agent has it.
    pub async fn registry(&self) -> Registry {
        self.registry_with(vec![self.endpoint()]).await
    }

    /// A client that is told other endpoints.
    pub async fn registry_with(&self, endpoints: Vec<String>) -> Registry {
        let config = EtcdConfig { endpoints, prefix: PREFIX.to_owned(), credentials: None };
        Registry::connect(&config).await.unwrap()
    }

    fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoint()).args(arguments);
        command
    }

    fn wait_until_healthy(&self) {
        wait_for("etcd to answer", || {
            let status = self.ctl_command(&["endpoint", "health"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.unwrap().success().then_some(())
        });
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries `probe` until it gives something, for ten seconds.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_within(Duration::from_secs(10), what, probe)
}

/// Tries `probe` every 10 ms until it gives something.
pub fn wait_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Prints to standard error, e.g. the log of a daemon whose test failed.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn spawn(directory: &Path, address: Ipv4Addr, client_port: u16, peer_port: u16) -> Child {
    let client = format!("http://{address}:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = std::fs::File::create(directory.join("log")).unwrap();
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A port that nobody has at the moment, chosen by the kernel.
fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}
