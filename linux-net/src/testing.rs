//! For tests that need the kernel: each one in fresh namespaces of its own, as any user, in parallel.

use std::{
    io::Read,
    process::{Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;

use crate::{process::CommandNamespaceExt, sandbox};

/// Set in the child.
const INSIDE: &str = "LINUX_NET_TEST_SANDBOX";
/// How long a test may take.
const TIMEOUT: Duration = Duration::from_mins(2);
/// The pause between two looks at the child.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Re-runs this one test as a child process in fresh user, network and mount namespaces.
///
/// Call it first in a `#[test]`:
///
/// ```no_run
/// // #[test]
/// fn a_bridge_appears() {
///     if !linux_net::testing::enter_sandbox() { return; }
///     // here: root in an empty network namespace, with an empty /run
/// }
/// ```
///
/// Returns `false` in the test process, after the child has passed, and `true` in the child.
///
/// # Panics
///
/// When the child fails or does not end in two minutes; its output is in the message.
#[must_use]
pub fn enter_sandbox() -> bool {
    enter(&namespaces())
}

/// As [`enter_sandbox`], but as real root, for programs that refuse to work inside a user namespace (podman, containerd): in fresh
/// network, mount and process namespaces only. `None` for an ordinary user, who cannot run such a test: the caller says so and skips it.
///
/// # Panics
///
/// As [`enter_sandbox`].
#[must_use]
pub fn enter_sandbox_as_root() -> Option<bool> {
    (std::env::var_os(INSIDE).is_some() || geteuid().is_root()).then(|| enter(&WITHOUT_USER))
}

/// In the child, prepares the sandbox; else starts the child with these arguments of unshare(1).
fn enter(namespaces: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        sandbox::furnish().expect("the sandbox of a test can be prepared");
        return true;
    }
    // The test harness names the thread of a test after the test.
    let name = std::thread::current().name().expect("a test runs on a thread that bears its name").to_owned();
    let test = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new("unshare")
        .args(namespaces)
        .arg(test)
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .die_with_parent()
        .spawn()
        .expect("unshare(1), of the package util-linux, can be started");
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + TIMEOUT;
    let ended = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    if ended.is_none() {
        let _ = child.kill(); // --kill-child ends the rest
        let _ = child.wait();
    }
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match ended {
        // Without this a misspelt name would pass: no test runs, and none fails.
        Some(status) if status.success() && stdout.contains("1 passed") => false,
        Some(status) => panic!("{name} failed in its sandbox ({status})\n{stdout}\n{stderr}"),
        None => panic!("{name} did not end within {TIMEOUT:?}\n{stdout}\n{stderr}"),
    }
}

/// The arguments of unshare(1) for all but a user namespace.
const WITHOUT_USER: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The arguments of unshare(1). Root does without a user namespace where those are forbidden.
fn namespaces() -> Vec<&'static str> {
    let user = ["--user", "--map-root-user"];
    let mut try_user = Command::new("unshare");
    let allowed = try_user.args(user).arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    let needs_no_user = geteuid().is_root() && !allowed;
    user.into_iter().filter(|_| !needs_no_user).chain(WITHOUT_USER).collect()
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes); // what could be read is shown
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
