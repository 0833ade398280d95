//! Processes of the lab and the one place that reaps them.
//!
//! `knetsim` is process 1 of its own pid namespace, so every orphan in there becomes its child. One thread waits for all
//! children; whoever started a process is told of its end through a channel. For that reason nothing else in this program
//! may wait for a child: `std::process::Child::wait` would find it gone.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    time::Duration,
};

use linux_net::process::CommandNamespaceExt as _;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

/// The end of a process.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Which process.
    pub pid: Pid,
    /// How it ended.
    pub status: ExitStatus,
}

/// Starts processes and tells of their end. Clones share one table.
#[derive(Debug, Clone)]
pub struct Processes {
    path: Arc<OsString>,
    waiting: Arc<Mutex<BTreeMap<Pid, mpsc::Sender<Exit>>>>,
}

impl Processes {
    /// Makes the table and starts the thread that reaps. To be called once in a process. `path` is the `PATH` of every
    /// process that is started.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub fn start(path: OsString) -> std::io::Result<Self> {
        let processes = Self { path: Arc::new(path), waiting: Arc::default() };
        let reaper = processes.clone();
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reaper.reap())?;
        Ok(processes)
    }

    /// Starts a process whose end goes to `ended`.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn(&self, command: &mut Command, ended: mpsc::Sender<Exit>) -> std::io::Result<Pid> {
        // The table stays locked from before the process exists until it is entered, so that the reaper, which looks into
        // the table before it reaps, cannot meet a child that is not there yet.
        let mut waiting = self.table();
        // This process waits for signals instead of taking them; its children shall take theirs.
        let child = command.env("PATH", &*self.path).unblock_signals().spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        waiting.insert(pid, ended);
        Ok(pid)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn run(&self, command: &mut Command) -> std::io::Result<ExitStatus> {
        let (sender, ended) = mpsc::channel();
        self.spawn(command, sender)?;
        Ok(ended.recv().map_or_else(|_| ExitStatus::from_raw(0), |exit| exit.status))
    }

    /// Runs a program to its end, with what it wrote to standard output and to standard error.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, or its output cannot be read.
    pub fn output(&self, command: &mut Command) -> std::io::Result<(ExitStatus, String, String)> {
        let (mut stdout, stdout_end) = std::io::pipe()?;
        let (mut stderr, stderr_end) = std::io::pipe()?;
        command.stdin(std::process::Stdio::null()).stdout(stdout_end).stderr(stderr_end);
        let (sender, ended) = mpsc::channel();
        let spawned = self.spawn(command, sender);
        // The command holds our copies of the writing ends: without this the reads would never see an end of file.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        spawned?;
        let errors = std::thread::spawn(move || read_text(&mut stderr));
        let output = read_text(&mut stdout)?;
        let errors = errors.join().unwrap_or_else(|_| Ok(String::new()))?;
        let status = ended.recv().map_or_else(|_| ExitStatus::from_raw(0), |exit| exit.status);
        Ok((status, output, errors))
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Pid, mpsc::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn reap(&self) {
        /// How long to wait before looking again when there is no child at all.
        const NO_CHILD_PAUSE: Duration = Duration::from_millis(5);
        loop {
            let peeked = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            match peeked {
                Ok(status) => {
                    let Some(pid) = status.pid() else { continue };
                    let mut waiting = self.table();
                    let reaped = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    // An orphan that nobody here started has no entry: reaping it was all there was to do.
                    if let (Some(ended), Ok(status)) = (waiting.remove(&pid), reaped) {
                        let _ = ended.send(Exit { pid, status: exit_status(status) });
                    }
                }
                Err(Errno::ECHILD) => std::thread::sleep(NO_CHILD_PAUSE),
                Err(_) => {} // interrupted by a signal
            }
        }
    }
}

fn read_text(from: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    // The encoding of wait(2): the exit code in the second byte, or the signal in the first seven bits.
    match status {
        WaitStatus::Exited(_, code) => ExitStatus::from_raw((code & 0xff) << 8),
        WaitStatus::Signaled(_, signal, core) => ExitStatus::from_raw(signal as i32 | if core { 0x80 } else { 0 }),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => ExitStatus::from_raw(0),
    }
}

/// Sends a signal to a process and its whole group, which a daemon leads. One that is gone is no error.
pub fn signal_group(pid: Pid, signal: Signal) {
    let _ = kill(Pid::from_raw(-pid.as_raw()), signal);
    let _ = kill(pid, signal);
}

/// An exit status in words: `exited with 1`, `was killed by SIGKILL`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => {
            let name =
                Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string());
            format!("was killed by {name}")
        }
        (None, None) => "ended".to_owned(),
    }
}

/// The status a shell would report: the exit code, or 128 and the signal.
#[must_use]
pub fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test for all: there may be only one reaper in a process.
    #[test]
    fn whoever_started_a_process_learns_of_its_end() {
        let processes = Processes::start(std::env::var_os("PATH").unwrap()).unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(processes.run(&mut shell("exit 3")).unwrap().code(), Some(3));
        let killed = processes.run(&mut shell("kill -9 $$")).unwrap();
        assert_eq!(describe(killed), "was killed by SIGKILL");
        assert_eq!(shell_code(killed), 137);

        let (status, output, errors) = processes.output(&mut shell("echo out; echo err >&2")).unwrap();
        assert_eq!((status.success(), output.as_str(), errors.as_str()), (true, "out\n", "err\n"));

        let many: Vec<_> = (0..50)
            .map(|code| {
                let (sender, ended) = mpsc::channel();
                processes.spawn(&mut shell(&format!("exit {code}")), sender).unwrap();
                ended
            })
            .collect();
        for (code, ended) in (0..).zip(many) {
            assert_eq!(ended.recv_timeout(Duration::from_secs(20)).unwrap().status.code(), Some(code));
        }
        assert!(processes.run(&mut Command::new("/no/such/program")).is_err());
    }
}
