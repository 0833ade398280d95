//! The same rules in nginx and in ours: the same statuses and the same backends for the same requests.
//!
//! nginx has no path type that compares by elements; two locations make one, as ingress-nginx writes them:
//! `location = /foo` and `location /foo/`. Where the two differ on purpose, the test says so.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Backend, Ingress, Wire, dead_address};
use tempfile::TempDir;

/// A running nginx in the foreground; killed when dropped.
struct Nginx {
    address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Nginx {
    /// Nothing when nginx is not installed.
    fn start(locations: &str) -> anyhow::Result<Option<Nginx>> {
        let dir = tempfile::tempdir()?;
        let address = free_address()?;
        let root = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr crit;\n\
             events {{}}\n\
             http {{\n\
               access_log off; merge_slashes off; client_body_temp_path {root}/a; proxy_temp_path {root}/b;\n\
               fastcgi_temp_path {root}/c; uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;\n\
               proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_read_timeout 1s;\n\
               server {{ listen {address};\n{locations}\n location / {{ return 404; }} }}\n\
             }}\n"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let child = Command::new("nginx").arg("-e").arg("stderr").arg("-c").arg(&file).stderr(Stdio::inherit()).spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let nginx = Nginx { address, child, _dir: dir };
        let deadline = Instant::now() + crate::common::PATIENCE;
        while Wire::connect(address).is_err() {
            anyhow::ensure!(Instant::now() < deadline, "nginx does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(nginx))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago, on a loopback address that no other test uses, so that it still is.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::new(127, 80, 80, 80), 0))?.local_addr()
}

/// The status of the response to `request`, and the body if it is a backend's.
fn ask(address: SocketAddr, request: &str) -> anyhow::Result<(u16, String)> {
    let mut wire = Wire::connect(address)?;
    wire.send(request)?;
    if request.starts_with("HEAD ") {
        return Ok((wire.expect_head()?.status(), String::new()));
    }
    let (head, body) = wire.read_response()?;
    Ok((head.status(), if head.status() == 200 { body } else { String::new() }))
}

/// Path type, path, backend.
struct Rule(&'static str, &'static str, SocketAddr);

/// A rule as our configuration says it.
fn route(Rule(path_type, path, backend): &Rule) -> String {
    format!("[[route]]\npath = '{path}'\npath_type = '{path_type}'\nbackends = ['{backend}']\n")
}

/// A rule as nginx's says it, beside all the `others`.
fn locations(Rule(path_type, path, backend): &Rule, others: &[Rule]) -> Vec<String> {
    let stem = path.trim_end_matches('/');
    let exact = format!("location = {stem} {{ proxy_pass http://{backend}; }}\n");
    let below = format!("location {stem}/ {{ proxy_pass http://{backend}; }}\n");
    let taken = others.iter().any(|Rule(path_type, path, _)| *path_type == "Exact" && *path == stem);
    match *path_type {
        "Exact" => vec![exact],
        _ if taken => vec![below],
        _ => vec![exact, below],
    }
}

#[test]
fn paths_and_statuses_are_those_of_nginx() -> anyhow::Result<()> {
    let named = |name| Backend::named(name);
    let (foo, exact, aaa, bbb) = (named("foo")?, named("exact")?, named("aaa")?, named("bbb")?);
    let silent = Backend::start(|wire| {
        wire.expect_head()?;
        wire.is_at_end().map(drop)
    })?;
    let dead = dead_address();
    let rules = [
        Rule("Prefix", "/foo", foo.address),
        Rule("Exact", "/foo", exact.address),
        Rule("Exact", "/only", exact.address),
        Rule("Prefix", "/aaa", aaa.address),
        Rule("Prefix", "/aaa/bbb/", bbb.address),
        Rule("Prefix", "/dead", dead),
        Rule("Prefix", "/silent", silent.address),
    ];
    let locations: Vec<String> = rules.iter().flat_map(|rule| locations(rule, &rules)).collect();
    let routes: Vec<String> = rules.iter().map(route).collect();
    let Some(nginx) = Nginx::start(&locations.concat())? else {
        writeln!(io::stderr(), "SKIPPED: nginx is not installed (Debian: nginx-light)")?;
        return Ok(());
    };
    let ours = Ingress::start(&format!("[timeouts]\nresponse_head = '1s'\n{}", routes.concat()))?;

    let mut requests = Vec::new();
    for path in [
        "/foo",
        "/foo/",
        "/foo/bar",
        "/FOO",
        "/foobar",
        "/only",
        "/only/",
        "/bar",
        "/",
        "/aaa",
        "/aaa/",
        "/aaa/ccc",
        "/aaaccc",
        "/aaa/bbb",
        "/aaa/bbb/",
        "/aaa/bbb/ccc",
        "/aaa/bbbccc",
        "/aaa//bbb",
        "/%66oo",
        "/foo%2Fbar",
        "/foo?x=/aaa/bbb",
        "/aaa/bbb?x",
        "/foo/%7Ea",
        "/foo/a%20b",
        "/dead",
        "/silent",
    ] {
        requests.push(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    }
    for request in [
        "GET http://other/foo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /foo/1.0 HTTP/1.0\r\n\r\n",
        "HEAD /foobar HTTP/1.0\r\nHost: a\r\n\r\n",
        "DELETE /foo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "POST /foo/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        "GET /foo HTTP/1.1\r\n\r\n",
        "GET /foo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /foo HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /foo HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST /foo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "TRACE /foo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        requests.push(request.to_owned());
    }
    for request in &requests {
        if request.starts_with("GET /foo%2Fbar ") {
            // On purpose: nginx decodes %2F before it matches, so an encoded slash separates elements; ours never does.
            assert_eq!(ask(nginx.address, request)?, (200, "foo /foo%2Fbar".to_owned()));
            assert_eq!(ask(ours.address, request)?, (404, String::new()));
            continue;
        }
        assert_eq!(ask(ours.address, request)?, ask(nginx.address, request)?, "{request}");
    }
    // On purpose: nginx resolves dot segments; ours refuses them, because backends may resolve them otherwise.
    let dots = "GET /foo/../aaa HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(nginx.address, dots)?.0, 200);
    assert_eq!(ask(ours.address, dots)?.0, 400);
    Ok(())
}
