//! The terminal the prompt runs on, and who of its processes is in the foreground.

use std::{
    io::{IsTerminal, Stdin},
    os::fd::{AsFd, BorrowedFd},
};

use linux_net::process;
use nix::unistd::getpgrp;

/// Standard input, when it is a terminal.
pub struct Terminal(Stdin);

impl Terminal {
    /// The terminal of standard input, if it is one and ours.
    #[must_use]
    pub fn of_stdin() -> Option<Self> {
        let stdin = std::io::stdin();
        // A terminal that is not the controlling one of this session has no foreground that we could set.
        (stdin.is_terminal() && process::foreground(stdin.as_fd()).is_ok()).then_some(Self(stdin))
    }

    /// Brings this process back to the foreground once the command that had it has ended.
    ///
    /// # Errors
    ///
    /// When the terminal has gone.
    pub fn take_foreground(&self) -> linux_net::Result<()> {
        process::set_foreground(self.0.as_fd(), getpgrp())
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
