//! The command line of the ingress; everything else is in the library.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ingress_rs::config::Config;
use ingress_rs::run::Ingress;
use ingress_rs::source;
use tracing_subscriber::EnvFilter;

/// HTTP ingress: routes requests by path to backends.
#[derive(Parser)]
#[command(version, after_long_help = include_str!("help.txt"))]
struct Args {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and end
    #[arg(long)]
    check: bool,
    /// Log every request at INFO (otherwise at DEBUG), as target `access`
    #[arg(long)]
    access_log: bool,
    /// What is logged to stderr: a level, or levels by target, as in `info,access=debug`
    #[arg(long, value_name = "FILTER", env = "INGRESS_LOG", default_value = "info")]
    log: EnvFilter,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(args.log.clone())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        writeln!(std::io::stdout(), "{}: valid, {} routes", args.config.display(), config.routes.len())?;
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ingress = Ingress::bind(config, args.access_log)?;
        let shutdown = source::shutdown()?;
        let reloads = source::reloads(args.config)?;
        Ok(ingress.run(reloads, shutdown).await?)
    })
}
