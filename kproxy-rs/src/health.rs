//! `/healthz`, `/livez` and `/metrics`: how the proxy answers a supervisor and a Prometheus.
//!
//! Healthy means: what etcd said last is in the kernel. A proxy that has lost etcd stays healthy, since its table goes on to serve;
//! the body says so. Alive means that the loop runs at all.
//!
//! Source: `pkg/proxy/healthcheck/proxy_health.go`, `pkg/proxy/metrics/metrics.go`: metrics that both have bear kube-proxy's names.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::debug;

use crate::error::Error;

/// More than a supervisor, a Prometheus and a curious student need together; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// Without a pause, a process out of file descriptors would try thousands of times a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the endpoints show; clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: Mutex<Status>,
    metrics: Metrics,
    registry: Registry,
}

/// How the proxy is.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether what etcd said last is in the kernel.
    pub synced: bool,
    /// Whether etcd can be followed.
    pub etcd_connected: bool,
    /// Objects that cannot be used, by the ends of their keys.
    pub skipped_objects: Vec<String>,
    /// What the kernel said to the last commit, if it refused.
    pub last_error: Option<String>,
    /// When the kernel was brought up to date last, in seconds since 1970.
    pub last_updated_seconds: Option<u64>,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// `kubeproxy_sync_proxy_rules_duration_seconds`
    pub sync_seconds: Seconds,
    /// `kubeproxy_sync_proxy_rules_last_timestamp_seconds`
    pub last_sync_seconds: Gauge,
    /// `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds`
    pub last_queued_seconds: Gauge,
    /// `kubeproxy_network_programming_duration_seconds`: from the change of an endpoint, as its slice says, to the kernel.
    pub programming_seconds: Seconds,
    /// `kubeproxy_sync_proxy_rules_no_local_endpoints_total`: Services of policy Local without an endpoint on this worker.
    pub no_local_endpoints: Family<[(&'static str, &'static str); 1], Gauge>,
    /// `kubeproxy_sync_proxy_rules_service_changes_total`
    pub service_changes: Counter,
    /// `kubeproxy_sync_proxy_rules_endpoint_changes_total`
    pub endpoint_changes: Counter,
    /// `kubeproxy_sync_proxy_rules_nftables_sync_failures_total`
    pub failures: Counter,
    /// `kubeproxy_table_repairs_total`, which kube-proxy has not: times that somebody else's change was undone.
    pub repairs: Counter,
    /// `kubeproxy_conntrack_reconciler_deleted_entries_total`
    pub ended_flows: Counter,
    /// `kubeproxy_table_entries`, which kube-proxy has not.
    pub entries: Gauge,
    /// `kubeproxy_skipped_objects`, which kube-proxy has not.
    pub skipped_objects: Gauge,
    /// `kubeproxy_etcd_connected`, which kube-proxy has not.
    pub etcd_connected: Gauge,
    healthz: Family<[(&'static str, u16); 1], Counter>,
    livez: Family<[(&'static str, u16); 1], Counter>,
}

/// A histogram from 0.1 ms on: ours are a hundred times shorter than those that kube-proxy's buckets are made for.
#[derive(Debug, Clone)]
pub struct Seconds(pub Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.0001, 2.0, 16)))
    }
}

/// Which of the two ports a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// `--healthz-bind-address`
    Health,
    /// `--metrics-bind-address`
    Metrics,
}

impl Health {
    /// A proxy that has just started.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Metrics::default();
        let mut all = Registry::with_prefix("kubeproxy");
        let conntrack = all.sub_registry_with_prefix("conntrack_reconciler");
        conntrack.register(
            "deleted_entries",
            "Connections to endpoints that have gone, ended",
            metrics.ended_flows.clone(),
        );
        let rules = all.sub_registry_with_prefix("sync_proxy_rules");
        rules.register("duration_seconds", "Time to plan and commit a change", metrics.sync_seconds.0.clone());
        rules.register(
            "last_timestamp_seconds",
            "When the kernel was brought up to date last",
            metrics.last_sync_seconds.clone(),
        );
        rules.register(
            "last_queued_timestamp_seconds",
            "When a change came in last",
            metrics.last_queued_seconds.clone(),
        );
        rules.register(
            "no_local_endpoints_total",
            "Services of policy Local without an endpoint on this worker",
            metrics.no_local_endpoints.clone(),
        );
        rules.register("service_changes", "Changes of Services seen", metrics.service_changes.clone());
        rules.register("endpoint_changes", "Changes of EndpointSlices seen", metrics.endpoint_changes.clone());
        rules.register("nftables_sync_failures", "Commits that the kernel refused", metrics.failures.clone());
        all.register(
            "table_repairs",
            "Times that the table was found changed by somebody else, and rewritten",
            metrics.repairs.clone(),
        );
        all.register(
            "network_programming_duration_seconds",
            "Time from the change of an endpoint, as its slice says, until the kernel knows it",
            metrics.programming_seconds.0.clone(),
        );
        all.register("table_entries", "Elements of the maps and sets of the table", metrics.entries.clone());
        all.register("skipped_objects", "Objects in etcd that cannot be used", metrics.skipped_objects.clone());
        all.register("etcd_connected", "Whether etcd can be followed", metrics.etcd_connected.clone());
        all.register("proxy_healthz", "Answers of /healthz by status", metrics.healthz.clone());
        all.register("proxy_livez", "Answers of /livez by status", metrics.livez.clone());
        Self(Arc::new(Shared { status: Mutex::new(Status::default()), metrics, registry: all }))
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// How the proxy is, to read or to change.
    pub fn status(&self) -> MutexGuard<'_, Status> {
        // Whoever panicked in between has left a status that is at worst one field behind.
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one request, by its path alone.
    fn answer(&self, port: Port, path: &str) -> Response<Full<Bytes>> {
        match (port, path) {
            (Port::Health, "/healthz") => {
                let status = self.status().clone();
                let code = if status.synced { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                self.metrics().healthz.get_or_create(&[("code", code.as_u16())]).inc();
                json(code, &status)
            }
            (Port::Health, "/livez") => {
                self.metrics().livez.get_or_create(&[("code", 200)]).inc();
                json(StatusCode::OK, &self.status().clone())
            }
            (Port::Metrics, "/healthz") => text(StatusCode::OK, "ok"),
            // What `--impl` comparisons ask to be sure whom they speak with.
            (Port::Metrics, "/proxyMode") => text(StatusCode::OK, "nftables"),
            (Port::Metrics, "/metrics") => self.exposition(),
            (Port::Health, _) => text(StatusCode::NOT_FOUND, "there are /healthz and /livez"),
            (Port::Metrics, _) => text(StatusCode::NOT_FOUND, "there are /metrics, /proxyMode and /healthz"),
        }
    }

    fn exposition(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if encode(&mut body, &self.0.registry).is_err() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written");
        }
        typed(StatusCode::OK, body, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// The time as `/healthz` and the metrics show it: seconds since 1970.
#[must_use]
pub fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Opens a port, so that a clash is reported before anything else is done.
///
/// # Errors
///
/// [`Error::Listen`] names the address and the flag it came from.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, flag, source })
}

/// Answers requests until the task is dropped, and every connection with it.
pub async fn serve(listener: TcpListener, port: Port, health: Health) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let health = health.clone();
                    connections.spawn(async move {
                        let service = service_fn(|request: Request<hyper::body::Incoming>| {
                            let response = health.answer(port, request.uri().path());
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

fn json(code: StatusCode, status: &Status) -> Response<Full<Bytes>> {
    match serde_json::to_vec(status) {
        Ok(body) => typed(code, body, "application/json"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the status could not be written"),
    }
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(code, body, "text/plain; charset=utf-8")
}

fn typed(code: StatusCode, body: impl Into<Bytes>, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_alive_at_once_and_healthy_once_it_is_in_sync() {
        let health = Health::new();
        assert_eq!(health.answer(Port::Health, "/livez").status(), 200);
        assert_eq!(health.answer(Port::Health, "/healthz").status(), 503);
        health.status().synced = true;
        assert_eq!(health.answer(Port::Health, "/healthz").status(), 200);
        assert_eq!(health.answer(Port::Health, "/metrics").status(), 404);
        assert_eq!(health.answer(Port::Metrics, "/metrics").status(), 200);
    }

    #[test]
    fn shared_metrics_bear_the_names_of_kube_proxy() {
        let health = Health::new();
        health.metrics().service_changes.inc_by(2);
        health.answer(Port::Health, "/healthz");
        let mut body = String::new();
        encode(&mut body, &health.0.registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 0",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        ] {
            assert!(body.lines().any(|found| found == line), "{line}\n{body}");
        }
    }
}
