//! What is refused, cut off or given up, with which status, and how soon.

use std::io;
use std::time::{Duration, Instant};

use crate::common::{Backend, Ingress, Wire, dead_address, get, route};

#[test]
fn each_failure_has_its_status_and_names_what_failed() -> anyhow::Result<()> {
    let silent = Backend::start(|wire| {
        wire.expect_head()?;
        wire.is_at_end().map(drop)
    })?;
    let babbling = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("220 mail.example ESMTP\r\n\r\n")
    })?;
    let two_lengths = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    })?;
    let dead = dead_address();
    let rules = "[timeouts]\nresponse_head = '300ms'\n".to_owned()
        + &route("/dead", dead, "")
        + &route("/silent", silent.address, "")
        + &route("/babbling", babbling.address, "")
        + &route("/lengths", two_lengths.address, "");
    let ingress = Ingress::start(&rules)?;
    let (dead, silent) = (dead.to_string(), silent.address.to_string());
    let (babbling, lengths) = (babbling.address.to_string(), two_lengths.address.to_string());
    for (target, status, reason, named) in [
        ("/other/x?y", 404, "no-route", "/other/x"),
        ("/dead", 502, "connect-failed", dead.as_str()),
        ("/silent", 504, "response-timeout", silent.as_str()),
        ("/babbling", 502, "backend-failed", babbling.as_str()),
        ("/lengths", 502, "backend-failed", lengths.as_str()),
    ] {
        let start = Instant::now();
        let (head, body) = get(ingress.address, target)?;
        assert_eq!((head.status(), head.header("x-ingress-error")), (status, Some(reason)), "{target}: {body}");
        assert!(body.contains(named), "{target}: {body}");
        assert!(start.elapsed() < Duration::from_secs(3), "{target} took {:?}", start.elapsed());
    }
    Ok(())
}

#[test]
fn a_backend_that_does_not_accept_is_a_504() -> anyhow::Result<()> {
    // A full queue: the kernel drops further SYNs to this listener, as an unreachable host would.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>()?.into())?;
    listener.listen(0)?;
    let address = listener.local_addr()?.as_socket().ok_or_else(|| anyhow::anyhow!("an IP socket"))?;
    let _fillers: Vec<_> = (0..4)
        .map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50)))
        .take_while(Result::is_ok)
        .collect();
    let ingress = Ingress::start(&format!("[timeouts]\nconnect = '200ms'\n{}", route("/", address, "")))?;
    let (head, body) = get(ingress.address, "/")?;
    assert_eq!((head.status(), head.header("x-ingress-error")), (504, Some("connect-timeout")), "{body}");
    Ok(())
}

#[test]
fn a_body_that_falls_silent_is_cut_on_either_side() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        if wire.expect_head()?.target() == "/download" {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
        }
        io::copy(&mut wire.reader, &mut io::sink()).map(drop)
    })?;
    let ingress = Ingress::start(&format!("[timeouts]\nbody_idle = '300ms'\n{}", route("/", backend.address, "")))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("GET /download HTTP/1.1\r\nHost: a\r\n\r\n")?;
    assert_eq!(client.expect_head()?.length(), 10);
    assert_eq!(client.read_exactly(4)?, "half");
    assert!(client.is_at_end()?, "a truncated body must not look complete");

    let mut client = Wire::connect(ingress.address)?;
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")?;
    let (head, body) = client.read_response()?;
    assert_eq!((head.status(), head.header("x-ingress-error")), (408, Some("client-stalled")), "{body}");
    Ok(())
}

#[test]
fn a_refused_upload_still_gets_its_answer() -> anyhow::Result<()> {
    let ingress = Ingress::start("")?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")?;
    // The client sends on before it reads; a reset would make this or the reading fail.
    client.send(vec![b'x'; 3_000_000])?;
    assert_eq!(client.read_response()?.0.status(), 404);
    Ok(())
}

#[test]
fn ambiguous_requests_are_refused_and_their_connection_closed() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let ingress = Ingress::start(&route("/", backend.address, ""))?;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a/%2e%2e/b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 5\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = Wire::connect(ingress.address)?;
        client.send(request)?;
        assert_eq!(client.read_response()?.0.status(), 400, "{request}");
        assert!(client.is_at_end()?, "{request}");
    }
    assert_eq!(backend.heads(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_request_with_two_lengths_smuggles_nothing() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        while let Some(head) = wire.read_head()? {
            if head.header("transfer-encoding").is_some() {
                while !wire.read_chunk()?.is_empty() {}
            }
            wire.respond("ok")?;
        }
        Ok(())
    })?;
    let ingress = Ingress::start(&route("/", backend.address, ""))?;
    for lengths in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        let mut client = Wire::connect(ingress.address)?;
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
        ))?;
        assert_eq!(client.read_response()?.0.header("connection"), Some("close"));
        assert!(client.is_at_end()?, "what follows an ambiguous request is not answered");
    }
    let heads = backend.heads();
    assert!(heads.iter().all(|head| head.starts_with("POST / ") && !head.contains("content-length")), "{heads:?}");
    Ok(())
}

#[test]
fn a_tunnel_in_which_nobody_speaks_is_ended() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        wire.is_at_end().map(drop)
    })?;
    let ingress = Ingress::start(&format!("[timeouts]\ntunnel_idle = '300ms'\n{}", route("/", backend.address, "")))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
    assert_eq!(client.expect_head()?.status(), 101);
    let start = Instant::now();
    assert!(client.is_at_end()?);
    assert!((200..3000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn slow_heads_and_idle_connections_are_ended() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let timeouts = "[timeouts]\nclient_head = '200ms'\nkeep_alive = '400ms'\n";
    let ingress = Ingress::start(&format!("{timeouts}{}", route("/", backend.address, "")))?;
    let mut slow = Wire::connect(ingress.address)?;
    slow.send("GET / HTTP/1.1\r\nHos")?;
    let start = Instant::now();
    assert!(slow.is_at_end()?);
    assert!((150..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    let mut idle = Wire::connect(ingress.address)?;
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    assert_eq!(idle.read_response()?.0.status(), 200);
    let start = Instant::now();
    assert!(idle.is_at_end()?);
    assert!((350..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    Ok(())
}
