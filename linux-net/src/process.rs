//! Processes: what a child does between fork and exec, and what process 1 of a sandbox does.

#![expect(unsafe_code, reason = "what runs between fork and exec, and one system call that no library wraps")]

mod entry;

pub use entry::run as run_short;

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid, getppid, setsid, tcgetpgrp, tcsetpgrp},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::{
    error::{Error, Result},
    netns::NetNs,
};

/// What a child process does between `fork` and `exec`, added to [`std::process::Command`].
pub trait CommandNamespaceExt {
    /// Starts the child in `netns`, with a private mount namespace in which `/sys` shows that network namespace,
    /// as `ip netns exec` does (which also shows the files of `/etc/netns/NAME` in `/etc`; this does not).
    fn in_netns(&mut self, netns: &NetNs) -> &mut Self;

    /// Starts the child with no signal blocked, whatever this thread blocks: a mask goes from parent to child.
    fn unblock_signals(&mut self) -> &mut Self;

    /// Starts the child in a session of its own, without a terminal: Ctrl-C does not reach it.
    fn new_session(&mut self) -> &mut Self;

    /// Starts the child in a process group of its own, so that a signal can reach it and its children together.
    fn own_process_group(&mut self) -> &mut Self;

    /// Makes the child's process group (implied: one of its own) the foreground of the terminal `tty`: Ctrl-C goes to it.
    fn foreground_of(&mut self, tty: BorrowedFd<'_>) -> &mut Self;

    /// Lets the kernel kill the child when the thread that starts it ends.
    fn die_with_parent(&mut self) -> &mut Self;

    /// Answers "done" to all calls by which the child would change its user, its groups or the owner of a file.
    ///
    /// In a user namespace that maps one user only those calls fail, and programs that drop their privileges (`tcpdump`,
    /// `nginx`) give up although they have none to drop.
    fn answer_setid_calls(&mut self) -> &mut Self;
}

impl CommandNamespaceExt for Command {
    fn in_netns(&mut self, netns: &NetNs) -> &mut Self {
        let netns = netns.clone();
        let action = move || -> io::Result<()> {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Slave: namespaces that the lab makes later still show here, and nothing done here shows there.
            mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
            // In a container that masks /sys both are refused; then /sys shows another namespace, and nothing else is lost.
            let _ = umount2(c"/sys", MntFlags::MNT_DETACH);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let _ = mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), flags, None::<&str>);
            Ok(())
        };
        // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
        unsafe { self.pre_exec(action) }
    }

    fn unblock_signals(&mut self) -> &mut Self {
        let action = || -> io::Result<()> {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        };
        // SAFETY: one system call.
        unsafe { self.pre_exec(action) }
    }

    fn new_session(&mut self) -> &mut Self {
        let action = || -> io::Result<()> {
            setsid()?;
            Ok(())
        };
        // SAFETY: one system call.
        unsafe { self.pre_exec(action) }
    }

    fn own_process_group(&mut self) -> &mut Self {
        self.process_group(0)
    }

    fn foreground_of(&mut self, tty: BorrowedFd<'_>) -> &mut Self {
        let tty = tty.try_clone_to_owned();
        let action = move || -> io::Result<()> {
            let tty = tty.as_ref().map_err(|error| io::Error::from(error.kind()))?;
            take_terminal(tty.as_fd(), getpid())?;
            Ok(())
        };
        self.process_group(0);
        // SAFETY: system calls only; an error kind is copied, not allocated.
        unsafe { self.pre_exec(action) }
    }

    fn die_with_parent(&mut self) -> &mut Self {
        let parent = getpid();
        let action = move || -> io::Result<()> {
            set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before the request was made. From inside a new pid namespace it shows as 0.
            let now = getppid();
            if now == parent || now.as_raw() == 0 { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        // SAFETY: system calls only.
        unsafe { self.pre_exec(action) }
    }

    fn answer_setid_calls(&mut self) -> &mut Self {
        let filter = setid_filter();
        let action = move || -> io::Result<()> {
            let filter = filter.as_ref().map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
            seccompiler::apply_filter(filter).map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))
        };
        // SAFETY: two system calls; the filter was built before the fork.
        unsafe { self.pre_exec(action) }
    }
}

/// A filter that answers 0 to the calls that change user, groups or owner, and lets everything else through.
fn setid_filter() -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let calls = [
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setgroups,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
        libc::SYS_chown,
        libc::SYS_lchown,
        libc::SYS_fchown,
        libc::SYS_fchownat,
    ];
    // No condition on the arguments: the number of the call alone decides.
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), arch)?.try_into()
}

/// Makes `group` the foreground of `tty`, from the background too: there the kernel would stop the caller with SIGTTOU.
fn take_terminal(tty: BorrowedFd<'_>, group: Pid) -> nix::Result<()> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before))?;
    let result = tcsetpgrp(tty, group);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    result
}

/// Makes the process group `group` the foreground of the terminal `tty`. The caller may be in the background.
///
/// # Errors
///
/// When `tty` is not the caller's terminal.
pub fn set_foreground(tty: BorrowedFd<'_>, group: Pid) -> Result<()> {
    take_terminal(tty, group)
        .map_err(|errno| Error::system(format!("bring process group {group} to the foreground"), errno))
}

/// Returns the process group in the foreground of the terminal `tty`.
///
/// # Errors
///
/// When `tty` is not a terminal.
pub fn foreground(tty: BorrowedFd<'_>) -> Result<Pid> {
    tcgetpgrp(tty).map_err(|errno| Error::system("ask for the foreground of the terminal", errno))
}

/// Waits until some child has ended, leaving it to be reaped: the owner of a [`std::process::Child`] can still wait for it.
/// `None` when there is no child, or, with `block` false, none has ended.
///
/// # Errors
///
/// When the kernel refuses.
pub fn peek_ended_child(block: bool) -> Result<Option<Pid>> {
    let mut flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    flags.set(WaitPidFlag::WNOHANG, !block);
    loop {
        return match waitid(Id::All, flags) {
            Ok(status) => Ok(status.pid()),
            Err(Errno::ECHILD) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(Error::system("wait for a child", errno)),
        };
    }
}

/// Reaps the one child `pid`, which has ended.
///
/// # Errors
///
/// When it is not a child of the caller.
pub fn reap(pid: Pid) -> Result<WaitStatus> {
    waitpid(pid, None).map_err(|errno| Error::system(format!("wait for process {pid}"), errno))
}

/// Sends a signal to a process.
///
/// # Errors
///
/// [`Error::is_not_found`] when it has gone.
pub fn kill(pid: Pid, signal: Signal) -> Result<()> {
    nix::sys::signal::kill(pid, signal).map_err(|errno| Error::system(format!("send {signal} to process {pid}"), errno))
}

/// Sends a signal to all processes of a group.
///
/// # Errors
///
/// [`Error::is_not_found`] when all have gone.
pub fn kill_group(group: Pid, signal: Signal) -> Result<()> {
    killpg(group, signal).map_err(|errno| Error::system(format!("send {signal} to process group {group}"), errno))
}

/// Opens a file descriptor for a process; it becomes readable when the process ends, and never means another one.
///
/// # Errors
///
/// [`Error::is_not_found`] when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let Some(fd) = fd else { return Err(Error::system(format!("open process {pid}"), Errno::last())) };
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the kernel send `signal` to this process when the thread that started it ends.
///
/// # Errors
///
/// Never in practice: the signal is valid.
pub fn die_with_parent(signal: Signal) -> Result<()> {
    set_pdeathsig(signal).map_err(|errno| Error::system("ask for a signal at the end of the parent", errno))
}
