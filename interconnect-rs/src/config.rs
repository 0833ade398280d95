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
//! An attribute that skrouterd does not have is refused, with the name that was probably meant. One that it has is accepted; where ours
//! has no use for it (`cost`, `maxFrameSize`, `helloIntervalSeconds`, `workerThreads`, …) it changes nothing. What would be dangerous to pass over
//! in silence is either refused (TLS towards clients and services, encrypted keys) or named in [`Config::notes`] (listeners that are not served, policies).
//!
//! Source: skupper-router 3.5.1, its management schema.

mod entity;
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use crate::name::{Address, RouterId};
use entity::Entity;
use schema::Served;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `router.id`.
    pub id: RouterId,
    /// `router.dropTcpConnections`: whether taking a `tcpListener` or `tcpConnector` out cuts its connections (true) or lets them end.
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

/// `idleTimeoutSeconds` if not given.
const DEFAULT_IDLE_TIMEOUT_SECONDS: u64 = 16;
/// Backlog of a `tcpListener` that says 0 or nothing.
const DEFAULT_BACKLOG: u32 = 1024;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names the file, the entity in it and what to write instead.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let value = serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: path.to_owned(), source })?;
        Config::from_json(&value).map_err(|error| ConfigError::In { path: path.to_owned(), error: Box::new(error) })
    }

    /// Checks a configuration that has been read.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Entity`] and [`ConfigError::File`].
    pub fn from_json(value: &Value) -> Result<Config, ConfigError> {
        let array = value.as_array().ok_or_else(|| {
            ConfigError::File("the configuration is not an array of [\"entityType\", {attributes}]".into())
        })?;
        let entities = array.iter().enumerate().map(|(index, value)| Entity::new(index, value)).collect::<Result<Vec<_>, _>>()?;
        refuse_duplicates(&entities)?;
        let of = |kind: &'static str| entities.iter().filter(move |entity| entity.kind.name == kind);

        let profiles: BTreeMap<String, SslProfile> =
            of("sslProfile").map(ssl_profile).map(|profile| profile.map(|p| (p.name.clone(), p))).collect::<Result<_, _>>()?;
        let mut config = router(of("router"))?;
        for entity in of("listener") {
            config.add_listener(entity, &profiles)?;
        }
        for entity in of("connector") {
            config.add_connector(entity, &profiles)?;
        }
        for entity in of("tcpListener") {
            let listener = tcp_listener(entity)?;
            if config.tcp_listeners.iter().any(|other| other.at == listener.at) {
                return Err(entity.error(format!("another tcpListener has {} too", listener.at)));
            }
            config.tcp_listeners.insert(listener);
        }
        for entity in of("tcpConnector") {
            let connector = tcp_connector(entity)?;
            config.tcp_connectors.insert(connector);
        }
        for entity in entities.iter().filter(|entity| entity.kind.served == Served::No) {
            config.notes.push(format!("{} is not served by this router", entity.title()));
        }
        Ok(config)
    }

    fn add_listener(&mut self, entity: &Entity<'_>, profiles: &BTreeMap<String, SslProfile>) -> Result<(), ConfigError> {
        let at = host_port(entity, "", 5672)?;
        let tls = profile_of(entity, profiles)?;
        let idle_timeout = idle_timeout(entity)?;
        let roles = ["normal", "inter-router", "edge", "inter-edge", "inter-network", "route-container"];
        let role = entity.word("role", &roles, "normal")?;
        if role == "inter-router" {
            for key in ["authenticatePeer", "requireSsl"] {
                if tls.is_some() && entity.boolean(key)? == Some(false) {
                    self.notes.push(format!("{}: {key} false is not served: with an sslProfile, TLS with a client certificate is required", entity.title()));
                }
                if tls.is_none() && entity.boolean(key)? == Some(true) {
                    return Err(entity.error(format!("{key} is true; name an sslProfile for it")));
                }
            }
            self.link_listeners.push(LinkListener { at, tls, idle_timeout });
            return Ok(());
        }
        let http = entity.boolean("http")?.unwrap_or(false);
        let health = entity.boolean("healthz")?.unwrap_or(true) || entity.boolean("metrics")?.unwrap_or(true);
        if role == "normal" && http && health && tls.is_none() {
            self.http_listeners.push(at);
        } else {
            self.notes.push(format!("{} on {at} (role {role}) is not served: AMQP clients and edge routers cannot connect", entity.title()));
        }
        Ok(())
    }

    fn add_connector(&mut self, entity: &Entity<'_>, profiles: &BTreeMap<String, SslProfile>) -> Result<(), ConfigError> {
        let to = host_port(entity, "127.0.0.1", 5672)?;
        let roles = ["normal", "inter-router", "edge", "inter-edge", "inter-network", "route-container"];
        let role = entity.word("role", &roles, "normal")?;
        let connector = LinkConnector {
            to,
            tls: profile_of(entity, profiles)?,
            verify_hostname: entity.boolean("verifyHostname")?.unwrap_or(true),
            idle_timeout: idle_timeout(entity)?,
        };
        if role == "inter-router" {
            self.link_connectors.push(connector);
        } else {
            self.notes.push(format!("{} to {} (role {role}) is not served: only role inter-router is", entity.title(), connector.to));
        }
        Ok(())
    }
}

/// What the router will do, a line each: the answer to `--check`.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secured = |tls: &Option<SslProfile>| tls.as_ref().map_or("in plain text".into(), |tls| format!("over mutual TLS ({})", tls.name));
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
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

fn in_brackets(entity: &str) -> String {
    if entity.is_empty() { String::new() } else { format!(" ({entity})") }
}

fn refuse_duplicates(entities: &[Entity<'_>]) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for entity in entities {
        if let Some(name) = entity.string("name")?
            && !seen.insert((entity.kind.name, name))
        {
            return Err(entity.error("another entity of this type has the same name"));
        }
    }
    Ok(())
}

fn router<'a>(mut entities: impl Iterator<Item = &'a Entity<'a>>) -> Result<Config, ConfigError> {
    let Some(entity) = entities.next() else {
        return Err(ConfigError::File("there is no router entity; write [\"router\", {\"id\": \"C0\", \"mode\": \"interior\"}]".into()));
    };
    if let Some(second) = entities.next() {
        return Err(second.error("there is a second router; a file describes one"));
    }
    let mode = entity.word("mode", &["standalone", "interior", "edge"], "standalone")?;
    if mode != "interior" {
        return Err(entity.error(format!("mode {mode} is not served; write \"mode\": \"interior\"")));
    }
    let id = RouterId::new(entity.required("id")?).map_err(|error| entity.error(error.to_string()))?;
    Ok(Config {
        id,
        drop_tcp_connections: entity.boolean("dropTcpConnections")?.unwrap_or(true),
        link_listeners: Vec::new(),
        link_connectors: Vec::new(),
        http_listeners: Vec::new(),
        tcp_listeners: BTreeSet::new(),
        tcp_connectors: BTreeSet::new(),
        notes: Vec::new(),
    })
}

fn ssl_profile(entity: &Entity<'_>) -> Result<SslProfile, ConfigError> {
    if entity.string("password")?.is_some() {
        return Err(entity.error("password is not served; use a key that is not encrypted, in a file of mode 0600"));
    }
    let file = |key| entity.path(key)?.ok_or_else(|| entity.error(format!("{key} is missing; links use mutual TLS and need it")));
    Ok(SslProfile {
        name: entity.required("name")?.to_owned(),
        ca: file("caCertFile")?,
        certificate: file("certFile")?,
        key: file("privateKeyFile")?,
    })
}

fn profile_of(entity: &Entity<'_>, profiles: &BTreeMap<String, SslProfile>) -> Result<Option<SslProfile>, ConfigError> {
    let Some(name) = entity.string("sslProfile")? else { return Ok(None) };
    if let Some(profile) = profiles.get(name) {
        return Ok(Some(profile.clone()));
    }
    let hint = schema::nearest(name, profiles.keys().map(String::as_str)).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
    Err(entity.error(format!("there is no sslProfile \"{name}\"{hint}")))
}

fn tcp_listener(entity: &Entity<'_>) -> Result<TcpListener, ConfigError> {
    refuse_tls(entity)?;
    if entity.word("multiAddressStrategy", &["none", "priority", "weighted"], "none")? != "none" {
        return Err(entity.error("multiAddressStrategy is not served; give the listener one address"));
    }
    let (at, address) = service(entity)?;
    let backlog = entity.number("backlog")?.filter(|backlog| *backlog > 0).unwrap_or(DEFAULT_BACKLOG);
    Ok(TcpListener { name: name_or(entity, &at)?, at, address, backlog })
}

fn tcp_connector(entity: &Entity<'_>) -> Result<TcpConnector, ConfigError> {
    refuse_tls(entity)?;
    let (to, address) = service(entity)?;
    if to.host.is_empty() {
        return Err(entity.error("host is missing"));
    }
    Ok(TcpConnector { name: name_or(entity, &to)?, to, address })
}

fn refuse_tls(entity: &Entity<'_>) -> Result<(), ConfigError> {
    match entity.string("sslProfile")? {
        Some(_) => Err(entity.error("sslProfile is not served here: TLS towards clients and services is theirs, end to end; take it out")),
        None => Ok(()),
    }
}

fn service(entity: &Entity<'_>) -> Result<(HostPort, Address), ConfigError> {
    let address = Address::new(entity.required("address")?).map_err(|error| entity.error(error.to_string()))?;
    let port = entity.port()?.ok_or_else(|| entity.error("port is missing"))?;
    Ok((HostPort { host: entity.string("host")?.unwrap_or_default().to_owned(), port }, address))
}

fn name_or(entity: &Entity<'_>, place: &HostPort) -> Result<String, ConfigError> {
    Ok(entity.string("name")?.map_or_else(|| place.to_string(), ToOwned::to_owned))
}

fn host_port(entity: &Entity<'_>, host: &str, port: u16) -> Result<HostPort, ConfigError> {
    let host = entity.string("host")?.unwrap_or(host).to_owned();
    Ok(HostPort { host, port: entity.port()?.unwrap_or(port) })
}

fn idle_timeout(entity: &Entity<'_>) -> Result<Duration, ConfigError> {
    let seconds = entity.number::<u32>("idleTimeoutSeconds")?.map_or(DEFAULT_IDLE_TIMEOUT_SECONDS, u64::from);
    if seconds == 0 {
        return Err(entity.error("idleTimeoutSeconds is 0; a dead peer would never be noticed, write 2 or more"));
    }
    Ok(Duration::from_secs(seconds) / 2)
}

#[cfg(test)]
mod tests;
