//! What the tests share: a real etcd, workers in namespaces, a look at their state, and waiting with a deadline.

#![expect(clippy::unwrap_used, reason = "these are helpers of tests, whose failures are panics")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

pub mod agent;
pub mod etcd;
pub mod lab;
pub mod pki;
pub mod scenario;
pub mod state;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

pub use etcd::Etcd;

/// The prefix of all keys, flanneld's default.
pub const PREFIX: &str = "/coreos.com/network";

/// Tries `probe` until it gives something, for ten seconds.
#[track_caller]
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_within(Duration::from_secs(10), what, probe)
}

/// Tries `probe` every 10 ms until it gives something.
#[track_caller]
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

/// Watches for `period` that `holds` stays true, as for something that must not happen.
#[track_caller]
pub fn stays(period: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < period {
        assert!(holds(), "{what} ceased to hold after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command line and insists that it succeeds; returns what it prints.
#[track_caller]
pub fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Prints to standard error, e.g. the log of a daemon whose test failed.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says whether a program is on `PATH`.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Says whether flanneld is on `PATH`. If not, the test that asks is skipped and says so where nobody can overlook it: cargo shows
/// this even for tests that pass.
pub fn flanneld_is_here() -> bool {
    let here = is_installed("flanneld");
    if !here {
        say("SKIPPED: flanneld is not on PATH");
    }
    here
}
