//! The ports on which load balancers ask whether this worker has endpoints of a Service (`healthCheckNodePort`).
//!
//! With external policy Local a worker without endpoints drops what it is sent. So the load balancer asks all workers, on a port of their
//! own for each such Service, and sends to those that answer 200:
//!
//! ```json
//! {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true}
//! ```
//!
//! Source: Kubernetes `pkg/proxy/healthcheck/service_health.go`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

use crate::health::Health;
use crate::service::ServiceName;

/// How much of the traffic this worker should get, in the eyes of a load balancer that can tell.
const WEIGHT_HEADER: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// A load balancer has a handful of checkers; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;
/// Without a pause, a process out of file descriptors would try thousands of times a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked about on each port: the Service, and how many endpoints it has here.
pub type Checks = BTreeMap<NonZeroU16, (ServiceName, usize)>;

/// Serves the ports that `checks` names at each moment, until it is dropped.
pub async fn serve(mut checks: watch::Receiver<Checks>, health: Health) {
    let mut tasks = JoinSet::new();
    let mut servers: BTreeMap<NonZeroU16, AbortHandle> = BTreeMap::new();
    loop {
        let wanted: Vec<NonZeroU16> = checks.borrow_and_update().keys().copied().collect();
        servers.retain(|port, server| {
            let is_wanted = wanted.contains(port);
            if !is_wanted {
                server.abort();
            }
            is_wanted
        });
        for port in wanted {
            if let std::collections::btree_map::Entry::Vacant(vacant) = servers.entry(port) {
                vacant.insert(tasks.spawn(serve_port(port, checks.clone(), health.clone())));
            }
        }
        if checks.changed().await.is_err() {
            return;
        }
        while tasks.try_join_next().is_some() {} // Those that were aborted.
    }
}

async fn serve_port(port: NonZeroU16, checks: watch::Receiver<Checks>, health: Health) {
    // Both families, where the kernel has IPv6.
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.get()));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port.get())).await,
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return warn!(port, %error, "load balancers cannot be told about endpoints here"),
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (checks, health) = (checks.clone(), health.clone());
        connections.spawn(async move {
            let service = service_fn(|_: Request<hyper::body::Incoming>| {
                let response = answer(checks.borrow().get(&port), &health);
                async move { Ok::<_, Infallible>(response) }
            });
            if let Err(error) =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            {
                debug!(%error, "a load balancer went away");
            }
        });
    }
}

fn answer(check: Option<&(ServiceName, usize)>, health: &Health) -> Response<Full<Bytes>> {
    let Some((service, local_endpoints)) = check else {
        let mut gone = Response::new(Full::from("no such Service\n"));
        *gone.status_mut() = StatusCode::NOT_FOUND;
        return gone;
    };
    let is_healthy = health.status().synced;
    let body = json!({
        "service": {"namespace": service.namespace(), "name": service.name()},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": is_healthy,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if *local_endpoints == 0 || !is_healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(WEIGHT_HEADER, HeaderValue::from(*local_endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_endpoints_or_without_a_table_is_not_to_be_used() {
        let health = Health::new();
        let web = |count| (ServiceName::new("shop", "web"), count);
        let status = |count: Option<usize>| answer(count.map(web).as_ref(), &health).status().as_u16();
        assert_eq!(status(Some(1)), 503, "nothing is in the kernel yet");
        health.status().synced = true;
        assert_eq!([status(Some(2)), status(Some(0)), status(None)], [200, 503, 404]);
        let response = answer(Some(&web(2)), &health);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
    }
}
