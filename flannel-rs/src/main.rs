//! The `flannel-rs` program: arguments, logging, exit code; everything else is in the library.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use flannel_rs::config::{Args, Config, normalise};
use flannel_rs::run::{run, termination};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let line = match normalise(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(line) => line,
        Err(error) => return complain(&error.into()),
    };
    match try_main(Args::parse_from(line)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

fn try_main(args: Args) -> anyhow::Result<()> {
    if args.version {
        // Standard error, as flanneld does.
        writeln!(std::io::stderr(), "{}", env!("CARGO_PKG_VERSION"))?;
        return Ok(());
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(args.log_filter()));
    let has_colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(has_colours).init();
    let config = Config::try_from(args)?;
    // One thread is enough for an agent that waits nearly always, and it stays in the network namespace it was started in.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(async { Ok(run(config, termination()?).await?) })
}

/// Prints an error with its causes where both a person and a supervisor look.
fn complain(error: &anyhow::Error) -> ExitCode {
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}
