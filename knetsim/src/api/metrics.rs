//! What the API server counts, as Prometheus reads it at `/metrics`. The names are kube-apiserver's.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The counters.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Request, Counter<u64, AtomicU64>>,
    watches: Gauge,
    registry: Registry,
}

/// By what requests are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: String,
    code: u16,
}

/// A watch that is open; it counts until it is dropped.
#[derive(Debug)]
pub struct OpenWatch(Gauge);

impl Default for Metrics {
    fn default() -> Self {
        let (requests, watches) = (Family::<Request, Counter<u64, AtomicU64>>::default(), Gauge::default());
        let mut registry = Registry::default();
        registry.register("apiserver_request", "Requests by method and status code", requests.clone());
        registry.register("apiserver_longrunning_requests", "Watches that are open", watches.clone());
        Self { requests, watches, registry }
    }
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, verb: &str, code: u16) {
        self.requests.get_or_create(&Request { verb: verb.to_owned(), code }).inc();
    }

    /// Counts a watch for as long as the result lives.
    pub fn open_watch(&self) -> OpenWatch {
        self.watches.inc();
        OpenWatch(self.watches.clone())
    }

    /// All of it in the text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_open_watches_are_counted() {
        let metrics = Metrics::default();
        metrics.count("GET", 200);
        metrics.count("GET", 200);
        let watch = metrics.open_watch();
        assert!(
            metrics.render().contains("apiserver_request_total{verb=\"GET\",code=\"200\"} 2"),
            "{}",
            metrics.render()
        );
        assert!(metrics.render().contains("apiserver_longrunning_requests 1"));
        drop(watch);
        assert!(metrics.render().contains("apiserver_longrunning_requests 0"));
    }
}
