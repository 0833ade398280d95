//! `knetsim apply`, `get`, `delete` and `scale`, from a second terminal: they enter the lab and speak with the API.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, anyhow};
use linux_net::sandbox as namespaces;
use nix::unistd::Pid;

use crate::{
    component::STATE,
    lab::Lab,
    labdir::LabDir,
    objects::{self, ObjectCommand},
    prompt::execute::print,
};

/// Set for the process that is inside the lab.
const INSIDE: &str = "KNETSIM_INSIDE";

/// Carries out a command on objects in a running lab.
///
/// A process cannot move into another pid namespace, only its children are born there; and in the lab's `/proc` it would not
/// find itself. So this process enters the lab and starts itself again with the same arguments.
///
/// # Errors
///
/// When no such lab runs, or what was asked for was refused.
pub fn run(command: &ObjectCommand) -> anyhow::Result<ExitCode> {
    if std::env::var_os(INSIDE).is_some() {
        return inside(command);
    }
    let record = LabDir::new(&command.lab().name)?.record()?;
    let program = std::env::current_exe().context("find this program")?;
    let here = std::env::current_dir();
    namespaces::enter(Pid::from_raw(record.pid))
        .with_context(|| format!("enter the lab through its process {}", record.pid))?;
    if let Ok(here) = here {
        // The lab may not have the directory; then a relative path of a manifest leads nowhere, and the error names it.
        let _ = std::env::set_current_dir(here);
    }
    let status = Command::new(&program).args(std::env::args_os().skip(1)).env(INSIDE, "1").status();
    let status = status.with_context(|| format!("start {} in the lab", program.display()))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn inside(command: &ObjectCommand) -> anyhow::Result<ExitCode> {
    let file = Path::new(STATE).join("conf/lab.toml");
    let lab = Lab::load(&file).context("read what the lab was made from")?;
    let cluster = match command.cluster() {
        Some(name) => lab.cluster(name).ok_or_else(|| anyhow!("there is no cluster {name}"))?,
        None => lab.clusters.first().context("the lab has no cluster")?,
    };
    let done = objects::carry_out(cluster, &command.prepare()?);
    print(&done.said)?;
    done.error.map_or(Ok(ExitCode::SUCCESS), Err)
}
