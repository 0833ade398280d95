//! What a request asks for, read from its method, path and query.
//!
//! ```text
//! GET /api/v1/namespaces/shop/services/web            one object
//! GET /apis/apps/v1/deployments?watch=1               every change of all Deployments
//! PUT /api/v1/namespaces/shop/pods/web-1/status       a part of an object
//! ```
//!
//! Source: Kubernetes API concepts, "Resource URIs"; `apiserver/pkg/endpoints/request/requestinfo.go`.

use std::collections::BTreeMap;

use super::{
    failure::Failure,
    kind::{KINDS, Kind},
    selector::{Fields, Labels},
};

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Objects.
    Objects(Objects),
    /// Events, which are accepted and written into the log.
    Events,
    /// Which kinds there are, and whatever else describes the server.
    About(Vec<String>),
}

/// Objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objects {
    /// The kind.
    pub kind: Kind,
    /// The namespace; none for all of them, and for kinds without.
    pub namespace: Option<String>,
    /// The one object.
    pub name: Option<String>,
    /// A part of it: `status`, `scale`.
    pub subresource: Option<String>,
}

/// Reads a path.
///
/// # Errors
///
/// [`Failure::NoSuchPath`].
pub fn target(path: &str) -> Result<Target, Failure> {
    let missing = || Failure::NoSuchPath(path.to_owned());
    let words: Vec<String> = path.split('/').filter(|word| !word.is_empty()).map(decode).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    let (group, rest) = match texts[..] {
        ["api", "v1", ref rest @ ..] if !rest.is_empty() => ("", rest),
        ["apis", group, "v1", ref rest @ ..] if !rest.is_empty() => (group, rest),
        _ => return Ok(Target::About(words)),
    };
    let (namespace, rest) = match *rest {
        // `namespaces/shop` and `namespaces/shop/status` are a Namespace; anything else behind it lies in the namespace.
        ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) => {
            (Some(namespace.to_owned()), rest)
        }
        _ => (None, rest),
    };
    if rest.first() == Some(&"events") && matches!(group, "" | "events.k8s.io") {
        return Ok(Target::Events);
    }
    let plural = rest.first().copied().unwrap_or_default();
    let kind = KINDS
        .into_iter()
        .find(|kind| kind.describe().plural == plural && kind.describe().group == group)
        .ok_or_else(missing)?;
    if namespace.is_some() != kind.describe().namespaced && (namespace.is_some() || rest.len() > 1) {
        return Err(missing());
    }
    let word = |at: usize| rest.get(at).map(|word| (*word).to_owned());
    if rest.len() > 3 || word(2).is_some_and(|part| !kind.describe().subresources.contains(&part.as_str())) {
        return Err(missing());
    }
    Ok(Target::Objects(Objects { kind, namespace, name: word(1), subresource: word(2) }))
}

/// The options of a list or a watch.
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of the query, each by its own name")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether changes are wanted too.
    pub watch: bool,
    /// From which revision on; empty or `0`: from now on, whatever now is.
    pub resource_version: String,
    /// Which objects, by labels.
    pub labels: Labels,
    /// Which objects, by fields.
    pub fields: Fields,
    /// Whether a watch begins with what is there, and then says so.
    pub send_initial_events: bool,
    /// Whether a watch may tell of revisions at which nothing happened.
    pub bookmarks: bool,
    /// When a watch ends by itself, in seconds.
    pub timeout_seconds: Option<u64>,
    /// What a table shows of each object: `Metadata`, `Object` or `None`.
    pub include_object: String,
    /// What happens to fields that a kind does not have.
    pub field_validation: FieldValidation,
    /// A write that is only tried.
    pub dry_run: bool,
}

/// What happens to fields that a kind does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and a `Warning` header says so.
    #[default]
    Warn,
    /// The object is refused.
    Strict,
}

/// Reads a query.
///
/// # Errors
///
/// [`Failure::BadRequest`] that names the parameter.
pub fn options(query: &str) -> Result<Options, Failure> {
    let pairs: BTreeMap<String, String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect();
    let text = |name: &str| pairs.get(name).cloned().unwrap_or_default();
    let flag = |name: &str| matches!(pairs.get(name).map(String::as_str), Some("1" | "true" | "True"));
    let wrong = |name: &str, why: String| Failure::BadRequest(format!("{name}: {why}"));
    if !text("continue").is_empty() {
        return Err(wrong("continue", "lists are always whole here, so there is nothing to continue".to_owned()));
    }
    let timeout = text("timeoutSeconds");
    let timeout_seconds = match timeout.is_empty() {
        true => None,
        false => Some(timeout.parse().map_err(|_| wrong("timeoutSeconds", format!("{timeout:?} is no number")))?),
    };
    let field_validation = match text("fieldValidation").as_str() {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => return Err(wrong("fieldValidation", format!("{other:?} is none of Ignore, Warn, Strict"))),
    };
    Ok(Options {
        watch: flag("watch"),
        resource_version: text("resourceVersion"),
        labels: Labels::parse(&text("labelSelector")).map_err(|why| wrong("labelSelector", why))?,
        fields: Fields::parse(&text("fieldSelector")).map_err(|why| wrong("fieldSelector", why))?,
        send_initial_events: flag("sendInitialEvents"),
        bookmarks: flag("allowWatchBookmarks"),
        timeout_seconds,
        include_object: text("includeObject"),
        field_validation,
        dry_run: text("dryRun") == "All",
    })
}

/// Undoes the percent encoding of a URL (RFC 3986, section 2.1); `+` is a blank, as in forms.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        match (hex, bytes[at]) {
            (Some(byte), _) => {
                decoded.push(byte);
                at += 2;
            }
            (None, b'+') => decoded.push(b' '),
            (None, byte) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> Objects {
        match target(path) {
            Ok(Target::Objects(objects)) => objects,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_lead_to_objects() {
        let web = objects("/api/v1/namespaces/shop/services/web");
        assert_eq!(
            (web.kind, web.namespace.as_deref(), web.name.as_deref()),
            (Kind::Service, Some("shop"), Some("web"))
        );
        assert_eq!(objects("/apis/apps/v1/deployments").namespace, None);
        assert_eq!(objects("/apis/apps/v1/namespaces/a/deployments/b/scale").subresource.as_deref(), Some("scale"));
        assert_eq!(objects("/api/v1/namespaces/shop").name.as_deref(), Some("shop"));
        assert_eq!(objects("/api/v1/namespaces/shop/status").kind, Kind::Namespace);
        assert_eq!(target("/apis/events.k8s.io/v1/namespaces/default/events").unwrap(), Target::Events);
        assert_eq!(target("/apis/apps/v1").unwrap(), Target::About(["apis", "apps", "v1"].map(str::to_owned).to_vec()));
        for wrong in [
            "/api/v1/secrets",
            "/api/v1/services/web",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/pods/b/exec",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let options = options("watch=1&labelSelector=%21service.kubernetes.io%2Fheadless&fieldSelector=metadata.name%3DC0w1&timeoutSeconds=5").unwrap();
        assert!(options.watch && !options.bookmarks);
        assert_eq!(options.labels, Labels::parse("!service.kubernetes.io/headless").unwrap());
        assert_eq!(options.fields.name(), Some("C0w1"));
        assert_eq!(options.timeout_seconds, Some(5));
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for query in ["timeoutSeconds=x", "fieldValidation=Never", "labelSelector=a+b", "continue=abc"] {
            assert!(options(query).is_err(), "{query}");
        }
    }
}
