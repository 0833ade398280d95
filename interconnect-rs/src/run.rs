//! The router's event loop: it alone knows all links, listeners and flows, and decides what follows from each event.
//!
//! ```text
//!   accept_clients ── Client ──┐                     ┌─► serve_client   (stream of a link)
//!   accept_links ─┐            ▼                     ├─► serve_locally  (a service of ours)
//!   keep_linked ──┴─ LinkUp, Addresses, ─► Router ───┼─► serve_stream   (a stream that came in)
//!                    Incoming, LinkDown      ▲       ├─► opens and closes tcpListeners
//!   SIGHUP ───────── a new Config ───────────┘       └─► advertises addresses to peers
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::config::{Config, HostPort, TcpConnector, TcpListener};
use crate::control::{CloseReason, ResetReason};
use crate::error::RunError;
use crate::flow::{self, Cut};
use crate::link::Identity;
use crate::metrics::Metrics;
use crate::name::Address;
use crate::peering::Peering;
use crate::route::{LinkId, Route, Table};
use crate::service;
use crate::status::{self, Status};
use crate::tls;
use crate::transport::{LinkHandle, LinkStream};

/// How long connections may go on after the router was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the links may take to close after that.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that may wait for the router; who has more waits too.
const MAX_EVENTS: usize = 1024;
/// Routers that may wait to be accepted.
const LINK_BACKLOG: u32 = 128;

/// What happens to the router.
pub(crate) enum Event {
    /// A client has connected.
    Client { listener: TcpListener, client: TcpStream, from: SocketAddr },
    /// A peer has said who it is.
    LinkUp { link: LinkId, peer: Identity, handle: LinkHandle },
    /// A peer has consumers for exactly these addresses.
    Addresses { link: LinkId, addresses: BTreeSet<Address> },
    /// A peer asks for a connection to a consumer.
    Incoming { stream: LinkStream, address: Address },
    /// A link has ended, perhaps before it was up.
    LinkDown { link: LinkId },
}

/// Runs a router until `shutdown`, then drains it: no new connection is taken, those that are open have [`DRAIN_TIMEOUT`] to end.
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
                warn!(at = %listener.at, "links to this listener are neither encrypted nor authenticated: it names no sslProfile");
                None
            }
        };
        let socket = listen(&listener.at, "listener of role inter-router").await?;
        links.spawn(peering.clone().accept_links(listener.clone(), socket, acceptor));
    }
    for connector in &config.link_connectors {
        let dialler = match &connector.tls {
            Some(profile) => Some(TlsConnector::from(Arc::new(tls::client_config(profile, connector.verify_hostname)?))),
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

struct Router {
    config: Config,
    identity: Identity,
    table: Table,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Event>,
    links: BTreeMap<LinkId, Peer>,
    listeners: BTreeMap<TcpListener, ClientListener>,
    /// Ends the connections to a service when its connector is taken out.
    connectors: BTreeMap<TcpConnector, (watch::Sender<Option<ResetReason>>, Cut)>,
    /// Every TCP connection carried. Each yields the link and address that it counted for, if any.
    flows: JoinSet<Option<(LinkId, Address)>>,
    accepting: bool,
}

struct Peer {
    identity: Identity,
    handle: LinkHandle,
}

struct ClientListener {
    /// The task that holds the socket; none while it is closed.
    socket: JoinSet<()>,
    cutter: watch::Sender<Option<ResetReason>>,
    cut: Cut,
}

impl Router {
    fn new(config: Config, identity: Identity, events: mpsc::Sender<Event>, metrics: Arc<Metrics>) -> Router {
        Router {
            config,
            identity,
            table: Table::default(),
            metrics,
            events,
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connectors: BTreeMap::new(),
            flows: JoinSet::new(),
            accepting: true,
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Client { listener, client, from } => self.handle_client(&listener, client, from),
            Event::LinkUp { link, peer, handle } => self.handle_link_up(link, peer, handle),
            Event::Addresses { link, addresses } => {
                self.table.set_addresses(link, addresses);
                self.open_and_close_listeners().await;
            }
            Event::Incoming { stream, address } => self.handle_incoming(stream, &address),
            Event::LinkDown { link } => {
                self.table.remove_link(link);
                if let Some(peer) = self.links.remove(&link) {
                    info!(peer = %peer.identity.router, "link down");
                    self.metrics.link_down(&peer.identity.router);
                    self.open_and_close_listeners().await;
                }
            }
        }
    }

    fn handle_client(&mut self, listener: &TcpListener, client: TcpStream, from: SocketAddr) {
        let Some(cut) = self.listeners.get(listener).map(|state| state.cut.clone()) else { return };
        let address = listener.address.clone();
        let metrics = Arc::clone(&self.metrics);
        match self.table.choose(&address) {
            Some(Route::Local(connector)) => {
                debug!(%from, %address, to = %connector.to, "client connected to a local service");
                let flow = flow::serve_locally(client, connector, cut, metrics);
                self.flows.spawn(async move {
                    flow.await;
                    None
                });
            }
            Some(Route::Remote(link)) => {
                let opened = self.links.get(&link).map_or(Err(ResetReason::LinkDown), |peer| peer.handle.open(&address));
                match opened {
                    Ok(stream) => {
                        debug!(%from, %address, link = link.0, "client connected over a link");
                        let flow = flow::serve_client(client, stream, address.clone(), cut, metrics);
                        self.flows.spawn(async move {
                            flow.await;
                            Some((link, address))
                        });
                    }
                    Err(reason) => {
                        warn!(%from, %address, %reason, "client refused");
                        self.metrics.was_reset(reason);
                        self.table.release(link, &address);
                    }
                }
            }
            None => {
                // The last consumer left between the client's connection and now.
                debug!(%from, %address, "client refused: no consumer");
                self.metrics.was_reset(ResetReason::NoConsumer);
            }
        }
    }

    fn handle_link_up(&mut self, link: LinkId, peer: Identity, handle: LinkHandle) {
        for other in self.table.links_to(&peer.router) {
            let Some(known) = self.links.get(&other) else { continue };
            if known.identity.instance > peer.instance {
                warn!(peer = %peer.router, "link refused: a router of this id that started later is linked already");
                return handle.close(CloseReason::DuplicateRouter);
            }
            if known.identity.instance < peer.instance {
                warn!(peer = %peer.router, "link replaced: the router has restarted, or another one has its id");
                known.handle.close(CloseReason::DuplicateRouter);
            }
        }
        info!(peer = %peer.router, instance = peer.instance, router = %self.identity.router, "link up");
        self.metrics.link_up(&peer.router);
        self.table.add_link(link, peer.router.clone());
        if self.accepting {
            handle.advertise(&self.table.advertised());
        }
        self.links.insert(link, Peer { identity: peer, handle });
    }

    fn handle_incoming(&mut self, mut stream: LinkStream, address: &Address) {
        let Some(connector) = self.table.choose_local(address) else {
            debug!(%address, "stream refused: no consumer here");
            self.metrics.was_reset(ResetReason::NoConsumer);
            return stream.set_drop_reason(ResetReason::NoConsumer);
        };
        let Some((_, cut)) = self.connectors.get(&connector) else { return };
        let flow = flow::serve_stream(stream, connector, cut.clone(), Arc::clone(&self.metrics));
        self.flows.spawn(async move {
            flow.await;
            None
        });
    }

    fn handle_flow_end(&mut self, counted: Option<(LinkId, Address)>) {
        if let Some((link, address)) = counted {
            self.table.release(link, &address);
        }
    }

    /// Takes over the services of a new configuration.
    async fn reload(&mut self, new: Config) {
        let old = &self.config;
        if (&old.id, &old.link_listeners, &old.link_connectors, &old.http_listeners)
            != (&new.id, &new.link_listeners, &new.link_connectors, &new.http_listeners)
        {
            warn!("changes of the router, its listeners and its connectors take effect at a restart; only services are reloaded");
        }
        self.config.drop_tcp_connections = new.drop_tcp_connections;
        self.config.tcp_listeners = new.tcp_listeners;
        self.config.tcp_connectors = new.tcp_connectors;
        self.apply_services().await;
        info!(
            listeners = self.config.tcp_listeners.len(),
            connectors = self.config.tcp_connectors.len(),
            "configuration reloaded"
        );
    }

    /// Makes listeners and connectors those of the configuration.
    async fn apply_services(&mut self) {
        let cut = |cutter: &watch::Sender<Option<ResetReason>>| {
            if self.config.drop_tcp_connections {
                cutter.send_replace(Some(ResetReason::Removed));
            }
        };
        self.connectors.retain(|connector, (cutter, _)| {
            let stays = self.config.tcp_connectors.contains(connector);
            if !stays {
                cut(cutter);
            }
            stays
        });
        self.listeners.retain(|listener, state| {
            let stays = self.config.tcp_listeners.contains(listener);
            if !stays {
                cut(&state.cutter);
                self.metrics.listener_removed(&listener.name, &listener.address);
            }
            stays
        });
        for connector in &self.config.tcp_connectors {
            self.connectors.entry(connector.clone()).or_insert_with(Cut::new);
        }
        for listener in &self.config.tcp_listeners {
            self.listeners.entry(listener.clone()).or_insert_with(|| {
                let (cutter, cut) = Cut::new();
                self.metrics.listener(&listener.name, &listener.address, false);
                ClientListener { socket: JoinSet::new(), cutter, cut }
            });
        }
        let before = self.table.advertised();
        self.table.set_connectors(&self.config.tcp_connectors);
        let after = self.table.advertised();
        if before != after {
            for peer in self.links.values() {
                peer.handle.advertise(&after);
            }
        }
        self.open_and_close_listeners().await;
    }

    /// A `tcpListener`'s socket is open exactly while its address has a consumer somewhere, so that a client learns at once that there is none.
    async fn open_and_close_listeners(&mut self) {
        for (listener, state) in &mut self.listeners {
            let wanted = self.accepting && self.table.is_reachable(&listener.address);
            if wanted == !state.socket.is_empty() {
                continue;
            }
            if wanted {
                state.socket.spawn(service::accept_clients(listener.clone(), self.events.clone()));
            } else {
                info!(listener = listener.name, address = %listener.address, "no consumer: listener closed");
                state.socket.shutdown().await;
            }
            self.metrics.listener(&listener.name, &listener.address, wanted);
        }
    }

    /// Closes every listener and tells the peers to send us nothing new.
    async fn stop_accepting(&mut self) {
        self.accepting = false;
        for peer in self.links.values() {
            peer.handle.advertise(&BTreeSet::new());
        }
        self.open_and_close_listeners().await;
    }

    /// Cuts what has not ended, and closes the links after the last of it.
    fn end(&mut self) {
        if !self.flows.is_empty() {
            warn!(connections = self.flows.len(), "connections cut");
        }
        for (cutter, _) in self.connectors.values() {
            cutter.send_replace(Some(ResetReason::ShuttingDown));
        }
        for state in self.listeners.values() {
            state.cutter.send_replace(Some(ResetReason::ShuttingDown));
        }
        for peer in self.links.values() {
            peer.handle.close_when_idle(CloseReason::ShuttingDown);
        }
    }
}
