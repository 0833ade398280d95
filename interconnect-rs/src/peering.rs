//! Makes links and makes them again: dials the routers of `connector`s, and takes the calls of others at `listener`s.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::{Instrument, info, info_span, warn};

use crate::config::{LinkConnector, LinkListener};
use crate::link::{HELLO_TIMEOUT, Identity, Link, Side};
use crate::route::LinkId;
use crate::router::Event;
use crate::service;
use crate::transport::{LinkEnd, LinkHandle, Notice};

/// Most connections to one listener that have not finished the TLS handshake: strangers cannot hold more of our
/// memory than that.
const MAX_HANDSHAKES: usize = 64;
/// How long a TCP connection to a router may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A link that lived this long was a good one: when it breaks, we dial again at once.
const GOOD_LINK: Duration = Duration::from_secs(5);
/// First and longest wait between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What every link of this router needs.
#[derive(Clone)]
pub(crate) struct Peering {
    pub(crate) identity: Identity,
    pub(crate) events: mpsc::Sender<Event>,
    /// True when no new link is to be made.
    pub(crate) stopping: watch::Receiver<bool>,
    links_made: Arc<AtomicU64>,
}

/// The waits between attempts: none, 100 ms, and twice as long each time up to 5 s.
#[derive(Debug, Default)]
struct Backoff(Option<Duration>);

impl Peering {
    pub(crate) fn new(identity: Identity, events: mpsc::Sender<Event>, stopping: watch::Receiver<bool>) -> Peering {
        Peering { identity, events, stopping, links_made: Arc::default() }
    }

    /// Keeps a link to the router of a connector until told to stop.
    pub(crate) async fn keep_linked(mut self, connector: LinkConnector, tls: Option<TlsConnector>) {
        let mut backoff = Backoff::default();
        while !*self.stopping.borrow() {
            let wait = backoff.next();
            tokio::select! {
                () = time::sleep(wait) => {}
                _ = self.stopping.changed() => continue,
            }
            let started = time::Instant::now();
            match dial(&connector, tls.as_ref()).await {
                Ok(Connection::Plain(stream)) => self.run_link(stream, Side::Connector, connector.idle_timeout).await,
                Ok(Connection::Tls(stream)) => self.run_link(stream, Side::Connector, connector.idle_timeout).await,
                Err(error) => warn!(%error, next = ?backoff.peek(), "cannot link to the router"),
            }
            if started.elapsed() >= GOOD_LINK {
                backoff = Backoff::default();
            }
        }
    }

    /// Takes the calls of other routers until told to stop, and then waits for the links so made to end.
    pub(crate) async fn accept_links(mut self, listener: LinkListener, socket: TcpListener, tls: Option<TlsAcceptor>) {
        let mut links = JoinSet::new();
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        while !*self.stopping.borrow() {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                Some(_) = links.join_next() => continue,
                _ = self.stopping.changed() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a router's connection");
                    time::sleep(BACKOFF.0).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                warn!(%from, "connection refused: {MAX_HANDSHAKES} others have not finished their TLS handshake");
                continue;
            };
            service::set_no_delay(&stream);
            let (peering, tls, idle_timeout) = (self.clone(), tls.clone(), listener.idle_timeout);
            let task = async move {
                let Some(tls) = tls else {
                    drop(permit);
                    return peering.run_link(stream, Side::Listener, idle_timeout).await;
                };
                let result = in_time(HELLO_TIMEOUT, "the TLS handshake", tls.accept(stream)).await;
                drop(permit);
                match result {
                    Ok(stream) => peering.run_link(stream, Side::Listener, idle_timeout).await,
                    Err(error) => warn!(%error, "router refused: the TLS handshake failed"),
                }
            };
            links.spawn(task.instrument(info_span!("link", %from)));
        }
        drop(socket);
        while links.join_next().await.is_some() {}
    }

    /// Runs one link from its connection to its end.
    async fn run_link(&self, connection: impl AsyncRead + AsyncWrite, side: Side, idle_timeout: Duration) {
        let id = LinkId(self.links_made.fetch_add(1, Ordering::Relaxed));
        let link = Link::new(self.identity.clone(), side, idle_timeout, time::Instant::now().into_std());
        let handle = LinkHandle::new(link);
        let end = handle
            .drive(connection, |notice| {
                let event = match notice {
                    Notice::Established(peer) => Event::LinkUp { link: id, peer, handle: handle.clone() },
                    Notice::Addresses(addresses) => Event::Addresses { link: id, addresses },
                    Notice::Incoming(stream, address) => Event::Incoming { stream, address },
                };
                self.tell(event)
            })
            .await;
        match end {
            LinkEnd::Closed(reason) => info!(%reason, "link closed"),
            LinkEnd::Failed(error) => warn!(%error, "link failed"),
        }
        self.tell(Event::LinkDown { link: id }).await;
    }

    async fn tell(&self, event: Event) {
        // Nobody listens only when the router is ending, and then nobody needs to know.
        let _ended = self.events.send(event).await;
    }
}

enum Connection {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn dial(connector: &LinkConnector, tls: Option<&TlsConnector>) -> io::Result<Connection> {
    let stream = in_time(CONNECT_TIMEOUT, "the connection", service::dial(&connector.to)).await?;
    let Some(tls) = tls else { return Ok(Connection::Plain(stream)) };
    let name = ServerName::try_from(connector.to.host.clone()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "the connector's host is no name a certificate can bear")
    })?;
    let stream = in_time(HELLO_TIMEOUT, "the TLS handshake", tls.connect(name, stream)).await?;
    Ok(Connection::Tls(Box::new(stream)))
}

async fn in_time<T>(limit: Duration, what: &str, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match time::timeout(limit, future).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {limit:?}"))),
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.peek();
        self.0 = Some(wait);
        wait
    }

    fn peek(&self) -> Duration {
        match self.0 {
            None => Duration::ZERO,
            Some(last) => (last * 2).clamp(BACKOFF.0, BACKOFF.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_the_waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
