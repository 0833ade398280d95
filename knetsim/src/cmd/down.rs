//! `knetsim down`: asks a lab to end, and waits until it has.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{
    cli::LabArgs,
    control::{self, Request},
    labdir::LabDir,
};

/// How long a lab may take to end.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Ends the lab.
///
/// # Errors
///
/// When no such lab runs or it does not end.
pub fn run(args: &LabArgs) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&args.name)?;
    let record = directory.record()?;
    control::ask(directory.path(), Request::Down)?;
    let deadline = Instant::now() + TIMEOUT;
    while directory.is_running() {
        if Instant::now() >= deadline {
            bail!("lab {} has not ended after {TIMEOUT:?}; `kill -9 {}` ends it for certain", record.name, record.pid);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(ExitCode::SUCCESS)
}
