//! The program itself: its arguments, its signals, and what it says.

use std::path::PathBuf;
use std::process::Stdio;

use crate::support::{PATIENCE, Pair, ask, connect, echo, http_get, service, wait_closed};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

#[tokio::test]
async fn sighup_adds_and_removes_services_and_a_bad_file_changes_nothing() {
    let mut pair = Pair::new(61);
    let _services = (service(pair.at(8000), echo).await, service(pair.at(8001), echo).await);
    let directory = tempfile::tempdir().unwrap();
    pair.b.extend([pair.connector("svc", 8000), pair.connector("other", 8001)]);
    pair.a.push(pair.listener("svc", 1028));
    let (file, router) = start(&directory, "a.json", &pair.a);
    let (_, _b) = start(&directory, "b.json", &pair.b);
    let mut kept = connect(pair.at(1028)).await;

    pair.a.push(pair.listener("other", 1029));
    write(&file, &pair.a);
    signal(&router, "HUP");
    assert_eq!(ask(&mut connect(pair.at(1029)).await, b"added").await, b"added");

    std::fs::write(&file, "[").unwrap();
    signal(&router, "HUP");
    assert_eq!(ask(&mut connect(pair.at(1029)).await, b"still there").await, b"still there");

    pair.a.pop();
    write(&file, &pair.a);
    signal(&router, "HUP");
    wait_closed(pair.at(1029)).await;
    assert_eq!(ask(&mut kept, b"through it all").await, b"through it all");
    let metrics = http_get(pair.at(9090), "/metrics").await;
    assert!(metrics.contains("interconnect_links_total{router=\"B\"} 1\n"), "the link was not touched: {metrics}");
}

#[tokio::test]
async fn sigterm_ends_the_program_with_success() {
    let pair = Pair::new(62);
    let directory = tempfile::tempdir().unwrap();
    let (_, mut child) = start(&directory, "a.json", &pair.a);
    assert!(http_get(pair.at(9090), "/healthz").await.ends_with("ok\n"));
    signal(&child, "TERM");
    assert!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn check_says_what_the_configuration_does_and_fails_where_it_cannot_work() {
    let mut pair = Pair::new(63);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.json");
    write(&file, &pair.a);
    let check = || Command::new(env!("CARGO_BIN_EXE_interconnect-rs")).arg("--check").arg("-c").arg(&file).output();
    let output = check().await.unwrap();
    assert!(output.status.success());
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap(), @"
    router A
      routers may link at 127.88.63.1:55671 over mutual TLS (tls)
      /healthz and /metrics at 127.88.63.1:9090
    ");

    pair.a[1][1]["privateKeyFile"] = json!("no-such.key");
    write(&file, &pair.a);
    let output = check().await.unwrap();
    assert!(!output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("sslProfile tls: cannot read privateKeyFile no-such.key"), "{log}");
}

#[tokio::test]
async fn help_teaches() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_interconnect-rs")).arg("--help").env("COLUMNS", "100").output().await.unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap(), @r#"
    Links this cluster's services to those of other clusters, over one mutual-TLS connection per router.

    The file is skupper-router's: a JSON array of ["entityType", {attributes}]. A tcpConnector offers a
    service of this cluster under an address; a tcpListener in any other cluster lets clients connect to
    that address. listener and connector of role inter-router link the routers. A listener of role
    normal with "http": true serves /healthz and /metrics.

    SIGHUP reads the file again: tcpListeners and tcpConnectors change without touching the links.
    SIGTERM drains. RUST_LOG sets what is logged on stderr, for example interconnect_rs=debug.

    Usage: interconnect-rs [OPTIONS] --config <FILE>

    Options:
      -c, --config <FILE>  The configuration, as skrouterd reads it
          --check          Check the configuration and its certificates, print what it says and exit
      -h, --help           Print help
      -V, --version        Print version
    "#);
}

fn start(directory: &TempDir, name: &str, entities: &[Value]) -> (PathBuf, Child) {
    let file = directory.path().join(name);
    write(&file, entities);
    let mut command = Command::new(env!("CARGO_BIN_EXE_interconnect-rs"));
    let child = command.arg("--config").arg(&file).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    (file, child)
}

fn write(file: &PathBuf, entities: &[Value]) {
    std::fs::write(file, Value::from(entities).to_string()).unwrap();
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("it still runs").to_string();
    let status = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    assert!(status.success());
}
