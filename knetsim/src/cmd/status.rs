//! `knetsim status`: what a running lab says of itself.

use std::process::ExitCode;

use crate::{
    cli::StatusArgs,
    control::{self, Request},
    labdir::LabDir,
    prompt::execute::print,
    status::{Status, table},
};

/// Prints the state of a lab. The exit status is 1 when a daemon does not run.
///
/// # Errors
///
/// When no such lab runs or it does not answer.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&args.lab.name)?;
    directory.record()?;
    let reply = control::ask(directory.path(), Request::Status)?;
    let status: Status = serde_json::from_str(&reply)?;
    if args.json {
        print(&serde_json::to_string_pretty(&status)?)?;
    } else {
        print(&table(&status))?;
    }
    Ok(if status.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
