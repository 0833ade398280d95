//! `knetsim apply`, `get`, `delete` and `scale`, from a second terminal: they enter the lab and speak with the API.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Context;

use super::enter::{enter_lab, exit_code};
use crate::{
    component::STATE,
    lab::Lab,
    labdir::LabDir,
    objects::{self, ObjectCommand},
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
    // The lab may not have the directory; then a relative path of a manifest leads nowhere, and the error names it.
    enter_lab(record.pid)?;
    let status = Command::new(&program).args(std::env::args_os().skip(1)).env(INSIDE, "1").status();
    let status = status.with_context(|| format!("start {} in the lab", program.display()))?;
    Ok(exit_code(status))
}

fn inside(command: &ObjectCommand) -> anyhow::Result<ExitCode> {
    let file = Path::new(STATE).join("conf/lab.toml");
    let lab = Lab::load(&file).context("read what the lab was made from")?;
    objects::run(&lab, command)?;
    Ok(ExitCode::SUCCESS)
}
