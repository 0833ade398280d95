//! The service proxy of a worker. See the library for how it works.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kproxy_rs::apply::Kernel;
use kproxy_rs::config::{Command, CommandLine};
use kproxy_rs::run::run;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match try_main(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(line: &CommandLine) -> anyhow::Result<()> {
    match line.command {
        Some(Command::Cleanup) => {
            let mut kernel = Kernel::open(line.config.layouts()?)?;
            kernel.delete().context("cannot delete the table; it needs root or CAP_NET_ADMIN in this network namespace")
        }
        // One thread: the kernel's answer to a batch takes milliseconds, and there is nothing to do meanwhile.
        None => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let shutdown = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            Ok(Box::pin(run(&line.config, shutdown)).await?)
        }),
    }
}
