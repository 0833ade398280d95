//! What the ingress counts, for Prometheus.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Seconds to a response's head; a backend in the next namespace takes about 0.0002.
const HEAD_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    route: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// All counters of one ingress.
pub struct Metrics {
    registry: Registry,
    accepted: Counter,
    connections: Gauge,
    tunnels: Gauge,
    /// Requests sent on a connection that had served one before.
    pub reused: Counter,
    responses: Family<ResponseLabels, Counter>,
    head_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    bytes: Family<RouteLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
    connects: Family<ResultLabels, Counter>,
    reloads: Family<ResultLabels, Counter>,
}

/// The counters of one route.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    /// Responses by the first digit of their status, 1 to 5.
    responses: [Counter; 5],
    head_seconds: Histogram,
    /// Bytes of response bodies sent to clients.
    pub bytes: Counter<u64, AtomicU64>,
}

/// Something open, counted in a gauge while it lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn count(gauge: &Gauge) -> Open {
        gauge.inc();
        Open(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ingress");
        let metrics = Metrics {
            accepted: Counter::default(),
            connections: Gauge::default(),
            tunnels: Gauge::default(),
            reused: Counter::default(),
            responses: Family::default(),
            head_seconds: Family::new_with_constructor(|| Histogram::new(HEAD_SECONDS)),
            bytes: Family::default(),
            refusals: Family::default(),
            connects: Family::default(),
            reloads: Family::default(),
            registry: Registry::default(),
        };
        registry.register("client_connections", "Clients' connections accepted", metrics.accepted.clone());
        registry.register("client_connections_open", "Clients' connections open", metrics.connections.clone());
        registry.register("tunnels_open", "Connections upgraded to a WebSocket and open", metrics.tunnels.clone());
        registry.register(
            "responses",
            "Responses by route and class of status, of backends and of the ingress for them",
            metrics.responses.clone(),
        );
        registry.register_with_unit(
            "response_head",
            "From a request's head to its response's head",
            Unit::Seconds,
            metrics.head_seconds.clone(),
        );
        registry.register_with_unit("response_body", "Bodies sent to clients", Unit::Bytes, metrics.bytes.clone());
        registry.register("refusals", "Responses made by the ingress itself, by reason", metrics.refusals.clone());
        registry.register("backend_connects", "Connections to backends, by result", metrics.connects.clone());
        registry.register("backend_reuses", "Requests sent on a kept connection", metrics.reused.clone());
        registry.register("config_reloads", "Readings of the configuration at SIGHUP", metrics.reloads.clone());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// The counters of the route with this path.
    #[must_use]
    pub fn route(&self, path: &str) -> RouteMetrics {
        let route = || path.to_owned();
        let code = |code| self.responses.get_or_create_owned(&ResponseLabels { route: route(), code });
        RouteMetrics {
            responses: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(code),
            head_seconds: self.head_seconds.get_or_create_owned(&RouteLabels { route: route() }),
            bytes: self.bytes.get_or_create_owned(&RouteLabels { route: route() }),
        }
    }

    /// Counts a tunnel as open until the returned value is dropped.
    #[must_use]
    pub fn open_tunnel(&self) -> Open {
        Open::count(&self.tunnels)
    }

    /// Counts a client's connection as open until the returned value is dropped.
    #[must_use]
    pub fn open_connection(&self) -> Open {
        self.accepted.inc();
        Open::count(&self.connections)
    }

    /// Counts a response that the ingress made itself.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts an attempt to connect to a backend.
    pub fn connected(&self, succeeded: bool) {
        let result = if succeeded { "ok" } else { "failed" };
        self.connects.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts a reading of the configuration.
    pub fn reloaded(&self, accepted: bool) {
        let result = if accepted { "accepted" } else { "refused" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    /// Everything in the text format of `OpenMetrics`.
    ///
    /// # Errors
    ///
    /// None in practice: a `String` takes everything written to it.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl RouteMetrics {
    /// Counts a response whose head took `elapsed`.
    pub fn responded(&self, status: StatusCode, elapsed: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.responses[class - 1].inc();
        self.head_seconds.observe(elapsed.as_secs_f64());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.accepted.inc();
        metrics.route("/svc1").responded(StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        metrics.refused("connect-failed");
        metrics.connected(false);
        let text = metrics.render().unwrap();
        // Values of one family come in the order of a hash map.
        let mut samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        samples.sort_unstable();
        insta::assert_snapshot!(samples.join("\n"));
    }
}
