//! Who answers a route: its backends, whose turn it is, and the route's counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::{Config, RouteConfig, Timeouts};
use crate::metrics::{Metrics, RouteMetrics};
use crate::path::MatchPath;
use crate::route::Table;

/// The backends of one route.
#[derive(Debug)]
pub struct Upstream {
    /// The rule's path as written: what messages, logs and metrics call the route.
    pub route: String,
    /// Unused connections kept per backend and worker.
    pub keepalive: usize,
    /// Counters with this route's label, looked up once and not per request.
    pub metrics: RouteMetrics,
    backends: Vec<SocketAddr>,
    turn: AtomicUsize,
}

impl Upstream {
    fn new(route: &RouteConfig, metrics: &Metrics) -> Upstream {
        Upstream {
            route: route.path.clone(),
            keepalive: route.keepalive,
            metrics: metrics.route(&route.path),
            backends: route.backends.clone(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Whose turn it is: round robin over all workers together.
    pub fn next_backend(&self) -> SocketAddr {
        // Relaxed: only fairness hangs on the order in which two workers count.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.backends[turn % self.backends.len()]
    }

    /// All backends, in the order of the configuration.
    #[must_use]
    pub fn backends(&self) -> &[SocketAddr] {
        &self.backends
    }
}

/// Everything of the configuration that a reload replaces, in one piece: a request sees the old or the new, never a mixture.
#[derive(Debug)]
pub struct Routes {
    /// Who answers which path.
    pub table: Table<Arc<Upstream>>,
    /// How long anything may take.
    pub timeouts: Timeouts,
}

impl Routes {
    /// Builds the table of a checked configuration.
    ///
    /// # Panics
    ///
    /// If two routes are equal or a path is not one, which [`Config::parse`] refuses.
    #[must_use]
    pub fn new(config: &Config, metrics: &Metrics) -> Routes {
        let mut table = Table::default();
        for route in &config.routes {
            let path = MatchPath::parse(&route.path).expect("`Config` checked the path");
            let upstream = Arc::new(Upstream::new(route, metrics));
            table.insert(&path, route.path_type, upstream).expect("`Config` checked that paths differ");
        }
        Routes { table, timeouts: config.timeouts }
    }
}
