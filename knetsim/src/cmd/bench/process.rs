//! A program that is measured while it runs on a node: when it began, its memory, its CPU time.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use linux_net::{NetNs, process::CommandNamespaceExt as _};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    },
    unistd::{SysconfVar, sysconf},
};

use crate::{sandbox, supervisor::log_tail};

/// An implementation of a component.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// Its program's name.
    pub(super) name: &'static str,
    /// Where that is.
    pub(super) program: PathBuf,
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Resident: all pages that it has in memory.
    resident: u64,
    /// Proportional: of a page that several processes share, its part.
    proportional: u64,
}

impl Memory {
    /// In units of 2^20 bytes, as `ps` and `top` show them.
    pub(super) fn resident_megabytes(self) -> f64 {
        megabytes(self.resident)
    }

    /// In the same units.
    pub(super) fn proportional_megabytes(self) -> f64 {
        megabytes(self.proportional)
    }
}

/// A program that runs; it ends when this is dropped.
pub(super) struct Process {
    child: Child,
    log: PathBuf,
    /// Just before it was started.
    pub(super) began: Instant,
}

impl Process {
    /// Starts a program in a namespace, with its words to a file.
    pub(super) fn start(mut command: Command, netns: &NetNs, log: &Path) -> anyhow::Result<Self> {
        command
            .env("PATH", sandbox::path_variable()?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).with_context(|| format!("write {}", log.display()))?)
            .in_netns(netns)
            .die_with_parent();
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child, log: log.to_owned(), began })
    }

    /// Makes sure that it still runs while `what` is waited for.
    pub(super) fn check(&mut self, what: &str) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended ({status}) before {what} was there; {}", self.last_words());
        }
        Ok(())
    }

    /// Reads its memory.
    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let read = |file: &str, field: &str| {
            let path = format!("/proc/{}/{file}", self.child.id());
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(field)).context("a field is missing")?;
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            anyhow::Ok(kibibytes * 1024)
        };
        Ok(Memory { resident: read("status", "VmRSS:")?, proportional: read("smaps_rollup", "Pss:")? })
    }

    /// The CPU time of it, and of the programs that it ran and waited for, until now.
    ///
    /// Source: man 5 `proc_pid_stat`, fields 14 to 17.
    pub(super) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name, in parentheses, may hold blanks.
        let (_, fields) = text.rsplit_once(") ").with_context(|| format!("{path} names no program"))?;
        let ticks = fields.split(' ').skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock has no rate")?;
        Ok(Duration::from_millis(ticks * 1000 / u64::try_from(a_second)?))
    }

    /// Ends it; returns the CPU time of it and of the programs that it ran.
    pub(super) fn end(mut self) -> anyhow::Result<Duration> {
        let before = children_cpu_time()?;
        // Hard: nothing here is needed afterwards, and flanneld may take minutes for the soft way.
        self.child.kill()?;
        self.child.wait()?;
        Ok(children_cpu_time()?.saturating_sub(before))
    }

    /// What it said last.
    pub(super) fn last_words(&self) -> String {
        format!("last lines of its log:\n{}", log_tail(&self.log, 12))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time, user and system, of all children that have ended and been waited for, and of theirs.
fn children_cpu_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let duration = |time: TimeVal| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(u64::try_from(time.tv_sec())?) + Duration::from_micros(u64::try_from(time.tv_usec())?))
    };
    Ok(duration(usage.user_time())? + duration(usage.system_time())?)
}

#[expect(clippy::cast_precision_loss, reason = "no process has 2^53 bytes")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
