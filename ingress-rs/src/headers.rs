//! What a proxy does to a message's head: refuse the ambiguous, remove what was meant for this hop only, add who asked.
//!
//! Added to a request, always *replacing* what the client sent, as ingress-nginx does by default, because a client can write
//! anything into them: `X-Real-IP` and `X-Forwarded-For` (the client's address), `X-Forwarded-Proto`, `X-Forwarded-Host`,
//! `X-Forwarded-Port`. What the client had in `X-Forwarded-For` goes on as `X-Original-Forwarded-For`. `Host` reaches the
//! backend unchanged. `Via` is not added (nginx adds none either, though RFC 9110 §7.6.3 asks gateways for it).
//!
//! Removed from a request besides hop-by-hop fields: `Expect` (the ingress itself says `100 Continue`, when it first reads the
//! body), `Forwarded`, and fields with `_` in their name, which many backends cannot tell from the same name with `-` (nginx:
//! `underscores_in_headers off`).
//!
//! Content-Length together with Transfer-Encoding: hyper (since 1.11) drops the length, reads the body as chunked and closes the
//! connection after the response, which is what RFC 9112 §6.3 demands of a server that does not refuse. The backend sees one
//! framing, made anew, so there is nothing to smuggle.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::http::uri::{Authority, PathAndQuery, Uri};
use hyper::{Method, Request, Version};

use crate::error::{BadRequest, Refusal};

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_ORIGINAL_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-original-forwarded-for");

/// Fields that concern one connection only, whether or not `Connection` names them (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What the proxy tells a backend about the client; made once per connection, because it does not change on it.
#[derive(Clone, Debug)]
pub struct Origin {
    address: HeaderValue,
    port: HeaderValue,
    proto: HeaderValue,
}

impl Origin {
    /// A client at `peer` that came in at `local` without TLS.
    ///
    /// # Panics
    ///
    /// Never: an address is always a valid header value.
    #[must_use]
    pub fn plain(peer: SocketAddr, local: SocketAddr) -> Origin {
        // A listener on [::] shows an IPv4 client as ::ffff:10.0.0.1; backends expect 10.0.0.1.
        let address: IpAddr = peer.ip().to_canonical();
        Origin {
            address: HeaderValue::from_str(&address.to_string()).expect("an address is visible ASCII"),
            port: HeaderValue::from(local.port()),
            proto: HeaderValue::from_static("http"),
        }
    }
}

/// Refuses what is malformed or means different things to different readers, and brings the target into origin-form.
///
/// Afterwards the URI is path and query only, and an HTTP/1.1 request has exactly one valid `Host`.
///
/// # Errors
///
/// [`Refusal::Method`] or [`Refusal::BadRequest`].
pub fn admit(head: &mut request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Refusal::Method(head.method.clone()));
    }
    check_framing(&head.headers)?;
    check_host(head)?;
    if let Some(authority) = head.uri.authority() {
        // RFC 9112 §3.2.2: the target's authority replaces Host.
        if authority.as_str().contains('@') {
            return Err(BadRequest::InvalidHost.into());
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| BadRequest::InvalidHost)?;
        head.headers.insert(header::HOST, host);
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(path);
    }
    Ok(())
}

/// The body's length must have one meaning (RFC 9112 §6.1).
///
/// hyper has refused or resolved most of what could have two before this is called, both lengths together among it; safety
/// shall not hang on the version of a dependency, so the rule stands here too.
fn check_framing(headers: &HeaderMap) -> Result<(), BadRequest> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(BadRequest::AmbiguousLength);
    }
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(BadRequest::TransferCoding);
    }
    Ok(())
}

/// RFC 9112 §3.2: one Host, and a valid one. HTTP/1.0 may go without.
fn check_host(head: &request::Parts) -> Result<(), BadRequest> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::HTTP_10 || head.uri.authority().is_some() => Ok(()),
        (None, _) => Err(BadRequest::NoHost),
        (Some(_), Some(_)) => Err(BadRequest::ManyHosts),
        (Some(host), None) => {
            let authority = Authority::try_from(host.as_bytes()).map_err(|_| BadRequest::InvalidHost)?;
            if authority.as_str().contains('@') { Err(BadRequest::InvalidHost) } else { Ok(()) }
        }
    }
}

/// Whether the client asks to turn the connection into a WebSocket (RFC 6455 §4.1).
///
/// Any other upgrade is ignored, as RFC 9110 §7.8 allows: the request goes on as plain HTTP/1.1. `h2c` in particular must not be
/// passed through, because what follows it would bypass the routing.
#[must_use]
pub fn wants_websocket<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && is_websocket(request.headers())
        && !request.headers().contains_key(header::TRANSFER_ENCODING)
        && !request.headers().contains_key(header::CONTENT_LENGTH)
}

/// Whether `Connection: upgrade` and `Upgrade: websocket` stand in a head, of a request or of a 101 response.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let websocket = upgrades.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    websocket && upgrades.next().is_none() && connection_options(headers).any(|it| it.eq_ignore_ascii_case("upgrade"))
}

/// Makes a client's head fit for a backend: `keep_alive` says whether this connection shall serve more requests.
///
/// # Panics
///
/// Never: an address is always a valid header value.
pub fn to_backend(head: &mut request::Parts, origin: &Origin, backend: SocketAddr, keep_alive: bool) {
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    remove_underscored(headers);
    headers.remove(header::EXPECT);
    headers.remove(header::FORWARDED);
    // Ours come after the removal, so that `Connection: X-Real-IP` cannot take them away.
    if let Some(claimed) = headers.insert(X_FORWARDED_FOR, origin.address.clone()) {
        headers.insert(X_ORIGINAL_FORWARDED_FOR, claimed);
    }
    headers.insert(X_REAL_IP, origin.address.clone());
    headers.insert(X_FORWARDED_PROTO, origin.proto.clone());
    headers.insert(X_FORWARDED_PORT, origin.port.clone());
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(X_FORWARDED_HOST, host);
    } else {
        // An HTTP/1.0 client may have sent none, but we speak HTTP/1.1 to the backend, where it is required.
        headers.remove(X_FORWARDED_HOST);
        let host = HeaderValue::from_str(&backend.to_string()).expect("an address is visible ASCII");
        headers.insert(header::HOST, host);
    }
    if !keep_alive {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    head.version = Version::HTTP_11;
}

/// Adds to a head what asks for a WebSocket, after [`to_backend`] or [`to_client`] took it away as hop-by-hop.
pub fn add_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Makes a backend's head fit for a client.
///
/// # Errors
///
/// A sentence when the length of the response's body is ambiguous: a backend is not trusted to be sane.
pub fn to_client(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.next().is_some() {
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Err("its response has both Content-Length and Transfer-Encoding");
        }
        if lengths.next().is_some() {
            return Err("its response has more than one Content-Length");
        }
    }
    remove_hop_by_hop(headers);
    Ok(())
}

/// Removes the fields `Connection` names, then the well-known ones.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        // Nobody may make us send a request without its Host or a body without its length.
        .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn remove_underscored(headers: &mut HeaderMap) {
    let underscored: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    for name in underscored {
        headers.remove(name);
    }
}

/// The comma-separated options of all `Connection` fields.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn render(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n")
    }

    fn origin() -> Origin {
        Origin::plain("[::ffff:10.1.0.1]:4711".parse().unwrap(), "10.0.0.3:8001".parse().unwrap())
    }

    const BACKEND: &str = "100.64.11.1:8000";

    #[test]
    fn a_request_loses_what_was_for_this_hop_and_gains_who_asked() {
        let mut head = head(
            "/svc1",
            &[
                ("host", "shop.example:8001"),
                ("accept", "*/*"),
                ("connection", "keep-alive, X-Drop , x-real-ip"),
                ("connection", "host, content-length"),
                ("x-drop", "1"),
                ("x-real-ip", "6.6.6.6"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-host", "evil"),
                ("x_forwarded_for", "6.6.6.6"),
                ("forwarded", "for=6.6.6.6"),
                ("expect", "100-continue"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("content-length", "3"),
            ],
        );
        to_backend(&mut head, &origin(), BACKEND.parse().unwrap(), true);
        insta::assert_snapshot!(render(&head.headers));
    }

    #[test]
    fn an_http_1_0_request_without_host_gets_the_backend_as_host() {
        let mut head = head("/", &[]);
        head.version = Version::HTTP_10;
        assert!(admit(&mut head).is_ok());
        to_backend(&mut head, &origin(), BACKEND.parse().unwrap(), false);
        assert_eq!(head.headers[header::HOST], BACKEND);
        assert_eq!(head.headers[header::CONNECTION], "close");
        assert_eq!(head.version, Version::HTTP_11);
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        let refused = |target: &str, headers: &[(&str, &str)]| match admit(&mut head(target, headers)) {
            Err(Refusal::BadRequest(reason)) => Some(reason),
            _ => None,
        };
        assert_eq!(refused("/", &[]), Some(BadRequest::NoHost));
        assert_eq!(refused("/", &[("host", "a"), ("host", "a")]), Some(BadRequest::ManyHosts));
        for host in ["", "a b", "a/b", "user@a", "a:b:c", "[::1"] {
            assert_eq!(refused("/", &[("host", host)]), Some(BadRequest::InvalidHost), "{host}");
        }
        assert_eq!(refused("http://user@a/", &[("host", "a")]), Some(BadRequest::InvalidHost));
        let both = [("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "3")];
        assert_eq!(refused("/", &both), Some(BadRequest::AmbiguousLength));
        let gzip = [("host", "a"), ("transfer-encoding", "gzip, chunked")];
        assert_eq!(refused("/", &gzip), Some(BadRequest::TransferCoding));
        let twice = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(refused("/", &twice), Some(BadRequest::TransferCoding));
        for host in ["a", "a.example:8001", "10.0.0.3", "[::1]:80", "xn--bcher-kva.example"] {
            assert_eq!(refused("/", &[("host", host)]), None, "{host}");
        }
    }

    #[test]
    fn an_absolute_target_becomes_origin_form_and_decides_the_host() {
        let mut head = head("http://shop.example:81/a?b=c", &[("host", "other")]);
        admit(&mut head).unwrap();
        assert_eq!(head.uri, "/a?b=c");
        assert_eq!(head.headers[header::HOST], "shop.example:81");
    }

    #[test]
    fn connect_and_trace_are_not_served() {
        for method in [Method::CONNECT, Method::TRACE] {
            let mut head = head("/", &[("host", "a")]);
            head.method = method.clone();
            assert!(matches!(admit(&mut head), Err(Refusal::Method(refused)) if refused == method));
        }
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let ask = |headers: &[(&str, &str)]| wants_websocket(&Request::from_parts(head("/", headers), ()));
        assert!(ask(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]));
        assert!(!ask(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        assert!(!ask(&[("connection", "upgrade"), ("upgrade", "websocket, h2c")]));
        assert!(!ask(&[("upgrade", "websocket")]));
        assert!(!ask(&[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "1")]));
    }

    #[test]
    fn a_response_with_two_lengths_is_not_passed_on() {
        let ambiguous = [("content-length", "1"), ("transfer-encoding", "chunked")];
        assert!(to_client(&mut head("/", &ambiguous).headers).is_err());
        assert!(to_client(&mut head("/", &[("content-length", "1"), ("content-length", "1")]).headers).is_err());
        let mut sane =
            head("/", &[("content-length", "1"), ("connection", "x-a"), ("x-a", "1"), ("server", "b")]).headers;
        assert_eq!(to_client(&mut sane), Ok(()));
        assert_eq!(render(&sane), "content-length: 1\nserver: b");
    }
}
