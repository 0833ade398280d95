//! A worker with pods, an etcd and the real proxy, in the namespaces of one test.
//!
//! ```text
//!   outside 10.0.0.9 ──── 10.0.0.1 worker 11.0.0.254 ═╤═ cni0 ═╤═══════╤═ …
//!                              etcd, kproxy-rs       p1 .1   p2 .2   p3 .3
//! ```

#![allow(dead_code, reason = "each test binary uses its own part")]
#![expect(clippy::unwrap_used, reason = "a test ends where its laboratory fails, with the line")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use linux_net::netlink::{Route, Veth};
use linux_net::{IfName, NetNs, Netlink, Op, sysctl};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What is refused is refused at once; what is dropped would take much longer.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// Where etcd listens, in the worker.
const ETCD: &str = "http://127.0.0.1:2379";

/// A worker, its pods, and a host outside of the cluster.
pub(crate) struct Lab {
    pub(crate) worker: NetNs,
    pub(crate) outside: NetNs,
    pods: Vec<NetNs>,
    etcd: Option<Process>,
    proxy: Option<Process>,
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
        let worker = NetNs::create("worker").unwrap();
        let outside = NetNs::create("outside").unwrap();
        let pods: Vec<NetNs> = (1..=pods).map(|n| NetNs::create(&format!("p{n}")).unwrap()).collect();
        let mut netlink = Netlink::open_in(&worker).unwrap();
        let bridge = name("cni0");
        apply(&mut netlink, [Op::SetUp { dev: IfName::loopback() }, Op::AddBridge { name: bridge.clone() }]);
        apply(
            &mut netlink,
            [
                Op::AddAddress { dev: bridge.clone(), address: "11.0.0.254/24".parse().unwrap() },
                Op::SetUp { dev: bridge.clone() },
            ],
        );
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
            attach(pod, &format!("11.0.0.{n}/24"), "11.0.0.254");
        }
        let port = name("out0");
        apply(
            &mut netlink,
            [
                Op::AddVeth(Veth::new(port.clone(), name("eth0"), Some(&outside))),
                Op::AddAddress { dev: port.clone(), address: "10.0.0.1/24".parse().unwrap() },
                Op::SetUp { dev: port },
            ],
        );
        attach(&outside, "10.0.0.9/24", "10.0.0.1");
        // The worker's own packets are routed before they are translated, so some route must cover the ClusterIPs.
        apply(&mut netlink, [default_route("10.0.0.9")]);
        worker
            .run(|| {
                ["net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"].map(|key| sysctl::set(key, "1").unwrap())
            })
            .unwrap();
        let mut lab = Self { worker, outside, pods, etcd: None, proxy: None, directory: tempfile::tempdir().unwrap() };
        lab.start_etcd();
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
        command.args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
        ]);
        self.etcd = Some(self.start(command, "etcd.log"));
        eventually("etcd answers", || {
            self.etcd_request(|mut client| async move { client.get("up", None).await }).is_ok()
        });
    }

    pub(crate) fn stop_etcd(&mut self) {
        self.etcd = None;
    }

    pub(crate) fn start_proxy(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kproxy-rs"));
        command.args(["--etcd-endpoints", ETCD, "--hostname-override", "w1", "--cluster-cidr", "11.0.0.0/8"]);
        self.proxy = Some(self.start(command, "proxy.log"));
        eventually("the proxy is in sync", || {
            self.http(10256, "/healthz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
    }

    /// Kills the proxy as hard as can be.
    pub(crate) fn kill_proxy(&mut self) {
        self.proxy = None;
    }

    /// Asks the proxy to end and returns whether it did so without an error.
    pub(crate) fn terminate_proxy(&mut self) -> bool {
        self.signal_proxy("-TERM");
        self.proxy.take().unwrap().0.wait().unwrap().success()
    }

    /// Lets the proxy sleep while `f` runs, so that it misses whatever happens.
    pub(crate) fn while_proxy_sleeps(&mut self, f: impl FnOnce(&mut Self)) {
        self.signal_proxy("-STOP");
        f(self);
        self.signal_proxy("-CONT");
    }

    fn signal_proxy(&self, signal: &str) {
        let pid = self.proxy.as_ref().unwrap().0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Makes etcd forget all but the last revision.
    pub(crate) fn compact(&self) {
        let revision = self
            .etcd_request(|mut client| async move { client.put("up", "", None).await })
            .unwrap()
            .header()
            .unwrap()
            .revision();
        self.etcd_request(|mut client| async move { client.compact(revision, None).await }).unwrap();
    }

    /// Runs `kproxy-rs cleanup`.
    pub(crate) fn cleanup(&self) -> bool {
        self.worker
            .run(|| Command::new(env!("CARGO_BIN_EXE_kproxy-rs")).arg("cleanup").status().unwrap().success())
            .unwrap()
    }

    /// What the proxy has logged.
    pub(crate) fn proxy_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("proxy.log")).unwrap()
    }

    /// Runs `nft` in the worker and returns what it prints.
    pub(crate) fn nft(&self, words: &str) -> String {
        let output = self.worker.run(|| Command::new("nft").args(words.split(' ')).output().unwrap()).unwrap();
        assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes an object, or any other text, to a key under `/registry/`.
    pub(crate) fn put(&self, key: &str, value: &impl ToString) {
        let (key, value) = (format!("/registry/{key}"), value.to_string());
        self.etcd_request(|mut client| async move { client.put(key, value, None).await }).unwrap();
    }

    /// Deletes a key under `/registry/`.
    pub(crate) fn delete(&self, key: &str) {
        let key = format!("/registry/{key}");
        self.etcd_request(|mut client| async move { client.delete(key, None).await }).unwrap();
    }

    /// Makes a Service `shop/NAME` and its one slice, of the pods `endpoints`, whose ports are those of the Service plus 8000.
    pub(crate) fn serve(&self, name: &str, address: &str, ports: &[u16], endpoints: &[u8]) {
        let listed = |offset: u16| {
            ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port + offset})).collect::<Vec<_>>()
        };
        self.put(
            &format!("services/specs/shop/{name}"),
            &json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"clusterIP": address, "ports": listed(0)}}),
        );
        self.put_slice(name, &listed(8000), endpoints);
    }

    /// Makes the one slice of a Service.
    pub(crate) fn put_slice(&self, service: &str, ports: &[Value], endpoints: &[u8]) {
        let endpoints: Vec<Value> =
            endpoints.iter().map(|n| json!({"addresses": [format!("11.0.0.{n}")], "nodeName": "w1"})).collect();
        self.put(&format!("endpointslices/shop/{service}-1"), &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports}));
    }

    /// The answer to a GET in the worker, status line first; `None` when nobody answers.
    pub(crate) fn http(&self, port: u16, path: &str) -> Option<String> {
        self.worker
            .run(|| {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                Some(answer)
            })
            .unwrap()
    }

    fn start(&self, mut command: Command, log: &str) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.path().join(log)).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Process(self.worker.run(|| command.spawn().unwrap()).unwrap())
    }

    fn etcd_request<T, F: Future<Output = Result<T, etcd_client::Error>>>(
        &self,
        request: impl FnOnce(etcd_client::Client) -> F,
    ) -> Result<T, etcd_client::Error> {
        self.worker
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { request(etcd_client::Client::connect([ETCD], None).await?).await })
            })
            .unwrap()
    }
}

/// Waits until `holds`, and fails if that does not happen.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it did not come true within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Answers each connection to `port` of a pod with the pod's name and the client's address, then with what the client sends.
pub(crate) fn serve_tcp(pod: &NetNs, port: u16) {
    let listener = pod.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    let name = pod.name().to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, name) = (stream.unwrap(), name.clone());
            std::thread::spawn(move || {
                let client = stream.peer_addr()?.ip();
                stream.write_all(format!("{name} {client}\n").as_bytes())?;
                std::io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

/// Answers each datagram to `port` of a pod with the pod's name.
pub(crate) fn serve_udp(pod: &NetNs, port: u16) {
    let socket = pod.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    let name = pod.name().to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), client);
        }
    });
}

/// Connects from a namespace, and waits for an answer no longer than [`PATIENCE`].
///
/// The connection itself must not take long: a packet that is sent before its Service is served makes conntrack remember the connection as
/// not translated, and its repetitions go nowhere. The next attempt, from another port, is a new connection.
pub(crate) fn connect(from: &NetNs, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddrV4 = to.parse().unwrap();
    let stream = from.run(|| TcpStream::connect_timeout(&SocketAddr::V4(to), 2 * AT_ONCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The greeting of [`serve_tcp`]: the pod and the address it sees.
pub(crate) fn greeting(mut stream: &TcpStream) -> std::io::Result<(String, String)> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (pod, client) = line.split_once(' ').ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((pod.to_owned(), client.to_owned()))
}

/// Connects and returns which pod answers, and whom it sees.
pub(crate) fn ask(from: &NetNs, to: &str) -> std::io::Result<(String, String)> {
    greeting(&connect(from, to)?)
}

/// Sends a datagram and returns the answer.
pub(crate) fn ask_udp(from: &NetNs, to: &str) -> std::io::Result<String> {
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"who?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Says whether a connection is refused, and at once.
pub(crate) fn is_refused(from: &NetNs, to: &str) -> bool {
    let start = Instant::now();
    let result = ask(from, to);
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) && start.elapsed() < AT_ONCE
}

/// Says whether one ping is answered.
pub(crate) fn pings(from: &NetNs, to: &str) -> bool {
    from.run(|| Command::new("ping").args(["-n", "-c1", "-W1", to]).stdout(Stdio::null()).status().unwrap().success())
        .unwrap()
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn apply(netlink: &mut Netlink, ops: impl IntoIterator<Item = Op>) {
    ops.into_iter().for_each(|op| netlink.apply(&op).unwrap());
}

/// Gives the far end of a cable its address and its default route.
fn attach(host: &NetNs, address: &str, gateway: &str) {
    let mut netlink = Netlink::open_in(host).unwrap();
    let eth0 = name("eth0");
    apply(
        &mut netlink,
        [
            Op::SetUp { dev: IfName::loopback() },
            Op::AddAddress { dev: eth0.clone(), address: address.parse().unwrap() },
            Op::SetUp { dev: eth0 },
            default_route(gateway),
        ],
    );
}

fn default_route(gateway: &str) -> Op {
    Op::AddRoute(Route::to("0.0.0.0/0".parse().unwrap()).via(gateway.parse().unwrap()))
}
