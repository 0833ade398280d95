//! The log: which lines are written, by the flags of flanneld's logger.
//!
//! flanneld logs with klog, whose levels are numbers: `-v 2` writes more than `-v 0`. Here they mean the levels of `tracing`:
//!
//! | `-v` | lines |
//! |---|---|
//! | 0, 1 | visible changes and what is worth a look |
//! | 2–4 | and decisions |
//! | 5 and more | everything, that of the libraries too |
//!
//! Source: klog, `klog.go`, flags `v`, `vmodule` and `log_backtrace_at`.

use std::backtrace::Backtrace;
use std::io::{IsTerminal, Write};
use std::str::FromStr;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The level of one module, as `--vmodule` takes it: `watch=4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLevel {
    module: String,
    verbosity: u8,
}

/// A line of the source, as `--log_backtrace_at` takes it: `run.rs:120`; `:0` is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    file: String,
    line: u32,
}

impl FromStr for ModuleLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no MODULE=LEVEL such as watch=4");
        let (module, verbosity) = text.split_once('=').ok_or_else(wrong)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if module.is_empty() || !module.chars().all(is_name) {
            return Err(wrong());
        }
        Ok(Self { module: module.to_owned(), verbosity: verbosity.parse().map_err(|_| wrong())? })
    }
}

impl FromStr for SourceLine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no FILE:LINE such as run.rs:120");
        let (file, line) = text.rsplit_once(':').ok_or_else(wrong)?;
        Ok(Self { file: file.to_owned(), line: line.parse().map_err(|_| wrong())? })
    }
}

impl std::fmt::Display for SourceLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Begins to log to standard error. `RUST_LOG`, where it is set, has the last word on what is logged.
pub fn init(verbosity: u8, modules: &[ModuleLevel], backtrace_at: &SourceLine) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbosity, modules)));
    let has_colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(has_colours);
    let backtraces = (backtrace_at.line != 0).then(|| Backtraces { at: backtrace_at.clone() });
    tracing_subscriber::registry().with(lines).with(backtraces).with(filter).init();
}

/// What the flags mean in the language of `tracing`'s filter.
fn directives(verbosity: u8, modules: &[ModuleLevel]) -> String {
    let mut directives = match verbosity {
        0 | 1 => "info".to_owned(),
        2..=4 => "info,flannel_rs=debug".to_owned(),
        5.. => "debug,flannel_rs=trace".to_owned(),
    };
    for ModuleLevel { module, verbosity } in modules {
        let level = match verbosity {
            0 | 1 => "info",
            2..=4 => "debug",
            5.. => "trace",
        };
        directives.push_str(&format!(",flannel_rs::{module}={level}"));
    }
    directives
}

/// Writes a backtrace after what is logged at one line.
struct Backtraces {
    at: SourceLine,
}

impl<S: Subscriber> Layer<S> for Backtraces {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let is_file = metadata.file().is_some_and(|file| file.rsplit('/').next() == Some(&self.at.file));
        if is_file && metadata.line() == Some(self.at.line) {
            // A closed standard error leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "{}", Backtrace::force_capture());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_s_level_adds_to_the_general_one() {
        assert_eq!(directives(0, &[]), "info");
        let modules = ["watch=4".parse().unwrap(), "keeper=9".parse().unwrap()];
        assert_eq!(directives(2, &modules), "info,flannel_rs=debug,flannel_rs::watch=debug,flannel_rs::keeper=trace");
    }

    #[test]
    fn what_is_no_module_or_no_line_is_refused_with_an_example() {
        for text in ["watch", "watch=", "=3", "watch=x", "a::b=1"] {
            assert!(text.parse::<ModuleLevel>().unwrap_err().contains("watch=4"), "{text}");
        }
        for text in ["run.rs", "run.rs:x", ""] {
            assert!(text.parse::<SourceLine>().unwrap_err().contains("run.rs:120"), "{text}");
        }
        assert_eq!(":0".parse::<SourceLine>().unwrap().line, 0);
    }
}
