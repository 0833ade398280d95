//! The HTTP listener: `/healthz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// Most connections at a time; a probe and a few scrapers need no more.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the HTTP listener shows.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub(crate) metrics: Arc<Metrics>,
    /// Whether the router is being stopped, and not to be counted on.
    pub(crate) draining: AtomicBool,
}

/// Serves for ever.
pub(crate) async fn serve(socket: TcpListener, status: Arc<Status>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = socket.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&status)));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection for /healthz and /metrics");
                    time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn serve_connection(stream: TcpStream, status: Arc<Status>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&status, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection for /healthz and /metrics broke off");
    }
}

fn answer(status: &Status, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let text = |code: StatusCode, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = code;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".into());
    }
    match path {
        "/healthz" if status.draining.load(Ordering::Relaxed) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into())
        }
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/metrics" => match status.metrics.render() {
            Ok(metrics) => {
                let mut response = text(StatusCode::OK, metrics);
                let kind = hyper::header::HeaderValue::from_static(
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                );
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /healthz and /metrics\n".into()),
    }
}
