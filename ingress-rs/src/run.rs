//! The process: workers that serve, and one thread that listens to the operator.
//!
//! ```text
//!  control thread                       worker threads (config: workers)
//!    SIGHUP ──▶ Config ──▶ Routes ──watch──▶ each request takes the current Routes
//!    SIGTERM ─▶ draining ──────────────────▶ stop accepting, finish, end
//!    admin: /healthz /readyz /metrics       accept ─▶ ClientIo ─▶ hyper ─▶ Proxy ─▶ backend
//! ```
//!
//! So a flood of clients cannot keep the operator from being heard, and a student can follow a request on one thread.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::config::Config;
use crate::error::RunError;
use crate::metrics::Metrics;
use crate::source::Reload;
use crate::upstream::Routes;
use crate::worker::Worker;

/// How many connections the kernel completes for us before we accept them (Linux cuts it to `net.core.somaxconn`, 4096).
const BACKLOG: i32 = 1024;

/// An ingress that holds its addresses and does not serve yet.
#[derive(Debug)]
pub struct Ingress {
    config: Config,
    listener: TcpListener,
    admin: Option<TcpListener>,
    access_log: bool,
}

impl Ingress {
    /// Listens on the addresses of `config`, in the current thread's network namespace. Clients that come before
    /// [`Ingress::run`] wait in the kernel's queue.
    ///
    /// # Errors
    ///
    /// [`RunError::Listen`] names the address and the key of the configuration.
    pub fn bind(config: Config, access_log: bool) -> Result<Ingress, RunError> {
        raise_descriptor_limit(&config);
        let bind = |key, address| listen(address).map_err(|source| RunError::Listen { key, address, source });
        let listener = bind("listen", config.listen)?;
        let admin = config.admin.map(|address| bind("admin", address)).transpose()?;
        Ok(Ingress { config, listener, admin, access_log })
    }

    /// The address for clients, with the port the kernel chose if the configuration left it open.
    ///
    /// # Errors
    ///
    /// Whatever `getsockname(2)` says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves, then drains: no new connection, requests in flight are answered and their connections
    /// closed, and what is left after `timeouts.drain` is cut. `reloads` replaces the rules meanwhile.
    ///
    /// # Errors
    ///
    /// [`RunError`] when a worker cannot be started or dies.
    pub async fn run(
        self,
        mut reloads: mpsc::Receiver<Reload>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let metrics = Arc::new(Metrics::default());
        let (publish, routes) = watch::channel(Arc::new(Routes::new(&self.config, &metrics)));
        let draining = CancellationToken::new();
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        let seats = Arc::new(Semaphore::new(self.config.max_connections));
        let mut workers = Vec::with_capacity(self.config.workers);
        for number in 0..self.config.workers {
            let worker = Worker {
                routes: routes.clone(),
                metrics: metrics.clone(),
                seats: seats.clone(),
                draining: draining.clone(),
                cut: cut.clone(),
                access_log: self.access_log,
                warned: Cell::default(),
            };
            workers.push(WorkerThread::start(number, worker, &self.listener)?);
        }
        let listen = self.address().map_err(|source| RunError::Start { what: "the listener", source })?;
        let mut admin_address = None;
        let _admin = match &self.admin {
            Some(admin) => {
                let start = |source| RunError::Start { what: "the admin port", source };
                let admin = admin.try_clone().map_err(start)?;
                admin_address = Some(admin.local_addr().map_err(start)?);
                let admin = tokio::net::TcpListener::from_std(admin).map_err(start)?;
                Some(AbortOnDrop(tokio::spawn(admin::serve(admin, metrics.clone(), draining.clone()))))
            }
            None => None,
        };
        info!(%listen, admin = admin_address.map(tracing::field::display), routes = self.config.routes.len(), "listening");

        let Ingress { mut config, listener, .. } = self;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(reload) = reloads.recv() => {
                    metrics.reloaded(reload.is_ok());
                    match reload {
                        Ok(new) => {
                            let needs_restart = config.needs_restart(&new);
                            if !needs_restart.is_empty() {
                                warn!(keys = needs_restart.join(", "), "changed keys that take effect after a restart only");
                            }
                            publish.send_replace(Arc::new(Routes::new(&new, &metrics)));
                            info!(routes = new.routes.len(), "configuration replaced");
                            // What cannot change keeps its running value, so that the next reload is compared with the truth.
                            config = Config {
                                listen: config.listen,
                                admin: config.admin,
                                workers: config.workers,
                                max_connections: config.max_connections,
                                ..new
                            };
                        }
                        Err(refused) => error!(error = %with_source(&refused), "new configuration refused; the old one stays"),
                    }
                }
                number = any_ended(&mut workers) => return Err(RunError::WorkerDied { worker: number }),
            }
        }
        info!(limit = ?config.timeouts.drain, "draining");
        draining.cancel();
        drop(listener);
        for worker in workers {
            worker.finish().await?;
        }
        info!("drained");
        Ok(())
    }
}

/// A worker's thread, and the news of its end.
struct WorkerThread {
    number: usize,
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl WorkerThread {
    fn start(number: usize, worker: Worker, listener: &TcpListener) -> Result<WorkerThread, RunError> {
        let start = |source| RunError::Start { what: "a worker", source };
        let listener = listener.try_clone().map_err(start)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let (report, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let result = runtime.block_on(worker.run(listener));
                // Dropping the runtime drops every task that is left: this is the cut after a drain.
                drop(runtime);
                let _ = report.send(result);
            })
            .map_err(start)?;
        Ok(WorkerThread { number, thread, ended })
    }

    async fn finish(self) -> Result<(), RunError> {
        let died = RunError::WorkerDied { worker: self.number };
        match self.ended.await {
            Ok(Ok(())) => self.thread.join().map_err(|_| died),
            Ok(Err(source)) => Err(RunError::Start { what: "a worker's event loop", source }),
            Err(_) => Err(died),
        }
    }
}

/// Resolves when a worker ends, with its number.
async fn any_ended(workers: &mut [WorkerThread]) -> usize {
    std::future::poll_fn(|cx| {
        for worker in workers.iter_mut() {
            if std::pin::Pin::new(&mut worker.ended).poll(cx).is_ready() {
                return std::task::Poll::Ready(worker.number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks for as many file descriptors as this process may have: shells give 1024, and each request needs two.
fn raise_descriptor_limit(config: &Config) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let wanted = 2 * config.max_connections as u64;
    if limit < wanted {
        warn!(
            limit,
            wanted, "fewer file descriptors than two per connection; lower max_connections or raise `ulimit -Hn`"
        );
    }
}

/// A listening socket whose accepted sockets send small writes at once.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted ingress may listen while connections of the former are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it: one system call fewer per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// An error and its cause, in one line.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
