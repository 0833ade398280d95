//! Connections to backends, and the unused ones kept for the next request.
//!
//! One pool per worker, so a connection, its event loop and its requests stay on one thread. Last in, first out: under little
//! load the same few connections stay warm and the others grow old and are closed.
//!
//! A connection comes back only when it is certainly at the boundary between two messages: the request body was sent whole and the
//! response body read whole. Everything else drops the [`Lease`], and hyper closes the connection with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::{debug, trace};

use crate::body::{RequestBody, Upload, UploadState};

/// The unused connections of one worker.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<BTreeMap<SocketAddr, Vec<Idle>>>>);

#[derive(Debug)]
struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// Why no connection could be had.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kernel's answer.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No answer within this time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// A connection in use by one request.
#[derive(Debug)]
pub struct Lease {
    /// Where requests go in.
    pub sender: SendRequest<RequestBody>,
    /// The other end.
    pub backend: SocketAddr,
    /// Whether it has served a request before: then the backend may have closed it while we send.
    pub reused: bool,
    /// Set when the request on it has a body, which must be through before the connection is used again.
    pub upload: Option<Upload>,
    keepalive: usize,
    pool: Pool,
}

impl Pool {
    /// The connection to `backend` that was used last, if one is kept that is open and has not been idle for `max_idle`.
    pub async fn take(&self, backend: SocketAddr, keepalive: usize, max_idle: Duration) -> Option<Lease> {
        while let Some(mut idle) = self.pop(backend) {
            // A connection comes back at the instant its response ends, a moment before hyper can take the next request.
            if idle.since.elapsed() < max_idle && idle.sender.ready().await.is_ok() {
                return Some(Lease {
                    sender: idle.sender,
                    backend,
                    reused: true,
                    upload: None,
                    keepalive,
                    pool: self.clone(),
                });
            }
            trace!(%backend, "a kept connection is closed or too old");
        }
        None
    }

    /// A new connection to `backend`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when `backend` refuses, is unreachable, or does not answer within `limit`.
    pub async fn connect(&self, backend: SocketAddr, keepalive: usize, limit: Duration) -> Result<Lease, ConnectError> {
        let connecting = TcpStream::connect(backend);
        let stream = tokio::time::timeout(limit, connecting).await.map_err(|_| ConnectError::Timeout(limit))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The task ends with the connection: when the backend closes it, or when the last of sender and response is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%backend, %error, "connection to backend ended");
            }
        });
        Ok(Lease { sender, backend, reused: false, upload: None, keepalive, pool: self.clone() })
    }

    /// Closes what has been idle for `max_idle`, what the backends closed, and what leads to none of `wanted`.
    pub fn sweep(&self, wanted: &BTreeSet<SocketAddr>, max_idle: Duration) {
        self.lock().retain(|backend, kept| {
            kept.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < max_idle && wanted.contains(backend));
            !kept.is_empty()
        });
    }

    fn pop(&self, backend: SocketAddr) -> Option<Idle> {
        self.lock().get_mut(&backend)?.pop()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Vec<Idle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// The connection has become a tunnel: it never serves another request.
    pub fn retire(&mut self) {
        self.keepalive = 0;
    }

    /// Keeps the connection for the next request, unless a body is still on its way, it is closed, or enough are kept.
    pub fn give_back(self) {
        let sent = self.upload.is_none_or(|upload| matches!(upload.state(), UploadState::Complete(_)));
        if !sent || self.keepalive == 0 || self.sender.is_closed() {
            return;
        }
        let mut pool = self.pool.lock();
        let kept = pool.entry(self.backend).or_default();
        if kept.len() >= self.keepalive {
            // The oldest goes: it is the likeliest to have been closed by the backend.
            kept.remove(0);
        }
        kept.push(Idle { sender: self.sender, since: Instant::now() });
    }
}
