//! The `knetsim` program: reads the command line and hands over to [`knetsim::cmd`].

use std::{io::Write, process::ExitCode};

use clap::Parser;
use knetsim::{
    cli::{Cli, Command},
    cmd,
};

fn main() -> ExitCode {
    match try_main(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => cmd::up::run(&args),
        Command::Down(args) => cmd::down::run(&args),
        Command::Status(args) => cmd::status::run(&args),
        Command::Doctor => cmd::doctor::run(),
        Command::Exec(args) => cmd::enter::exec(&args),
        Command::Shell(args) => cmd::enter::shell(&args),
        Command::Logs(args) => cmd::logs::run(&args),
        Command::Objects(command) => cmd::objects::run(&command),
        Command::ApiServer(args) => cmd::apiserver::run(&args),
        Command::Bench(args) => cmd::bench::run(&args),
        Command::Serve(args) => cmd::serve::run(args),
        Command::Init => cmd::init::run(),
        Command::BenchTopology(args) => cmd::bench::boot::topology(&args),
        Command::BenchFlannel(args) => cmd::bench::flannel::inside(&args),
        Command::BenchCni(args) => cmd::bench::cni::inside(&args),
        Command::BenchKproxy(args) => cmd::bench::kproxy::inside(&args),
        Command::BenchRuleset(args) => cmd::bench::kproxy::ruleset::inside(&args),
    }
}
