//! The kinds of objects that the API serves: their names in URLs, on kubectl's command line, and in etcd.
//!
//! Source: Kubernetes API reference; key layout of kube-apiserver, `pkg/registry/core/rest/storage_core.go` and the
//! `…Prefix` functions of its `pkg/kubeapiserver/default_storage_factory_builder.go` (services lie under `services/specs`).

use std::fmt;

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A namespace: the first half of the names of other objects.
    Namespace,
    /// A worker.
    Node,
    /// A container of the lab.
    Pod,
    /// A number of equal pods.
    Deployment,
    /// A name and address for pods.
    Service,
    /// Where the pods behind a service are.
    EndpointSlice,
    /// The same in the older form, one object a Service, for people and programs that look there.
    Endpoints,
    /// From which range service addresses come.
    ServiceCidr,
    /// Which service has which address.
    IpAddress,
}

/// All kinds, in the order in which they are listed.
pub const KINDS: [Kind; 9] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Deployment,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Endpoints,
    Kind::ServiceCidr,
    Kind::IpAddress,
];

/// What there is to say about a kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Description {
    /// `kind` of an object.
    pub kind: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Its name in URLs.
    pub plural: &'static str,
    /// Its name for one.
    pub singular: &'static str,
    /// Further names on the command line.
    pub short: &'static [&'static str],
    /// Whether its names are unique in a namespace only.
    pub namespaced: bool,
    /// What stands behind `/registry/` in etcd.
    pub storage: &'static str,
    /// Parts of an object with a URL of their own.
    pub subresources: &'static [&'static str],
}

impl Kind {
    /// Everything about the kind.
    #[must_use]
    pub const fn describe(self) -> &'static Description {
        match self {
            Kind::Namespace => &Description {
                kind: "Namespace",
                group: "",
                plural: "namespaces",
                singular: "namespace",
                short: &["ns"],
                namespaced: false,
                storage: "namespaces",
                subresources: &["status"],
            },
            Kind::Node => &Description {
                kind: "Node",
                group: "",
                plural: "nodes",
                singular: "node",
                short: &["no"],
                namespaced: false,
                storage: "minions",
                subresources: &["status"],
            },
            Kind::Pod => &Description {
                kind: "Pod",
                group: "",
                plural: "pods",
                singular: "pod",
                short: &["po"],
                namespaced: true,
                storage: "pods",
                subresources: &["status"],
            },
            Kind::Deployment => &Description {
                kind: "Deployment",
                group: "apps",
                plural: "deployments",
                singular: "deployment",
                short: &["deploy"],
                namespaced: true,
                storage: "deployments",
                subresources: &["status", "scale"],
            },
            Kind::Service => &Description {
                kind: "Service",
                group: "",
                plural: "services",
                singular: "service",
                short: &["svc"],
                namespaced: true,
                storage: "services/specs",
                subresources: &["status"],
            },
            Kind::EndpointSlice => &Description {
                kind: "EndpointSlice",
                group: "discovery.k8s.io",
                plural: "endpointslices",
                singular: "endpointslice",
                short: &[],
                namespaced: true,
                storage: "endpointslices",
                subresources: &[],
            },
            Kind::Endpoints => &Description {
                kind: "Endpoints",
                group: "",
                plural: "endpoints",
                singular: "endpoints",
                short: &["ep"],
                namespaced: true,
                storage: "services/endpoints",
                subresources: &[],
            },
            Kind::ServiceCidr => &Description {
                kind: "ServiceCIDR",
                group: "networking.k8s.io",
                plural: "servicecidrs",
                singular: "servicecidr",
                short: &[],
                namespaced: false,
                storage: "servicecidrs",
                subresources: &[],
            },
            Kind::IpAddress => &Description {
                kind: "IPAddress",
                group: "networking.k8s.io",
                plural: "ipaddresses",
                singular: "ipaddress",
                short: &["ip"],
                namespaced: false,
                storage: "ipaddresses",
                subresources: &[],
            },
        }
    }

    /// `apiVersion` of its objects: `v1`, `apps/v1`. All are at version 1.
    #[must_use]
    pub fn api_version(self) -> String {
        match self.describe().group {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    /// Whether clients may write it; the others are written by the API server and its controllers alone.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        !matches!(self, Kind::Endpoints | Kind::ServiceCidr | Kind::IpAddress)
    }

    /// The kind with this name on the command line: `pod`, `pods`, `po`, `Pod`, `deployments.apps`.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        let word = word.to_lowercase();
        KINDS.into_iter().find(|kind| {
            let about = kind.describe();
            let with_group =
                |name: &str| word.strip_prefix(name) == Some(&format!(".{}", about.group)) && !about.group.is_empty();
            about.plural == word
                || about.singular == word
                || about.short.contains(&word.as_str())
                || with_group(about.plural)
                || with_group(about.singular)
        })
    }

    /// The kind of an object that says `apiVersion` and `kind`.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        KINDS.into_iter().find(|known| known.describe().kind == kind && known.api_version() == api_version)
    }

    /// The key of an object in etcd.
    #[must_use]
    pub fn key(self, namespace: &str, name: &str) -> String {
        let about = self.describe();
        match about.namespaced {
            true => format!("/registry/{}/{namespace}/{name}", about.storage),
            false => format!("/registry/{}/{name}", about.storage),
        }
    }

    /// What the keys of all its objects, or of those in a namespace, begin with.
    #[must_use]
    pub fn prefix(self, namespace: Option<&str>) -> String {
        let about = self.describe();
        match namespace {
            Some(namespace) if about.namespaced => format!("/registry/{}/{namespace}/", about.storage),
            _ => format!("/registry/{}/", about.storage),
        }
    }

    /// Kind, namespace and name that a key stands for; the namespace is empty for a kind without.
    #[must_use]
    pub fn read_key(key: &str) -> Option<(Self, String, String)> {
        KINDS.into_iter().find_map(|kind| {
            let rest = key.strip_prefix(&kind.prefix(None))?;
            let (namespace, name) = if kind.describe().namespaced { rest.split_once('/')? } else { ("", rest) };
            let is_name = !name.is_empty() && !name.contains('/');
            is_name.then(|| (kind, namespace.to_owned(), name.to_owned()))
        })
    }

    /// The path of one of its objects, or of all of them, in URLs.
    #[must_use]
    pub fn path(self, namespace: Option<&str>, name: Option<&str>) -> String {
        let about = self.describe();
        let mut path = match about.group {
            "" => "/api/v1".to_owned(),
            group => format!("/apis/{group}/v1"),
        };
        if let Some(namespace) = namespace.filter(|_| about.namespaced) {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push('/');
        path.push_str(about.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe().kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_go_by_the_names_that_kubectl_knows() {
        for word in ["svc", "service", "Services"] {
            assert_eq!(Kind::named(word), Some(Kind::Service), "{word}");
        }
        assert_eq!(Kind::named("deployments.apps"), Some(Kind::Deployment));
        assert_eq!(Kind::named("serv"), None);
        assert_eq!(Kind::of("apps/v1", "Deployment"), Some(Kind::Deployment));
        assert_eq!(Kind::of("apps/v1beta1", "Deployment"), None);
    }

    #[test]
    fn keys_are_those_of_kubernetes_and_are_read_back() {
        assert_eq!(Kind::Service.key("shop", "web"), "/registry/services/specs/shop/web");
        assert_eq!(Kind::Node.key("", "C0w1"), "/registry/minions/C0w1");
        for kind in KINDS {
            let namespace = if kind.describe().namespaced { "shop" } else { "" };
            let read = Kind::read_key(&kind.key(namespace, "web"));
            assert_eq!(read, Some((kind, namespace.to_owned(), "web".to_owned())));
        }
        assert_eq!(Kind::read_key("/registry/services/specs/shop/web/more"), None);
    }
}
