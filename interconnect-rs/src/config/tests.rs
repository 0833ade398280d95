//! What is read, what is refused, and in which words.

use serde_json::{Value, json};

use super::*;

#[test]
fn a_configuration_as_skupper_writes_it_is_read() {
    let config = Config::from_json(&json!([
        ["router", {"id": "C0", "mode": "interior", "helloMaxAgeSeconds": "3", "metadata": "{}", "workerThreads": 4}],
        ["site", {"name": "site", "platform": "linux"}],
        ["log", {"module": "ROUTER_CORE", "enable": "error+"}],
        ["sslProfile", {"name": "link", "caCertFile": "ca.crt", "certFile": "tls.crt", "privateKeyFile": "tls.key"}],
        ["listener", {"name": "@9090", "role": "normal", "port": 9090, "http": true, "httpRootDir": "disabled",
            "websockets": false, "healthz": "true", "metrics": true}],
        ["listener", {"name": "amqp", "host": "localhost", "port": "amqp"}],
        ["listener", {"name": "interior-listener", "role": "inter-router", "port": "55671", "maxFrameSize": 16384,
            "maxSessionFrames": 640, "sslProfile": "link", "saslMechanisms": "EXTERNAL", "authenticatePeer": "true"}],
        ["listener", {"name": "edge-listener", "role": "edge", "port": 45671, "sslProfile": "link"}],
        ["connector", {"name": "to-c1", "role": "inter-router", "host": "10.0.0.8", "port": "55671", "cost": 1,
            "sslProfile": "link", "verifyHostname": "false", "idleTimeoutSeconds": "4"}],
        ["tcpListener", {"name": "web", "host": "10.0.0.3", "port": "1028", "address": "web:80"}],
        ["tcpConnector", {"name": "db", "host": "11.10.0.4", "port": 5432, "address": "db:5432", "processId": "p"}],
        ["address", {"prefix": "mc", "distribution": "multicast"}]
    ]))
    .unwrap();
    insta::assert_snapshot!(config.to_string(), @r#"
    router C0
      routers may link at :55671 over mutual TLS (link)
      links to the router at 10.0.0.8:55671 over mutual TLS (link)
      /healthz and /metrics at :9090
      clients of web:80 connect to 10.0.0.3:1028
      db:5432 is the service at 11.10.0.4:5432
      note: listener "amqp" on localhost:5672 (role normal) is not served: AMQP clients and edge routers cannot connect
      note: listener "edge-listener" on :45671 (role edge) is not served: AMQP clients and edge routers cannot connect
      note: address is not served by this router
    "#);
    assert!(config.drop_tcp_connections);
    assert!(!config.link_connectors[0].verify_hostname);
    assert_eq!(config.link_connectors[0].idle_timeout, Duration::from_secs(2));
    assert_eq!(config.link_listeners[0].idle_timeout, Duration::from_secs(8));
}

#[test]
fn mistakes_are_named_with_their_place_and_what_to_write_instead() {
    let router = json!(["router", {"id": "A", "mode": "interior"}]);
    let with = |entity: Value| json!([router, entity]);
    let profile = json!({"name": "lab", "caCertFile": "a", "certFile": "b", "privateKeyFile": "c"});
    let cases = [
        json!({"router": {}}),
        json!([]),
        json!(["router"]),
        json!([["router", {"mode": "interior"}]]),
        json!([["router", {"id": "A"}]]),
        json!([["router", {"id": "A", "mode": "interor"}]]),
        json!([["router", {"id": "A B", "mode": "interior"}]]),
        with(router.clone()),
        with(json!(["tcpListner", {}])),
        with(json!(["tcpListener", {"name": "web", "adress": "x"}])),
        with(json!(["tcpListener", {"name": "web", "address": "x"}])),
        with(json!(["tcpListener", {"name": "web", "address": "x", "port": "70000"}])),
        with(json!(["tcpListener", {"address": "x", "port": 1, "sslProfile": "lab"}])),
        with(json!(["tcpConnector", {"address": "x", "port": 1}])),
        with(json!(["tcpConnector", {"address": 1, "port": 1, "host": "h"}])),
        with(json!(["listener", {"role": "inter_router"}])),
        with(json!(["listener", {"http": "maybe"}])),
        with(json!(["listener", {"role": "inter-router", "authenticatePeer": true}])),
        with(json!(["connector", {"role": "inter-router", "idleTimeoutSeconds": -1}])),
        with(json!(["sslProfile", {"name": "lab", "caCertFile": "a", "certFile": "b"}])),
        json!([router, ["sslProfile", profile], ["connector", {"role": "inter-router", "sslProfile": "lap"}]]),
        json!([router, ["sslProfile", profile], ["sslProfile", profile]]),
        json!([router, ["tcpListener", {"name": "a", "address": "x", "port": 1}],
            ["tcpListener", {"name": "b", "address": "y", "port": "1"}]]),
    ];
    let errors: Vec<String> = cases.iter().map(|case| Config::from_json(case).unwrap_err().to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
    the configuration is not an array of ["entityType", {attributes}]
    there is no router entity; write ["router", {"id": "C0", "mode": "interior"}]
    entity 0: is not of the form ["entityType", {attributes}]
    entity 0 (router): id is missing
    entity 0 (router): mode standalone is not served; write "mode": "interior"
    entity 0 (router): mode is "interor"; did you mean "interior"?; there are standalone, interior, edge
    entity 0 (router): a router id must not contain spaces or control characters
    entity 1 (router): there is a second router; a file describes one
    entity 1: unknown entity type "tcpListner"; did you mean "tcpListener"?
    entity 1 (tcpListener "web"): unknown attribute "adress"; did you mean "address"?
    entity 1 (tcpListener "web"): port is missing
    entity 1 (tcpListener "web"): port is "70000"; write a number from 1 to 65535
    entity 1 (tcpListener): sslProfile is not served here: TLS towards clients and services is theirs, end to end; take it out
    entity 1 (tcpConnector): host is missing
    entity 1 (tcpConnector): address is 1; write a string
    entity 1 (listener): role is "inter_router"; did you mean "inter-router"?; there are normal, inter-router, edge, inter-edge, inter-network, route-container
    entity 1 (listener): http is "maybe"; write true or false
    entity 1 (listener): authenticatePeer is true; name an sslProfile for it
    entity 1 (connector): idleTimeoutSeconds is "-1"; write a whole number in range
    entity 1 (sslProfile "lab"): privateKeyFile is missing; links use mutual TLS and need it
    entity 2 (connector): there is no sslProfile "lap"; did you mean "lab"?
    entity 2 (sslProfile "lab"): another entity of this type has the same name
    entity 2 (tcpListener "b"): another tcpListener has :1 too
    "#);
}

#[test]
fn what_is_read_and_not_served_is_said() {
    let config = Config::from_json(&json!([
        ["router", {"id": "A", "mode": "interior"}],
        ["listener", {"name": "amqp", "host": "localhost", "port": "amqp"}],
        ["connector", {"name": "up", "role": "edge", "port": 45671}],
        ["policy", {"enableVhostPolicy": true}]
    ]))
    .unwrap();
    insta::assert_snapshot!(config.notes.join("\n"), @r#"
    listener "amqp" on localhost:5672 (role normal) is not served: AMQP clients and edge routers cannot connect
    connector "up" to 127.0.0.1:45671 (role edge) is not served: only role inter-router is
    policy is not served by this router
    "#);
}

#[test]
fn a_file_error_names_the_file_and_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("router.json");
    let error = || Config::load(&path).unwrap_err().to_string().replace(&directory.path().display().to_string(), "DIR");
    assert_eq!(error(), "cannot read the configuration DIR/router.json");
    std::fs::write(&path, "[\n  [\"router\",]\n]").unwrap();
    assert_eq!(error(), "DIR/router.json:2:13: not JSON: trailing comma at line 2 column 13");
    std::fs::write(&path, "[[\"rooter\", {}]]").unwrap();
    assert_eq!(error(), "DIR/router.json: entity 0: unknown entity type \"rooter\"; did you mean \"router\"?");
}
