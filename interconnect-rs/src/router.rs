//! The router: it alone knows all links, listeners and flows, and decides what follows from each event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::config::{Config, TcpConnector, TcpListener};
use crate::control::{CloseReason, ResetReason};
use crate::flow::{self, Cut};
use crate::link::Identity;
use crate::metrics::Metrics;
use crate::name::Address;
use crate::route::{LinkId, Route, Table};
use crate::service;
use crate::transport::{LinkHandle, LinkStream};

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

/// The state of a router: what it is to do, and what there is.
pub(crate) struct Router {
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
    pub(crate) flows: JoinSet<Option<(LinkId, Address)>>,
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
    pub(crate) fn new(
        config: Config,
        identity: Identity,
        events: mpsc::Sender<Event>,
        metrics: Arc<Metrics>,
    ) -> Router {
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

    pub(crate) async fn handle(&mut self, event: Event) {
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
                let opened =
                    self.links.get(&link).map_or(Err(ResetReason::LinkDown), |peer| peer.handle.open(&address));
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

    pub(crate) fn handle_flow_end(&mut self, counted: Option<(LinkId, Address)>) {
        if let Some((link, address)) = counted {
            self.table.release(link, &address);
        }
    }

    /// Takes over the services of a new configuration.
    pub(crate) async fn reload(&mut self, new: Config) {
        let old = &self.config;
        if (&old.id, &old.link_listeners, &old.link_connectors, &old.http_listeners)
            != (&new.id, &new.link_listeners, &new.link_connectors, &new.http_listeners)
        {
            warn!("the router, its listeners and its connectors change at a restart only; services are reloaded");
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
    pub(crate) async fn apply_services(&mut self) {
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

    /// A `tcpListener`'s socket is open exactly while its address has a consumer somewhere, so that a client learns
    /// at once that there is none.
    async fn open_and_close_listeners(&mut self) {
        for (listener, state) in &mut self.listeners {
            let wanted = self.accepting && self.table.is_reachable(&listener.address);
            if wanted != state.socket.is_empty() {
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
    pub(crate) async fn stop_accepting(&mut self) {
        self.accepting = false;
        for peer in self.links.values() {
            peer.handle.advertise(&BTreeSet::new());
        }
        self.open_and_close_listeners().await;
    }

    /// Cuts what has not ended, and closes the links after the last of it.
    pub(crate) fn end(&mut self) {
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
