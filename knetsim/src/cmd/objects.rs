//! `knetsim apply`, `get`, `delete` and `scale`, from a second terminal: this process enters the lab and speaks with the API.

use std::process::ExitCode;

use anyhow::{Context, bail};
use linux_net::sandbox as namespaces;
use nix::unistd::Pid;

use crate::{
    component::STATE,
    lab::Lab,
    labdir::LabDir,
    objects::{self, ObjectCommand},
    prompt::execute::print,
};

/// Carries out a command on objects in a running lab.
///
/// # Errors
///
/// When no such lab runs, or what was asked for was refused.
pub fn run(command: &ObjectCommand) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&command.lab().name)?;
    let record = directory.record()?;
    // Before the lab is entered: its /tmp is another one.
    let prepared = command.prepare()?;
    namespaces::enter(Pid::from_raw(record.pid)).with_context(|| format!("enter the lab through its process {}", record.pid))?;
    let file = std::path::Path::new(STATE).join("conf/lab.toml");
    let lab = Lab::load(&file).context("read what the lab was made from")?;
    let cluster = match command.cluster() {
        Some(name) => lab.cluster(name).with_context(|| format!("there is no cluster {name}"))?,
        None => lab.clusters.first().context("the lab has no cluster")?,
    };
    let done = objects::carry_out(cluster, prepared);
    print(&done.said)?;
    if let Some(error) = done.error {
        bail!(error);
    }
    Ok(ExitCode::SUCCESS)
}
