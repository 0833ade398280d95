//! The program: arguments, logging, exit status. See the library for everything else.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use interconnect_rs::{config::Config, run, signal};
use tracing_subscriber::EnvFilter;

/// What `--help` says.
const ABOUT: &str = "\
Links this cluster's services to those of other clusters, over one mutual-TLS connection per router.

The file is skupper-router's: a JSON array of [\"entityType\", {attributes}]. A tcpConnector offers a service of this cluster \
under an address; a tcpListener in any other cluster lets clients connect to that address. listener and connector of role \
inter-router link the routers. A listener of role normal with \"http\": true serves /healthz and /metrics.

SIGHUP reads the file again: tcpListeners and tcpConnectors change without touching the links. SIGTERM drains. \
RUST_LOG sets what is logged on stderr, for example interconnect_rs=debug.";

/// The command line.
#[derive(Parser)]
#[command(version, about = ABOUT)]
struct Args {
    /// The configuration, as skrouterd reads it
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and its certificates, print what it says and exit
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).with_env_filter(filter).init();
    match try_main(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn try_main(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        run::check(&config)?;
        return Ok(write!(io::stdout(), "{config}")?);
    }
    let reloads = signal::reloads(args.config)?;
    Ok(run::run(config, reloads, signal::shutdown()?).await?)
}
