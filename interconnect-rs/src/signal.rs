//! The signals that steer the router: SIGHUP reads the configuration again, SIGTERM and SIGINT drain it.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::config::Config;
use crate::error::RunError;

/// Reads `path` again at each SIGHUP. A file with a mistake is reported and leaves the configuration in force as it is.
///
/// # Errors
///
/// [`RunError::Start`] when the signal cannot be waited for.
pub fn reloads(path: PathBuf) -> Result<mpsc::Receiver<Config>, RunError> {
    let mut hangups = listen(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match Config::load(&path) {
                Ok(config) => {
                    info!(file = %path.display(), "configuration read again");
                    if sender.send(config).await.is_err() {
                        return;
                    }
                }
                Err(error) => error!(%error, "configuration refused; the one in force stays"),
            }
        }
    });
    Ok(receiver)
}

/// Completes at the first SIGTERM or SIGINT.
///
/// # Errors
///
/// [`RunError::Start`] when a signal cannot be waited for.
pub fn shutdown() -> Result<impl Future<Output = ()>, RunError> {
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn listen(kind: SignalKind) -> Result<Signal, RunError> {
    signal(kind).map_err(|source| RunError::Start { what: "a signal handler", source })
}
