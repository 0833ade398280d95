//! One binary under many names: the name it is called by (`argv[0]`) chooses the plugin.

#![no_main]

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use cni_plugin::{cnitool, install, plugin};

/// The CNI plugins and cnitool in one binary.
///
/// Container runtimes call it by the names of the plugins: flannel, bridge, ptp, loopback, host-local, static, portmap, firewall, tuning, bandwidth. Called
/// as cnitool it is a small runtime itself. `cni-plugin install /opt/cni/bin` makes these names.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make links to this binary in DIR: one for every plugin, and cnitool.
    Install {
        /// A directory of `CNI_PATH`, for example /opt/cni/bin.
        dir: PathBuf,
    },
    /// Do what the link `cnitool` does.
    Cnitool(cnitool::Arguments),
}

linux_net::short_main!(run);

/// Returns the exit code.
fn run() -> u8 {
    let called_as = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let name = called_as.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // A plugin is a short-lived process that every container start waits for: nothing else happens before this.
    if let Some(plugin) = plugin::find(name) {
        return plugin::run(plugin);
    }
    let command =
        if name == "cnitool" { Command::Cnitool(cnitool::Arguments::parse()) } else { Arguments::parse().command };
    let done = match command {
        Command::Install { dir } => std::env::current_exe()
            .map_err(|source| cni_plugin::error::Error::io("find", Path::new("/proc/self/exe"), &source))
            .and_then(|binary| install::install(&binary, &dir)),
        Command::Cnitool(arguments) => cnitool::run(&arguments, |key| std::env::var(key).ok(), &mut std::io::stdout()),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "{error}");
            1
        }
    }
}
