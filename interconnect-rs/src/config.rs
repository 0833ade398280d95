//! The router's configuration file, as skrouterd reads it: a JSON array of `[entityType, {attributes}]`.
//!
//! ```json
//! [
//!   ["router",       {"id": "C0", "mode": "interior"}],
//!   ["sslProfile",   {"name": "lab", "caCertFile": "ca.crt", "certFile": "C0.crt", "privateKeyFile": "C0.key"}],
//!   ["listener",     {"role": "inter-router", "host": "10.0.0.3", "port": 55671, "sslProfile": "lab"}],
//!   ["connector",    {"role": "inter-router", "host": "10.0.0.8", "port": 55671, "sslProfile": "lab"}],
//!   ["listener",     {"role": "normal", "http": true, "host": "127.0.0.1", "port": 9090}],
//!   ["tcpConnector", {"name": "web", "address": "web:80", "host": "11.10.0.4", "port": "8000"}],
//!   ["tcpListener",  {"name": "db",  "address": "db:5432", "host": "10.0.0.3", "port": "1028"}]
//! ]
//! ```
//!
//! An attribute that skrouterd does not have is refused, with the name that was probably meant. One that it has is
//! accepted; where ours has no use for it (`cost`, `maxFrameSize`, `helloIntervalSeconds`, `workerThreads`, …) it
//! changes nothing. What would be dangerous to pass over in silence is either refused (TLS towards clients and
//! services, encrypted keys) or named in [`Config::notes`] (listeners that are not served, policies).
//!
//! Source: skupper-router 3.5.1, its management schema.

mod check;
mod entity;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::name::{Address, RouterId};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `router.id`.
    pub id: RouterId,
    /// `router.dropTcpConnections`: whether taking a `tcpListener` or `tcpConnector` out cuts its connections (true)
    /// or lets them end.
    pub drop_tcp_connections: bool,
    /// `listener`s of role `inter-router`: where other routers dial us.
    pub link_listeners: Vec<LinkListener>,
    /// `connector`s of role `inter-router`: routers that we dial.
    pub link_connectors: Vec<LinkConnector>,
    /// `listener`s with `http`: where `/healthz` and `/metrics` are.
    pub http_listeners: Vec<HostPort>,
    /// `tcpListener`s: where clients connect.
    pub tcp_listeners: BTreeSet<TcpListener>,
    /// `tcpConnector`s: services that we connect to.
    pub tcp_connectors: BTreeSet<TcpConnector>,
    /// What the file asks for and this router does otherwise, in words.
    pub notes: Vec<String>,
}

/// A host and a port, not resolved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name or an address; empty for every address of the machine.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// A `listener` of role `inter-router`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkListener {
    /// Where to listen.
    pub at: HostPort,
    /// Mutual TLS; without it the link is plain text, as with skrouterd.
    pub tls: Option<SslProfile>,
    /// Half of `idleTimeoutSeconds`, as skrouterd tells its peers: silence for so long means that the peer is dead.
    pub idle_timeout: Duration,
}

/// A `connector` of role `inter-router`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConnector {
    /// Whom to dial.
    pub to: HostPort,
    /// Mutual TLS; without it the link is plain text, as with skrouterd.
    pub tls: Option<SslProfile>,
    /// Whether the peer's certificate must name the host dialled.
    pub verify_hostname: bool,
    /// Half of `idleTimeoutSeconds`.
    pub idle_timeout: Duration,
}

/// An `sslProfile`. Relative paths are relative to the directory the router was started in, as with skrouterd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SslProfile {
    /// Its name.
    pub name: String,
    /// `caCertFile`: who signs the certificates of peers.
    pub ca: PathBuf,
    /// `certFile`: our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// `privateKeyFile`: its key.
    pub key: PathBuf,
}

/// A `tcpListener`: clients that connect here reach a consumer of the address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TcpListener {
    /// Its name; `host:port` if it has none.
    pub name: String,
    /// Where to listen.
    pub at: HostPort,
    /// The service wanted.
    pub address: Address,
    /// Connections the kernel may hold before we accept them.
    pub backlog: u32,
}

/// A `tcpConnector`: a consumer of the address, connected to when a stream comes for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TcpConnector {
    /// Its name; `host:port` if it has none.
    pub name: String,
    /// The service.
    pub to: HostPort,
    /// What it is a consumer of.
    pub address: Address,
}

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
    /// The file is no JSON.
    #[error("{}:{}:{}: not JSON: {source}", path.display(), source.line(), source.column())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The file as a whole is wrong.
    #[error("{0}")]
    File(String),
    /// One entity is wrong.
    #[error("entity {index}{}: {message}", in_brackets(entity))]
    Entity {
        /// Position in the array, from 0.
        index: usize,
        /// Its type and name; empty if not known.
        entity: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// An error with the file's name.
    #[error("{}: {error}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        error: Box<ConfigError>,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names the file, the entity in it and what to write instead.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let value =
            serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        Config::from_json(&value).map_err(|error| ConfigError::In { path: path.to_owned(), error: Box::new(error) })
    }
}

/// What the router will do, a line each: the answer to `--check`.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secured = |tls: &Option<SslProfile>| {
            tls.as_ref().map_or("in plain text".into(), |tls| format!("over mutual TLS ({})", tls.name))
        };
        writeln!(f, "router {}", self.id)?;
        for listener in &self.link_listeners {
            writeln!(f, "  routers may link at {} {}", listener.at, secured(&listener.tls))?;
        }
        for connector in &self.link_connectors {
            writeln!(f, "  links to the router at {} {}", connector.to, secured(&connector.tls))?;
        }
        for at in &self.http_listeners {
            writeln!(f, "  /healthz and /metrics at {at}")?;
        }
        for listener in &self.tcp_listeners {
            writeln!(f, "  clients of {} connect to {}", listener.address, listener.at)?;
        }
        for connector in &self.tcp_connectors {
            writeln!(f, "  {} is the service at {}", connector.address, connector.to)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn in_brackets(entity: &str) -> String {
    if entity.is_empty() { String::new() } else { format!(" ({entity})") }
}
