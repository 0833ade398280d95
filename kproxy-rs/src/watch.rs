//! Follows the objects in etcd across every interruption.
//!
//! etcd numbers its writes: *revisions*. A listing at revision 41 and a watch from 42 on miss nothing. When the
//! connection breaks, each watch goes on behind the last revision it has seen. Two things make that impossible, and
//! both end in a new listing, from which the receiver finds the difference by itself:
//!
//! - *compaction*: etcd has thrown away the revisions we would need;
//! - *going back in time*: etcd was restored from a snapshot, and our revision lies in its future.
//!
//! While etcd is away, the receiver is told so once, and the table stays as it is.
//!
//! Source: etcd API v3, "Watch"; Kubernetes `client-go/tools/cache/reflector.go` does the same with the API server.

use std::time::Duration;

use etcd_client::{EventType, ResponseHeader, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::error::SourceError;
use crate::objects::Event;
use crate::source::{Kind, Source};

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the watch says.
#[derive(Debug)]
pub enum Update {
    /// The objects changed, in this order.
    Events(Vec<Event>),
    /// etcd is away; what was said before is the last that is known.
    Away(SourceError),
    /// etcd is there again.
    Back,
}

/// Where we stand.
enum State {
    /// Everything must be listed.
    Unlisted,
    /// Everything before these revisions is known.
    Listed(Next),
}

/// For each kind, the first revision that was not seen yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    services: i64,
    slices: i64,
    nodes: i64,
}

impl Next {
    fn of(&mut self, kind: Kind) -> &mut i64 {
        match kind {
            Kind::Services => &mut self.services,
            Kind::Slices => &mut self.slices,
            Kind::Nodes => &mut self.nodes,
        }
    }
}

/// Why a watch cannot be continued although etcd is there.
#[derive(Debug)]
enum Gap {
    /// The receiver is gone.
    Closed,
    /// Only a new listing helps.
    Relist,
}

/// Sends all objects and then every change, until the receiver is dropped.
///
/// The channel is bounded: while the receiver is busy, changes wait in etcd, which sends them together later.
pub async fn follow(source: Source, updates: mpsc::Sender<Update>) {
    let mut state = State::Unlisted;
    let mut pause = FIRST_PAUSE;
    let mut is_away = false;
    while !updates.is_closed() {
        let result = match &mut state {
            State::Unlisted => list(&source, &updates).await.map(|next| state = State::Listed(next)),
            State::Listed(next) => match watch(&source, next, &updates, &mut is_away).await {
                Ok(Gap::Closed) => return,
                Ok(Gap::Relist) => {
                    state = State::Unlisted;
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        match result {
            Ok(()) => pause = FIRST_PAUSE,
            Err(error) if is_away => {
                debug!(%error, ?pause, "etcd is still away");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => {
                is_away = true;
                pause = FIRST_PAUSE;
                let _ = updates.send(Update::Away(error)).await; // A closed channel ends the loop.
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn list(source: &Source, updates: &mpsc::Sender<Update>) -> Result<Next, SourceError> {
    let listing = source.list().await?;
    debug!(objects = listing.pairs.len(), revision = listing.revision, "listed all objects");
    let next = listing.revision + 1;
    let _ = updates.send(Update::Events(vec![Event::Listed(listing.pairs)])).await; // As above.
    Ok(Next { services: next, slices: next, nodes: next })
}

/// Passes on what both watches say, until one of them ends.
async fn watch(
    source: &Source,
    next: &mut Next,
    updates: &mpsc::Sender<Update>,
    is_away: &mut bool,
) -> Result<Gap, SourceError> {
    let mut services = source.watch(Kind::Services, next.services).await?;
    let mut slices = source.watch(Kind::Slices, next.slices).await?;
    let mut nodes = source.watch(Kind::Nodes, next.nodes).await?;
    if std::mem::take(is_away) {
        let _ = updates.send(Update::Back).await; // A closed channel is seen below.
    }
    loop {
        let (kind, response) = tokio::select! {
            // In any order: an endpoint may be there before its Service as well as after it.
            response = receive(&mut services) => (Kind::Services, response?),
            response = receive(&mut slices) => (Kind::Slices, response?),
            response = receive(&mut nodes) => (Kind::Nodes, response?),
            () = updates.closed() => return Ok(Gap::Closed),
        };
        let next = next.of(kind);
        let revision = response.header().map_or(0, ResponseHeader::revision);
        if response.created() && revision + 1 < *next {
            info!(
                expected = *next,
                revision, "etcd has gone back in time, perhaps restored from a snapshot; listing anew"
            );
            return Ok(Gap::Relist);
        }
        if response.compact_revision() != 0 {
            info!(
                wanted = *next,
                oldest = response.compact_revision(),
                "etcd has compacted what we missed; listing anew"
            );
            return Ok(Gap::Relist);
        }
        if response.canceled() {
            return Err(SourceError::WatchEnded { reason: response.cancel_reason().to_owned() });
        }
        let events = read(source, kind, &response);
        if let Some(last) = response.events().iter().filter_map(|event| Some(event.kv()?.mod_revision())).max() {
            *next = last + 1;
        }
        if !events.is_empty() && updates.send(Update::Events(events)).await.is_err() {
            return Ok(Gap::Closed);
        }
    }
}

async fn receive(watch: &mut WatchStream) -> Result<WatchResponse, SourceError> {
    let response = watch.message().await.map_err(|source| SourceError::Etcd { what: "watch the objects", source })?;
    response.ok_or_else(|| SourceError::WatchEnded { reason: "the connection was closed".to_owned() })
}

fn read(source: &Source, kind: Kind, response: &WatchResponse) -> Vec<Event> {
    let events = response.events().iter().filter_map(|event| Some((event.event_type(), event.kv()?)));
    let typed = events.filter_map(|(action, pair)| {
        let key = source.read_key(kind, pair.key())?;
        Some(match action {
            EventType::Put => Event::Put(key, pair.value().to_vec()),
            EventType::Delete => Event::Deleted(key),
        })
    });
    typed.collect()
}
