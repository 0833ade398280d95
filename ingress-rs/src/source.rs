//! From the outside world to events: SIGHUP becomes a new configuration, SIGTERM and SIGINT the wish to stop.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::error::{ConfigError, RunError};

/// What comes of a SIGHUP: a checked configuration, or why there is none.
pub type Reload = Result<Config, ConfigError>;

/// Reads `path` anew at every SIGHUP.
///
/// # Errors
///
/// [`RunError::Start`] when the signal cannot be waited for.
pub fn reloads(path: PathBuf) -> Result<mpsc::Receiver<Reload>, RunError> {
    let mut hangups = watch_signal(SignalKind::hangup())?;
    // One place: what comes while a reload is being applied is one more reload, however many signals it was.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            if sender.send(Config::load(&path)).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Resolves at the first SIGTERM or SIGINT.
///
/// # Errors
///
/// [`RunError::Start`] when the signals cannot be waited for.
pub fn shutdown() -> Result<impl Future<Output = ()>, RunError> {
    let mut terminate = watch_signal(SignalKind::terminate())?;
    let mut interrupt = watch_signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn watch_signal(kind: SignalKind) -> Result<tokio::signal::unix::Signal, RunError> {
    signal(kind).map_err(|source| RunError::Start { what: "waiting for signals", source })
}
