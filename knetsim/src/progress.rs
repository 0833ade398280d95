//! The steps of a boot as a student sees them: a name, what was made, and the time it took.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows steps on standard error; with a turning wheel where that is a terminal.
pub struct Progress {
    began: Instant,
    terminal: bool,
}

impl Progress {
    /// Begins to count.
    #[must_use]
    pub fn new() -> Self {
        Self { began: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    /// Carries out a step and prints its line.
    ///
    /// # Errors
    ///
    /// That of the step, with the step's name before it.
    pub fn step(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        let wheel = self.terminal.then(|| wheel(name));
        let began = Instant::now();
        let result = work();
        let took = began.elapsed();
        if let Some(wheel) = wheel {
            wheel.finish_and_clear();
        }
        let made = result.map_err(|error| error.context(format!("step {name:?} failed")))?;
        write_line(&format!("  {name:<14} {made:<44} {:>7.3} s", took.as_secs_f64()));
        Ok(())
    }

    /// Prints a sentence between the steps.
    pub fn remark(&self, text: &str) {
        write_line(&format!("  note: {text}"));
    }

    /// Prints the time of all steps together.
    pub fn done(&self, what: &str) {
        write_line(&format!("  {:<14} {what:<44} {:>7.3} s", "", self.began.elapsed().as_secs_f64()));
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn wheel(name: &str) -> ProgressBar {
    let wheel = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("  {msg:<14} {spinner} {elapsed}") {
        wheel.set_style(style);
    }
    wheel.set_message(name.to_owned());
    wheel.enable_steady_tick(Duration::from_millis(80));
    wheel
}

fn write_line(line: &str) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
