//! What the router counts, for Prometheus.

use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::ResetReason;
use crate::name::{Address, RouterId};

/// On which side of the network of routers a TCP connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client's connection to a `tcpListener`.
    Listener,
    /// Our connection to the service of a `tcpConnector`.
    Connector,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabels {
    address: String,
    side: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    address: String,
    side: &'static str,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    router: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: String,
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// All counters of one router.
pub struct Metrics {
    registry: Registry,
    links: Family<PeerLabels, Gauge>,
    links_made: Family<PeerLabels, Counter>,
    listeners: Family<ListenerLabels, Gauge>,
    open: Family<SideLabels, Gauge>,
    opened: Family<SideLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    resets: Family<ReasonLabels, Counter>,
}

/// The counters of one TCP connection; it counts as open until this is dropped.
pub struct ConnectionMetrics {
    open: Gauge<i64, AtomicI64>,
    /// Bytes read from its socket.
    pub received: Counter,
    /// Bytes written to its socket.
    pub sent: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("interconnect"),
            links: Family::default(),
            links_made: Family::default(),
            listeners: Family::default(),
            open: Family::default(),
            opened: Family::default(),
            bytes: Family::default(),
            resets: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("link_up", "Links established to each router", metrics.links.clone());
        registry.register("links", "Links established to each router since the start", metrics.links_made.clone());
        registry.register(
            "listener_up",
            "Whether a tcpListener's socket is open: its address has a consumer",
            metrics.listeners.clone(),
        );
        registry.register("connections_open", "TCP connections open, of clients and to services", metrics.open.clone());
        registry.register(
            "connections",
            "TCP connections of clients and to services since the start",
            metrics.opened.clone(),
        );
        registry.register_with_unit(
            "transfer",
            "Bytes read from and written to TCP connections",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register("resets", "TCP connections that were cut, by reason", metrics.resets.clone());
        metrics
    }
}

impl Metrics {
    /// Counts a connection as open until the result is dropped.
    #[must_use]
    pub fn connection(&self, address: &Address, side: Side) -> ConnectionMetrics {
        let side = match side {
            Side::Listener => "listener",
            Side::Connector => "connector",
        };
        let address = || address.to_string();
        let bytes =
            |direction| self.bytes.get_or_create_owned(&DirectionLabels { address: address(), side, direction });
        let labels = SideLabels { address: address(), side };
        self.opened.get_or_create(&labels).inc();
        let open = self.open.get_or_create_owned(&labels);
        open.inc();
        ConnectionMetrics { open, received: bytes("received"), sent: bytes("sent") }
    }

    /// Notes a link to `router`.
    pub fn link_up(&self, router: &RouterId) {
        let labels = PeerLabels { router: router.to_string() };
        self.links.get_or_create(&labels).inc();
        self.links_made.get_or_create(&labels).inc();
    }

    /// Notes the end of a link to `router`.
    pub fn link_down(&self, router: &RouterId) {
        self.links.get_or_create(&PeerLabels { router: router.to_string() }).dec();
    }

    /// Notes whether a `tcpListener` listens.
    pub fn listener(&self, listener: &str, address: &Address, up: bool) {
        let labels = ListenerLabels { listener: listener.to_owned(), address: address.to_string() };
        self.listeners.get_or_create(&labels).set(up.into());
    }

    /// Forgets a `tcpListener` that is no longer configured.
    pub fn listener_removed(&self, listener: &str, address: &Address) {
        self.listeners.remove(&ListenerLabels { listener: listener.to_owned(), address: address.to_string() });
    }

    /// Notes that a connection was cut.
    pub fn was_reset(&self, reason: ResetReason) {
        self.resets.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
    }

    /// Everything in the text format `OpenMetrics`.
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

impl Drop for ConnectionMetrics {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl fmt::Debug for ConnectionMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionMetrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::default();
        let web = Address::new("web:80").unwrap();
        metrics.link_up(&RouterId::new("C1").unwrap());
        metrics.listener("web", &web, true);
        let connection = metrics.connection(&web, Side::Listener);
        connection.received.inc_by(3);
        metrics.was_reset(ResetReason::ConnectFailed);
        let text = metrics.render().unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable(); // The order within a family is that of its hash map.
        insta::assert_snapshot!(lines.join("\n"), @r#"
        interconnect_connections_open{address="web:80",side="listener"} 1
        interconnect_connections_total{address="web:80",side="listener"} 1
        interconnect_link_up{router="C1"} 1
        interconnect_links_total{router="C1"} 1
        interconnect_listener_up{listener="web",address="web:80"} 1
        interconnect_resets_total{reason="connect-failed"} 1
        interconnect_transfer_bytes_total{address="web:80",side="listener",direction="received"} 3
        interconnect_transfer_bytes_total{address="web:80",side="listener",direction="sent"} 0
        "#);
    }

    #[test]
    fn a_connection_counts_as_open_until_it_is_dropped() {
        let metrics = Metrics::default();
        let web = Address::new("web:80").unwrap();
        drop(metrics.connection(&web, Side::Connector));
        assert!(
            metrics
                .render()
                .unwrap()
                .contains("interconnect_connections_open{address=\"web:80\",side=\"connector\"} 0\n")
        );
    }
}
