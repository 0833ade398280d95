//! The Kubernetes API of a cluster, asked by plain HTTP: what clients rely on when they watch, race, or lose the server.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use serde_json::Value;
use tests::Lab;

const API: &str = "http://10.1.0.1:8080";
const PATIENCE: Duration = Duration::from_secs(20);

/// The lines of a watch that is cut after a second.
fn watch(lab: &mut Lab, query: &str) -> anyhow::Result<Vec<Value>> {
    let output = lab.type_line(&format!("C0e1 curl -sN --max-time 1 '{API}{query}'"))?;
    let lines = output.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("{query}: {line}"))).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

#[test]
fn a_watch_begins_with_what_is_there_and_says_when_that_is_over() -> anyhow::Result<()> {
    let mut lab = Lab::boot("watch", &[])?;
    let query =
        "/api/v1/namespaces?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let events = watch(&mut lab, query)?;
    assert_eq!(types(&events), ["ADDED", "ADDED", "BOOKMARK"]);
    assert_eq!(events[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    let metrics = lab.type_line(&format!("C0e1 curl -s {API}/metrics"))?;
    assert!(metrics.contains("apiserver_request_total{verb=\"GET\",code=\"200\"}"), "{metrics}");

    // What happened between a list and a watch from its revision on is seen by the watch.
    let list: Value =
        serde_json::from_str(&lab.type_line(&format!("C0e1 curl -s '{API}/api/v1/services?labelSelector=a%3Db'"))?)?;
    assert_eq!(list["items"], Value::Array(Vec::new()));
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?.to_owned();
    let service = r#"{"metadata":{"name":"web","labels":{"a":"b"}},"spec":{"ports":[{"port":80}]}}"#;
    let services = format!("{API}/api/v1/namespaces/default/services");
    lab.type_line(&format!("C0e1 curl -s -H 'Content-Type: application/json' -d '{service}' {services}"))?;
    let patch = "-X PATCH -H 'Content-Type: application/merge-patch+json'";
    lab.type_line(&format!(
        "C0e1 curl -s {patch} -d '{{\"metadata\":{{\"labels\":{{\"c\":\"d\"}}}}}}' {services}/web"
    ))?;
    lab.type_line(&format!("C0e1 curl -s {patch} -d '{{\"metadata\":{{\"labels\":{{\"a\":null}}}}}}' {services}/web"))?;
    let events = watch(&mut lab, &format!("/api/v1/services?watch=1&labelSelector=a%3Db&resourceVersion={revision}"))?;
    // Without its label it has left the window of this watch.
    assert_eq!(types(&events), ["ADDED", "MODIFIED", "DELETED"]);
    let revisions: Vec<&str> =
        events.iter().filter_map(|event| event["object"]["metadata"]["resourceVersion"].as_str()).collect();
    assert!(revisions.len() == 3 && revisions.iter().collect::<BTreeSet<_>>().len() == 3, "{revisions:?}");
    Ok(())
}

#[test]
fn whoever_comes_back_after_a_compaction_is_told_to_list_anew() -> anyhow::Result<()> {
    let mut lab = Lab::boot("compact", &[])?;
    let list: Value = serde_json::from_str(&lab.type_line(&format!("C0e1 curl -s '{API}/api/v1/pods'"))?)?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?.to_owned();
    let compacted = lab.type_line(&format!("C0e1 env ETCDCTL_API=3 etcdctl compact {revision}"))?;
    assert!(compacted.contains("compacted revision"), "{compacted}");
    let events = watch(&mut lab, "/api/v1/pods?watch=1&resourceVersion=1")?;
    assert_eq!(types(&events), ["ERROR"]);
    assert_eq!((&events[0]["object"]["code"], &events[0]["object"]["reason"]), (&410.into(), &"Expired".into()));
    Ok(())
}

#[test]
fn services_that_are_made_at_the_same_time_get_different_addresses_and_ports() -> anyhow::Result<()> {
    const SERVICES: usize = 40;
    let mut lab = Lab::boot("race", &[])?;
    let service = r#"{"metadata":{"generateName":"race-"},"spec":{"type":"NodePort","ports":[{"port":80}]}}"#;
    let post = format!(
        "curl -s -o /dev/null -H Content-Type:application/json -d {service:?} {API}/api/v1/namespaces/default/services"
    );
    lab.type_line(&format!("C0e1 sh -c 'for i in $(seq {SERVICES}); do {post} & done; wait'"))?;
    let list: Value = serde_json::from_str(&lab.type_line(&format!("C0e1 curl -s '{API}/api/v1/services'"))?)?;
    let made: Vec<&Value> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|service| service["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("race-")))
        .collect();
    assert_eq!(made.len(), SERVICES);
    let all = list["items"].as_array().into_iter().flatten();
    let addresses: Vec<String> = all.map(|service| service["spec"]["clusterIP"].to_string()).collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "{addresses:?}");
    let ports: BTreeSet<u64> =
        made.iter().filter_map(|service| service["spec"]["ports"][0]["nodePort"].as_u64()).collect();
    assert_eq!(ports.len(), SERVICES);
    // What is deleted is free again.
    lab.type_line(&format!("C0e1 sh -c 'for i in $(curl -s {API}/api/v1/services | grep -o \"race-[a-z0-9]*\" | sort -u); do curl -s -o /dev/null -X DELETE {API}/api/v1/namespaces/default/services/$i & done; wait'"))?;
    let addresses = lab.type_line("get ipaddresses")?;
    assert!(!addresses.contains("race-"), "{addresses}");
    Ok(())
}

#[test]
fn a_killed_api_server_returns_and_the_controllers_catch_up() -> anyhow::Result<()> {
    let mut lab = Lab::boot("apikill", &[])?;
    let example = format!("{}/../conf/examples/deployment.yaml", env!("CARGO_MANIFEST_DIR"));
    lab.type_line(&format!("apply -f {example}"))?;
    lab.until("get deployment web", PATIENCE, |table| table.contains("3/3"))?;
    let pid = lab.daemon_pid("C0e1", "apiserver")?;
    lab.type_line(&format!("sh kill -9 {pid}"))?;
    // Nobody watches now; the difference is found when the controllers are back.
    let pods: String = lab.until("get pods -l app=web -o name", PATIENCE, |pods| pods.contains("pod/web-"))?;
    let pod = pods.lines().next().and_then(|line| line.strip_prefix("pod/")).context("a pod")?.to_owned();
    lab.type_line(&format!("delete pod {pod}"))?;
    lab.until("get deployment web", PATIENCE, |table| table.contains("3/3"))?;
    lab.until("get pods -l app=web -o name", PATIENCE, |pods| !pods.contains(&pod))?;
    Ok(())
}
