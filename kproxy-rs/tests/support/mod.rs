//! A worker with pods, an etcd and a service proxy, in the namespaces of one test.
//!
//! ```text
//!   outside 10.0.0.9 ──── 10.0.0.1 worker 11.0.0.254 ═╤═ cni0 ═╤═══════╤═ …
//!     fd00:10::9    fd00:10::1                        │        │       │
//!                              etcd, proxy          p1 .1    p2 .2    p3 .3        11.0.0.n, fd00:11::n
//! ```
//!
//! The proxy is ours, or the real kube-proxy ([`program`]); what a test does is the same.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![expect(clippy::unwrap_used, reason = "a test ends where its laboratory fails, with the line")]

pub(crate) mod objects;
pub(crate) mod program;
pub(crate) mod traffic;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use linux_net::netlink::{Route, Veth};
use linux_net::process::CommandNamespaceExt as _;
use linux_net::{IfName, NetNs, Netlink, Op, sysctl};
use serde_json::{Value, json};

use program::{Program, Settings};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What is refused is refused at once; what is dropped would take much longer.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// The name of the worker, as slices spell it.
pub(crate) const WORKER: &str = "w1";
/// The worker's addresses for the outside.
pub(crate) const WORKER_IP: &str = "10.0.0.1";
pub(crate) const WORKER_IP6: &str = "fd00:10::1";
/// Those on the bridge, which it masquerades with when it sends to a pod.
pub(crate) const GATEWAY: &str = "11.0.0.254";
pub(crate) const GATEWAY6: &str = "fd00:11::fe";
/// The addresses of the host outside.
pub(crate) const OUTSIDE_IP: &str = "10.0.0.9";
pub(crate) const OUTSIDE_IP6: &str = "fd00:10::9";

/// A worker, its pods, and a host outside of the cluster.
pub(crate) struct Lab {
    pub(crate) worker: NetNs,
    pub(crate) outside: NetNs,
    /// How the proxy is started the next time.
    pub(crate) settings: Settings,
    pods: Vec<NetNs>,
    // In the order in which they end: who depends on another goes first.
    proxy: Option<Process>,
    api: Option<Process>,
    etcd: Option<Process>,
    directory: tempfile::TempDir,
}

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}\n{}", self.proxy_log(), self.nft("list ruleset"));
        }
    }
}

impl Lab {
    /// Builds everything and waits until the proxy is in sync.
    pub(crate) fn new(pods: u8) -> Self {
        Self::with(pods, Settings::default())
    }

    /// As [`Lab::new`], with a proxy that is started otherwise.
    pub(crate) fn with(pods: u8, settings: Settings) -> Self {
        let worker = NetNs::create("worker").unwrap();
        let outside = NetNs::create("outside").unwrap();
        let pods: Vec<NetNs> = (1..=pods).map(|n| NetNs::create(&format!("p{n}")).unwrap()).collect();
        for host in pods.iter().chain([&worker, &outside]) {
            // Else every IPv6 address would be of no use for a second, while the kernel looks for others that have it.
            host.run(|| {
                ["all", "default"].map(|which| sysctl::set(&format!("net.ipv6.conf.{which}.accept_dad"), "0").unwrap())
            })
            .unwrap();
        }
        let mut netlink = Netlink::open_in(&worker).unwrap();
        let bridge = name("cni0");
        apply(&mut netlink, [Op::SetUp { dev: IfName::loopback() }, Op::AddBridge { name: bridge.clone() }]);
        apply(&mut netlink, addresses(&bridge, [&format!("{GATEWAY}/24"), &format!("{GATEWAY6}/64")]));
        for (n, pod) in (1..).zip(&pods) {
            let port = name(&format!("veth{n}"));
            apply(
                &mut netlink,
                [
                    Op::AddVeth(Veth::new(port.clone(), name("eth0"), Some(pod))),
                    Op::SetMaster { dev: port.clone(), master: Some(bridge.clone()) },
                    Op::SetHairpin { dev: port.clone(), on: true },
                    Op::SetUp { dev: port },
                ],
            );
            attach(pod, [&format!("11.0.0.{n}/24"), &format!("fd00:11::{n:x}/64")], [GATEWAY, GATEWAY6]);
        }
        let port = name("out0");
        apply(&mut netlink, [Op::AddVeth(Veth::new(port.clone(), name("eth0"), Some(&outside)))]);
        apply(&mut netlink, addresses(&port, [&format!("{WORKER_IP}/24"), &format!("{WORKER_IP6}/64")]));
        attach(&outside, [&format!("{OUTSIDE_IP}/24"), &format!("{OUTSIDE_IP6}/64")], [WORKER_IP, WORKER_IP6]);
        // The worker's own packets are routed before they are translated, so some route must cover the ClusterIPs.
        apply(&mut netlink, [OUTSIDE_IP, OUTSIDE_IP6].map(default_route));
        let keys = [
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
            "net.bridge.bridge-nf-call-iptables",
            "net.bridge.bridge-nf-call-ip6tables",
        ];
        worker.run(|| keys.map(|key| sysctl::set(key, "1").unwrap())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut lab = Self { worker, outside, settings, pods, proxy: None, api: None, etcd: None, directory };
        lab.start_etcd();
        lab.put_worker(&json!({}));
        if program::tested() == Program::KubeProxy {
            lab.start_api();
        }
        lab.start_proxy();
        lab
    }

    /// Pod number `n`, from 1.
    pub(crate) fn pod(&self, n: u8) -> &NetNs {
        &self.pods[usize::from(n) - 1]
    }

    pub(crate) fn start_etcd(&mut self) {
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.directory.path().join("etcd"));
        let (clients, peers) = (program::ETCD, "http://127.0.0.1:2380");
        command.args(["--listen-client-urls", clients, "--advertise-client-urls", clients]);
        // The data need not survive the machine.
        command.args(["--listen-peer-urls", peers, "--unsafe-no-fsync"]);
        self.etcd = Some(self.start(command, "etcd.log"));
        eventually("etcd answers", || self.etcd_request(async |client| client.get("up", None).await).is_ok());
    }

    pub(crate) fn stop_etcd(&mut self) {
        self.etcd = None;
    }

    /// Serves what stands in etcd as the Kubernetes API, which is all that kube-proxy knows.
    fn start_api(&mut self) {
        self.api = Some(self.start(program::api(), "api.log"));
        eventually("the API answers", || {
            self.http(program::API_PORT, "/healthz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
    }

    pub(crate) fn start_proxy(&mut self) {
        let command = program::command(&self.settings, self.directory.path());
        self.proxy = Some(self.start(command, "proxy.log"));
        eventually("the proxy is in sync", || {
            let tables = self.nft("list tables");
            let table = program::tested().table();
            self.http(10256, "/healthz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
                && ["ip", "ip6"].iter().all(|family| tables.contains(&format!("table {family} {table}\n")))
        });
    }

    /// Kills the proxy as hard as can be.
    pub(crate) fn kill_proxy(&mut self) {
        self.proxy = None;
    }

    /// Asks the proxy to end and waits until it has.
    pub(crate) fn terminate_proxy(&mut self) -> ExitStatus {
        self.signal_proxy("-TERM");
        self.proxy.take().unwrap().0.wait().unwrap()
    }

    /// Lets the proxy sleep while `f` runs, so that it misses whatever happens.
    pub(crate) fn while_proxy_sleeps(&mut self, f: impl FnOnce(&mut Self)) {
        self.signal_proxy("-STOP");
        f(self);
        self.signal_proxy("-CONT");
    }

    fn signal_proxy(&self, signal: &str) {
        let pid = self.proxy_pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The process number of the proxy.
    pub(crate) fn proxy_pid(&self) -> u32 {
        self.proxy.as_ref().unwrap().0.id()
    }

    /// Makes etcd forget all but the last revision.
    pub(crate) fn compact(&self) {
        let answer = self.etcd_request(async |client| client.put("up", "", None).await).unwrap();
        let revision = answer.header().unwrap().revision();
        self.etcd_request(async |client| client.compact(revision, None).await).unwrap();
    }

    /// Runs the proxy's command that deletes its tables, and returns whether it succeeded.
    pub(crate) fn cleanup(&self) -> bool {
        let mut command = program::cleanup();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.worker.run(|| command.status().unwrap().success()).unwrap()
    }

    /// What the proxy has logged.
    pub(crate) fn proxy_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("proxy.log")).unwrap()
    }

    /// Runs `nft` in the worker and returns what it prints.
    pub(crate) fn nft(&self, words: &str) -> String {
        nft_in(&self.worker, words)
    }

    /// The proxy's tables as `nft` prints them, but for the names of chains: kube-proxy deletes one that is empty only later.
    pub(crate) fn tables(&self) -> String {
        let table = program::tested().table();
        let text = self.nft(&format!("list table ip {table}")) + &self.nft(&format!("list table ip6 {table}"));
        text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with("chain ")).collect()
    }

    /// Writes an object to a key under `/registry/`, made whole as an API server would ([`objects`]).
    pub(crate) fn put(&self, key: &str, object: &Value) {
        self.put_raw(key, &objects::whole(key, object.clone()).to_string());
    }

    /// Writes a text to a key under `/registry/`.
    pub(crate) fn put_raw(&self, key: &str, value: &str) {
        let key = format!("/registry/{key}");
        self.etcd_request(async |client| client.put(key, value, None).await).unwrap();
    }

    /// Deletes a key under `/registry/`.
    pub(crate) fn delete(&self, key: &str) {
        let key = format!("/registry/{key}");
        self.etcd_request(async |client| client.delete(key, None).await).unwrap();
    }

    /// Makes the worker's Node, with labels.
    pub(crate) fn put_worker(&self, labels: &Value) {
        let address = |address: &str| json!({"type": "InternalIP", "address": address});
        self.put(
            &format!("minions/{WORKER}"),
            &json!({"metadata": {"labels": labels}, "status": {"addresses": [address(WORKER_IP), address(WORKER_IP6)]}}),
        );
    }

    /// Makes or changes the Service `shop/NAME`.
    pub(crate) fn put_service(&self, name: &str, spec: &Value) {
        self.put(&format!("services/specs/shop/{name}"), &json!({ "spec": spec }));
    }

    /// Makes a Service and its one slice, of the pods `endpoints`, whose ports are those of the Service plus 8000.
    pub(crate) fn serve(&self, name: &str, address: &str, ports: &[u16], endpoints: &[u8]) {
        let listed = |offset: u16| {
            ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port + offset})).collect::<Vec<_>>()
        };
        self.put_service(name, &json!({"clusterIP": address, "ports": listed(0)}));
        self.put_slice(name, &listed(8000), endpoints);
    }

    /// Makes the one slice of a Service, of pods of this worker.
    pub(crate) fn put_slice(&self, service: &str, ports: &[Value], endpoints: &[u8]) {
        let endpoints: Vec<Value> = endpoints.iter().map(|n| objects::endpoint(*n)).collect();
        self.put_endpoints(&format!("{service}-1"), service, ports, &endpoints);
    }

    /// Makes a slice of a Service.
    pub(crate) fn put_endpoints(&self, slice: &str, service: &str, ports: &[Value], endpoints: &[Value]) {
        self.put(
            &format!("endpointslices/shop/{slice}"),
            &json!({"metadata": {"labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
        );
    }

    /// The answer to a GET in the worker, status line first; `None` when nobody answers.
    pub(crate) fn http(&self, port: u16, path: &str) -> Option<String> {
        self.http_at(Ipv4Addr::LOCALHOST, port, path)
    }

    /// What a load balancer hears when it asks on the `healthCheckNodePort`.
    pub(crate) fn health_check(&self, port: u16) -> Option<String> {
        self.http_at(WORKER_IP.parse().unwrap(), port, "/")
    }

    fn http_at(&self, address: Ipv4Addr, port: u16, path: &str) -> Option<String> {
        self.worker
            .run(|| {
                let mut stream = TcpStream::connect((address, port)).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).ok()?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                Some(answer)
            })
            .unwrap()
    }

    /// A number of the proxy's metrics, by the name that it is printed with.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let answer = self.http(10249, "/metrics").unwrap();
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("there is no metric {name} in {answer}")).parse().unwrap()
    }

    fn start(&self, mut command: Command, log: &str) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.path().join(log)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).die_with_parent();
        Process(self.worker.run(|| command.spawn().unwrap()).unwrap())
    }

    /// Asks etcd something, from a new connection.
    pub(crate) fn etcd_request<T>(
        &self,
        request: impl AsyncFnOnce(&mut etcd_client::Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, etcd_client::Error> {
        self.worker
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut client = etcd_client::Client::connect([program::ETCD], None).await?;
                    request(&mut client).await
                })
            })
            .unwrap()
    }
}

/// Runs `nft` in a namespace and returns what it prints.
pub(crate) fn nft_in(host: &NetNs, words: &str) -> String {
    let output = host.run(|| Command::new("nft").args(words.split(' ')).output().unwrap()).unwrap();
    assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `holds`, and fails if that does not happen.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it did not come true within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says something where nobody can overlook it: cargo shows this even of tests that pass.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn apply(netlink: &mut Netlink, ops: impl IntoIterator<Item = Op>) {
    ops.into_iter().for_each(|op| netlink.apply(&op).unwrap());
}

/// Gives a link its address of each family, and brings it up.
fn addresses(dev: &IfName, addresses: [&str; 2]) -> Vec<Op> {
    let add = |address: &str| Op::AddAddress { dev: dev.clone(), address: address.parse().unwrap() };
    addresses.into_iter().map(add).chain([Op::SetUp { dev: dev.clone() }]).collect()
}

/// Gives the far end of a cable its addresses and its default routes.
fn attach(host: &NetNs, own: [&str; 2], gateways: [&str; 2]) {
    let mut netlink = Netlink::open_in(host).unwrap();
    apply(&mut netlink, [Op::SetUp { dev: IfName::loopback() }]);
    apply(&mut netlink, addresses(&name("eth0"), own));
    apply(&mut netlink, gateways.map(default_route));
}

fn default_route(gateway: &str) -> Op {
    let everywhere = if gateway.contains(':') { "::/0" } else { "0.0.0.0/0" };
    Op::AddRoute(Route::to(everywhere.parse().unwrap()).via(gateway.parse().unwrap()))
}
