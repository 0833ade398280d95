//! The cluster-to-cluster service router: TCP services of one cluster, reachable in another, over a single mutual-TLS
//! connection.
//!
//! # What it is for
//!
//! Inside a cluster every pod can reach every other by its IP address; between two clusters that is rarely so. Their
//! pod networks may overlap, nothing routes between them, and a firewall lets through one port in one direction. One
//! remedy joins the networks (a VPN, a cluster mesh). A *service router* joins only the services: each cluster runs
//! one router, the routers link up, and a service that a cluster offers under a name (an *address*, say `web:80`) can
//! be connected to in every other. No pod needs a route to another cluster; each speaks to the router of its own.
//!
//! ```text
//!    cluster C1                                                     cluster C0
//!   ┌────────────────────────────────────┐                        ┌─────────────────────────────────────┐
//!   │ client ─TCP─► :1028  router C1     │  one TCP connection    │     router C0 ─TCP─► 11.10.0.4:8000 │
//!   │              tcpListener web:80    │══ mutual TLS, :55671 ══│   tcpConnector web:80     the pod   │
//!   └────────────────────────────────────┘                        └─────────────────────────────────────┘
//! ```
//!
//! A `tcpConnector` says: here is a consumer of connections to this address. A `tcpListener` says: who connects here
//! wants that address. Who dials the link (`connector`) and who is dialled (`listener`) does not matter for what goes
//! over it: services go both ways.
//!
//! # The life of one connection
//!
//! ```text
//!   client          router C1                                            router C0          service
//!     │                 │  Hello{C1} ──────────► ◄────────── Hello{C0}      │                  │
//!     │                 │ ◄─────────────── Advertise{web:80}                │                  │
//!     │                 │ opens :1028                                       │                  │
//!     │── connects ────►│  Open{stream 1, web:80} ─────────────────────────►│                  │
//!     │── "GET /" ─────►│  data{1, "GET /"} ───────────────────────────────►│── connects ─────►│
//!     │                 │ ◄───────────────────────────────────── Opened{1}  │── "GET /" ──────►│
//!     │── FIN ─────────►│  Fin{1} ─────────────────────────────────────────►│── FIN ──────────►│
//!     │◄── "200 OK" ────│ ◄──────────────────────────── data{1, "200 OK"}   │◄── "200 OK" ─────│
//!     │                 │  Window{1, 131072}  … at each half window read …  │                  │
//!     │◄── FIN ─────────│ ◄──────────────────────────────────────── Fin{1}  │◄── FIN ──────────│
//! ```
//!
//! 1. Two routers link ([`mod@link`]), each says who it is, and which addresses it has consumers for. The listener's
//!    socket is open exactly while its address has one, somewhere: a client of a service that nobody offers is
//!    refused by the kernel, at once.
//! 2. A client connects. The router chooses a consumer ([`route`]): its own if it has one, else the linked router
//!    with the fewest connections for the address. It opens a stream to it; what the client says goes along at once,
//!    in frames ([`frame`]).
//! 3. The other router connects to the service, and both carry bytes, each direction on its own and with its own
//!    credit: a reader that falls behind stops its own sender, not the link. The streams of a link take turns, a
//!    frame at a time.
//! 4. Each direction ends by itself (Fin). If the service cannot be reached, or either side breaks off, a Reset ends
//!    the stream, and with it the client's connection. When the link itself breaks, its streams are reset, listeners
//!    without a consumer close, and the side that dialled dials again: at once, then after 100 ms, up to every 5 s.
//!
//! # Where to read
//!
//! The modules below in this order: names and configuration; the protocol, from its messages up to the state machine
//! of a link, which has no socket in it and is tested with both ends in one hand; then the tasks that run it.
//!
//! | what | pure | with sockets |
//! |---|---|---|
//! | a link | [`control`], [`frame`], `stream`, [`mod@link`] | `transport` (runs a link over TLS), `peering` (dials and accepts), `tls` |
//! | a service | [`route`] | `service` (sockets), `flow` (one TCP connection) |
//! | the whole | [`config`] | `router` (the decisions), [`mod@run`] (the event loop), `status`, [`signal`] |
//!
//! # What skupper-router does and this one does not
//!
//! The configuration file is skupper-router's (`skrouterd`), and so is what a client and a service observe. What goes
//! over the link is not: skupper-router speaks AMQP 1.0 there, this router a protocol of its own, so both ends of a
//! link must be of one kind. Nothing above [`mod@link`] knows the protocol; AMQP would be a second such state
//! machine. Left out as well:
//!
//! - *transit*: a router serves what comes over a link with its own consumers only, so every two clusters that share
//!   a service need a link between them (or a star around the one that offers it). skupper-router computes paths over
//!   any number of routers, with costs.
//! - *edge routers*, AMQP clients, addresses with other distributions than the one described, policies, and
//!   management over AMQP: services are added and removed with SIGHUP instead.
//! - several connections per link (`dataConnectionCount`), and flow records (`VanFlow`) for an observer.
//! - TLS towards clients and services: it passes through unseen, end to end.
//!
//! Ours also does a little that the real one does not: it drains on SIGTERM, and dials again at once when a good link
//! breaks.
//!
//! Source: skupper-router 3.5.1 (its management schema, TCP adaptor and router protocol, observed on the wire).

pub mod name;

pub mod config;

pub mod control;
pub mod frame;
mod stream;

pub mod link;

mod tls;
mod transport;

mod peering;

pub mod route;

mod flow;
mod service;

mod router;

pub mod run;

pub mod error;
pub mod metrics;
pub mod signal;
mod status;
