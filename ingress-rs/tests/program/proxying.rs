//! One request through the running program: what each side sees, and when.

use std::io::{self, Read};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{Backend, Ingress, Wire, dead_address, get, route};

const GET: &str = "GET /svc1 HTTP/1.1\r\nHost: shop.example\r\n\r\n";

#[test]
fn requests_go_to_the_backend_of_the_longest_path() -> anyhow::Result<()> {
    let (one, two) = (Backend::named("one")?, Backend::named("two")?);
    let ingress = Ingress::start(&(route("/svc1", one.address, "") + &route("/svc1/deep", two.address, "")))?;
    for (target, expected) in
        [("/svc1?q=%20", "one /svc1?q=%20"), ("/svc1/deep/x", "two /svc1/deep/x"), ("/svc1/%2f", "one /svc1/%2f")]
    {
        assert_eq!(get(ingress.address, target)?.1, expected);
    }
    Ok(())
}

#[test]
fn backends_take_turns() -> anyhow::Result<()> {
    let (one, two) = (Backend::named("one")?, Backend::named("two")?);
    let rules = format!("[[route]]\npath = '/'\nbackends = ['{}', '{}']\n", one.address, two.address);
    let ingress = Ingress::start(&rules)?;
    let bodies: Vec<String> = (0..4).map(|_| Ok(get(ingress.address, "/")?.1)).collect::<io::Result<_>>()?;
    assert_eq!(bodies, ["one /", "two /", "one /", "two /"]);
    Ok(())
}

#[test]
fn heads_lose_and_gain_what_they_should_on_the_wire() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 200 OK\r\nConnection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n")?;
        wire.send("X-Kept: 1\r\nContent-Length: 2\r\n\r\nok")
    })?;
    let ingress = Ingress::start(&route("/svc1", backend.address, ""))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("GET http://shop.example:81/svc1 HTTP/1.1\r\nHost: other\r\nConnection: close, X-Drop\r\n")?;
    client.send("X-Drop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nProxy-Connection: close\r\n\r\n")?;
    let (head, body) = client.read_response()?;
    assert_eq!((head.status(), body.as_str()), (200, "ok"));
    assert_eq!((head.header("x-kept"), head.header("x-secret"), head.header("keep-alive")), (Some("1"), None, None));
    let seen = crate::common::Head(backend.heads().remove(0));
    assert!(seen.0.starts_with("GET /svc1 HTTP/1.1\r\n"), "{seen:?}");
    assert_eq!(seen.header("host"), Some("shop.example:81"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-host"), Some("shop.example:81"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    for gone in ["x-drop", "connection", "proxy-connection", "x_real_ip"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    Ok(())
}

#[test]
fn a_response_is_passed_on_before_it_is_complete() -> anyhow::Result<()> {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::start(move |wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")?;
        let _ = wait.lock().map(|wait| wait.recv());
        wire.send("4\r\nlast\r\n0\r\n\r\n")
    })?;
    let ingress = Ingress::start(&route("/svc1", backend.address, ""))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send(GET)?;
    assert_eq!(client.expect_head()?.header("transfer-encoding"), Some("chunked"));
    assert_eq!(client.read_chunk()?, "first");
    go_on.send(())?;
    assert_eq!(client.read_chunk()?, "last");
    assert_eq!(client.read_chunk()?, "");
    Ok(())
}

#[test]
fn an_upload_is_passed_on_before_it_is_complete() -> anyhow::Result<()> {
    let (report, seen) = mpsc::channel();
    let backend = Backend::start(move |wire| {
        let head = wire.expect_head()?;
        let _ = report.send(format!("{:?}", head.header("content-length")));
        let _ = report.send(wire.read_exactly(5)?);
        wire.read_exactly(4)?;
        wire.respond("thanks")
    })?;
    let ingress = Ingress::start(&route("/svc1", backend.address, ""))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("POST /svc1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nfirst")?;
    assert_eq!(seen.recv_timeout(crate::common::PATIENCE)?, "Some(\"9\")");
    assert_eq!(seen.recv_timeout(crate::common::PATIENCE)?, "first");
    client.send("last")?;
    assert_eq!(client.read_response()?.1, "thanks");
    Ok(())
}

#[test]
fn a_large_upload_passes_through_little_memory() -> anyhow::Result<()> {
    const SIZE: usize = 50 * 1024 * 1024;
    let backend = Backend::start(|wire| {
        let length = wire.expect_head()?.length();
        let read = io::copy(&mut wire.reader.by_ref().take(length as u64), &mut io::sink())?;
        wire.respond(&read.to_string())
    })?;
    let ingress = Ingress::start(&route("/svc1", backend.address, ""))?;
    let before = ingress.peak_memory()?;
    let mut client = Wire::connect(ingress.address)?;
    client.send(format!("PUT /svc1 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {SIZE}\r\n\r\n"))?;
    assert_eq!(client.expect_head()?.status(), 100);
    let piece = vec![b'x'; 1024 * 1024];
    for _ in 0..50 {
        client.send(&piece)?;
    }
    assert_eq!(client.read_response()?.1, SIZE.to_string());
    let grown = ingress.peak_memory()?.saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "an upload of 50 MiB took {grown} bytes");
    assert_eq!(crate::common::Head(backend.heads().remove(0)).header("expect"), None);
    Ok(())
}

#[test]
fn connections_to_a_backend_are_kept_and_used_again() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let ingress = Ingress::start(&route("/", backend.address, "keepalive = 2"))?;
    for _ in 0..10 {
        assert_eq!(get(ingress.address, "/")?.0.status(), 200);
    }
    assert_eq!(backend.connections(), 1);
    Ok(())
}

#[test]
fn keepalive_zero_opens_a_connection_per_request_and_says_so() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let ingress = Ingress::start(&route("/", backend.address, "keepalive = 0"))?;
    let mut client = Wire::connect(ingress.address)?;
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        assert_eq!(client.read_response()?.0.status(), 200);
    }
    assert_eq!(backend.connections(), 3);
    assert_eq!(crate::common::Head(backend.heads().remove(0)).header("connection"), Some("close"));
    Ok(())
}

/// Answers the first request on each connection and closes without a word at the second.
fn fickle() -> io::Result<Backend> {
    Backend::start(|wire| {
        let head = wire.expect_head()?;
        wire.read_exactly(head.length())?;
        wire.respond("once")?;
        wire.expect_head()?;
        wire.close()
    })
}

#[test]
fn a_kept_connection_that_turns_out_closed_costs_a_get_nothing() -> anyhow::Result<()> {
    let backend = fickle()?;
    let ingress = Ingress::start(&route("/", backend.address, ""))?;
    for _ in 0..6 {
        assert_eq!(get(ingress.address, "/")?.1, "once");
    }
    Ok(())
}

#[test]
fn a_post_is_never_sent_twice() -> anyhow::Result<()> {
    let backend = fickle()?;
    let ingress = Ingress::start(&route("/", backend.address, ""))?;
    assert_eq!(get(ingress.address, "/")?.1, "once");
    let mut client = Wire::connect(ingress.address)?;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")?;
    let (head, body) = client.read_response()?;
    assert_eq!((head.status(), head.header("x-ingress-error")), (502, Some("backend-failed")), "{body}");
    assert_eq!(backend.heads().iter().filter(|head| head.starts_with("POST")).count(), 1);
    Ok(())
}

#[test]
fn a_dead_backend_is_passed_over_once() -> anyhow::Result<()> {
    let alive = Backend::named("alive")?;
    let rules = format!("[[route]]\npath = '/'\nbackends = ['{}', '{}']\n", dead_address(), alive.address);
    let ingress = Ingress::start(&rules)?;
    for _ in 0..4 {
        let mut client = Wire::connect(ingress.address)?;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")?;
        assert_eq!(client.read_response()?.1, "alive /");
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_takes_its_backend_connection_along() -> anyhow::Result<()> {
    let (report, events) = mpsc::channel();
    let backend = Backend::start(move |wire| {
        wire.expect_head()?;
        let _ = report.send("asked");
        wire.is_at_end()?;
        let _ = report.send("cancelled");
        Ok(())
    })?;
    let ingress = Ingress::start(&route("/", backend.address, ""))?;
    let mut client = Wire::connect(ingress.address)?;
    client.send(GET)?;
    assert_eq!(events.recv_timeout(crate::common::PATIENCE)?, "asked");
    client.close()?;
    assert_eq!(events.recv_timeout(Duration::from_secs(5))?, "cancelled");
    Ok(())
}

#[test]
fn a_websocket_becomes_a_tunnel_and_other_upgrades_do_not() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        let head = wire.expect_head()?;
        if head.header("upgrade").is_none() {
            return wire.respond("plain");
        }
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")?;
        wire.send("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello")?;
        let asked = wire.read_exactly(4)?;
        wire.send(format!("{asked}, pong"))
    })?;
    let rules = format!("[timeouts]\nkeep_alive = '200ms'\nclient_head = '200ms'\n{}", route("/", backend.address, ""));
    let ingress = Ingress::start(&rules)?;
    let mut client = Wire::connect(ingress.address)?;
    client.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
    let head = client.expect_head()?;
    assert_eq!((head.status(), head.header("upgrade")), (101, Some("websocket")));
    assert!(head.header("sec-websocket-accept").is_some());
    assert_eq!(client.read_exactly(5)?, "hello");
    // A tunnel may be silent for longer than an idle connection.
    std::thread::sleep(Duration::from_millis(500));
    client.send("ping")?;
    assert_eq!(client.read_exactly(10)?, "ping, pong");
    assert!(client.is_at_end()?, "the backend's end is passed on");

    let mut client = Wire::connect(ingress.address)?;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")?;
    assert_eq!(client.read_response()?.1, "plain");
    Ok(())
}
