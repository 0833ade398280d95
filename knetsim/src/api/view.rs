//! How objects look to a client that cannot take them as they are.
//!
//! There is one such client. kube-proxy puts its `--hostname-override` into lower case, because names of Nodes are in lower case in
//! Kubernetes; the workers of a lab are called `C0w1`. It then asks for the Node `c0w1`, and takes only endpoints on `c0w1` as local.
//! So whoever says that it is kube-proxy sees every node's name in lower case. Nothing in etcd changes.
//!
//! Source: Kubernetes `component-helpers/node/util/hostname.go`, `GetHostname`.

use serde_json::{Value, json};

use super::kind::Kind;

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// As they are.
    Plain,
    /// Names of nodes in lower case.
    LowerCaseNodes,
}

impl View {
    /// The view for a client, by its `User-Agent`: `kube-proxy/v1.33.1 (linux/amd64) …`.
    #[must_use]
    pub fn of(user_agent: &str) -> Self {
        if user_agent.starts_with("kube-proxy/") { View::LowerCaseNodes } else { View::Plain }
    }

    /// An object in this view.
    #[must_use]
    pub fn show(self, kind: Kind, mut object: Value) -> Value {
        match (self, kind) {
            (View::LowerCaseNodes, Kind::Node) => lower(&mut object["metadata"], "name"),
            (View::LowerCaseNodes, Kind::EndpointSlice) => {
                for endpoint in object["endpoints"].as_array_mut().into_iter().flatten() {
                    lower(endpoint, "nodeName");
                }
            }
            (View::Plain | View::LowerCaseNodes, _) => {}
        }
        object
    }
}

fn lower(object: &mut Value, field: &str) {
    if let Some(name) = object[field].as_str() {
        object[field] = json!(name.to_lowercase());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxy_finds_its_node_and_its_endpoints() {
        let view = View::of("kube-proxy/v1.33.1 (linux/amd64) kubernetes/8adc0f0");
        assert_eq!(view.show(Kind::Node, json!({ "metadata": { "name": "C0w1" } }))["metadata"]["name"], "c0w1");
        let slice = json!({ "endpoints": [{ "nodeName": "C0w1" }, { "addresses": [] }] });
        assert_eq!(view.show(Kind::EndpointSlice, slice.clone())["endpoints"][0]["nodeName"], "c0w1");
        assert_eq!(View::of("kubectl/v1.33.1").show(Kind::EndpointSlice, slice.clone()), slice);
    }
}
