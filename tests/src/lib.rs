//! Help for the end-to-end tests: booting labs, asking them, and seeing that nothing of them is left.
//!
//! The tests start the programs of this workspace as a user does. `make test` builds them first; they are looked for beside
//! the test's own program. Every lab has a name of its own, so that tests run at the same time, and ends with the test,
//! also when it fails: its terminal process is killed, and the kernel removes the rest.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

/// How long a lab may take to boot on a loaded machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one line of the prompt may take.
const LINE_TIMEOUT: Duration = Duration::from_mins(1);

/// A program of the workspace.
///
/// # Errors
///
/// When it has not been built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/debug/deps/<test> → target/debug
    let directory = test.ancestors().nth(2).context("the test's program has no directory")?;
    let path = directory.join(name);
    if !path.exists() {
        bail!("{} is missing; `make test` builds it, or `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// A name for a lab that no other test of this machine has.
#[must_use]
pub fn unique_name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What a program left: its status and its output.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Fails unless the program succeeded.
    ///
    /// # Errors
    ///
    /// With all it wrote.
    pub fn ok(self) -> anyhow::Result<Self> {
        if self.status.success() { Ok(self) } else { Err(anyhow!("it failed with {}\n{self}", self.status)) }
    }

    /// Fails unless standard output contains a text.
    ///
    /// # Errors
    ///
    /// With all it wrote.
    pub fn says(self, text: &str) -> anyhow::Result<Self> {
        if self.stdout.contains(text) { Ok(self) } else { Err(anyhow!("{text:?} is not in the output\n{self}")) }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
///
/// # Errors
///
/// When it cannot be started or does not end in time.
pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + BOOT_TIMEOUT + LINE_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            bail!("{command:?} did not end in time");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text =
        |thread: std::thread::JoinHandle<String>| thread.join().map_err(|_| anyhow!("reading the output failed"));
    Ok(Output { status, stdout: text(stdout)?, stderr: text(stderr)? })
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// `knetsim` with arguments.
///
/// # Errors
///
/// When it has not been built.
pub fn knetsim(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(program("knetsim")?);
    command.args(arguments);
    Ok(command)
}

/// A running lab, to which lines are typed through its standard input.
pub struct Lab {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: std::sync::mpsc::Receiver<String>,
    stderr: Arc<Mutex<String>>,
    lines: u32,
}

impl Lab {
    /// Boots a lab of a fresh name with further arguments for `up`, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it does not come up; with what it said.
    pub fn boot(what: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let name = unique_name(what);
        let mut command = knetsim(&["up", "--name", &name])?;
        command.args(arguments);
        Self::spawn(name, &mut command)
    }

    /// As [`Lab::boot`], with a command that boots the lab `name`.
    ///
    /// # Errors
    ///
    /// When it does not come up; with what it said.
    pub fn spawn(name: String, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let (sender, stdout) = std::sync::mpsc::channel();
        if let Some(pipe) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let stderr = Arc::new(Mutex::new(String::new()));
        if let Some(pipe) = child.stderr.take() {
            let all = Arc::clone(&stderr);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if let Ok(mut all) = all.lock() {
                        all.push_str(&line);
                        all.push('\n');
                    }
                }
            });
        }
        let mut lab = Self { name, child, stdin, stdout, stderr, lines: 0 };
        lab.type_line("sh true").with_context(|| format!("the lab did not come up; it said\n{}", lab.said()))?;
        Ok(lab)
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process in the terminal, `knetsim up`.
    #[must_use]
    pub fn terminal_pid(&self) -> u32 {
        self.child.id()
    }

    /// Process 1 of the lab, as the host numbers it.
    ///
    /// # Errors
    ///
    /// When the lab left no record.
    pub fn init_pid(&self) -> anyhow::Result<i32> {
        let text = std::fs::read_to_string(self.directory().join("lab.json"))?;
        let record: Value = serde_json::from_str(&text)?;
        let pid = record["pid"].as_i64().context("the record has no pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// The lab's directory on the host.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory_of(&self.name)
    }

    /// Everything the lab wrote to standard error so far.
    #[must_use]
    pub fn said(&self) -> String {
        self.stderr.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// Types a line and returns what it printed.
    ///
    /// # Errors
    ///
    /// When no answer comes in time.
    pub fn type_line(&mut self, line: &str) -> anyhow::Result<String> {
        self.lines += 1;
        // A second line marks the end of the first one's output.
        let mark = format!("end-of-line-{}", self.lines);
        let stdin = self.stdin.as_mut().context("the lab has no input")?;
        // The first line end completes an output that has none.
        writeln!(stdin, "{line}\nsh printf '\\n%s\\n' {mark}")?;
        stdin.flush()?;
        let timeout = if self.lines == 1 { BOOT_TIMEOUT } else { LINE_TIMEOUT };
        let deadline = Instant::now() + timeout;
        let mut output = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(text) if text == mark => {
                    output.pop();
                    return Ok(output);
                }
                Ok(text) => {
                    output.push_str(&text);
                    output.push('\n');
                }
                Err(_) => bail!("no answer to {line:?} within {timeout:?}; so far:\n{output}\n{}", self.said()),
            }
        }
    }

    /// Types a line again and again until its output satisfies `check`.
    ///
    /// # Errors
    ///
    /// When that does not happen within `patience`; with the last output.
    pub fn until(&mut self, line: &str, patience: Duration, check: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let output = self.type_line(line)?;
            if check(&output) {
                return Ok(output);
            }
            if Instant::now() > deadline {
                bail!("{line:?} did not show what it should within {patience:?}; last:\n{output}\n{}", self.said());
            }
        }
    }

    /// What `knetsim status --json` says.
    ///
    /// # Errors
    ///
    /// When the lab does not answer.
    pub fn status(&self) -> anyhow::Result<Value> {
        let output = run(&mut knetsim(&["status", "--json", "--name", &self.name])?)?;
        serde_json::from_str(&output.stdout).with_context(|| format!("status said\n{output}"))
    }

    /// The process id of a daemon, as the lab numbers it.
    ///
    /// # Errors
    ///
    /// When there is no such daemon or it does not run.
    pub fn daemon_pid(&self, node: &str, daemon: &str) -> anyhow::Result<i64> {
        let status = self.status()?;
        let daemons = status["daemons"].as_array().context("the status has no daemons")?;
        let found = daemons.iter().find(|known| known["node"] == node && known["daemon"] == daemon);
        found
            .and_then(|daemon| daemon["pid"].as_i64())
            .with_context(|| format!("{node} {daemon} does not run: {status:#}"))
    }

    /// Types `exit` and waits for the end.
    ///
    /// # Errors
    ///
    /// When the lab does not end.
    pub fn exit(mut self) -> anyhow::Result<ExitStatus> {
        if let Some(mut stdin) = self.stdin.take() {
            writeln!(stdin, "exit")?;
        }
        wait(&mut self.child, Duration::from_secs(20))
    }

    /// Waits until the process in the terminal has ended.
    ///
    /// # Errors
    ///
    /// When it has not within `patience`.
    pub fn wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        wait(&mut self.child, patience)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(self.directory());
    }
}

fn wait(child: &mut Child, patience: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("the lab has not ended within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The directory of a lab on the host, for the user who runs the test.
#[must_use]
pub fn directory_of(name: &str) -> PathBuf {
    let uid = nix::unistd::geteuid();
    let user = if uid.is_root() { String::new() } else { format!("-u{uid}") };
    Path::new("/tmp").join(format!("knetsim{user}-{name}"))
}

/// Processes of the host that live in the pid namespace of process `init`, given by its link in `/proc`.
#[must_use]
pub fn processes_in(pid_namespace: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == pid_namespace))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Waits until a condition holds.
///
/// # Errors
///
/// When it does not within `patience`.
pub fn eventually(what: &str, patience: Duration, condition: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            bail!("{what} did not happen within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a real program is where `knetsim` finds it.
#[must_use]
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/opt/cni/bin".into()]).any(|directory| directory.join(program).exists())
}

/// Says that a test was skipped where nobody can overlook it: cargo shows this even for tests that pass.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
