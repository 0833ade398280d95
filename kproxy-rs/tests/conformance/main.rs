//! What Kubernetes promises of Services, one test for each behaviour, with real traffic through the real program.
//!
//! The behaviours are those that the end-to-end tests of sig-network check in a whole cluster, as far as one worker shows them.
//!
//! | module | what is promised |
//! |---|---|
//! | `services` | a ClusterIP: its ports, its endpoints, what is refused, hairpin |
//! | `lifecycle` | Services that are made, changed into another type, handed to others, and deleted |
//! | `dual_stack` | a Service with an address of each family |
//! | `endpoints` | which endpoints count: conditions, several slices |
//! | `topology` | which endpoints are near: hints for zones and for nodes |
//! | `outside` | NodePort, external IP, load balancer: policies, source ranges |
//! | `node_ports` | on which of the worker's addresses a NodePort is |
//! | `clients` | who counts as a pod, and who is masqueraded |
//! | `affinity` | clients that are remembered |
//! | `balance` | our own annotations: ways to choose, weights |
//! | `udp` | datagrams of one client port while endpoints come and go |
//! | `sctp` | SCTP, with packets made by hand |
//! | `connections` | connections that live on: changes, restarts, packets out of the window |
//! | `faults` | a proxy or an etcd that was away, other hands at the table, objects that make no sense |
//!
//! The same bodies run against the kube-proxy on PATH:
//!
//! ```text
//! KNETSIM_REAL=1 cargo test -p kproxy-rs --test conformance
//! ```
//!
//! Where it differs, a test says so, and why (`is_ours_only`); `docs/architecture.md` has the list. `real` runs a part of the suite under it
//! whenever it is there.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod balance;
mod clients;
mod connections;
mod dual_stack;
mod endpoints;
mod faults;
mod lifecycle;
mod node_ports;
mod outside;
mod real;
mod sctp;
mod services;
mod topology;
mod udp;

use support::traffic::{ask, serve_tcp};
use support::{Lab, eventually};

/// The ClusterIP of the Service that a test is about.
const VIP: &str = "100.64.0.1";
/// The same with the port that most have.
const HTTP: &str = "100.64.0.1:80";

/// A worker with two pods; the first is the endpoint of the Service `shop/web` at [`HTTP`], which the second reaches.
fn web() -> Lab {
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    eventually("the Service is served", || ask(lab.pod(2), HTTP).is_ok());
    lab
}

/// Says that the test has no business here: it has run in its sandbox by now.
fn is_done() -> bool {
    !linux_net::testing::enter_sandbox()
}
