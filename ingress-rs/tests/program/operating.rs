//! What the operator does: check, start, watch, change, stop.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Backend, Ingress, Wire, get, route};
use nix::sys::signal::Signal;

fn ingress_rs(args: &[&str]) -> io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_ingress-rs")).args(args).output()
}

#[test]
fn help_teaches_the_configuration() -> anyhow::Result<()> {
    let help = String::from_utf8(ingress_rs(&["--help"])?.stdout)?;
    for word in ["[[route]]", "keepalive", "HUP", "curl", "--check"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    Ok(())
}

#[test]
fn check_accepts_the_good_and_points_at_the_bad() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ingress.toml");
    let path = file.to_string_lossy();
    fs::write(&file, "listen = '127.0.0.1:0'\n[[route]]\npath = '/'\nbackends = ['10.0.0.1:80']\n")?;
    let good = ingress_rs(&["--config", &path, "--check"])?;
    assert_eq!((good.status.code(), String::from_utf8(good.stdout)?), (Some(0), format!("{path}: valid, 1 routes\n")));
    fs::write(&file, "listen = '127.0.0.1:0'\nroutes = []\n")?;
    let bad = ingress_rs(&["--config", &path, "--check"])?;
    let error = String::from_utf8(bad.stderr)?;
    assert_eq!(bad.status.code(), Some(1));
    assert!(error.contains(&format!("{path}:2:1: unknown field `routes`")), "{error}");
    let missing = ingress_rs(&["--config", "/nowhere.toml"])?;
    let error = String::from_utf8(missing.stderr)?;
    assert!(error.contains("cannot read the configuration /nowhere.toml: No such file"), "{error}");
    Ok(())
}

#[test]
fn an_address_in_use_is_an_error_that_names_it() -> anyhow::Result<()> {
    let first = Ingress::start("")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ingress.toml");
    fs::write(&file, format!("listen = '{}'\n", first.address))?;
    let second = ingress_rs(&["--config", &file.to_string_lossy()])?;
    let error = String::from_utf8(second.stderr)?;
    assert_eq!(second.status.code(), Some(1));
    assert!(error.contains(&format!("cannot listen on {} (listen in the configuration)", first.address)), "{error}");
    assert!(error.contains("Address already in use"), "{error}");
    Ok(())
}

#[test]
fn the_admin_port_tells_health_readiness_and_counts() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let ingress = Ingress::start(&format!("admin = '127.0.0.1:0'\n{}", route("/svc1", backend.address, "")))?;
    let admin = ingress.admin.ok_or_else(|| anyhow::anyhow!("no admin address in the log"))?;
    get(ingress.address, "/svc1")?;
    get(ingress.address, "/other")?;
    assert_eq!(get(admin, "/healthz")?.0.status(), 200);
    assert_eq!(get(admin, "/readyz")?.0.status(), 200);
    assert_eq!(get(admin, "/other")?.0.status(), 404);
    let metrics = get(admin, "/metrics")?.1;
    for sample in [
        "ingress_responses_total{route=\"/svc1\",code=\"2xx\"} 1",
        "ingress_refusals_total{reason=\"no-route\"} 1",
        "ingress_backend_connects_total{result=\"ok\"} 1",
        "ingress_client_connections_total 2",
        "# EOF",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in:\n{metrics}");
    }
    Ok(())
}

/// Clients with kept connections that ask for `/` until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    /// `once` is for a drain: a client whose response says `Connection: close` is done; otherwise that is a failure.
    fn start(address: SocketAddr, clients: usize, once: bool) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || {
                let mut wire = Wire::connect(address)?;
                while !stop.load(Ordering::Relaxed) {
                    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
                    let (head, body) = wire.read_response()?;
                    anyhow::ensure!(head.status() == 200, "{head:?} {body}");
                    answered.fetch_add(1, Ordering::Relaxed);
                    if head.header("connection") == Some("close") {
                        anyhow::ensure!(once, "a connection was closed: {head:?}");
                        anyhow::ensure!(wire.is_at_end()?, "`Connection: close` was not meant");
                        break;
                    }
                }
                Ok(())
            })
        });
        let clients = clients.collect();
        Load { stop, answered, clients }
    }

    /// Waits until `more` further requests have been answered.
    fn wait_for(&self, more: usize) -> anyhow::Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + crate::common::PATIENCE;
        while self.answered.load(Ordering::Relaxed) < goal {
            anyhow::ensure!(Instant::now() < deadline, "the load stands still");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }
}

#[test]
fn a_drain_under_load_loses_no_request() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let mut ingress = Ingress::start(&route("/", backend.address, ""))?;
    let load = Load::start(ingress.address, 8, true);
    load.wait_for(200)?;
    ingress.signal(Signal::SIGTERM)?;
    let status = ingress.wait()?;
    assert_eq!(status.code(), Some(0));
    load.finish()?;
    assert!(Wire::connect(ingress.address).is_err(), "the listener is closed");
    Ok(())
}

#[test]
fn a_drain_waits_for_a_slow_response_and_not_for_an_idle_client() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        wire.expect_head()?;
        thread::sleep(Duration::from_millis(800));
        wire.respond("slow")
    })?;
    let mut ingress = Ingress::start(&route("/", backend.address, ""))?;
    let mut idle = Wire::connect(ingress.address)?;
    let mut busy = Wire::connect(ingress.address)?;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    while backend.heads().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    ingress.signal(Signal::SIGTERM)?;
    let (head, body) = busy.read_response()?;
    assert_eq!((head.header("connection"), body.as_str()), (Some("close"), "slow"));
    assert!(idle.is_at_end()?);
    assert_eq!(ingress.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_drain_is_bounded() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        wire.expect_head()?;
        wire.is_at_end().map(drop)
    })?;
    let mut ingress = Ingress::start(&format!("[timeouts]\ndrain = '500ms'\n{}", route("/", backend.address, "")))?;
    let mut stuck = Wire::connect(ingress.address)?;
    stuck.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    while backend.heads().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    ingress.signal(Signal::SIGTERM)?;
    assert_eq!(ingress.wait()?.code(), Some(0));
    assert!((400..3000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn routes_change_under_load_and_no_request_fails() -> anyhow::Result<()> {
    let (one, two) = (Backend::named("one")?, Backend::named("two")?);
    let ingress = Ingress::start(&(String::from("workers = 2\n") + &route("/", one.address, "")))?;
    let load = Load::start(ingress.address, 8, false);
    for turn in 0..20 {
        let backend = if turn % 2 == 0 { &two } else { &one };
        load.wait_for(20)?;
        ingress.reload(&(String::from("workers = 2\n") + &route("/", backend.address, "")))?;
        ingress.wait_for("configuration replaced")?;
    }
    load.finish()?;
    assert_eq!(get(ingress.address, "/x")?.1, "one /x");
    assert!(!two.heads().is_empty());
    Ok(())
}

#[test]
fn what_is_in_flight_outlives_the_route_it_came_by() -> anyhow::Result<()> {
    let backend = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        io::copy(&mut wire.reader.get_ref().try_clone()?, &mut wire.reader.get_ref().try_clone()?).map(drop)
    })?;
    let slow = Backend::start(|wire| {
        wire.expect_head()?;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
        // Long enough for the reload to come between the halves.
        thread::sleep(Duration::from_millis(600));
        wire.send("full")
    })?;
    let ingress = Ingress::start(&(route("/chat", backend.address, "") + &route("/slow", slow.address, "")))?;
    let mut socket = Wire::connect(ingress.address)?;
    socket.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
    assert_eq!(socket.expect_head()?.status(), 101);
    let mut download = Wire::connect(ingress.address)?;
    download.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")?;
    assert_eq!(download.expect_head()?.status(), 200);
    ingress.reload("")?;
    ingress.wait_for("configuration replaced")?;
    assert_eq!(get(ingress.address, "/slow")?.0.status(), 404);
    assert_eq!(download.read_exactly(8)?, "halffull");
    socket.send("still here")?;
    assert_eq!(socket.read_exactly(10)?, "still here");
    // The kept connection of the client serves on, by the new rules.
    download.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")?;
    assert_eq!(download.read_response()?.0.status(), 404);
    Ok(())
}

#[test]
fn a_bad_new_configuration_is_refused_and_the_old_one_stays() -> anyhow::Result<()> {
    let (one, two) = (Backend::named("one")?, Backend::named("two")?);
    let ingress = Ingress::start(&route("/", one.address, ""))?;
    ingress.reload(&route("/../", two.address, ""))?;
    let line = ingress.wait_for("new configuration refused")?;
    assert!(line.contains("ingress.toml:3:8: the path has an element"), "{line}");
    assert_eq!(get(ingress.address, "/")?.1, "one /");
    ingress.reload(&route("/", two.address, ""))?;
    ingress.wait_for("configuration replaced")?;
    assert_eq!(get(ingress.address, "/")?.1, "two /");
    Ok(())
}

#[test]
fn what_needs_a_restart_is_said_and_the_rest_applied() -> anyhow::Result<()> {
    let (one, two) = (Backend::named("one")?, Backend::named("two")?);
    let ingress = Ingress::start(&route("/", one.address, ""))?;
    ingress.reload(&(String::from("max_connections = 7\n") + &route("/", two.address, "")))?;
    let line = ingress.wait_for("after a restart only")?;
    assert!(line.contains("max_connections"), "{line}");
    ingress.wait_for("configuration replaced")?;
    assert_eq!(get(ingress.address, "/")?.1, "two /");
    Ok(())
}

#[test]
fn beyond_max_connections_clients_wait_and_are_served_later() -> anyhow::Result<()> {
    let backend = Backend::named("one")?;
    let ingress = Ingress::start(&(String::from("max_connections = 1\n") + &route("/", backend.address, "")))?;
    let mut first = Wire::connect(ingress.address)?;
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    assert_eq!(first.read_response()?.0.status(), 200);
    let mut second = Wire::connect(ingress.address)?;
    second.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ingress.wait_for("max_connections is reached")?;
    first.close()?;
    assert_eq!(second.read_response()?.1, "one /second");
    Ok(())
}
