//! `/healthz`, `/readyz` and `/metrics`: how the agent answers a supervisor and a Prometheus.
//!
//! The texts are those of flanneld, since probes in the field compare them. What flanneld has no counterpart for are the metrics.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::debug;

use crate::error::Error;

/// More than a supervisor, a Prometheus and a curious student need together; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// Without a pause, a process out of file descriptors would try thousands of times a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The state that the endpoints show; clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    is_subnet_file_written: AtomicBool,
    is_lease_held: AtomicBool,
    metrics: Metrics,
    registry: Registry,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Workers that are programmed on the device.
    pub peers: Gauge,
    /// Comparisons of the kernel's state with what it should be.
    pub reconciliations: Counter,
    /// Changes made to the kernel's state.
    pub changes: Counter,
    /// Changes that the kernel refused.
    pub failures: Counter,
    /// Times that our key in etcd was lost.
    pub leases_lost: Counter,
    /// Times that somebody else wrote our key in etcd.
    pub leases_contested: Counter,
}

impl Health {
    /// The state of an agent that has just started.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Metrics::default();
        let mut registry = Registry::with_prefix("flannel");
        registry.register("peers", "Workers that are programmed on the device", metrics.peers.clone());
        registry.register(
            "reconciliations",
            "Comparisons of the kernel's state with what it should be",
            metrics.reconciliations.clone(),
        );
        registry.register("changes", "Changes made to the kernel's state", metrics.changes.clone());
        registry.register("failures", "Changes that the kernel refused", metrics.failures.clone());
        registry.register("leases_lost", "Times that the worker's key in etcd was lost", metrics.leases_lost.clone());
        let help = "Times that somebody else wrote the worker's key in etcd";
        registry.register("leases_contested", help, metrics.leases_contested.clone());
        Self(Arc::new(State {
            is_subnet_file_written: AtomicBool::new(false),
            is_lease_held: AtomicBool::new(true),
            metrics,
            registry,
        }))
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Says that the subnet file is written: pods may start.
    pub fn set_subnet_file_written(&self) {
        self.0.is_subnet_file_written.store(true, Ordering::Relaxed);
    }

    /// Says whether our key stands in etcd; without it other workers do not know the way to our pods.
    pub fn set_lease_held(&self, is_held: bool) {
        self.0.is_lease_held.store(is_held, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.0.is_subnet_file_written.load(Ordering::Relaxed) && self.0.is_lease_held.load(Ordering::Relaxed)
    }

    /// Answers one request, by its path alone.
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/healthz" => text(StatusCode::OK, "flanneld is running"),
            "/readyz" if self.is_ready() => text(StatusCode::OK, "flanneld is ready"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
            "/metrics" => self.exposition(),
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics"),
        }
    }

    fn exposition(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if encode(&mut body, &self.0.registry).is_err() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written");
        }
        let mut response = text(StatusCode::OK, body);
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens the port, so that a clash is reported before anything else is done.
///
/// # Errors
///
/// [`Error::Listen`] when the address cannot be bound.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Answers requests until the task is dropped, and every connection with it.
pub async fn serve(listener: TcpListener, health: Health) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let health = health.clone();
                    connections.spawn(async move {
                        let service = service_fn(|request: Request<hyper::body::Incoming>| {
                            let response = health.answer(request.uri().path());
                            async move { Ok::<_, Infallible>(response) }
                        });
                        if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                            debug!(%error, "a health connection ended early");
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "a health connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_healthy_at_once_and_ready_with_subnet_file_and_lease() {
        let health = Health::new();
        assert_eq!(health.answer("/healthz").status(), 200);
        assert_eq!(health.answer("/readyz").status(), 503);
        health.set_subnet_file_written();
        assert_eq!(health.answer("/readyz").status(), 200);
        health.set_lease_held(false);
        assert_eq!(health.answer("/readyz").status(), 503);
        assert_eq!(health.answer("/").status(), 404);
    }

    #[test]
    fn metrics_are_in_the_text_format_of_prometheus() {
        let health = Health::new();
        health.metrics().peers.set(2);
        let mut body = String::new();
        encode(&mut body, &health.0.registry).unwrap();
        assert!(body.contains("# TYPE flannel_peers gauge\nflannel_peers 2\n"), "{body}");
    }
}
