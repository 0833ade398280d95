//! Processes: what a child does between fork and exec, and what process 1 of a sandbox does.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    process::Command,
};

use nix::{
    sys::{signal::Signal, wait::WaitStatus},
    unistd::Pid,
};

use crate::{error::Result, netns::NetNs};

/// What a child process does between `fork` and `exec`, added to [`std::process::Command`].
pub trait CommandNamespaceExt {
    /// Starts the child in `netns`, with a private mount namespace in which `/sys` shows that network namespace,
    /// as `ip netns exec` does.
    fn in_netns(&mut self, netns: &NetNs) -> &mut Self;

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
        let _ = netns;
        todo!()
    }

    fn new_session(&mut self) -> &mut Self {
        todo!()
    }

    fn own_process_group(&mut self) -> &mut Self {
        todo!()
    }

    fn foreground_of(&mut self, tty: BorrowedFd<'_>) -> &mut Self {
        let _ = tty;
        todo!()
    }

    fn die_with_parent(&mut self) -> &mut Self {
        todo!()
    }

    fn answer_setid_calls(&mut self) -> &mut Self {
        todo!()
    }
}

/// Makes the process group `group` the foreground of the terminal `tty`. The caller may be in the background.
///
/// # Errors
///
/// When `tty` is not the caller's terminal.
pub fn set_foreground(tty: BorrowedFd<'_>, group: Pid) -> Result<()> {
    let _ = (tty, group);
    todo!()
}

/// Returns the process group in the foreground of the terminal `tty`.
///
/// # Errors
///
/// When `tty` is not a terminal.
pub fn foreground(tty: BorrowedFd<'_>) -> Result<Pid> {
    let _ = tty;
    todo!()
}

/// Waits until some child has ended, leaving it to be reaped: the owner of a [`std::process::Child`] can still wait for it.
/// `None` when there is no child, or, with `block` false, none has ended.
///
/// # Errors
///
/// When the kernel refuses.
pub fn peek_ended_child(block: bool) -> Result<Option<Pid>> {
    let _ = block;
    todo!()
}

/// Reaps the one child `pid`, which has ended.
///
/// # Errors
///
/// When it is not a child of the caller.
pub fn reap(pid: Pid) -> Result<WaitStatus> {
    let _ = pid;
    todo!()
}

/// Sends a signal to a process.
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when it has gone.
pub fn kill(pid: Pid, signal: Signal) -> Result<()> {
    let _ = (pid, signal);
    todo!()
}

/// Sends a signal to all processes of a group.
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when all have gone.
pub fn kill_group(group: Pid, signal: Signal) -> Result<()> {
    let _ = (group, signal);
    todo!()
}

/// Opens a file descriptor for a process; it becomes readable when the process ends, and never means another one.
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    let _ = pid;
    todo!()
}

/// Lets the kernel send `signal` to this process when the thread that started it ends.
///
/// # Errors
///
/// Never in practice: the signal is valid.
pub fn die_with_parent(signal: Signal) -> Result<()> {
    let _ = signal;
    todo!()
}
