//! What the server says of itself: which groups, versions and kinds there are, and which version of Kubernetes it speaks.
//!
//! kubectl asks this first, and keeps the answer in `~/.kube/cache`: that is how it knows that `svc` means `services`.
//!
//! Source: Kubernetes API concepts, "API discovery"; `apimachinery/pkg/apis/meta/v1/types.go`, `APIGroupList`, `APIResourceList`.

use serde_json::{Value, json};

use super::kind::{KINDS, Kind};

/// The release whose types and behaviour we follow.
const MINOR: &str = "33";

/// The answer to a path of discovery, given in words; none when it is no such path.
#[must_use]
pub fn answer(words: &[String], address: &str) -> Option<Value> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["version"] => Some(json!({
            "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0+knetsim"), "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "none", "compiler": "rustc", "platform": "linux",
        })),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }],
        })),
        ["apis"] => Some(json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups().into_iter().map(group).collect::<Vec<_>>(),
        })),
        ["apis", name] if groups().contains(&name) => {
            let mut one = group(name);
            one["kind"] = json!("APIGroup");
            one["apiVersion"] = json!("v1");
            Some(one)
        }
        ["api", "v1"] => Some(resources("", "v1")),
        ["apis", name, "v1"] if groups().contains(&name) => Some(resources(name, &format!("{name}/v1"))),
        _ => None,
    }
}

fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> =
        KINDS.into_iter().map(|kind| kind.describe().group).filter(|group| !group.is_empty()).collect();
    groups.push("events.k8s.io");
    groups.dedup();
    groups
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version.clone()], "preferredVersion": version })
}

fn resources(group: &str, group_version: &str) -> Value {
    let mut list = Vec::new();
    for kind in KINDS.into_iter().filter(|kind| kind.describe().group == group) {
        list.push(resource(kind));
        for part in kind.describe().subresources {
            let about = kind.describe();
            let mut entry = json!({
                "name": format!("{}/{part}", about.plural), "singularName": "", "namespaced": about.namespaced,
                "kind": about.kind, "verbs": ["get", "patch", "update"],
            });
            if *part == "scale" {
                entry["group"] = json!("autoscaling");
                entry["version"] = json!("v1");
                entry["kind"] = json!("Scale");
            }
            list.push(entry);
        }
    }
    if matches!(group, "" | "events.k8s.io") {
        list.push(json!({ "name": "events", "singularName": "event", "namespaced": true, "kind": "Event",
            "verbs": ["create", "list"], "shortNames": ["ev"] }));
    }
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list })
}

fn resource(kind: Kind) -> Value {
    let about = kind.describe();
    let verbs: &[&str] = match kind.is_writable() {
        true => &["create", "delete", "get", "list", "patch", "update", "watch"],
        false => &["get", "list", "watch"],
    };
    let mut entry = json!({
        "name": about.plural, "singularName": about.singular, "namespaced": about.namespaced, "kind": about.kind,
        "verbs": verbs, "shortNames": about.short,
    });
    if matches!(kind, Kind::Pod | Kind::Service | Kind::Deployment) {
        entry["categories"] = json!(["all"]); // `kubectl get all`
    }
    entry
}

/// The `OpenAPI` document (version 2), as protobuf: kubectl checks manifests against it before it sends them.
///
/// It describes no type. kubectl lets pass what the document does not know, and the server checks every field by itself, more
/// strictly: see [`super::schema`]. In the protobuf encoding, field 1 is `swagger`, field 2 `info` with `title` and `version`, field
/// 8 `paths`; each is a tag byte `number << 3 | 2`, a length, and the content.
///
/// Source: `google/gnostic`, `openapiv2/OpenAPIv2.proto`.
#[must_use]
pub fn openapi() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap_or(u8::MAX); // all are short
        [&[number << 3 | 2, length], content].concat()
    };
    let info = [field(1, b"Kubernetes"), field(2, format!("v1.{MINOR}.0").as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b"")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str) -> Option<Value> {
        let words: Vec<String> = path.split('/').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        answer(&words, "10.1.0.1:8080")
    }

    #[test]
    fn every_kind_is_found_in_its_group() {
        for kind in KINDS {
            let path = match kind.describe().group {
                "" => "/api/v1".to_owned(),
                group => format!("/apis/{group}/v1"),
            };
            let list = ask(&path).unwrap();
            assert!(
                list["resources"].as_array().unwrap().iter().any(|entry| entry["name"] == kind.describe().plural),
                "{kind}"
            );
        }
        assert!(ask("/apis/batch/v1").is_none());
    }

    #[test]
    fn the_document_is_the_shortest_valid_one() {
        assert_eq!(openapi(), b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.33.0\x42\x00");
    }
}
