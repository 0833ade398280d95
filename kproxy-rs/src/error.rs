//! What can go wrong, in words that say what to do.

use std::net::SocketAddr;

/// Why an object in etcd cannot be used. The object is skipped, all others are kept.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The value is not the JSON of a Kubernetes object of this kind.
    #[error("not a {kind} in JSON: {source}")]
    Json {
        /// The Kubernetes kind that the key calls for.
        kind: &'static str,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },
    /// A field holds what it must not hold.
    #[error("{field}: {what}")]
    Field {
        /// The path of the field.
        field: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ObjectError {
    /// A field that holds what it must not hold.
    pub fn field(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Field { field: field.into(), what: what.into() }
    }
}

/// Why etcd does not tell us its objects.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A request failed.
    #[error("cannot {what}")]
    Etcd {
        /// What was tried.
        what: &'static str,
        /// What the client says.
        #[source]
        source: etcd_client::Error,
    },
    /// etcd ended the watch.
    #[error("etcd ended the watch: {reason}")]
    WatchEnded {
        /// What it gave as a reason.
        reason: String,
    },
    /// The request took longer than any healthy etcd needs.
    #[error("cannot {what}: etcd did not answer within {seconds} s")]
    TimedOut {
        /// What was tried.
        what: &'static str,
        /// How long we waited.
        seconds: u64,
    },
}

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags that do not go together.
    #[error("{0}")]
    Configuration(String),
    /// A port is taken, or not ours to take.
    #[error("cannot listen on {address}; choose another with {flag}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The flag that says so.
        flag: &'static str,
        /// What the kernel answered.
        #[source]
        source: std::io::Error,
    },
    /// The kernel does not let us program it at all.
    #[error("cannot program nftables in this network namespace; it needs root or CAP_NET_ADMIN")]
    Kernel(#[source] linux_net::Error),
    /// An endpoint of etcd is not a URL, or its client cannot be set up.
    #[error(transparent)]
    Source(#[from] SourceError),
}
