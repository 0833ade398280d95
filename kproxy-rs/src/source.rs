//! Where objects stand in etcd, and how they are listed and watched.
//!
//! ```text
//! /registry/services/specs/shop/web            a Service, as JSON
//! /registry/endpointslices/shop/web-x7k2p      an EndpointSlice of some Service
//! /registry/minions/C0w1                       a Node, as they were called in the beginning
//! ```
//!
//! In a real cluster only the API server speaks with etcd; kube-proxy asks the API server. The keys and the objects are the
//! same, and so is the way to follow them: list at a revision, watch from the next one on.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, GetOptions, WatchOptions, WatchStream};

use crate::error::SourceError;
use crate::objects::Key;
use crate::service::ServiceName;

/// No single request needs longer, even while etcd elects a leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A page of a listing: some 1 KB an object, far below the size that etcd sends at once.
const PAGE_OBJECTS: i64 = 1000;
/// etcd puts all changes that a watcher has missed into one message, so this bounds a burst, not an object.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// The kinds of objects, each under a prefix of its own.
pub const KINDS: [Kind; 3] = [Kind::Services, Kind::Slices, Kind::Nodes];

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Nodes.
    Nodes,
}

/// The objects in etcd.
#[derive(Clone)]
pub struct Source {
    client: Client,
    prefix: String,
}

/// All objects at one revision.
#[derive(Debug, Default)]
pub struct Listing {
    /// The objects, unread.
    pub pairs: Vec<(Key, Vec<u8>)>,
    /// The revision of etcd that they show.
    pub revision: i64,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Services => "services/specs/",
            Self::Slices => "endpointslices/",
            Self::Nodes => "minions/",
        }
    }
}

impl Source {
    /// Prepares connections; they are opened by the first request, so etcd need not be there yet.
    ///
    /// # Errors
    ///
    /// [`SourceError::Etcd`] when an endpoint is not a URL.
    pub async fn connect(endpoints: &[String], prefix: &str) -> Result<Self, SourceError> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // A watch is silent for hours; without pings it would not notice that its member is gone.
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(3))
            .with_keep_alive_while_idle(true)
            // A member cut off from the others refuses, instead of serving what was once true.
            .with_require_leader(true);
        let client = call("set up the client of etcd", Client::connect(endpoints, Some(options))).await?;
        Ok(Self { client, prefix: prefix.trim_end_matches('/').to_owned() })
    }

    /// The prefix of all keys of a kind, with the slash at its end.
    #[must_use]
    pub fn prefix(&self, kind: Kind) -> String {
        format!("{}/{}", self.prefix, kind.path())
    }

    /// The object that a key names; `None` for a key that names none.
    #[must_use]
    pub fn read_key(&self, kind: Kind, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix(kind))?;
        if kind == Kind::Nodes {
            return (!rest.is_empty() && !rest.contains('/')).then(|| Key::Node(rest.to_owned()));
        }
        let (namespace, name) =
            rest.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())?;
        if name.contains('/') {
            return None;
        }
        match kind {
            Kind::Services => Some(Key::Service(ServiceName::new(namespace, name))),
            Kind::Slices => Some(Key::Slice { namespace: namespace.to_owned(), name: name.to_owned() }),
            Kind::Nodes => None,
        }
    }

    /// Lists all objects of all kinds, as they were at one revision.
    ///
    /// # Errors
    ///
    /// [`SourceError`] when etcd is away.
    pub async fn list(&self) -> Result<Listing, SourceError> {
        let mut listing = Listing::default();
        for kind in KINDS {
            let prefix = self.prefix(kind);
            let end = prefix_end(&prefix);
            let mut from = prefix.into_bytes();
            loop {
                let mut options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_OBJECTS);
                if listing.revision != 0 {
                    options = options.with_revision(listing.revision);
                }
                let mut kv = self.client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
                let mut answer = call("list the objects", kv.get(from.clone(), Some(options))).await?;
                if listing.revision == 0 {
                    listing.revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                }
                let is_last = !answer.more();
                for pair in answer.take_kvs() {
                    let (key, value) = pair.into_key_value();
                    listing.pairs.extend(self.read_key(kind, &key).map(|object| (object, value)));
                    from = key;
                }
                if is_last {
                    break;
                }
                from.push(0); // The next key that is possible.
            }
        }
        Ok(listing)
    }

    /// Follows one kind of objects from `revision` on, itself included.
    ///
    /// # Errors
    ///
    /// [`SourceError`] when etcd is away.
    pub async fn watch(&self, kind: Kind, revision: i64) -> Result<WatchStream, SourceError> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        call("watch the objects", client.watch(self.prefix(kind), Some(options))).await
    }
}

/// Waits for one request, but not for ever.
async fn call<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, SourceError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(SourceError::Etcd { what, source }),
        Err(_) => Err(SourceError::TimedOut { what, seconds: REQUEST_TIMEOUT.as_secs() }),
    }
}

/// The first key behind all that begin with `prefix`, which ends with a slash.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1; // '/' is followed by '0'.
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_name_objects_as_in_kubernetes() {
        let source = Source::connect(&["http://127.0.0.1:1".to_owned()], "/registry/").await.unwrap();
        let key = |kind, text: &str| source.read_key(kind, text.as_bytes()).map(|key| key.to_string());
        assert_eq!(
            key(Kind::Services, "/registry/services/specs/shop/web").as_deref(),
            Some("services/specs/shop/web")
        );
        assert_eq!(
            key(Kind::Slices, "/registry/endpointslices/shop/web-1").as_deref(),
            Some("endpointslices/shop/web-1")
        );
        for foreign in [
            "/registry/services/specs/web",
            "/registry/services/specs//web",
            "/registry/pods/shop/web",
            "/registry/services/specs/a/b/c",
        ] {
            assert_eq!(key(Kind::Services, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_lies_behind_all_its_keys() {
        let end = prefix_end("/registry/endpointslices/");
        assert!(
            end.as_slice() > b"/registry/endpointslices/zz/zz".as_slice()
                && end.as_slice() < b"/registry/endpointslices1".as_slice()
        );
    }
}
