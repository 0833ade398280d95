//! What can go wrong: with the file, with the process, and with one request.
//!
//! A [`Refusal`] is what a client sees in place of a backend's response: a status, a line of text that names what failed, and the
//! same in one word in the header `x-ingress-error`, so that a script can tell the ingress's 404 from a backend's.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::{Method, StatusCode};
use thiserror::Error;

use crate::path::PathError;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has a mistake.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// Column of the mistake in characters, from 1.
        column: usize,
        /// What is wrong, and what to write instead.
        message: String,
    },
}

/// Why the ingress cannot start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// An address of the configuration cannot be listened on.
    #[error("cannot listen on {address} ({key} in the configuration)")]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why not: in use, not an address of this network namespace, or a port below 1024 without the right to it.
        source: io::Error,
    },
    /// A thread or its event loop cannot be made, or a signal cannot be waited for.
    #[error("cannot start {what}")]
    Start {
        /// What was being started.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A worker thread ended before it was told to.
    #[error("worker {worker} ended unexpectedly; its last log line says why")]
    WorkerDied {
        /// Its number, from 0.
        worker: usize,
    },
}

/// Why a request is malformed or ambiguous (all of them answered with 400).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadRequest {
    /// RFC 9112 §3.2: every HTTP/1.1 request has a Host.
    #[error("the request has no Host header")]
    NoHost,
    /// RFC 9112 §3.2: two readers might believe different ones.
    #[error("the request has more than one Host header")]
    ManyHosts,
    /// The Host, or the authority in an absolute-form target, is not a host and optional port.
    #[error("the Host is not a host name or address with an optional port")]
    InvalidHost,
    /// RFC 9112 §6.1: the length of the body is ambiguous.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    AmbiguousLength,
    /// The only transfer coding a request body may have here is `chunked`.
    #[error("the request's Transfer-Encoding is not `chunked`")]
    TransferCoding,
    /// The path is not one that can be routed.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Why a client gets a response of the ingress instead of a backend's.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The request is malformed or ambiguous.
    #[error("bad request: {0}")]
    BadRequest(#[from] BadRequest),
    /// CONNECT and TRACE are not for an ingress: one asks for a forward proxy, the other echoes the headers it adds.
    #[error("method {0} is not served here")]
    Method(Method),
    /// No rule takes the path.
    #[error("no route for path {path}")]
    NoRoute {
        /// The path as the client wrote it.
        path: String,
    },
    /// The client stopped sending its body.
    #[error("the request body made no progress for {limit:?}")]
    ClientStalled {
        /// `timeouts.body_idle`.
        limit: Duration,
    },
    /// The client's body broke off, or is not what its framing says.
    #[error("the request body broke off")]
    ClientAborted,
    /// A backend cannot be connected to.
    #[error("cannot connect to backend {backend} of route {route}: {cause}")]
    Connect {
        /// The backend tried last.
        backend: SocketAddr,
        /// The rule's path.
        route: String,
        /// The kernel's reason.
        cause: io::Error,
    },
    /// A backend did not accept the connection in time.
    #[error("backend {backend} of route {route} did not accept a connection within {limit:?}")]
    ConnectTimeout {
        /// The backend tried last.
        backend: SocketAddr,
        /// The rule's path.
        route: String,
        /// `timeouts.connect`.
        limit: Duration,
    },
    /// A backend closed the connection, or answered with something else than HTTP.
    #[error("backend {backend} of route {route} failed before its response: {cause}")]
    Backend {
        /// The backend.
        backend: SocketAddr,
        /// The rule's path.
        route: String,
        /// What hyper saw.
        cause: String,
    },
    /// A backend has the request and does not answer.
    #[error("backend {backend} of route {route} did not respond within {limit:?}")]
    ResponseTimeout {
        /// The backend.
        backend: SocketAddr,
        /// The rule's path.
        route: String,
        /// `timeouts.response_head`.
        limit: Duration,
    },
}

impl Refusal {
    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::BadRequest(_) | Refusal::ClientAborted => StatusCode::BAD_REQUEST,
            Refusal::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NoRoute { .. } => StatusCode::NOT_FOUND,
            Refusal::ClientStalled { .. } => StatusCode::REQUEST_TIMEOUT,
            Refusal::Connect { .. } | Refusal::Backend { .. } => StatusCode::BAD_GATEWAY,
            Refusal::ConnectTimeout { .. } | Refusal::ResponseTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The reason in one word: the value of `x-ingress-error` and of the label `reason` in the metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::BadRequest(_) => "bad-request",
            Refusal::Method(_) => "method",
            Refusal::NoRoute { .. } => "no-route",
            Refusal::ClientStalled { .. } => "client-stalled",
            Refusal::ClientAborted => "client-aborted",
            Refusal::Connect { .. } => "connect-failed",
            Refusal::ConnectTimeout { .. } => "connect-timeout",
            Refusal::Backend { .. } => "backend-failed",
            Refusal::ResponseTimeout { .. } => "response-timeout",
        }
    }
}
