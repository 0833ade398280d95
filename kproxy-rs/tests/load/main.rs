//! Faults and changes while clients ask without a pause: no request fails, and nothing is left over.
//!
//! `wrk` makes a new connection for every request, so that each meets the rules. Nothing is said here about how fast that goes; see
//! `knetsim bench kproxy` for that.
//!
//! | module | what happens meanwhile |
//! |---|---|
//! | `restart` | the proxy is ended, killed, and started with rules of another shape |
//! | `churn` | Services come, change and go, a thousand a second |

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

#[path = "../support/mod.rs"]
mod support;

mod churn;
mod restart;

use std::io::Read;
use std::process::{Command, Stdio};

use linux_net::process::CommandNamespaceExt as _;
use linux_net::{NetNs, sysctl};
use support::traffic::{connect, serve_http, serve_tcp};
use support::{Lab, eventually};

/// The Service that is asked all the time.
const VIP: &str = "100.64.0.1";
/// Its port; its endpoints' is 8081.
const PORT: u16 = 81;

/// How many connections the client makes before it uses a port for the second time: every other port of its range is for connections.
///
/// After that a first packet is repeated now and then, with any rules: it meets what is left of the former connection.
const PORTS: u32 = 32_000;

/// What `wrk` counted.
#[derive(Debug)]
struct Report {
    requests: u32,
    /// The lines of its output that tell of failures.
    failures: Vec<String>,
    /// First packets of connections that got no answer and were sent again, a second later: `wrk` does not mind.
    repeated: u64,
}

/// A worker with two web servers, which tell their names on port 8080, and a client in pod 3.
fn lab() -> Lab {
    let lab = Lab::new(3);
    lab.pod(3).run(|| sysctl::set("net.ipv4.ip_local_port_range", "1024 65535").unwrap()).unwrap();
    (1..=2).for_each(|n| serve_http(lab.pod(n), 8000 + PORT));
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("steady", VIP, &[PORT], &[1, 2]);
    eventually("the steady Service is served", || connect(lab.pod(3), &format!("{VIP}:{PORT}")).is_ok());
    lab
}

/// Asks the steady Service from pod 3 while `f` runs.
fn under_load(lab: &mut Lab, f: impl FnOnce(&mut Lab)) -> Report {
    let client: NetNs = lab.pod(3).clone();
    let mut command = Command::new("wrk");
    command.args(["--threads=1", "--connections=2", "--duration=60s", "--timeout=5s", "--header=Connection: close"]);
    command.arg(format!("http://{VIP}:{PORT}/")).stdin(Stdio::null()).stdout(Stdio::piped()).die_with_parent();
    let before = repeated_syns(&client);
    let spawned = client.run(|| command.spawn()).unwrap();
    let mut wrk = spawned.expect("wrk, of the package wrk, can be started");
    f(lab);
    assert!(Command::new("kill").args(["-INT", &wrk.id().to_string()]).status().unwrap().success());
    let mut text = String::new();
    wrk.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(wrk.wait().unwrap().success(), "{text}");
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok());
    let is_failure = |line: &&str| line.contains("errors") || line.contains("Non-2xx");
    let failures = text.lines().filter(is_failure).map(|line| line.trim().to_owned()).collect();
    let requests = requests.unwrap_or_else(|| panic!("wrk counted nothing: {text}"));
    Report { requests, failures, repeated: repeated_syns(&client) - before }
}

/// How many SYNs a namespace has had to repeat.
fn repeated_syns(host: &NetNs) -> u64 {
    let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap()).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(values).find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse().unwrap()
}

impl Report {
    /// Fails unless there were requests, and none of them failed or had to wait.
    fn assert_flawless(&self) {
        assert!(self.requests > 500 && self.failures.is_empty(), "{self:?}");
        assert!(self.repeated == 0 || self.requests > PORTS, "{self:?}");
    }
}

/// Says that the test has no business here: it has run in its sandbox by now.
fn is_done() -> bool {
    !linux_net::testing::enter_sandbox()
}
