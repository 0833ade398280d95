//! Keeps the daemons of the lab running: starts them, restarts those that die with a growing pause, and tells of it.
//!
//! Every daemon leads a session of its own, so that nothing typed at the prompt, Ctrl-C included, reaches it.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::{Duration, Instant},
};

use linux_net::{NetNs, process::CommandNamespaceExt as _};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};

use crate::process::{Exit, Processes, describe, signal_group};

/// A daemon's name: which node, and which daemon on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DaemonId {
    /// Full name of the node, `C0w1`.
    pub node: String,
    /// What it is, `flannel`.
    pub daemon: String,
}

impl DaemonId {
    /// Names a daemon.
    #[must_use]
    pub fn new(node: &str, daemon: &str) -> Self {
        Self { node: node.to_owned(), daemon: daemon.to_owned() }
    }
}

impl std::fmt::Display for DaemonId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.node, self.daemon)
    }
}

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    /// Its name.
    pub id: DaemonId,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables beyond those of the lab.
    pub environment: Vec<(String, String)>,
    /// The network namespace it lives in.
    pub netns: NetNs,
    /// Where its output goes; appended to.
    pub log: PathBuf,
    /// Whether it is started again when it ends. A command of a container is not.
    pub restart: bool,
}

/// How a daemon is doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Full name of the node.
    pub node: String,
    /// What it is.
    pub daemon: String,
    /// The program's name.
    pub program: String,
    /// Its process id in the lab, while it runs.
    pub pid: Option<i32>,
    /// Seconds since it was last started.
    pub up_seconds: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, if it ever did.
    pub last_end: Option<String>,
    /// Its log.
    pub log: PathBuf,
}

/// The pause before the first restart of a daemon; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A daemon that ran this long has recovered: the next pause is the first again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);
/// How long daemons have between SIGTERM and SIGKILL when the lab ends.
const TERM_TO_KILL: Duration = Duration::from_secs(2);

struct Daemon {
    spec: DaemonSpec,
    state: State,
    started: Instant,
    restarts: u32,
    pause: Duration,
    last_end: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running(Pid),
    /// It died and is started again at this time.
    Pausing(Instant),
    /// It ended and stays so.
    Ended,
}

/// Starts daemons and watches over them. Clones are handles on one supervisor.
#[derive(Clone)]
pub struct Supervisor {
    processes: Processes,
    daemons: Arc<Mutex<BTreeMap<DaemonId, Daemon>>>,
    ended: mpsc::Sender<Exit>,
    /// Told of every death and restart, in a sentence.
    report: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Supervisor {
    /// Starts watching. Deaths and restarts are told to `report`.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(processes: Processes, report: Arc<dyn Fn(&str) + Send + Sync>) -> std::io::Result<Self> {
        let (ended, ends) = mpsc::channel();
        let supervisor = Self { processes, daemons: Arc::default(), ended, report };
        let watcher = supervisor.clone();
        std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || watcher.watch(&ends))?;
        Ok(supervisor)
    }

    /// Starts a daemon; one of the same name that runs already is stopped first.
    ///
    /// # Errors
    ///
    /// When the program or its log cannot be opened.
    pub fn run(&self, spec: DaemonSpec) -> std::io::Result<Pid> {
        self.stop(&spec.id, TERM_TO_KILL);
        let mut daemons = self.table();
        let pid = self.spawn(&spec)?;
        let daemon = Daemon {
            state: State::Running(pid),
            started: Instant::now(),
            restarts: 0,
            pause: FIRST_PAUSE,
            last_end: None,
            spec,
        };
        daemons.insert(daemon.spec.id.clone(), daemon);
        Ok(pid)
    }

    /// Stops a daemon for good: SIGTERM, and SIGKILL after `patience`. Returns whether there was one.
    pub fn stop(&self, id: &DaemonId, patience: Duration) -> bool {
        let Some(daemon) = self.table().remove(id) else { return false };
        if let State::Running(pid) = daemon.state {
            signal_group(pid, Signal::SIGTERM);
            wait_for_ends(&[pid], patience);
            signal_group(pid, Signal::SIGKILL);
        }
        true
    }

    /// Stops all daemons of a node whose name `select` takes.
    pub fn stop_where(&self, select: impl Fn(&DaemonId) -> bool) {
        let chosen: Vec<DaemonId> = self.table().keys().filter(|id| select(id)).cloned().collect();
        for id in chosen {
            self.stop(&id, TERM_TO_KILL);
        }
    }

    /// Sends a signal to a daemon alone, not to its group. Returns whether it runs.
    pub fn signal(&self, id: &DaemonId, signal: Signal) -> bool {
        match self.table().get(id).map(|daemon| daemon.state) {
            Some(State::Running(pid)) => nix::sys::signal::kill(pid, signal).is_ok(),
            Some(State::Pausing(_) | State::Ended) | None => false,
        }
    }

    /// Ends everything, politely first.
    pub fn stop_all(&self) {
        let daemons = std::mem::take(&mut *self.table());
        let running: Vec<Pid> = daemons
            .values()
            .filter_map(|daemon| if let State::Running(pid) = daemon.state { Some(pid) } else { None })
            .collect();
        for pid in &running {
            signal_group(*pid, Signal::SIGTERM);
        }
        wait_for_ends(&running, TERM_TO_KILL);
        for pid in &running {
            signal_group(*pid, Signal::SIGKILL);
        }
    }

    /// How each daemon is doing, by node and name.
    #[must_use]
    pub fn status(&self) -> Vec<DaemonStatus> {
        self.table().values().map(Daemon::status).collect()
    }

    /// How one daemon is doing.
    #[must_use]
    pub fn status_of(&self, id: &DaemonId) -> Option<DaemonStatus> {
        self.table().get(id).map(Daemon::status)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<DaemonId, Daemon>> {
        self.daemons.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn spawn(&self, spec: &DaemonSpec) -> std::io::Result<Pid> {
        if let Some(directory) = spec.log.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(key, value)| (key, value)))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .in_netns(&spec.netns)
            .new_session();
        self.processes
            .spawn(&mut command, self.ended.clone())
            .map_err(|error| std::io::Error::new(error.kind(), format!("start {}: {error}", spec.program.display())))
    }

    /// The one loop: a daemon ends, or the time has come to start one again.
    fn watch(&self, ends: &mpsc::Receiver<Exit>) {
        loop {
            let wait = self.next_restart().map_or(LONGEST_PAUSE, |at| at.saturating_duration_since(Instant::now()));
            match ends.recv_timeout(wait) {
                Ok(exit) => self.handle_exit(exit),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            self.handle_timeout(Instant::now());
        }
    }

    fn next_restart(&self) -> Option<Instant> {
        let daemons = self.table();
        daemons
            .values()
            .filter_map(|daemon| if let State::Pausing(until) = daemon.state { Some(until) } else { None })
            .min()
    }

    fn handle_exit(&self, exit: Exit) {
        let mut daemons = self.table();
        let Some(daemon) = daemons.values_mut().find(|daemon| daemon.state == State::Running(exit.pid)) else {
            return; // it was stopped on purpose
        };
        // What is left of its session, a worker of nginx say, would keep its ports.
        signal_group(exit.pid, Signal::SIGKILL);
        let end = describe(exit.status);
        daemon.last_end = Some(end.clone());
        if !daemon.spec.restart {
            daemon.state = State::Ended;
            return;
        }
        if daemon.started.elapsed() >= RECOVERED_AFTER {
            daemon.pause = FIRST_PAUSE;
        }
        let pause = daemon.pause;
        daemon.state = State::Pausing(Instant::now() + pause);
        daemon.pause = (pause * 2).min(LONGEST_PAUSE);
        let message = format!("{} (pid {}) {end}; it is started again in {pause:?}", daemon.spec.id, exit.pid);
        drop(daemons);
        (self.report)(&message);
    }

    fn handle_timeout(&self, now: Instant) {
        let mut messages = Vec::new();
        for daemon in self.table().values_mut() {
            let State::Pausing(until) = daemon.state else { continue };
            if until > now {
                continue;
            }
            match self.spawn(&daemon.spec) {
                Ok(pid) => {
                    daemon.state = State::Running(pid);
                    daemon.started = now;
                    daemon.restarts += 1;
                    messages.push(format!("{} runs again (pid {pid})", daemon.spec.id));
                }
                Err(error) => {
                    daemon.state = State::Pausing(now + daemon.pause);
                    daemon.pause = (daemon.pause * 2).min(LONGEST_PAUSE);
                    messages.push(format!("{}: {error}", daemon.spec.id));
                }
            }
        }
        for message in messages {
            (self.report)(&message);
        }
    }
}

impl Daemon {
    fn status(&self) -> DaemonStatus {
        DaemonStatus {
            node: self.spec.id.node.clone(),
            daemon: self.spec.id.daemon.clone(),
            program: self.spec.program.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            pid: if let State::Running(pid) = self.state { Some(pid.as_raw()) } else { None },
            up_seconds: if let State::Running(_) = self.state { self.started.elapsed().as_secs() } else { 0 },
            restarts: self.restarts,
            last_end: self.last_end.clone(),
            log: self.spec.log.clone(),
        }
    }
}

/// Waits until none of the processes exists, at most for `patience`.
fn wait_for_ends(pids: &[Pid], patience: Duration) {
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + patience;
    // Signal 0 asks whether the process exists.
    while pids.iter().any(|pid| nix::sys::signal::kill(*pid, None).is_ok()) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn log_tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
