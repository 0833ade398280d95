//! From the entities of the file to a [`Config`]: what may stand together, and what this router cannot do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::entity::Entity;
use super::schema::{self, Served};
use super::{Config, ConfigError, HostPort, LinkConnector, LinkListener, SslProfile, TcpConnector, TcpListener};
use crate::name::{Address, RouterId};

/// `idleTimeoutSeconds` if not given.
const DEFAULT_IDLE_TIMEOUT_SECONDS: u64 = 16;
/// Backlog of a `tcpListener` that says 0 or nothing.
const DEFAULT_BACKLOG: u32 = 1024;

impl Config {
    /// Checks a configuration that has been read.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Entity`] and [`ConfigError::File`].
    pub fn from_json(value: &Value) -> Result<Config, ConfigError> {
        let array = value.as_array().ok_or_else(|| {
            ConfigError::File("the configuration is not an array of [\"entityType\", {attributes}]".into())
        })?;
        let entities =
            array.iter().enumerate().map(|(index, value)| Entity::new(index, value)).collect::<Result<Vec<_>, _>>()?;
        refuse_duplicates(&entities)?;
        let of = |kind: &'static str| entities.iter().filter(move |entity| entity.kind.name == kind);

        let profiles: BTreeMap<String, SslProfile> = of("sslProfile")
            .map(ssl_profile)
            .map(|profile| profile.map(|p| (p.name.clone(), p)))
            .collect::<Result<_, _>>()?;
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

    fn add_listener(
        &mut self,
        entity: &Entity<'_>,
        profiles: &BTreeMap<String, SslProfile>,
    ) -> Result<(), ConfigError> {
        let at = host_port(entity, "", 5672)?;
        let tls = profile_of(entity, profiles)?;
        let idle_timeout = idle_timeout(entity)?;
        let roles = ["normal", "inter-router", "edge", "inter-edge", "inter-network", "route-container"];
        let role = entity.word("role", &roles, "normal")?;
        if role == "inter-router" {
            for key in ["authenticatePeer", "requireSsl"] {
                if tls.is_some() && entity.boolean(key)? == Some(false) {
                    self.notes.push(format!(
                        "{}: {key} false is not served: with an sslProfile, TLS with a client certificate is required",
                        entity.title()
                    ));
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
            self.notes.push(format!(
                "{} on {at} (role {role}) is not served: AMQP clients and edge routers cannot connect",
                entity.title()
            ));
        }
        Ok(())
    }

    fn add_connector(
        &mut self,
        entity: &Entity<'_>,
        profiles: &BTreeMap<String, SslProfile>,
    ) -> Result<(), ConfigError> {
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
            self.notes.push(format!(
                "{} to {} (role {role}) is not served: only role inter-router is",
                entity.title(),
                connector.to
            ));
        }
        Ok(())
    }
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
        return Err(ConfigError::File(
            "there is no router entity; write [\"router\", {\"id\": \"C0\", \"mode\": \"interior\"}]".into(),
        ));
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
    let file = |key| {
        entity.path(key)?.ok_or_else(|| entity.error(format!("{key} is missing; links use mutual TLS and need it")))
    };
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
    let hint = schema::nearest(name, profiles.keys().map(String::as_str))
        .map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"));
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
        Some(_) => Err(entity.error(
            "sslProfile is not served here: TLS towards clients and services is theirs, end to end; take it out",
        )),
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
