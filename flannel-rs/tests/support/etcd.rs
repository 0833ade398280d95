//! A real etcd that lives as long as its value.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::pki::Pki;
use super::{PREFIX, wait_for};

/// A single etcd member with its data in a directory of its own.
pub struct Etcd {
    child: Child,
    address: Ipv4Addr,
    client_port: u16,
    peer_port: u16,
    pki: Option<Pki>,
    /// `user:password` for `etcdctl`, once the member asks for it.
    root: Option<String>,
    directory: TempDir,
}

impl Etcd {
    /// Starts a member that serves clients on `address` and waits until it answers.
    pub fn start(address: Ipv4Addr) -> Self {
        Self::start_with(address, None)
    }

    /// Starts a member that serves TLS only, and asks clients for a certificate if `pki` says so.
    pub fn start_with(address: Ipv4Addr, pki: Option<Pki>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(address), free_port(Ipv4Addr::LOCALHOST));
        let child = spawn(directory.path(), (address, client_port), peer_port, pki.as_ref());
        let etcd = Self { child, address, client_port, peer_port, pki, root: None, directory };
        etcd.wait_until_healthy();
        etcd
    }

    /// Its client URL.
    pub fn endpoint(&self) -> String {
        url(self.pki.as_ref(), self.address, self.client_port)
    }

    /// The authority, certificates and keys that the member was started with.
    pub fn pki(&self) -> &Pki {
        self.pki.as_ref().unwrap()
    }

    /// Kills the member; its data stays.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the member again on the data that it left.
    pub fn restart(&mut self) {
        self.child = spawn(self.directory.path(), (self.address, self.client_port), self.peer_port, self.pki.as_ref());
        self.wait_until_healthy();
    }

    /// Starts the killed member again on no data at all: as if restored from a snapshot taken before anything was written.
    pub fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.data()).unwrap();
        self.restart();
    }

    /// Saves a snapshot of all data, as an operator does.
    pub fn snapshot(&self) -> PathBuf {
        let file = self.directory.path().join("snapshot");
        self.ctl(&["snapshot", "save", file.to_str().unwrap()]);
        file
    }

    /// Starts the killed member again on the data of a snapshot.
    pub fn restart_from(&mut self, snapshot: &Path) {
        std::fs::remove_dir_all(self.data()).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data = self.data();
        self.ctl(&[
            "snapshot",
            "restore",
            snapshot.to_str().unwrap(),
            "--data-dir",
            data.to_str().unwrap(),
            "--initial-cluster",
            &format!("default={peer}"),
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        self.restart();
    }

    /// Has the member ask for a user and a password from now on.
    pub fn enable_auth(&mut self, root_password: &str) {
        self.ctl(&["user", "add", &format!("root:{root_password}")]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["auth", "enable"]);
        self.root = Some(format!("root:{root_password}"));
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

    /// Writes a subnet key without an etcd lease.
    pub fn put(&self, subnet: &str, value: &str) {
        self.ctl(&["put", &format!("{PREFIX}/subnets/{subnet}"), value]);
    }

    /// Deletes a subnet key.
    pub fn delete(&self, subnet: &str) {
        self.ctl(&["del", &format!("{PREFIX}/subnets/{subnet}")]);
    }

    /// The etcd lease of a subnet key, 0 for none.
    pub fn lease_id(&self, subnet: &str) -> i64 {
        let json = self.ctl(&["get", "-w", "json", &format!("{PREFIX}/subnets/{subnet}")]);
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        answer["kvs"][0]["lease"].as_i64().unwrap_or(0)
    }

    /// The time to live, in seconds, that an etcd lease was granted for.
    pub fn granted_seconds(&self, lease_id: i64) -> i64 {
        let json = self.ctl(&["lease", "timetolive", "-w", "json", &format!("{lease_id:x}")]);
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        answer["granted-ttl"].as_i64().unwrap()
    }

    /// Ends the etcd lease of a subnet key, as its running out does.
    pub fn expire(&self, subnet: &str) {
        self.ctl(&["lease", "revoke", &format!("{:x}", self.lease_id(subnet))]);
    }

    /// The present revision.
    pub fn revision(&self) -> i64 {
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&["get", "-w", "json", "x"])).unwrap();
        answer["header"]["revision"].as_i64().unwrap()
    }

    /// Throws away every revision but the present one.
    pub fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]);
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoint());
        if let Some(pki) = &self.pki {
            // The test knows its etcd; whether the agent does is what is tested.
            command.env("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "true");
            command.env("ETCDCTL_CERT", pki.client_cert()).env("ETCDCTL_KEY", pki.client_key());
        }
        if let Some(root) = &self.root {
            command.env("ETCDCTL_USER", root);
        }
        command.args(arguments);
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

fn url(pki: Option<&Pki>, address: Ipv4Addr, port: u16) -> String {
    format!("{}://{address}:{port}", if pki.is_some() { "https" } else { "http" })
}

fn spawn(directory: &Path, (address, client_port): (Ipv4Addr, u16), peer_port: u16, pki: Option<&Pki>) -> Child {
    let client = url(pki, address, client_port);
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(directory.join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}")]);
    if let Some(pki) = pki {
        command.arg("--cert-file").arg(pki.server_cert()).arg("--key-file").arg(pki.server_key());
        if pki.wants_client_certificates() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(pki.ca());
        }
    }
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// A port that nobody has at the moment, chosen by the kernel.
fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}
