//! The Kubernetes API of a cluster, as far as kubectl and kube-proxy need it.
//!
//! # What it is for
//!
//! In a cluster only one program speaks with etcd: the API server. Everybody else (kubectl, the controllers, kubelets,
//! kube-proxy) asks it for objects, tells it what shall be, and watches for what has changed. It carries nothing out. Each
//! of the others compares what is wanted with what is, and acts: *the API is a blackboard*.
//!
//! # One request
//!
//! ```text
//!  PATCH /api/v1/namespaces/shop/services/web
//!     │ request.rs     method, path, query ──▶ what is asked for
//!     │ patch.rs       the part that was sent, laid over the object as it is
//!     │ schema.rs      every field known, of the right type?            ──▶ 400 with the field, or a Warning
//!     │ prepare.rs     identity kept, status kept, defaults.rs filled in
//!     │ validate.rs    ports 1 to 65535, names unique, …                ──▶ 422 with each wrong field
//!     │ claim.rs       a ClusterIP and NodePorts that nobody has
//!     ▼ registry.rs    one transaction: "if the key is still at revision 41, write it, and its claims"
//!   etcd ─▶ revision 42 ─▶ every watch of services: {"type":"MODIFIED", …}      watch.rs
//! ```
//!
//! `resourceVersion` is etcd's revision, a watch is etcd's watch, "never overwrite what you have not seen" is etcd's
//! transaction: the API server adds types, defaults, checks and names, and little else.
//!
//! # What kube-apiserver does that this leaves out
//!
//! Users, rights and TLS (the API listens in the lab's own namespaces only); admission plug-ins; more than one version of a kind; the
//! watch cache; server-side apply, JSON patches and dry runs; `limit` and `continue` of lists (a list is always whole); kinds beyond the
//! nine of [`kind`]; `ReplicaSet`s (a Deployment owns its pods itself); IPv6 service ranges. Events are written to the log and not kept.
//! Objects are JSON in etcd, where Kubernetes writes protobuf.
//!
//! # Reading order
//!
//! [`kind`], [`registry`], [`prepare`], [`claim`], [`watch`], [`server`]; the rest as they come up.

pub mod claim;
pub mod defaults;
pub mod discovery;
pub mod failure;
pub mod kind;
pub mod metrics;
pub mod patch;
pub mod prepare;
pub mod registry;
pub mod request;
pub mod schema;
pub mod selector;
pub mod server;
pub mod table;
pub mod validate;
pub mod view;
pub mod watch;
