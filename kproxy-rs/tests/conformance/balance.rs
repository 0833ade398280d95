//! How an endpoint is chosen, by annotations that are our own.

use serde_json::{Value, json};

use crate::support::Lab;
use crate::support::eventually;
use crate::support::program::is_ours_only;
use crate::support::traffic::{ask, count, serve_tcp};
use crate::{HTTP, VIP, is_done};

const OURS: &str = "it knows no knetsim.io annotations";

fn serve(lab: &Lab, annotations: &Value) {
    let spec = json!({"clusterIP": VIP, "ports": [{"name": "http", "port": 80}]});
    lab.put("services/specs/shop/web", &json!({"metadata": {"annotations": annotations}, "spec": spec}));
}

#[test]
fn a_service_says_how_it_chooses() {
    if is_ours_only(OURS) || is_done() {
        return;
    }
    let lab = Lab::new(4);
    (1..=3).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.put_slice("web", &[json!({"name": "http", "port": 8080})], &[1, 2, 3]);
    let in_order = || -> Vec<String> { (0..9).map(|_| ask(lab.pod(4), HTTP).unwrap().0).collect() };
    serve(&lab, &json!({"knetsim.io/load-balancing": "round-robin"}));
    eventually("one after the other is chosen", || {
        ask(lab.pod(4), HTTP).is_ok() && {
            let answers = in_order();
            count(lab.pod(4), HTTP, 9).values().all(|count| *count == 3) && answers[..6] == answers[3..]
        }
    });
    let distinct = || count(lab.pod(4), HTTP, 9).len();
    serve(&lab, &json!({"knetsim.io/load-balancing": "source-hash"}));
    eventually("a client's address chooses", || distinct() == 1);
    (0..3).for_each(|_| assert_eq!(distinct(), 1));
    // The original's: the IP checksum chooses, which differs from packet to packet.
    serve(&lab, &json!({"knetsim.io/load-balancing": "jhash"}));
    eventually("the packet's checksum chooses", || {
        lab.nft("list map ip kproxy class").contains("lb-3-jhash") && distinct() == 3
    });
}

#[test]
fn weights_divide_the_traffic() {
    if is_ours_only(OURS) || is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    let pod = |n: u8, name: &str| json!({"addresses": [format!("11.0.0.{n}")], "nodeName": "w1", "targetRef": {"kind": "Pod", "name": name}});
    let endpoints = [pod(1, "blue-7d9f"), pod(2, "green-5c4b")];
    lab.put_endpoints("web-1", "web", &[json!({"name": "http", "port": 8080})], &endpoints);
    serve(&lab, &json!({"knetsim.io/weights": "blue=9,green=1"}));
    eventually("the Service is served", || ask(lab.pod(3), HTTP).is_ok());
    let answers = count(lab.pod(3), HTTP, 500);
    // Expected are 50 with a standard deviation of 6.7; five of them to each side fail once in half a million runs.
    let green = answers.get("p2").copied().unwrap_or_default();
    assert!((17..=83).contains(&green), "{answers:?}");
    // The old version is drained: its connections go on, and it gets no new ones.
    serve(&lab, &json!({"knetsim.io/weights": "blue=0"}));
    eventually("green alone", || count(lab.pod(3), HTTP, 40) == [("p2".to_owned(), 40)].into());
    serve(&lab, &json!({}));
    eventually("without weights all are equal", || (10..=30).contains(&count(lab.pod(3), HTTP, 40)["p1"]));
}
