//! The agent's own client for etcd, for tests of the library.

use flannel_rs::config::EtcdConfig;
use flannel_rs::registry::Registry;

use crate::support::{Etcd, PREFIX};

/// A client as the agent has it.
pub(crate) async fn registry(etcd: &Etcd) -> Registry {
    registry_at(vec![etcd.endpoint()]).await
}

/// A client that is told other endpoints.
pub(crate) async fn registry_at(endpoints: Vec<String>) -> Registry {
    let config = EtcdConfig { endpoints, prefix: PREFIX.to_owned(), credentials: None, tls: None };
    Registry::connect(&config).await.expect("connections are opened by the first request")
}
