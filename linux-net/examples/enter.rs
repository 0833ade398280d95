//! Runs a program in the namespaces of another process, as a second terminal for `sandbox`.
//!
//! ```text
//! target/debug/examples/enter PID PROGRAM [ARGUMENT…]
//! ```

use std::process::Command;

use anyhow::{Context as _, ensure};
use linux_net::sandbox;
use nix::unistd::Pid;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pid = arguments.next().context("say whose namespaces: enter PID PROGRAM")?;
    let program = arguments.next().context("say what to run: enter PID PROGRAM")?;
    // Before anything starts a thread: the kernel moves processes with one thread only.
    sandbox::enter(Pid::from_raw(pid.parse().context("the process is named by its number")?))?;
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}
