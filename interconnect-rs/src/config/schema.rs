//! The entities and attributes that skrouterd's configuration knows, so that a mistyped one is refused and a real one
//! never is.

/// What the router does with an entity type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It acts on it.
    Yes,
    /// It reads it and has no use for it: it describes the site, or logging (ours is set by `RUST_LOG`).
    NoMeaning,
    /// The real router acts on it, this one does not; the user is told.
    No,
}

/// One entity type.
#[derive(Debug)]
pub(super) struct EntityType {
    pub(super) name: &'static str,
    pub(super) served: Served,
    pub(super) attributes: &'static [&'static str],
}

/// Attributes that every entity has.
pub(super) const COMMON: [&str; 3] = ["name", "identity", "type"];

/// Every entity type that may stand in the file.
pub(super) const ENTITIES: [EntityType; 14] = [
    EntityType {
        name: "router",
        served: Served::Yes,
        attributes: &[
            "id",
            "mode",
            "workerThreads",
            "helloIntervalSeconds",
            "helloMaxAgeSeconds",
            "raIntervalSeconds",
            "raIntervalFluxSeconds",
            "remoteLsMaxAgeSeconds",
            "unreachableHoldoffSeconds",
            "defaultDistribution",
            "dataConnectionCount",
            "dropTcpConnections",
            "vanId",
            "metadata",
            "saslConfigDir",
            "saslConfigName",
            "debugDumpFile",
            "timestampsInUTC",
            "timestampFormat",
            "hostName",
            "allowUnsettledMulticast",
            "allowResumableLinkRoute",
        ],
    },
    EntityType {
        name: "sslProfile",
        served: Served::Yes,
        attributes: &[
            "caCertFile",
            "certFile",
            "privateKeyFile",
            "password",
            "ciphers",
            "protocols",
            "uidFormat",
            "uidNameMappingFile",
            "ordinal",
            "oldestValidOrdinal",
        ],
    },
    EntityType {
        name: "listener",
        served: Served::Yes,
        attributes: &[
            "host",
            "port",
            "socketAddressFamily",
            "role",
            "cost",
            "sslProfile",
            "saslMechanisms",
            "authenticatePeer",
            "requireEncryption",
            "requireSsl",
            "maxFrameSize",
            "maxSessions",
            "maxSessionFrames",
            "idleTimeoutSeconds",
            "initialHandshakeTimeoutSeconds",
            "linkCapacity",
            "stripAnnotations",
            "multiTenant",
            "policyVhost",
            "failoverUrls",
            "http",
            "healthz",
            "metrics",
            "websockets",
            "httpRootDir",
            "openProperties",
            "messageLoggingComponents",
        ],
    },
    EntityType {
        name: "connector",
        served: Served::Yes,
        attributes: &[
            "host",
            "port",
            "socketAddressFamily",
            "role",
            "cost",
            "sslProfile",
            "saslMechanisms",
            "saslUsername",
            "saslPassword",
            "verifyHostname",
            "idleTimeoutSeconds",
            "maxFrameSize",
            "maxSessions",
            "maxSessionFrames",
            "linkCapacity",
            "stripAnnotations",
            "proxyProfile",
            "policyVhost",
            "openProperties",
            "allowRedirect",
            "messageLoggingComponents",
        ],
    },
    EntityType {
        name: "tcpListener",
        served: Served::Yes,
        attributes: &[
            "host",
            "port",
            "socketAddressFamily",
            "address",
            "backlog",
            "siteId",
            "sslProfile",
            "authenticatePeer",
            "observer",
            "multiAddressStrategy",
        ],
    },
    EntityType {
        name: "tcpConnector",
        served: Served::Yes,
        attributes: &[
            "host",
            "port",
            "socketAddressFamily",
            "address",
            "siteId",
            "processId",
            "sslProfile",
            "verifyHostname",
        ],
    },
    EntityType {
        name: "site",
        served: Served::NoMeaning,
        attributes: &["location", "provider", "platform", "namespace", "siteId", "version"],
    },
    EntityType {
        name: "log",
        served: Served::NoMeaning,
        attributes: &["module", "enable", "outputFile", "includeTimestamp", "includeSource"],
    },
    EntityType {
        name: "address",
        served: Served::No,
        attributes: &["prefix", "pattern", "distribution", "priority", "enableFallback"],
    },
    EntityType { name: "listenerAddress", served: Served::No, attributes: &["address", "value", "listener"] },
    EntityType {
        name: "autoLink",
        served: Served::No,
        attributes: &["address", "direction", "phase", "containerId", "connection", "externalAddress", "fallback"],
    },
    EntityType {
        name: "policy",
        served: Served::No,
        attributes: &[
            "maxConnections",
            "enableVhostPolicy",
            "policyDir",
            "defaultVhost",
            "maxMessageSize",
            "enableVhostNamePatterns",
        ],
    },
    EntityType {
        name: "vhost",
        served: Served::No,
        attributes: &[
            "hostname",
            "maxConnections",
            "maxConnectionsPerUser",
            "maxConnectionsPerHost",
            "maxMessageSize",
            "allowUnknownUser",
            "groups",
            "aliases",
        ],
    },
    EntityType { name: "proxyProfile", served: Served::No, attributes: &["host", "port", "username", "passwordFile"] },
];

/// The entity type of this name.
pub(super) fn entity_type(name: &str) -> Option<&'static EntityType> {
    ENTITIES.iter().find(|entity| entity.name == name)
}

/// The name among `names` that is most like `wrong`, if any is near enough to be what was meant.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |name: &&str| strsim::jaro_winkler(&wrong.to_lowercase(), &name.to_lowercase());
    names.filter(|name| near(name) > 0.75).max_by(|a, b| near(a).total_cmp(&near(b)))
}
