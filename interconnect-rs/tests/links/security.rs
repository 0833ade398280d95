//! Who may link, and who may not.

use std::time::Duration;

use crate::support::{
    Authority, PATIENCE, Pair, Router, ask, connect, echo, http_get, service, wait_closed, wait_metric,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

/// Starts both routers of the pair, then a good one: when that is linked, the other has had its chance, and `A` is
/// none the worse for it.
async fn is_refused(pair: &mut Pair) {
    let good = [
        json!(["router", {"id": "good", "mode": "interior"}]),
        pair.authority.profile("good", &pair.ip),
        json!(["connector", {"role": "inter-router", "host": pair.ip, "port": 55671, "sslProfile": "tls"}]),
    ];
    let (_a, _b) = (Router::start(&pair.a), Router::start(&pair.b));
    // B has been started before and dials at once; a second is ten attempts of its back-off.
    http_get(pair.at(9091), "/healthz").await;
    sleep(Duration::from_secs(1)).await;
    let _good = Router::start(&good);
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"good\"} 1").await;
    let metrics = http_get(pair.at(9090), "/metrics").await;
    assert!(!metrics.contains("router=\"B\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused() {
    let mut pair = Pair::new(31);
    // B trusts A's authority, but its own certificate is of another one.
    let other = Authority::new();
    let mut profile = other.profile("B", &pair.ip);
    profile[1]["caCertFile"] = json!(pair.authority.ca());
    pair.b[1] = profile;
    is_refused(&mut pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_does_not_trust_the_others_authority_does_not_link() {
    let mut pair = Pair::new(32);
    let other = Authority::new();
    pair.b[1][1]["caCertFile"] = json!(other.ca());
    is_refused(&mut pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_host_is_refused() {
    let mut pair = Pair::new(33);
    pair.a[1] = pair.authority.profile("A", "127.88.33.99");
    let (_a, _b) = (Router::start(&pair.a), Router::start(&pair.b));
    http_get(pair.at(9091), "/healthz").await;
    sleep(Duration::from_secs(1)).await;
    assert!(!http_get(pair.at(9090), "/metrics").await.contains("router=\"B\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_verify_hostname_any_certificate_of_the_authority_will_do() {
    let mut pair = Pair::new(34);
    pair.a[1] = pair.authority.profile("A", "127.88.34.99");
    pair.b[2][1]["verifyHostname"] = json!(false);
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"hello").await, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_is_refused() {
    let pair = Pair::new(35);
    let _a = Router::start(&pair.a);
    let tls = {
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(pair.authority.ca()).unwrap();
        roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(&pem).unwrap()).unwrap();
        rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let name = pair.ip.clone().try_into().unwrap();
    // In TLS 1.3 the client thinks that it is done before the server has seen that there is no certificate.
    let mut stream = connector.connect(name, connect(pair.at(55671)).await).await.unwrap();
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_connection_to_a_tls_listener_is_refused_and_the_next_one_served() {
    let mut pair = Pair::new(36);
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    let mut plain = connect(pair.at(55671)).await;
    plain.write_all(b"AMQP\x03\x01\x00\x00").await.unwrap();
    let mut answer = Vec::new();
    // It may end with an alert, an orderly end or a reset; but it ends.
    let _ended = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut answer)).await.expect("it ends");
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"hello").await, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_ssl_profile_a_link_is_plain() {
    let mut pair = Pair::new(37);
    for (entities, entity) in [(&mut pair.a, 2), (&mut pair.b, 2)] {
        let Value::Object(attributes) = &mut entities[entity][1] else { panic!("an entity has attributes") };
        attributes.remove("sslProfile");
    }
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"hello").await, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_of_the_same_id_is_refused() {
    let mut pair = Pair::new(38);
    pair.b[0] = json!(["router", {"id": "A", "mode": "interior"}]);
    let (_a, _b) = (Router::start(&pair.a), Router::start(&pair.b));
    http_get(pair.at(9091), "/healthz").await;
    sleep(Duration::from_secs(1)).await;
    assert!(!http_get(pair.at(9090), "/metrics").await.contains("router=\"A\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_router_takes_the_place_of_the_one_before() {
    let mut pair = Pair::new(39);
    let _service = service(pair.at(8000), echo).await;
    let (_a, b) = pair.start();
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"one").await, b"one");
    b.kill().await;
    // Its tasks end, and close their sockets, a moment after it.
    wait_closed(pair.at(9091)).await;
    let _b = Router::start(&pair.b);
    wait_metric(pair.at(9090), "interconnect_links_total{router=\"B\"} 2").await;
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"two").await, b"two");
}
