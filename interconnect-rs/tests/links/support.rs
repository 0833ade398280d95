//! What the tests of two linked routers share: certificates, routers in this process, services, and clients.
//!
//! Each test has a loopback address of its own (`127.88.N.1`), so ports are as fixed as in a real configuration and
//! tests can run side by side.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use interconnect_rs::config::Config;
use interconnect_rs::error::RunError;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Longest that anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An authority and the certificates it issues, as files.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(directory.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { directory, issuer: Issuer::new(params, key) }
    }

    /// An `sslProfile` named `tls` whose certificate is valid for `ip`.
    pub(crate) fn profile(&self, name: &str, ip: &str) -> Value {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(ip.parse().unwrap()));
        let key = KeyPair::generate().unwrap();
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        std::fs::write(file("crt"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(file("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        json!(["sslProfile", {
            "name": "tls", "caCertFile": self.ca(), "certFile": file("crt"), "privateKeyFile": file("key"),
        }])
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }
}

/// A router that runs in this process; dropping it kills it without a word to anyone.
pub(crate) struct Router {
    reloads: mpsc::Sender<Config>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Router {
    pub(crate) fn start(entities: &[Value]) -> Router {
        let (reloads, receiver) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(interconnect_rs::run::run(config(entities), receiver, async {
            stopped.await.unwrap();
        }));
        Router { reloads, stop: Some(stop), task }
    }

    pub(crate) async fn reload(&self, entities: &[Value]) {
        self.reloads.send(config(entities)).await.unwrap();
    }

    /// Ends the router without a word to anyone, and waits until its sockets are closed.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        assert!((&mut self.task).await.unwrap_err().is_cancelled());
    }

    /// Stops the router as SIGTERM does.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(PATIENCE, &mut self.task).await.expect("the router drains in time").unwrap().unwrap();
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Its shutdown future would panic when its sender is gone, so the task goes first.
        self.task.abort();
        std::mem::forget(self.stop.take());
    }
}

pub(crate) fn config(entities: &[Value]) -> Config {
    Config::from_json(&Value::from(entities)).unwrap()
}

/// Two routers on one address: `A` listens for links at port 55671, `B` dials it.
pub(crate) struct Pair {
    pub(crate) ip: String,
    pub(crate) authority: Authority,
    pub(crate) a: Vec<Value>,
    pub(crate) b: Vec<Value>,
}

impl Pair {
    pub(crate) fn new(number: u8) -> Pair {
        Pair::with_link_port(number, 55671)
    }

    /// `B` dials `port` instead, where the test has put something between the two.
    pub(crate) fn with_link_port(number: u8, port: u16) -> Pair {
        let ip = format!("127.88.{number}.1");
        let authority = Authority::new();
        let a = vec![
            json!(["router", {"id": "A", "mode": "interior"}]),
            authority.profile("A", &ip),
            json!(["listener", {"role": "inter-router", "host": ip, "port": 55671, "sslProfile": "tls"}]),
            json!(["listener", {"role": "normal", "http": true, "host": ip, "port": 9090}]),
        ];
        let b = vec![
            json!(["router", {"id": "B", "mode": "interior"}]),
            authority.profile("B", &ip),
            json!(["connector", {"role": "inter-router", "host": ip, "port": port.to_string(), "sslProfile": "tls"}]),
            json!(["listener", {"role": "normal", "http": true, "host": ip, "port": 9091}]),
        ];
        Pair { ip, authority, a, b }
    }

    pub(crate) fn listener(&self, address: &str, port: u16) -> Value {
        json!(["tcpListener", {"address": address, "host": self.ip, "port": port.to_string()}])
    }

    pub(crate) fn connector(&self, address: &str, port: u16) -> Value {
        json!(["tcpConnector", {"address": address, "host": self.ip, "port": port.to_string()}])
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.ip).parse().unwrap()
    }

    /// Starts both; clients of `A` at port 1028 reach the service at port 8000 of `B`'s.
    pub(crate) fn start(&mut self) -> (Router, Router) {
        self.a.push(self.listener("svc", 1028));
        self.b.push(self.connector("svc", 8000));
        (Router::start(&self.a), Router::start(&self.b))
    }
}

/// Runs `serve` for each connection to `at`, until dropped.
pub(crate) async fn service<F, Fut>(at: SocketAddr, serve: F) -> JoinSet<()>
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let socket = TcpListener::bind(at).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            connections.spawn(serve(stream));
        }
    });
    tasks
}

/// Sends back what it gets, until the end.
pub(crate) async fn echo(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    // A client that breaks off is none of the echo's concern.
    let _broken = tokio::io::copy(&mut reader, &mut writer).await;
    let _broken = writer.shutdown().await;
}

/// Connects as soon as someone listens.
pub(crate) async fn connect(at: SocketAddr) -> TcpStream {
    let attempts = async {
        loop {
            match TcpStream::connect(at).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, attempts).await.unwrap_or_else(|_| panic!("nobody listens at {at}"))
}

/// Waits until nobody listens any more.
pub(crate) async fn wait_closed(at: SocketAddr) {
    let attempts = async {
        while TcpStream::connect(at).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, attempts).await.unwrap_or_else(|_| panic!("someone still listens at {at}"));
}

/// Sends `message`, ends the writing side, and reads all that comes back.
pub(crate) async fn ask(stream: &mut TcpStream, message: &[u8]) -> Vec<u8> {
    let answer = async {
        stream.write_all(message).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    timeout(PATIENCE, answer).await.expect("the answer comes in time")
}

/// What `GET path` answers at `at`: the whole response as text.
pub(crate) async fn http_get(at: SocketAddr, path: &str) -> String {
    let mut stream = connect(at).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut response)).await.expect("the response comes in time").unwrap();
    response
}

/// Waits until the metrics at `at` contain `line`.
pub(crate) async fn wait_metric(at: SocketAddr, line: &str) {
    let attempts = async {
        while !http_get(at, "/metrics").await.lines().any(|found| found == line) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, attempts).await.unwrap_or_else(|_| panic!("no metric {line}"));
}

/// Something between two routers that a test can cut.
pub(crate) struct Relay {
    fate: watch::Sender<Fate>,
    _task: JoinSet<()>,
}

/// What becomes of the connections that a relay carries at the moment.
#[derive(Clone, Copy)]
enum Fate {
    Pass,
    Cut,
    Freeze,
}

impl Relay {
    pub(crate) async fn start(from: SocketAddr, to: SocketAddr) -> Relay {
        let (fate, receiver) = watch::channel(Fate::Pass);
        let task = service(from, move |mut near| {
            let mut receiver = receiver.clone();
            async move {
                receiver.mark_unchanged();
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = receiver.changed() => {
                        let fate = *receiver.borrow();
                        if matches!(fate, Fate::Freeze) {
                            std::future::pending::<()>().await;
                        }
                    }
                }
            }
        })
        .await;
        Relay { fate, _task: task }
    }

    /// Ends every connection that goes through.
    pub(crate) fn cut(&self) {
        self.fate.send_replace(Fate::Cut);
    }

    /// Lets every connection that goes through stand open and carry nothing, as when a cable is pulled.
    pub(crate) fn freeze(&self) {
        self.fate.send_replace(Fate::Freeze);
    }
}

/// Bytes that differ from place to place, the same for the same seed.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let words = std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(state.to_be_bytes())
    });
    words.flatten().take(length).collect()
}
