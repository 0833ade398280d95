//! What goes wrong around a proxy.

use crate::support::program::{self, Program, is_ours_only};
use crate::support::traffic::{ask, serve_tcp};
use crate::support::{Lab, eventually};
use crate::{HTTP, VIP, is_done, web};

#[test]
fn what_somebody_else_did_to_the_table_is_undone() {
    if is_ours_only("it looks at its tables when a write fails, and else once an hour") || is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(3), &to).is_ok());
    // Without the numbers of rules, which a new table has anew.
    let intact = lab.nft("list table ip kproxy");
    for damage in [
        "delete table ip kproxy",
        "flush chain ip kproxy lb-2",
        "flush map ip kproxy eps",
        "delete element ip kproxy vips { 100.64.0.1 }",
        "add element ip kproxy pods { 10.0.0.0/8 }",
        "add rule ip kproxy services drop",
    ] {
        lab.nft(damage);
        eventually(damage, || {
            lab.worker
                .run(|| std::process::Command::new("nft").args(["list", "table", "ip", "kproxy"]).output())
                .unwrap()
                .is_ok_and(|output| output.stdout == intact.as_bytes())
        });
    }
    assert!(ask(lab.pod(3), &to).is_ok());
    let log = lab.proxy_log();
    assert!(
        log.contains("a table is gone")
            && log.contains("chain lb-2 of ip kproxy was edited")
            && log.contains("the elements of eps were edited"),
        "{log}"
    );
    // Somebody else's own table is none of our business.
    let before = lab.metric("kubeproxy_table_repairs_total");
    lab.nft("add table ip theirs");
    lab.serve("other", "100.64.0.2", &[80], &[1]);
    eventually("the other Service is served", || ask(lab.pod(3), "100.64.0.2:80").is_ok());
    assert!((lab.metric("kubeproxy_table_repairs_total") - before).abs() < f64::EPSILON);
}

#[test]
fn a_poisoned_object_is_named_and_skipped() {
    if is_ours_only("an object of the wrong shape makes it refuse the whole list; a real API server stores none")
        || is_done()
    {
        return;
    }
    let lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.put_raw("services/specs/shop/bad", "{\"spec\": 7}");
    lab.serve("web", VIP, &[80], &[1]);
    let to = format!("{VIP}:80");
    eventually("the good Service is served", || ask(lab.pod(2), &to).is_ok());
    assert!(lab.http(10256, "/healthz").unwrap().contains("\"skippedObjects\":[\"services/specs/shop/bad\"]"));
    assert!(lab.proxy_log().contains("object=services/specs/shop/bad"));
    lab.serve("bad", "100.64.0.2", &[80], &[1]);
    eventually("once it is repaired it is served", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    assert!(lab.http(10256, "/healthz").unwrap().contains("\"skippedObjects\":[]"));
}

#[test]
fn services_are_served_while_etcd_is_away() {
    if is_done() {
        return;
    }
    let mut lab = web();
    lab.stop_etcd();
    if program::tested() == Program::Ours {
        eventually("the proxy knows that etcd is away", || {
            lab.http(10256, "/healthz").unwrap().contains("\"etcdConnected\":false")
        });
    }
    assert!(ask(lab.pod(2), HTTP).is_ok());
    lab.start_etcd();
    lab.serve("late", "100.64.0.2", &[80], &[1]);
    eventually("changes are followed again", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    assert!(lab.http(10256, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn what_etcd_has_forgotten_is_found_by_listing_anew() {
    if is_done() {
        return;
    }
    let mut lab = web();
    lab.while_proxy_sleeps(|lab| {
        lab.stop_etcd();
        lab.start_etcd();
        lab.delete("services/specs/shop/web");
        lab.serve("late", "100.64.0.2", &[80], &[1]);
        lab.compact();
    });
    eventually("the new Service is served", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    eventually("the old one is gone", || !lab.tables().contains("100.64.0.1 "));
    if program::tested() == Program::Ours {
        assert!(lab.proxy_log().contains("etcd has compacted what we missed"), "{}", lab.proxy_log());
    }
}

#[test]
fn what_changed_while_the_proxy_was_away_is_all_it_changes() {
    if is_ours_only("it writes all maps anew at a start") || is_done() {
        return;
    }
    let mut lab = Lab::new(2);
    serve_tcp(lab.pod(1), 8080);
    lab.serve("web", VIP, &[80], &[1]);
    lab.serve("old", "100.64.0.2", &[80], &[1]);
    eventually("the Service is served", || ask(lab.pod(2), &format!("{VIP}:80")).is_ok());
    eventually("the other too", || ask(lab.pod(2), "100.64.0.2:80").is_ok());
    lab.kill_proxy();
    lab.delete("services/specs/shop/old");
    lab.delete("endpointslices/shop/old-1");
    lab.serve("new", "100.64.0.3", &[80], &[1]);
    lab.start_proxy();
    eventually("the new one is served", || ask(lab.pod(2), "100.64.0.3:80").is_ok());
    assert!(!lab.tables().contains("100.64.0.2"));
    // A front, a VIP and an endpoint of each of the two Services.
    assert!(lab.proxy_log().contains("went on with the tables of a former run changed=6"), "{}", lab.proxy_log());
}
