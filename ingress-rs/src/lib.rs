//! The HTTP ingress: the door of the cluster.
//!
//! Services have addresses that mean something inside the cluster only. The ingress listens where the outside can reach it, reads
//! *what is asked for*, and passes the request to the service that answers such requests. It is the one component of the lab
//! that works on requests and not on packets or connections:
//!
//! | component | looks at | chooses |
//! |---|---|---|
//! | overlay | destination address of a packet | the worker |
//! | service proxy | first packet of a connection | the pod |
//! | ingress | head of each HTTP request | the service |
//!
//! So on one connection of a client, two requests may go to two services; and because the ingress makes connections of its own, the
//! backend sees the ingress's address, and learns the client's from a header only.
//!
//! # One request through the code
//!
//! ```text
//!            curl http://C0w1:8001/svc1/cart                                  100.64.11.1:8000
//!                 │                                                                 ▲
//!   ┌─────────────│──────────────────── one worker thread ──────────────────────────│────────┐
//!   │ worker.rs   ▼ accept                                                          │        │
//!   │ client.rs   ClientIo: the socket with clocks                                  │        │
//!   │             ▼                                                                 │        │
//!   │   hyper     bytes ⇄ messages                                    hyper   messages ⇄ bytes
//!   │             ▼                                                                 ▲        │
//!   │ proxy.rs    handle ─▶ headers::admit ─▶ path.rs ─▶ route.rs ─▶ headers::to_backend     │
//!   │               │       400, 405           400        404             │                  │
//!   │               │                                                     ▼                  │
//!   │               │                              upstream.rs: whose turn? pool.rs: a kept  │
//!   │               │                              connection or a new one (502, 504) ──────▶│
//!   │               ◀── headers::to_client ◀── the response's head (502, 504) ◀──────────────│
//!   │ body.rs     frames of both bodies pass, one at a time, while the heads are long through │
//!   └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! 1. [`worker`] accepts the connection and gives it to hyper, wrapped in [`client::ClientIo`], which ends it when a head or a
//!    response does not get through in time.
//! 2. hyper reads a head and calls [`proxy::Proxy::handle`]. [`headers::admit`] refuses what two readers could understand
//!    differently: no Host or two, two lengths, `..` in the path.
//! 3. [`route::Table::find`] finds the rule: the longest path that takes the request's, by whole elements.
//! 4. [`headers::to_backend`] takes away what was meant for this hop (`Connection` and what it names) and adds who asked
//!    (`X-Forwarded-For`, …).
//! 5. [`upstream::Upstream::next_backend`] says whose turn it is, [`pool::Pool`] gives a connection to it. A kept connection may have
//!    been closed by the backend a moment ago: then, and only when nothing can have been done twice, the request is tried again.
//! 6. The response's head is cleaned likewise and handed to hyper; the bodies follow on their own, frame by frame ([`body`]). A slow
//!    reader slows the sender down, because nobody asks for the next frame before the last one has been written.
//! 7. When the response has ended and the request body too, the backend's connection goes back to the pool, and one line goes to the
//!    [`access`] log.
//!
//! What goes wrong in a step is a [`error::Refusal`]: a status, a sentence that names the route and the backend, and
//! `x-ingress-error`, which tells the ingress's 404 from a backend's.
//!
//! # Change and end
//!
//! SIGHUP: the file is read and checked whole, made into [`upstream::Routes`], and put in place with one pointer. A request uses the
//! rules it began with; connections are not touched. A file with a mistake changes nothing.
//!
//! SIGTERM: `/readyz` says 503, the listener closes after its queue is emptied, responses carry `Connection: close`, idle
//! connections are left open for half a second (so that a request already on its way is answered) and then closed.
//! What is not done after `timeouts.drain` is cut. See [`worker`].
//!
//! # Reading order
//!
//! The modules below, from pure decisions to sockets. `path`, `route` and `headers` hold what can be learnt about HTTP routing;
//! `pool`, `body` and `client` what can be learnt about doing it safely.
//!
//! # What nginx does that is left out here
//!
//! - It *buffers*: by default a request body is read whole, to a file if it is large, before a backend hears of it, and a
//!   response may wait in a file for a slow reader. That frees backends early; here everything streams, and a slow client holds a
//!   backend's connection.
//! - It decodes and normalises paths before it matches: `/svc1/..%2fsvc2` is `/svc2` to it; here such paths are refused.
//! - It speaks TLS, HTTP/2 and HTTP/3, routes by host name, rewrites, redirects, compresses, caches, limits rates and sizes, serves files.
//! - It takes a backend that failed out of the rotation for a while (`max_fails`); here each request tries afresh, and once more.
//! - It passes header names on as the client wrote them; here they are in lower case (names are compared without case).
//! - It reloads by starting new processes beside the old ones, which go on with the old rules until their last connection ends.
//!
//! Sources: RFC 9110 and 9112 (HTTP semantics, HTTP/1.1), RFC 3986 (paths), RFC 6455 (WebSocket), Kubernetes
//! `networking.k8s.io/v1` Ingress, nginx's `ngx_http_proxy_module`, ingress-nginx for the forwarding headers.

pub mod path;
pub mod route;

pub mod headers;

pub mod config;
pub mod upstream;

pub mod proxy;

pub mod body;
pub mod client;
pub mod pool;
pub mod tunnel;

pub mod run;
pub mod source;
pub mod worker;

pub mod access;
pub mod admin;
pub mod error;
pub mod metrics;
