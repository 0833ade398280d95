//! The `flannel-rs` program: arguments, logging, exit code; everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use flannel_rs::config::{Args, Config, normalise};
use flannel_rs::log;
use flannel_rs::run::{run, termination};

fn main() -> ExitCode {
    let line = match normalise(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(line) => line,
        Err(error) => return complain(&error.into()),
    };
    let args = Args::parse_line(line, |name| std::env::var_os(name)).unwrap_or_else(|error| error.exit());
    match try_main(args) {
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
    log::init(args.verbosity, &args.vmodule, &args.log_backtrace_at);
    let config = Config::try_from(args)?;
    // One thread is enough for an agent that waits nearly always, and it stays in the network namespace it was started in.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(async { Ok(Box::pin(run(config, termination()?)).await?) })
}

/// Prints an error with its causes where both a person and a supervisor look.
fn complain(error: &anyhow::Error) -> ExitCode {
    // A closed standard error leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}
