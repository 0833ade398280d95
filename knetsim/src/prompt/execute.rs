//! Carries out a line. Whatever goes wrong is said in a sentence; the lab goes on.

use std::{
    io::Write,
    process::{Command, ExitStatus},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, anyhow};
use clap::Parser as _;

use super::{
    line::{COMMANDS, Line},
    methods, network,
};
use crate::{
    objects::{self, ObjectCommand},
    process::shell_code,
    world::World,
};

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it says.
    Done,
    /// It did not; the status a shell would report.
    Failed(i32),
    /// The student wants to leave.
    Exit,
}

/// How deep files may `source` each other; more is a circle.
const MAX_SOURCE_DEPTH: u32 = 8;

/// A prompt's view of the lab.
pub struct Session {
    world: Arc<World>,
}

impl Session {
    /// A session on a running lab.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    /// Carries out one line; its output goes to standard output as it comes, its errors to standard error.
    #[must_use]
    pub fn execute(&self, text: &str) -> Outcome {
        self.execute_at(text, 0)
    }

    fn execute_at(&self, text: &str, depth: u32) -> Outcome {
        let line = match Line::parse(text, &*self.world) {
            Ok(line) => line,
            Err(error) => return failed(&error.into()),
        };
        self.carry_out(line, depth)
    }

    fn carry_out(&self, line: Line, depth: u32) -> Outcome {
        let world = &*self.world;
        let result = match line {
            Line::Empty => Ok(()),
            Line::Exit => return Outcome::Exit,
            Line::Help(topic) => print(&help(topic.as_deref())),
            Line::Nodes => print(&network::nodes(world)),
            Line::Net => print(&network::net(world)),
            Line::Links => network::links(world).and_then(|text| print(&text)),
            Line::Dump => print(&network::dump(world)),
            Line::Status => print(&crate::status::table(&crate::status::collect(world))),
            Line::Objects(words) => on_objects(world, &words),
            Line::PingAll => return network::ping_all(world).map_or_else(|error| failed(&error), code),
            Line::Iperf(a, b) => network::iperf(world, &a, &b).and_then(|text| print(&text)),
            Line::Link { a, b, up } => world.set_link(&a, &b, up),
            Line::Shell(command) => {
                return ended(world.foreground(Command::new("/bin/sh").args(["-c", &command])));
            }
            Line::Run { node, container, command } => {
                let netns = world.netns(&node, container.as_deref());
                return ended(netns.and_then(|netns| world.run_foreground(&netns, &command)));
            }
            Line::Call(call) => match methods::carry_out(world, &call) {
                Ok(methods::Answer::Text(text)) => print(&text),
                Ok(methods::Answer::Ended(status)) => return ended(Ok(status)),
                Err(error) => Err(error),
            },
            Line::Time(line) => {
                let began = Instant::now();
                let outcome = self.carry_out(*line, depth);
                let took = format!("*** Elapsed time: {:.6} secs\n", began.elapsed().as_secs_f64());
                return match print(&took) {
                    Ok(()) => outcome,
                    Err(error) => failed(&error),
                };
            }
            Line::Source(file) => return self.source(&file, depth),
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(error) => failed(&error),
        }
    }

    /// Runs the lines of a file; stops at `exit`, which leaves the file and not the lab.
    fn source(&self, file: &str, depth: u32) -> Outcome {
        if depth >= MAX_SOURCE_DEPTH {
            return failed(&anyhow!("{file} is sourced {MAX_SOURCE_DEPTH} files deep; do they source each other?"));
        }
        let text = match std::fs::read_to_string(file).with_context(|| format!("read {file}")) {
            Ok(text) => text,
            Err(error) => return failed(&error),
        };
        let mut outcome = Outcome::Done;
        for line in text.lines() {
            match (self.execute_at(line, depth + 1), outcome) {
                (Outcome::Exit, _) => break,
                (failure @ Outcome::Failed(_), Outcome::Done) => outcome = failure,
                _ => {}
            }
        }
        outcome
    }
}

/// Writes to standard output.
///
/// # Errors
///
/// When it is closed.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()).context("write to standard output")
}

/// A command line on objects, without the program's name.
#[derive(clap::Parser)]
#[command(name = "knetsim", no_binary_name = true, disable_help_subcommand = true)]
struct ObjectLine {
    #[command(subcommand)]
    command: ObjectCommand,
}

fn on_objects(world: &World, words: &[String]) -> anyhow::Result<()> {
    let line = match ObjectLine::try_parse_from(words) {
        Ok(line) => line,
        Err(error) if error.use_stderr() => {
            return Err(anyhow!("{}", error.to_string().trim_start_matches("error: ").trim_end()));
        }
        Err(help) => return print(&help.to_string()),
    };
    if line.command.lab().name != crate::labdir::DEFAULT_NAME {
        anyhow::bail!("the lab is this one; leave out --name");
    }
    objects::run(&world.lab, &line.command)
}

fn failed(error: &anyhow::Error) -> Outcome {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    Outcome::Failed(1)
}

fn ended(status: anyhow::Result<ExitStatus>) -> Outcome {
    match status {
        Ok(status) => code(shell_code(status)),
        Err(error) => failed(&error),
    }
}

fn code(code: i32) -> Outcome {
    if code == 0 { Outcome::Done } else { Outcome::Failed(code) }
}

fn help(topic: Option<&str>) -> String {
    if let Some((_, usage, what)) = COMMANDS.iter().find(|(name, ..)| Some(*name) == topic) {
        return format!("{usage}\n    {what}\n{}", if topic == Some("py") { methods::HELP } else { "" });
    }
    let mut text = String::new();
    if let Some(topic) = topic {
        text = format!("There is no command {topic:?}.\n");
    }
    for (_, usage, what) in COMMANDS {
        text.push_str(&format!("  {usage:<28} {what}\n"));
    }
    text
}
