//! One thread that serves clients: its event loop, its connections, its pool.
//!
//! Workers share the rules, the counters and *one* listening socket, and nothing else. A socket per worker (`SO_REUSEPORT`) would spread
//! connections by a hash instead of by who is free, would hide that a second ingress listens on the same port, and would reset what
//! stands in the queue of a worker that closes its socket.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::client::{ClientIo, Clocks, Conversation};
use crate::headers::Origin;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::proxy::{Client, Proxy};
use crate::upstream::Routes;

/// A request head, and what hyper gathers before it writes, may be this large: the default of 400 kB would let a thousand strangers
/// hold 400 MB.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// How long a drain leaves an idle connection open. A client that is about to send its next request gets it answered, with
/// `Connection: close`, where an immediate end would lose it.
const IDLE_LINGER: Duration = Duration::from_millis(500);

/// How long to wait when the kernel has no descriptor or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a worker says that clients wait.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What a worker is given.
#[derive(Debug)]
pub struct Worker {
    /// The rules; a reload replaces them.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// Seats for clients, shared by all workers.
    pub seats: Arc<Semaphore>,
    /// Cancelled when the worker shall drain and end.
    pub draining: CancellationToken,
    /// Cancelled when the worker shall end at once.
    pub cut: CancellationToken,
    /// Whether requests are logged at INFO.
    pub access_log: bool,
    /// When this worker last said that clients wait for a seat.
    pub warned: Cell<Option<Instant>>,
}

impl Worker {
    /// Serves clients until the drain has ended; runs in a current-thread runtime, which owns all tasks started here.
    ///
    /// # Errors
    ///
    /// When the listening socket cannot be registered with the event loop.
    pub async fn run(self, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let tasks = TaskTracker::new();
        let proxy = Arc::new(Proxy {
            routes: self.routes.clone(),
            pool: Pool::default(),
            metrics: self.metrics.clone(),
            draining: self.draining.clone(),
            tasks: tasks.clone(),
            access_log: self.access_log,
        });
        tokio::spawn(sweep(proxy.pool.clone(), self.routes.clone()));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.draining.cancelled() => break,
                accepted = self.accept(&listener) => accepted,
            };
            self.serve(accepted, &proxy, &tasks).await;
        }
        // What the kernel has already accepted for us is ours: closing the listener would reset it.
        while let Ok((Ok(client), seat)) = tokio::time::timeout(Duration::ZERO, self.accept(&listener)).await {
            self.serve((Ok(client), seat), &proxy, &tasks).await;
        }
        drop(listener);
        tasks.close();
        let limit = self.routes.borrow().timeouts.drain;
        tokio::select! {
            () = tasks.wait() => {}
            () = self.cut.cancelled() => {}
            () = tokio::time::sleep(limit) => {
                warn!(open = tasks.len(), ?limit, "connections are cut: the time to drain is over");
            }
        }
        Ok(())
    }

    /// The next client, with its seat. Beyond `max_connections` nothing is accepted: the kernel's queue holds who comes.
    async fn accept(&self, listener: &TcpListener) -> (io::Result<(TcpStream, SocketAddr)>, OwnedSemaphorePermit) {
        let seat = if let Ok(seat) = self.seats.clone().try_acquire_owned() {
            seat
        } else {
            // A line per client would add to the burden.
            if self.warned.get().is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
                self.warned.set(Some(Instant::now()));
                warn!("max_connections is reached; new clients wait");
            }
            self.seats.clone().acquire_owned().await.expect("the semaphore is never closed")
        };
        (listener.accept().await, seat)
    }

    async fn serve(
        &self,
        (accepted, seat): (io::Result<(TcpStream, SocketAddr)>, OwnedSemaphorePermit),
        proxy: &Arc<Proxy>,
        tasks: &TaskTracker,
    ) {
        match accepted {
            Ok((stream, peer)) => {
                let guard = (seat, self.metrics.open_connection());
                tasks.spawn(serve_client(stream, peer, guard, proxy.clone()));
            }
            // The client went away between SYN and accept: nothing is wrong here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                warn!(%error, "cannot accept; pausing for {ACCEPT_PAUSE:?}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client's connection to its end.
async fn serve_client<G: Send + Unpin + 'static>(stream: TcpStream, peer: SocketAddr, guard: G, proxy: Arc<Proxy>) {
    let Ok(local) = stream.local_addr() else { return };
    let timeouts = proxy.routes.borrow().timeouts;
    let conversation = Conversation::default();
    let clocks =
        Clocks { client_head: timeouts.client_head, keep_alive: timeouts.keep_alive, write_stall: timeouts.body_idle };
    let io = ClientIo::new(stream, conversation.clone(), clocks, guard);
    let draining = proxy.draining.clone();
    let client = Arc::new(Client { peer, origin: Origin::plain(peer, local), conversation });
    let service = service_fn(move |request| {
        let (proxy, client) = (proxy.clone(), client.clone());
        async move { Ok::<_, Infallible>(proxy.handle(&client, request).await) }
    });
    let mut server = http1::Builder::new();
    // hyper's clock would count an idle connection as a slow head; `ClientIo` tells them apart.
    server.header_read_timeout(None).max_buf_size(MAX_BUFFER_BYTES);
    let mut connection = pin!(server.serve_connection(TokioIo::new(io), service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => if let Ok(result) = tokio::time::timeout(IDLE_LINGER, connection.as_mut()).await { result } else {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "client connection ended");
    }
}

/// Closes unused backend connections that are too old or lead to a backend no rule names any more.
async fn sweep(pool: Pool, mut routes: watch::Receiver<Arc<Routes>>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        let current = routes.borrow_and_update().clone();
        let wanted: BTreeSet<SocketAddr> =
            current.table.targets().flat_map(|upstream| upstream.backends()).copied().collect();
        loop {
            tokio::select! {
                _ = every.tick() => pool.sweep(&wanted, current.timeouts.backend_keep_alive),
                changed = routes.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                }
            }
        }
    }
}
