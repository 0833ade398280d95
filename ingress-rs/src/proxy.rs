//! One request from its head to its response: route, connect, send, wait, hand over.
//!
//! The bodies are not in here: they are handed to hyper as streams (`body.rs`) and move by themselves. If the client goes away, hyper
//! drops the future of [`Proxy::handle`] or the response's body; either drops the [`Lease`], and with it the backend's connection.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Request, Response, StatusCode, Version};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::access::Exchange;
use crate::body::{RequestBody, ResponseBody, Upload, UploadState};
use crate::client::{Conversation, Turn};
use crate::error::{BadRequest, Refusal};
use crate::headers::{self, Origin};
use crate::metrics::Metrics;
use crate::path::MatchPath;
use crate::pool::{ConnectError, Lease, Pool};
use crate::tunnel;
use crate::upstream::{Routes, Upstream};

/// A request is tried this often: once, and once more when the first try certainly did nothing.
const ATTEMPTS: usize = 2;

const X_INGRESS_ERROR: HeaderName = HeaderName::from_static("x-ingress-error");

/// What all requests of one worker share.
#[derive(Debug)]
pub struct Proxy {
    /// The rules; a reload replaces them.
    pub routes: watch::Receiver<Arc<Routes>>,
    /// This worker's connections to backends.
    pub pool: Pool,
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the ingress shall stop: responses then close their connections.
    pub draining: CancellationToken,
    /// What a drain waits for, besides the clients' connections.
    pub tasks: TaskTracker,
    /// Whether requests are logged at INFO.
    pub access_log: bool,
}

/// What is known of a client, for all its requests.
#[derive(Debug)]
pub struct Client {
    /// Its address.
    pub peer: SocketAddr,
    /// What backends are told about it.
    pub origin: Origin,
    /// Where the conversation is.
    pub conversation: Conversation,
}

impl Proxy {
    /// Answers one request: with a backend's response, or with a refusal that names what failed.
    pub async fn handle(&self, client: &Client, request: Request<Incoming>) -> Response<ResponseBody> {
        let turn = client.conversation.begin_turn();
        let mut exchange = Exchange::begin(self.access_log, client.peer, request.method(), request.uri());
        let mut response = match self.forward(client, request, &mut exchange).await {
            Ok(answer) => answer.into_response(turn, exchange),
            Err(refusal) => self.refuse(&refusal, turn, exchange),
        };
        if self.draining.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn forward(
        &self,
        client: &Client,
        mut request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Answer, Refusal> {
        let on_upgrade = headers::wants_websocket(&request).then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        let unread = UnreadBody { body: Some(body), conversation: client.conversation.clone() };
        headers::admit(&mut head)?;
        let routes = self.routes.borrow().clone();
        let path = MatchPath::parse(head.uri.path()).map_err(BadRequest::Path)?;
        let Some(upstream) = routes.table.find(&path).cloned() else {
            return Err(Refusal::NoRoute { path: head.uri.path().to_owned() });
        };
        exchange.routed(upstream.clone());

        let keep = upstream.keepalive > 0 || on_upgrade.is_some();
        headers::to_backend(&mut head, &client.origin, upstream.backends()[0], keep);
        if on_upgrade.is_some() {
            headers::add_websocket(&mut head.headers);
        }
        head.extensions.clear();
        let (mut response, mut lease) = self.send(&routes, &upstream, head, unread).await?;

        let failed = |cause: &str| Refusal::Backend {
            backend: lease.backend,
            route: upstream.route.clone(),
            cause: cause.to_owned(),
        };
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let on_upgrade = match on_upgrade {
            Some(on_upgrade) if switching && headers::is_websocket(response.headers()) => Some(on_upgrade),
            _ if switching => return Err(failed("it switches to a protocol nobody asked for")),
            _ => None,
        };
        headers::to_client(response.headers_mut()).map_err(failed)?;
        *response.version_mut() = Version::HTTP_11;
        exchange.responded(response.status(), Some(lease.backend));
        if let Some(on_client) = on_upgrade {
            headers::add_websocket(response.headers_mut());
            client.conversation.become_tunnel();
            lease.retire();
            let on_backend = hyper::upgrade::on(&mut response);
            let tunnel = tunnel::run(on_client, on_backend, routes.timeouts.tunnel_idle);
            let open = self.metrics.open_tunnel();
            self.tasks.spawn(async move {
                tunnel.await;
                drop(open);
            });
        }
        Ok(Answer { response, lease, body_idle: routes.timeouts.body_idle })
    }

    /// Sends a request to a backend and waits for the response's head.
    ///
    /// A second try is made when the first did nothing: the connection could not be had or did not take the request; or a *kept*
    /// connection ended without a response, which is what happens when the backend closes it while we send, and the request may be
    /// repeated (RFC 9110 §9.2.2: idempotent) and is still complete in our hands (no body).
    async fn send(
        &self,
        routes: &Routes,
        upstream: &Arc<Upstream>,
        mut head: request::Parts,
        mut unread: UnreadBody,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let repeatable = unread.is_empty() && head.method.is_idempotent();
        let (mut body, upload) = unread.take(routes.timeouts.body_idle);
        let mut attempt = 1;
        loop {
            let last = attempt == ATTEMPTS;
            attempt += 1;
            let backend = upstream.next_backend();
            let mut lease = match self.lease(routes, upstream, backend, last).await {
                Ok(lease) => lease,
                Err(refusal) if last => return Err(refusal),
                Err(refusal) => {
                    debug!(%refusal, "trying once more");
                    continue;
                }
            };
            lease.upload.clone_from(&upload);
            let spare = (lease.reused && repeatable && !last).then(|| head.clone());
            let sending = lease.sender.try_send_request(Request::from_parts(head, body));
            let limit = routes.timeouts.response_head;
            let mut error = match response_head(sending, upload.as_ref(), limit).await {
                Some(Ok(response)) => return Ok((response, lease)),
                Some(Err(error)) => error,
                None => {
                    let refusal = Refusal::ResponseTimeout { backend, route: upstream.route.clone(), limit };
                    return Err(blame(upload.as_ref(), routes.timeouts.body_idle).unwrap_or(refusal));
                }
            };
            match (error.take_message(), spare) {
                (Some(unsent), _) if !last => (head, body) = unsent.into_parts(),
                // A parse error means that something was received: then the backend has worked on the request.
                (_, Some(spare)) if !error.error().is_parse() => (head, body) = (spare, RequestBody::none()),
                (_, _) => {
                    let cause = with_sources(error.error());
                    let refusal = Refusal::Backend { backend, route: upstream.route.clone(), cause };
                    return Err(blame(upload.as_ref(), routes.timeouts.body_idle).unwrap_or(refusal));
                }
            }
            debug!(%backend, "a kept connection did not answer; trying once more on a new one");
        }
    }

    /// A connection to `backend`: a kept one, unless `fresh`, or a new one.
    async fn lease(
        &self,
        routes: &Routes,
        upstream: &Upstream,
        backend: SocketAddr,
        fresh: bool,
    ) -> Result<Lease, Refusal> {
        let keepalive = upstream.keepalive;
        if keepalive > 0
            && !fresh
            && let Some(lease) = self.pool.take(backend, keepalive, routes.timeouts.backend_keep_alive).await
        {
            self.metrics.reused.inc();
            return Ok(lease);
        }
        let result = self.pool.connect(backend, keepalive, routes.timeouts.connect).await;
        self.metrics.connected(result.is_ok());
        let route = upstream.route.clone();
        result.map_err(|error| match error {
            ConnectError::Io(cause) => Refusal::Connect { backend, route, cause },
            ConnectError::Timeout(limit) => Refusal::ConnectTimeout { backend, route, limit },
        })
    }

    /// The ingress's own response.
    fn refuse(&self, refusal: &Refusal, turn: Turn, mut exchange: Exchange) -> Response<ResponseBody> {
        debug!(%refusal, "refused");
        self.metrics.refused(refusal.reason());
        exchange.responded(refusal.status(), None);
        let mut response = Response::new(ResponseBody::text(format!("{refusal}\n"), turn, exchange));
        *response.status_mut() = refusal.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(X_INGRESS_ERROR, HeaderValue::from_static(refusal.reason()));
        if matches!(refusal, Refusal::BadRequest(_) | Refusal::ClientAborted | Refusal::ClientStalled { .. }) {
            // Where the next request of this connection begins is not certain.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A backend's response that may be handed over.
struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    body_idle: Duration,
}

impl Answer {
    fn into_response(self, turn: Turn, exchange: Exchange) -> Response<ResponseBody> {
        let Answer { response, lease, body_idle } = self;
        response.map(|body| ResponseBody::backend(body, body_idle, lease, turn, exchange))
    }
}

/// A client's body that nobody has begun to read; if it is dropped so, the connection needs a careful end.
struct UnreadBody {
    body: Option<Incoming>,
    conversation: Conversation,
}

impl UnreadBody {
    fn is_empty(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// The body as it goes to the backend, and the view of its progress if there is one.
    fn take(&mut self, limit: Duration) -> (RequestBody, Option<Upload>) {
        match self.body.take() {
            Some(body) if !body.is_end_stream() => {
                let (body, upload) = RequestBody::upload(body, limit, self.conversation.clone());
                (body, Some(upload))
            }
            _ => (RequestBody::none(), None),
        }
    }
}

impl Drop for UnreadBody {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.conversation.left_unread();
        }
    }
}

/// Waits for a response's head, but no longer than `limit` for a backend that has all it asked for.
///
/// While the client is still sending its body, and the backend still takes it, the time does not count: a slow upload is not a slow
/// backend. The body's own clock watches the client then.
async fn response_head<F: Future>(sending: F, upload: Option<&Upload>, limit: Duration) -> Option<F::Output> {
    let mut sending = pin!(sending);
    let mut deadline = Instant::now() + limit;
    loop {
        if let Ok(result) = tokio::time::timeout_at(deadline, sending.as_mut()).await {
            return Some(result);
        }
        let now = Instant::now();
        deadline = match upload?.state() {
            UploadState::Client => now + limit,
            UploadState::BackendSince(since) | UploadState::Complete(since) if since + limit > now => since + limit,
            UploadState::BackendSince(_) | UploadState::Complete(_) | UploadState::Stalled | UploadState::Failed => {
                return None;
            }
        };
    }
}

/// When an upload failed on the client's side, that is the reason, whatever the backend's connection says about it.
fn blame(upload: Option<&Upload>, limit: Duration) -> Option<Refusal> {
    match upload?.state() {
        UploadState::Stalled => Some(Refusal::ClientStalled { limit }),
        UploadState::Failed => Some(Refusal::ClientAborted),
        UploadState::BackendSince(_) | UploadState::Client | UploadState::Complete(_) => None,
    }
}

/// An error and what caused it, in one line.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
