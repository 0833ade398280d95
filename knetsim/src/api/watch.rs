//! A watch: the changes of a kind, one JSON object a line, for as long as the client listens.
//!
//! ```text
//! {"type":"ADDED","object":{"kind":"Service","metadata":{"name":"web","resourceVersion":"41", …
//! {"type":"MODIFIED","object":{ … "resourceVersion":"57" …
//! {"type":"BOOKMARK","object":{"kind":"Service","metadata":{"resourceVersion":"90"}}}
//! {"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired", …
//! ```
//!
//! A `resourceVersion` is a revision of etcd, so a watch from revision 41 on is a watch of etcd from 42 on, and whoever lists at 41
//! and watches from there misses nothing. etcd forgets old revisions (*compaction*); a client that comes back too late is told 410
//! and lists anew. A *bookmark* tells a client of a quiet kind how far it has got, so that it need not.
//!
//! A selector makes a window: an object that is changed so that it enters the window is `ADDED` to it, and one that leaves it is
//! `DELETED`, whatever happened to it in etcd.
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes"; `apiserver/pkg/storage/etcd3/watcher.go`.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Event, EventType, WatchResponse};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    failure::Failure,
    kind::Kind,
    prepare,
    registry::{self, Registry},
    request::Options,
    table,
    view::View,
};

/// How often a quiet watch is told how far it has got. Kubernetes does it once a minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// A watch without a time-out of its own ends after this long, and the client begins the next.
const LONGEST: Duration = Duration::from_mins(30);
/// Lines that wait for a slow client before etcd has to wait.
pub const QUEUE: usize = 64;

/// What a watch sees.
pub struct Window {
    /// The kind.
    pub kind: Kind,
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// Selectors, and where to begin.
    pub options: Options,
    /// Whether the client wants tables.
    pub as_table: bool,
    /// How objects look to the client.
    pub view: View,
}

/// Sends the lines of a watch until the client has gone, its time is over, or etcd is away.
pub async fn follow(registry: Registry, window: Window, lines: mpsc::Sender<Bytes>) {
    let timeout = window.options.timeout_seconds.map_or(LONGEST, Duration::from_secs);
    let end = Instant::now() + timeout;
    if let Err(failure) = run(&registry, &window, &lines, end).await {
        let _ = lines.send(line("ERROR", &failure.status())).await; // the client may have gone
    }
}

async fn run(registry: &Registry, window: &Window, lines: &mpsc::Sender<Bytes>, end: Instant) -> Result<(), Failure> {
    let mut sender = Sender { window, lines, first: true };
    let options = &window.options;
    let from_now = matches!(options.resource_version.as_str(), "" | "0");
    let start = if from_now || options.send_initial_events {
        let listing = registry.list(window.kind, window.namespace.as_deref()).await?;
        // A client that says `sendInitialEvents=false` wants the changes from now on, and nothing of what is there.
        for object in listing.objects.into_iter().filter_map(|object| window.show(object)) {
            sender.send("ADDED", &object).await?;
        }
        if options.send_initial_events {
            let annotations = json!({ "k8s.io/initial-events-end": "true" });
            sender.bookmark(listing.revision, Some(annotations)).await?;
        }
        listing.revision + 1
    } else {
        let version = &options.resource_version;
        let revision: i64 = version.parse().map_err(|_| {
            Failure::BadRequest(format!("resourceVersion {version:?} is not one that this server gave out"))
        })?;
        revision + 1
    };
    let mut watch = registry.watch(window.kind.prefix(window.namespace.as_deref()), start).await?;
    let mut bookmark = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    loop {
        let response = tokio::select! {
            response = watch.message() => response.map_err(|error| Failure::Unavailable(error.to_string()))?,
            _ = bookmark.tick(), if options.bookmarks => {
                // etcd answers with an empty response that bears its revision, once this watch has caught up with it.
                watch.request_progress().await.map_err(|error| Failure::Unavailable(error.to_string()))?;
                continue;
            }
            () = tokio::time::sleep_until(end) => return Ok(()),
            () = lines.closed() => return Ok(()),
        };
        let Some(response) = response else { return Err(Failure::Unavailable("the watch was closed".to_owned())) };
        check(&response, start)?;
        for event in response.events() {
            if let Some((what, object)) = window.event(event) {
                sender.send(what, &object).await?;
            }
        }
        let is_progress = response.events().is_empty() && !response.created();
        if is_progress && options.bookmarks {
            let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            sender.bookmark(revision, None).await?;
        }
    }
}

fn check(response: &WatchResponse, wanted: i64) -> Result<(), Failure> {
    match (response.compact_revision(), response.canceled()) {
        (0, false) => Ok(()),
        (0, true) => Err(Failure::Unavailable(response.cancel_reason().to_owned())),
        (oldest, _) => Err(Failure::Expired { wanted, oldest }),
    }
}

struct Sender<'a> {
    window: &'a Window,
    lines: &'a mpsc::Sender<Bytes>,
    first: bool,
}

impl Sender<'_> {
    async fn send(&mut self, what: &str, object: &Value) -> Result<(), Failure> {
        let line = match self.window.as_table {
            true => {
                let version = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let now = prepare::clock();
                let objects = std::slice::from_ref(object);
                let mut table =
                    table::table(self.window.kind, objects, &self.window.options.include_object, &version, now);
                if !std::mem::take(&mut self.first) {
                    table["columnDefinitions"] = Value::Null; // a client keeps those of the first table
                }
                line(what, &table)
            }
            false => line(what, object),
        };
        self.push(line).await
    }

    async fn bookmark(&mut self, revision: i64, annotations: Option<Value>) -> Result<(), Failure> {
        let kind = self.window.kind;
        let mut object = json!({
            "kind": kind.describe().kind, "apiVersion": kind.api_version(),
            "metadata": { "resourceVersion": revision.to_string(), "creationTimestamp": null },
        });
        if let Some(annotations) = annotations {
            object["metadata"]["annotations"] = annotations;
        }
        self.push(line("BOOKMARK", &object)).await
    }

    async fn push(&self, line: Bytes) -> Result<(), Failure> {
        self.lines.send(line).await.map_err(|_| Failure::Unavailable("the client has gone".to_owned()))
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    let mut text = json!({ "type": what, "object": object }).to_string();
    text.push('\n');
    Bytes::from(text)
}

impl Window {
    /// An object as the client sees it; none when it is outside the window.
    #[must_use]
    pub fn show(&self, object: Value) -> Option<Value> {
        let object = self.view.show(self.kind, object);
        let is_inside =
            self.options.labels.matches(&object["metadata"]["labels"]) && self.options.fields.matches(&object);
        is_inside.then_some(object)
    }

    /// What an event of etcd means in this window; none when it is about nothing in it.
    fn event(&self, event: &Event) -> Option<(&'static str, Value)> {
        let pair = event.kv()?;
        let is_deletion = event.event_type() == EventType::Delete;
        let now = if is_deletion { None } else { registry::read(self.kind, pair) };
        // The object as it was last, at the revision of its deletion or change.
        let before = event.prev_kv().and_then(|before| {
            registry::read_value(self.kind, before.key(), before.value(), before.create_revision(), pair.mod_revision())
        });
        judge(now.and_then(|now| self.show(now)), before.and_then(|before| self.show(before)))
    }
}

/// What a change looks like through the window, from what it shows of the object now and showed before.
fn judge(now: Option<Value>, before: Option<Value>) -> Option<(&'static str, Value)> {
    match (now, before) {
        (Some(now), Some(_)) => Some(("MODIFIED", now)),
        (Some(now), None) => Some(("ADDED", now)),
        (None, Some(before)) => Some(("DELETED", before)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_enters_changes_and_leaves_the_window() {
        let (old, new) = (json!({ "v": 1 }), json!({ "v": 2 }));
        assert_eq!(judge(Some(new.clone()), None), Some(("ADDED", new.clone())));
        assert_eq!(judge(Some(new.clone()), Some(old.clone())), Some(("MODIFIED", new)));
        assert_eq!(judge(None, Some(old.clone())), Some(("DELETED", old)));
        assert_eq!(judge(None, None), None);
    }

    #[test]
    fn a_line_is_one_json_object() {
        assert_eq!(
            line("ADDED", &json!({ "a": "b" })),
            Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":{\"a\":\"b\"}}\n")
        );
    }
}
