//! What the tests share: the ingress as a process, backends that do exactly what a test says, and a client that shows the bytes.
//!
//! All of it is blocking and made of threads, so that nothing of the code under test (hyper, tokio) is on the other side too.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Nothing in these tests takes this long; it turns a hang into a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running `ingress-rs`; killed when dropped.
pub(crate) struct Ingress {
    pub(crate) address: SocketAddr,
    /// Where `/healthz` is, if the configuration has `admin`.
    pub(crate) admin: Option<SocketAddr>,
    child: Child,
    log: mpsc::Receiver<String>,
    config: PathBuf,
    _dir: TempDir,
}

impl Ingress {
    /// Starts the program on a port of the kernel's choice with `rules`, the rest of the configuration, and waits until it listens.
    pub(crate) fn start(rules: &str) -> anyhow::Result<Ingress> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("ingress.toml");
        fs::write(&config, format!("listen = '127.0.0.1:0'\n{rules}"))?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_ingress-rs"))
            .arg("--config")
            .arg(&config)
            .args(["--log", "debug"])
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow::anyhow!("stderr is piped"))?;
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut ingress =
            Ingress { address: (Ipv4Addr::LOCALHOST, 0).into(), admin: None, child, log, config, _dir: dir };
        let line = ingress.wait_for("listening")?;
        ingress.address = field(&line, "listen").ok_or_else(|| anyhow::anyhow!("no address in {line}"))?;
        ingress.admin = field(&line, "admin");
        Ok(ingress)
    }

    /// Waits for a log line that holds `text`.
    pub(crate) fn wait_for(&self, text: &str) -> anyhow::Result<String> {
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return Ok(line);
            }
            seen.push(line);
        }
        anyhow::bail!("no `{text}` in the log:\n{}", seen.join("\n"))
    }

    /// Replaces the configuration and sends SIGHUP.
    pub(crate) fn reload(&self, rules: &str) -> anyhow::Result<()> {
        fs::write(&self.config, format!("listen = '127.0.0.1:0'\n{rules}"))?;
        self.signal(Signal::SIGHUP)
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < deadline, "the ingress does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The most memory it has had resident so far, in bytes.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.ok_or_else(|| anyhow::anyhow!("no VmHWM"))?.parse::<u64>()? * 1024)
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address after `name=` in a log line.
fn field(line: &str, name: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// A route to one backend, as it stands in the configuration.
pub(crate) fn route(path: &str, backend: SocketAddr, more: &str) -> String {
    format!("[[route]]\npath = '{path}'\nbackends = ['{backend}']\n{more}\n")
}

/// A backend of threads, one per connection.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    /// Runs `serve` on each connection; what it returns is of no interest, an error only ends the connection.
    pub(crate) fn start<F>(serve: F) -> io::Result<Backend>
    where
        F: Fn(&mut Wire) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let serve = Arc::new(serve);
        let (counter, log) = (connections.clone(), heads.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counter.fetch_add(1, Ordering::SeqCst);
                let (serve, log) = (serve.clone(), log.clone());
                thread::spawn(move || {
                    if let Ok(mut wire) = Wire::new(stream) {
                        wire.log = Some(log);
                        let _ = serve(&mut wire);
                    }
                });
            }
        });
        Ok(Backend { address, connections, heads })
    }

    /// Answers every request with `name` and the request's target, and keeps the connection.
    pub(crate) fn named(name: &'static str) -> io::Result<Backend> {
        Backend::start(move |wire| {
            while let Some(head) = wire.read_head()? {
                let length = head.length();
                io::copy(&mut wire.reader.by_ref().take(length as u64), &mut io::sink())?;
                wire.respond(&format!("{name} {}", head.target()))?;
            }
            Ok(())
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One end of a connection, for a backend as for a client.
pub(crate) struct Wire {
    pub(crate) reader: BufReader<TcpStream>,
    log: Option<Arc<Mutex<Vec<String>>>>,
}

/// The head of a message, as text.
#[derive(Debug)]
pub(crate) struct Head(pub(crate) String);

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn status(&self) -> u16 {
        self.0.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn target(&self) -> &str {
        self.0.split_whitespace().nth(1).unwrap_or_default()
    }

    pub(crate) fn length(&self) -> usize {
        self.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Wire> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Wire { reader: BufReader::new(stream), log: None })
    }

    pub(crate) fn connect(address: SocketAddr) -> io::Result<Wire> {
        Wire::new(TcpStream::connect(address)?)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    /// A complete 200 response.
    pub(crate) fn respond(&mut self, body: &str) -> io::Result<()> {
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// The next head, or nothing at the end of the stream.
    pub(crate) fn read_head(&mut self) -> io::Result<Option<Head>> {
        let mut text = String::new();
        loop {
            if self.reader.read_line(&mut text)? == 0 {
                return Ok(None);
            }
            if text.ends_with("\r\n\r\n") {
                break;
            }
        }
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        }
        Ok(Some(Head(text)))
    }

    /// The next head; the end of the stream is an error.
    pub(crate) fn expect_head(&mut self) -> io::Result<Head> {
        self.read_head()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    pub(crate) fn read_exactly(&mut self, length: usize) -> io::Result<String> {
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
    }

    /// The next chunk of a chunked body; empty at its end.
    pub(crate) fn read_chunk(&mut self) -> io::Result<String> {
        let mut size = String::new();
        self.reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let chunk = self.read_exactly(size)?;
        self.read_exactly(2)?;
        Ok(chunk)
    }

    /// A response with a Content-Length.
    pub(crate) fn read_response(&mut self) -> io::Result<(Head, String)> {
        let head = self.expect_head()?;
        let body = self.read_exactly(head.length())?;
        Ok((head, body))
    }

    /// Whether the other side has closed, with nothing more to read.
    pub(crate) fn is_at_end(&mut self) -> io::Result<bool> {
        match self.reader.fill_buf() {
            Ok(rest) => Ok(rest.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.reader.get_ref().shutdown(Shutdown::Both)
    }
}

/// One GET on a connection of its own.
pub(crate) fn get(address: SocketAddr, target: &str) -> io::Result<(Head, String)> {
    let mut wire = Wire::connect(address)?;
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"))?;
    wire.read_response()
}

/// An address where nobody listens: tcpmux, which no system has served for decades.
pub(crate) fn dead_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}
