//! Two routers, linked over mutual TLS on loopback, as a client and a service see them.

use std::time::Duration;

use crate::support::{
    PATIENCE, Pair, Relay, Router, ask, connect, echo, http_get, pattern, service, wait_closed, wait_metric,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_in_both_directions_of_the_link() {
    let mut pair = Pair::new(1);
    pair.b.push(pair.listener("other", 1029));
    pair.a.push(pair.connector("other", 8001));
    let _services = (service(pair.at(8000), echo).await, service(pair.at(8001), echo).await);
    let (_a, _b) = pair.start();
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"from A to B").await, b"from A to B");
    assert_eq!(ask(&mut connect(pair.at(1029)).await, b"from B to A").await, b"from B to A");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_at_once_do_not_mix() {
    let mut pair = Pair::new(2);
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    drop(connect(pair.at(1028)).await);
    let mut clients = JoinSet::new();
    for seed in 0..100 {
        let at = pair.at(1028);
        clients.spawn(async move {
            let sent = pattern(seed, 100_000);
            assert!(exchange(&mut connect(at).await, &sent).await == sent, "connection {seed}");
        });
    }
    clients.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_megabytes_arrive_whole_both_ways() {
    let mut pair = Pair::new(3);
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    let sent = pattern(7, 64 << 20);
    assert!(exchange(&mut connect(pair.at(1028)).await, &sent).await == sent);
    wait_metric(
        pair.at(9090),
        "interconnect_transfer_bytes_total{address=\"svc\",side=\"listener\",direction=\"received\"} 67108864",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_answers_after_the_client_has_ended_its_writing_side() {
    let mut pair = Pair::new(4);
    let _service = service(pair.at(8000), |mut stream| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        request.reverse();
        stream.write_all(&request).await.unwrap();
    })
    .await;
    let (_a, _b) = pair.start();
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"abc").await, b"cba");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_writes_on_after_the_service_has_ended_its_writing_side() {
    let mut pair = Pair::new(5);
    let (sender, mut received) = tokio::sync::mpsc::channel(1);
    let _service = service(pair.at(8000), move |mut stream| {
        let sender = sender.clone();
        async move {
            stream.shutdown().await.unwrap();
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            sender.send(request).await.unwrap();
        }
    })
    .await;
    let (_a, _b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    client.write_all(b"still here").await.unwrap();
    drop(client);
    assert_eq!(timeout(PATIENCE, received.recv()).await.unwrap().unwrap(), b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_speaks_first_is_heard() {
    let mut pair = Pair::new(6);
    let _service = service(pair.at(8000), |mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        echo(stream).await;
    })
    .await;
    let (_a, _b) = pair.start();
    let mut greeting = [0; 11];
    let mut client = connect(pair.at(1028)).await;
    timeout(PATIENCE, client.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_does_not_stop_the_others_and_is_held_back_itself() {
    let mut pair = Pair::new(7);
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();

    // This client writes and never reads, until nothing more goes in: every buffer on the way is full.
    let mut slow = connect(pair.at(1028)).await;
    let mut sent = 0;
    let block = vec![b'x'; 64 * 1024];
    while let Ok(written) = timeout(Duration::from_millis(500), slow.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 256 << 20, "nothing holds the writer back");
    }
    let other = pattern(9, 4 << 20);
    assert!(exchange(&mut connect(pair.at(1028)).await, &other).await == other);

    // And when it reads at last, everything is there.
    slow.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, slow.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.len(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_link_cuts_its_connections_and_comes_back() {
    let mut pair = Pair::with_link_port(8, 55672);
    let relay = Relay::start(pair.at(55672), pair.at(55671)).await;
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    relay.cut();
    let error = timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    wait_metric(pair.at(9090), "interconnect_links_total{router=\"B\"} 2").await;
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"again").await, b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_has_gone_silent_is_given_up_and_made_again() {
    let mut pair = Pair::with_link_port(15, 55672);
    pair.a[2][1]["idleTimeoutSeconds"] = json!("2");
    pair.b[2][1]["idleTimeoutSeconds"] = json!(2);
    let relay = Relay::start(pair.at(55672), pair.at(55671)).await;
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    relay.freeze();
    let error = timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    wait_metric(pair.at(9090), "interconnect_links_total{router=\"B\"} 2").await;
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"B\"} 1").await;
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"again").await, b"again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_routers_that_dial_each_other_have_two_links_and_lose_nothing_by_it() {
    let mut pair = Pair::new(16);
    pair.a.push(json!(["connector", {"role": "inter-router", "host": pair.ip, "port": 55673, "sslProfile": "tls"}]));
    pair.b.push(json!(["listener", {"role": "inter-router", "host": pair.ip, "port": 55673, "sslProfile": "tls"}]));
    let _service = service(pair.at(8000), echo).await;
    let (_a, _b) = pair.start();
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"B\"} 2").await;
    for _ in 0..4 {
        assert_eq!(ask(&mut connect(pair.at(1028)).await, b"hello").await, b"hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_is_open_only_while_its_address_has_a_consumer() {
    let mut pair = Pair::new(9);
    let _service = service(pair.at(8000), echo).await;
    pair.a.push(pair.listener("svc", 1028));
    let _a = Router::start(&pair.a);
    wait_metric(pair.at(9090), "interconnect_listener_up{listener=\"127.88.9.1:1028\",address=\"svc\"} 0").await;
    assert!(TcpStream::connect(pair.at(1028)).await.is_err());

    let without = pair.b.clone();
    pair.b.push(pair.connector("svc", 8000));
    let b = Router::start(&pair.b);
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"open").await, b"open");

    b.reload(&without).await;
    wait_closed(pair.at(1028)).await;
    b.reload(&pair.b).await;
    assert_eq!(ask(&mut connect(pair.at(1028)).await, b"open again").await, b"open again");
    drop(b);
    wait_closed(pair.at(1028)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_cannot_be_connected_to_ends_the_clients_connection() {
    let mut pair = Pair::new(10);
    let (_a, _b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0, "an orderly end");
    wait_metric(pair.at(9090), "interconnect_resets_total{reason=\"connect-failed\"} 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_client_reaches_the_service() {
    let mut pair = Pair::new(11);
    let (sender, mut received) = tokio::sync::mpsc::channel(1);
    let _service = service(pair.at(8000), move |mut stream| {
        let sender = sender.clone();
        async move {
            stream.write_all(b"!").await.unwrap();
            sender.send(stream.read(&mut [0]).await.map_err(|error| error.kind())).await.unwrap();
        }
    })
    .await;
    let (_a, _b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    client.read_exact(&mut [0]).await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    let seen = timeout(PATIENCE, received.recv()).await.unwrap().unwrap();
    assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_consumer_is_served_without_a_link_and_before_a_remote_one() {
    let mut pair = Pair::new(12);
    let _far = service(pair.at(8000), |mut stream| async move { stream.write_all(b"far").await.unwrap() }).await;
    let _near = service(pair.at(8001), |mut stream| async move { stream.write_all(b"near").await.unwrap() }).await;
    pair.a.push(pair.connector("svc", 8001));
    let (_a, _b) = pair.start();
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"B\"} 1").await;
    for _ in 0..3 {
        assert_eq!(ask(&mut connect(pair.at(1028)).await, b"").await, b"near");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_router_lets_open_connections_end_and_takes_no_new_ones() {
    let mut pair = Pair::new(13);
    let _service = service(pair.at(8000), echo).await;
    let (_a, b) = pair.start();
    let mut client = connect(pair.at(1028)).await;
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    let stopping = tokio::spawn(b.stop());
    wait_closed(pair.at(1028)).await;
    assert!(http_get(pair.at(9091), "/healthz").await.starts_with("HTTP/1.1 503"));
    assert!(!stopping.is_finished());
    assert_eq!(ask(&mut client, b"the rest").await, b"the rest");
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_router_links_to_several() {
    let mut pair = Pair::new(14);
    let third = [
        json!(["router", {"id": "C", "mode": "interior"}]),
        pair.authority.profile("C", &pair.ip),
        json!(["connector", {"role": "inter-router", "host": pair.ip, "port": 55671, "sslProfile": "tls"}]),
        pair.connector("svc", 8001),
    ];
    let _b_service = service(pair.at(8000), |mut stream| async move { stream.write_all(b"B").await.unwrap() }).await;
    let _c_service = service(pair.at(8001), |mut stream| async move { stream.write_all(b"C").await.unwrap() }).await;
    let (_a, _b) = pair.start();
    let _c = Router::start(&third);
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"B\"} 1").await;
    wait_metric(pair.at(9090), "interconnect_link_up{router=\"C\"} 1").await;
    let mut answers = Vec::new();
    while !(answers.contains(&b"B".to_vec()) && answers.contains(&b"C".to_vec())) {
        answers.push(ask(&mut connect(pair.at(1028)).await, b"").await);
        assert!(answers.len() < 100, "equals take turns");
    }
}

/// Sends all of `data` and reads as much back, at the same time.
async fn exchange(stream: &mut TcpStream, data: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::with_capacity(data.len());
    let both = async {
        let write = async {
            writer.write_all(data).await?;
            writer.shutdown().await
        };
        tokio::try_join!(write, reader.read_to_end(&mut received)).unwrap();
    };
    timeout(3 * PATIENCE, both).await.expect("everything comes back in time");
    received
}
