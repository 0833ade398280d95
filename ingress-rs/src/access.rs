//! One line per request, written when its response has ended.
//!
//! The line is an event of the target `access`, at DEBUG, or at INFO with `--access-log`; what nobody reads is not built.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::http::uri::Uri;
use hyper::{Method, StatusCode};
use tokio::time::Instant;

use crate::body::BodyError;
use crate::upstream::Upstream;

/// One request and its response, as far as they have come.
#[derive(Debug)]
pub struct Exchange {
    started: Instant,
    bytes: u64,
    route: Option<Arc<Upstream>>,
    line: Option<Box<Line>>,
}

#[derive(Debug)]
struct Line {
    promoted: bool,
    peer: SocketAddr,
    method: Method,
    target: Uri,
    status: StatusCode,
    backend: Option<SocketAddr>,
    error: Option<String>,
}

impl Exchange {
    /// A request for `target` has come from `peer`; `promoted` is `--access-log`.
    #[must_use]
    pub fn begin(promoted: bool, peer: SocketAddr, method: &Method, target: &Uri) -> Exchange {
        let wanted = if promoted {
            tracing::enabled!(target: "access", tracing::Level::INFO)
        } else {
            tracing::enabled!(target: "access", tracing::Level::DEBUG)
        };
        let line = wanted.then(|| {
            Box::new(Line {
                promoted,
                peer,
                method: method.clone(),
                target: target.clone(),
                status: StatusCode::OK,
                backend: None,
                error: None,
            })
        });
        Exchange { started: Instant::now(), bytes: 0, route: None, line }
    }

    /// A rule takes the request.
    pub fn routed(&mut self, route: Arc<Upstream>) {
        self.route = Some(route);
    }

    /// The response's head is decided; `backend` made it, or the ingress itself did.
    pub fn responded(&mut self, status: StatusCode, backend: Option<SocketAddr>) {
        if let Some(route) = &self.route {
            route.metrics.responded(status, self.started.elapsed());
        }
        if let Some(line) = &mut self.line {
            line.status = status;
            line.backend = backend;
        }
    }

    /// Bytes of the response's body have been handed to the client's connection.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The response's body broke off.
    pub fn broke_off(&mut self, error: &BodyError) {
        if let Some(line) = &mut self.line {
            line.error = Some(error.to_string());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(route) = &self.route {
            route.metrics.bytes.inc_by(self.bytes);
        }
        let Some(line) = &self.line else { return };
        // The level of an event is fixed where it stands, so there are two of them.
        macro_rules! write_line {
            ($level:expr) => {
                tracing::event!(
                    target: "access",
                    $level,
                    peer = %line.peer,
                    method = %line.method,
                    target = %line.target,
                    status = line.status.as_u16(),
                    route = self.route.as_ref().map(|route| route.route.as_str()),
                    backend = line.backend.map(tracing::field::display),
                    bytes = self.bytes,
                    ms = self.started.elapsed().as_millis(),
                    error = line.error.as_deref(),
                    "request"
                )
            };
        }
        if line.promoted { write_line!(tracing::Level::INFO) } else { write_line!(tracing::Level::DEBUG) }
    }
}
