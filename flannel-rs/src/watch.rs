//! Turns the changes under `subnets/` in etcd into typed events, across every interruption.
//!
//! etcd numbers its writes: *revisions*. A listing at revision 41 followed by a watch from 42 misses nothing, as long as it stands. When it
//! breaks, one could go on from the revision after the last one seen, as flanneld does. Three things make that unsafe:
//!
//! - *compaction*: etcd has thrown away the revisions we would need;
//! - *going back in time*: etcd was restored from an older snapshot, and our revision lies in its future. A watch from there on would
//!   be silent until the numbers catch up;
//! - a compaction at exactly the revision of a deletion: etcd before 3.4.36 forgets the deletion and says nothing.
//!
//! So whatever broke the watch, it begins again with a new listing, from which the receiver finds the difference by itself.
//!
//! While etcd is away nothing is said, so the data plane stays as it is.
//!
//! Source: etcd API v3, "Watch"; flannel `pkg/subnet/etcd/registry.go`, `leaseWatchLoop`.

use std::time::Duration;

use etcd_client::{EventType, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::error::RegistryError;
use crate::lease::{Entry, Subnet};
use crate::registry::Registry;

/// The first pause after a failure, as in flanneld; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, as in flanneld.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What happened to the subnet keys.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large variant")]
pub enum SubnetEvent {
    /// These are all keys that there are; whatever else was known is gone.
    Listed(Vec<Entry>),
    /// A key was written.
    Put(Entry),
    /// A key was deleted, or its lease ran out.
    Deleted(Subnet),
}

/// Why a watch ended although etcd is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Compacted,
    WentBack,
    /// The connection was lost; what happened meanwhile is unknown.
    Reconnecting,
}

/// Sends every change after `revision`, in batches as etcd sends them, until the receiver is dropped.
///
/// The channel is bounded: while the receiver is busy, the changes wait in etcd.
pub async fn watch_subnets(registry: Registry, revision: i64, events: mpsc::Sender<Vec<SubnetEvent>>) {
    let mut next = revision + 1;
    let mut pause = FIRST_PAUSE;
    let mut gap = None;
    while !events.is_closed() {
        let before = next;
        let result = match gap {
            None => follow(&registry, &mut next, &events).await,
            Some(_) => relist(&registry, &mut next, &events).await,
        };
        match result {
            Ok(found) => gap = found,
            Err(error) => {
                gap = Some(Gap::Reconnecting);
                if next != before {
                    pause = FIRST_PAUSE; // It worked for a while.
                }
                // One line when the trouble begins; the rest is for whoever looks closer.
                if pause == FIRST_PAUSE {
                    warn!(error = %crate::error::chain(&error), revision = next, "lost the watch on etcd; known workers stay connected");
                } else {
                    debug!(error = %crate::error::chain(&error), ?pause, "etcd is still away");
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Follows the watch until it breaks (an error) or cannot be continued (a gap); `next` is the first revision not yet seen.
async fn follow(
    registry: &Registry,
    next: &mut i64,
    events: &mpsc::Sender<Vec<SubnetEvent>>,
) -> Result<Option<Gap>, RegistryError> {
    let mut watch = registry.watch(*next).await?;
    loop {
        let response =
            watch.message().await.map_err(|source| RegistryError::Etcd { what: "watch the subnets", source })?;
        let Some(response) = response else {
            return Err(RegistryError::WatchEnded { reason: "the connection was closed".to_owned() });
        };
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        if response.created() && revision + 1 < *next {
            warn!(
                expected = *next,
                revision, "etcd has gone back in time, perhaps restored from a snapshot; listing the subnets anew"
            );
            return Ok(Some(Gap::WentBack));
        }
        if response.compact_revision() != 0 {
            info!(
                wanted = *next,
                oldest = response.compact_revision(),
                "etcd has compacted what we missed; listing the subnets anew"
            );
            return Ok(Some(Gap::Compacted));
        }
        if response.canceled() {
            return Err(RegistryError::WatchEnded { reason: response.cancel_reason().to_owned() });
        }
        let batch = read(registry, &response);
        if let Some(last) =
            response.events().iter().filter_map(|event| event.kv()).map(etcd_client::KeyValue::mod_revision).max()
        {
            *next = last + 1;
        }
        if !batch.is_empty() && events.send(batch).await.is_err() {
            return Ok(None); // The receiver is gone, which the caller sees.
        }
    }
}

/// Sends a new listing and sets `next` behind it.
async fn relist(
    registry: &Registry,
    next: &mut i64,
    events: &mpsc::Sender<Vec<SubnetEvent>>,
) -> Result<Option<Gap>, RegistryError> {
    let listing = registry.list().await?;
    *next = listing.revision + 1;
    // A closed channel ends the caller's loop.
    let _ = events.send(vec![SubnetEvent::Listed(listing.entries)]).await;
    Ok(None)
}

fn read(registry: &Registry, response: &WatchResponse) -> Vec<SubnetEvent> {
    let events = response.events().iter().filter_map(|event| Some((event.event_type(), event.kv()?)));
    let typed = events.filter_map(|(kind, pair)| match kind {
        EventType::Put => registry.read_entry(pair).map(SubnetEvent::Put),
        EventType::Delete => registry.read_key(pair.key()).map(SubnetEvent::Deleted),
    });
    typed.collect()
}
