//! The prompt: the original's words, typed by hand, given with `-c`, or read from a script.

pub mod call;
mod complete;
pub mod execute;
pub mod line;
mod methods;
mod network;

use std::{
    io::{BufRead, IsTerminal},
    path::Path,
    sync::Arc,
};

use rustyline::{Config, Editor, ExternalPrinter as _, error::ReadlineError, history::FileHistory};

use self::{
    complete::Completion,
    execute::{Outcome, Session},
};
use crate::world::World;

/// Lines of history kept between labs.
const HISTORY_LINES: usize = 1000;
/// The prompt itself.
const PROMPT: &str = "knetsim> ";

/// Runs lines until the student leaves. On a terminal with history and completion; else every line of standard input.
/// Returns the exit status: that of the first line that failed, where lines are read from a script; 0 at a terminal.
///
/// # Errors
///
/// When the terminal cannot be read.
pub fn run(world: &Arc<World>, history: &Path, announce: &crate::announce::Announcer) -> anyhow::Result<i32> {
    if !std::io::stdin().is_terminal() {
        return run_lines(world, std::io::stdin().lock().lines());
    }
    let config =
        Config::builder().max_history_size(HISTORY_LINES)?.history_ignore_space(true).auto_add_history(true).build();
    let mut editor: Editor<Completion, FileHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(Completion::new(Arc::clone(world))));
    let _ = editor.load_history(history); // there is none at first
    if let Ok(mut printer) = editor.create_external_printer() {
        announce.set(move |text| drop(printer.print(format!("{text}\n"))));
    }
    let session = Session::new(Arc::clone(world));
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => {
                if session.execute(&line) == Outcome::Exit {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {} // Ctrl-C throws the line away
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    announce.reset();
    let _ = editor.save_history(history);
    Ok(0)
}

/// Runs lines one after the other, to the end or to `exit`; a failed line does not stop the next. Returns the status of the
/// first one that failed, else 0.
///
/// # Errors
///
/// When a line cannot be read.
pub fn run_lines(world: &Arc<World>, lines: impl IntoIterator<Item = std::io::Result<String>>) -> anyhow::Result<i32> {
    let session = Session::new(Arc::clone(world));
    let mut first_failure = 0;
    for line in lines {
        match session.execute(&line?) {
            Outcome::Failed(status) if first_failure == 0 => first_failure = status,
            Outcome::Done | Outcome::Failed(_) => {}
            Outcome::Exit => break,
        }
    }
    Ok(first_failure)
}
