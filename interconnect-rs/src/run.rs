//! Starts a router, brings it every event until it is told to stop, and drains it.
//!
//! ```text
//!   accept_clients ── Client ──┐                     ┌─► serve_client   (stream of a link)
//!   accept_links ─┐            ▼                     ├─► serve_locally  (a service of ours)
//!   keep_linked ──┴─ LinkUp, Addresses, ─► Router ───┼─► serve_stream   (a stream that came in)
//!                    Incoming, LinkDown      ▲       ├─► opens and closes tcpListeners
//!   SIGHUP ───────── a new Config ───────────┘       └─► advertises addresses to peers
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{Instrument, info, info_span, warn};

use crate::config::{Config, HostPort};
use crate::error::RunError;
use crate::link::Identity;
use crate::peering::Peering;
use crate::router::Router;
use crate::service;
use crate::status::{self, Status};
use crate::tls;

/// How long connections may go on after the router was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the links may take to close after that.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that may wait for the router; who has more waits too.
const MAX_EVENTS: usize = 1024;
/// Routers that may wait to be accepted.
const LINK_BACKLOG: u32 = 128;

/// Runs a router until `shutdown`, then drains it: no new connection is taken, those that are open have
/// [`DRAIN_TIMEOUT`] to end.
///
/// Each configuration from `reloads` replaces the `tcpListener`s and `tcpConnector`s; links are not touched by it.
///
/// # Errors
///
/// [`RunError`] when it cannot start: certificates that cannot be used, ports that cannot be listened on.
pub async fn run(
    config: Config,
    mut reloads: mpsc::Receiver<Config>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (sender, mut events) = mpsc::channel(MAX_EVENTS);
    let (stop, stopping) = watch::channel(false);
    let identity = Identity { router: config.id.clone(), instance: unix_milliseconds() };
    let mut background = JoinSet::new();
    let status = Arc::new(Status::default());
    for at in &config.http_listeners {
        background.spawn(status::serve(listen(at, "http listener").await?, Arc::clone(&status)));
    }
    let mut links = start_links(&config, &Peering::new(identity.clone(), sender.clone(), stopping)).await?;
    for note in &config.notes {
        warn!("{note}");
    }
    info!(router = %identity.router, "router started");

    let mut router = Router::new(config, identity, sender, Arc::clone(&status.metrics));
    router.apply_services().await;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            Some(event) = events.recv() => router.handle(event).await,
            Some(flow) = router.flows.join_next() => router.handle_flow_end(flow.ok().flatten()),
            Some(config) = reloads.recv() => router.reload(config).await,
            () = shutdown.as_mut() => break,
        }
    }

    info!(connections = router.flows.len(), "draining");
    status.draining.store(true, Ordering::Relaxed);
    router.stop_accepting().await;
    let deadline = time::Instant::now() + DRAIN_TIMEOUT;
    while !(router.flows.is_empty() && events.is_empty()) {
        tokio::select! {
            Some(event) = events.recv() => router.handle(event).await,
            Some(flow) = router.flows.join_next() => router.handle_flow_end(flow.ok().flatten()),
            () = time::sleep_until(deadline) => break,
        }
    }
    stop.send_replace(true);
    router.end();
    let ended = time::timeout(CLOSE_TIMEOUT, async {
        loop {
            tokio::select! {
                Some(event) = events.recv() => router.handle(event).await,
                Some(_) = router.flows.join_next() => {}
                ended = links.join_next() => if ended.is_none() { break },
            }
        }
    });
    match ended.await {
        Ok(()) => info!("router stopped"),
        Err(_) => warn!("router stopped; a peer did not let its link end in time"),
    }
    Ok(())
}

/// Reads the files that a configuration names, as [`run`] would at its start.
///
/// # Errors
///
/// [`RunError::Tls`] for certificates and keys that cannot be used.
pub fn check(config: &Config) -> Result<(), RunError> {
    for profile in config.link_listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
        tls::server_config(profile)?;
    }
    for connector in &config.link_connectors {
        if let Some(profile) = &connector.tls {
            tls::client_config(profile, connector.verify_hostname)?;
        }
    }
    Ok(())
}

async fn start_links(config: &Config, peering: &Peering) -> Result<JoinSet<()>, RunError> {
    let mut links = JoinSet::new();
    for listener in &config.link_listeners {
        let acceptor = match &listener.tls {
            Some(profile) => Some(TlsAcceptor::from(Arc::new(tls::server_config(profile)?))),
            None => {
                warn!(at = %listener.at, "this listener has no sslProfile: its links are plain text and open to anyone");
                None
            }
        };
        let socket = listen(&listener.at, "listener of role inter-router").await?;
        links.spawn(peering.clone().accept_links(listener.clone(), socket, acceptor));
    }
    for connector in &config.link_connectors {
        let dialler = match &connector.tls {
            Some(profile) => {
                Some(TlsConnector::from(Arc::new(tls::client_config(profile, connector.verify_hostname)?)))
            }
            None => None,
        };
        let span = info_span!("link", to = %connector.to);
        links.spawn(peering.clone().keep_linked(connector.clone(), dialler).instrument(span));
    }
    Ok(links)
}

async fn listen(at: &HostPort, what: &'static str) -> Result<tokio::net::TcpListener, RunError> {
    service::listen(at, LINK_BACKLOG).await.map_err(|source| RunError::Listen { address: at.to_string(), what, source })
}

/// Tells this process from an earlier one of the same router id.
fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
