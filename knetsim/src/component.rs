//! The daemons of the lab: for each component, how the Rust program and the real one are started, and how one knows that
//! it is ready. Both get the same addresses, files and ports; nothing else in the lab knows which of them runs.

pub mod apiserver;
pub mod cni;
pub mod etcd;
pub mod flannel;
pub mod ingress;
pub mod interconnect;
pub mod kproxy;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use linux_net::NetNs;

use crate::{
    impls,
    supervisor::{DaemonId, Supervisor, log_tail},
};

/// How long a daemon may take until it is ready. Generous, because a loaded machine is no fault of the daemon.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long a probe waits for an answer. A daemon that listens before it serves holds a connection; then it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// A status line longer than this is none.
const MAX_STATUS_LINE_BYTES: u64 = 1024;
/// Lines of a daemon's log that an error shows.
const TAIL_LINES: usize = 12;

/// The directory of the lab inside the sandbox.
pub const STATE: &str = "/tmp/knetsim";

/// The directory of one node, `/tmp/knetsim/C0w1`.
#[must_use]
pub fn node_directory(node: &str) -> PathBuf {
    Path::new(STATE).join(node)
}

/// A program of the Rust implementation.
///
/// # Errors
///
/// When it is not there, with what to do.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    impls::find(name).ok_or_else(|| anyhow!("the program {name} is missing; run `make build`"))
}

/// A program of the real implementation.
///
/// # Errors
///
/// When it is not there.
pub fn real_program(name: &str) -> anyhow::Result<PathBuf> {
    impls::find_real(name).ok_or_else(|| anyhow!("the program {name} is missing; `knetsim doctor` says how to get it"))
}

/// Waits until `probe` says that a daemon does its work.
///
/// # Errors
///
/// When it ended meanwhile or was not ready in time: the message holds the last lines of its log.
pub fn wait_until_ready(
    supervisor: &Supervisor,
    id: &DaemonId,
    what: &str,
    mut probe: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if probe() {
            return Ok(());
        }
        let Some(status) = supervisor.status_of(id) else { bail!("{id} was stopped before it was ready") };
        let tail = || {
            let tail = log_tail(&status.log, TAIL_LINES);
            format!("last lines of {}:\n{}", status.log.display(), if tail.is_empty() { "(empty)" } else { &tail })
        };
        if let Some(end) = &status.last_end {
            bail!("{id} {end} before it was ready ({what}); {}", tail());
        }
        if Instant::now() >= deadline {
            bail!("{id} is not ready after {READY_TIMEOUT:?}: {what}; {}", tail());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether something accepts TCP connections at an address of a namespace.
#[must_use]
pub fn accepts(netns: &NetNs, address: SocketAddr) -> bool {
    connect(netns, address).is_ok()
}

/// A TCP connection from inside a namespace.
///
/// # Errors
///
/// When nothing accepts it within a second.
pub fn connect(netns: &NetNs, address: SocketAddr) -> anyhow::Result<std::net::TcpStream> {
    netns
        .run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)))?
        .with_context(|| format!("connect to {address} from {}", netns.name()))
}

/// The status of a `GET` over plain HTTP from inside a namespace, or none while nothing answers.
#[must_use]
pub fn http_status(netns: &NetNs, address: SocketAddr, path: &str) -> Option<u16> {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut stream = connect(netns, address).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    // In one piece: etcd tells HTTP from gRPC by the first bytes that arrive.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    // The status line, `HTTP/1.1 200 OK` (RFC 9112, section 4), is all that is wanted of the answer.
    let mut status_line = String::new();
    BufReader::new(stream.take(MAX_STATUS_LINE_BYTES)).read_line(&mut status_line).ok()?;
    status_line.split(' ').nth(1)?.parse().ok()
}

/// Writes a file that a daemon reads, with its directory.
///
/// # Errors
///
/// When it cannot be written.
pub fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
