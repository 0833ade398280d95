//! Services that come, change and go by the thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use etcd_client::{Client, Txn, TxnOp};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::objects::{endpoint, whole};
use crate::support::program::{TOO_MUCH, is_ours_only};
use crate::support::traffic::ask;
use crate::support::{Lab, eventually, say};
use crate::{is_done, lab, under_load};

/// Who writes to etcd at the same time.
const WRITERS: u8 = 4;
/// How many Services each of them has. Of these names no two have ids of the same hash; which of two that collide has the first place
/// depends on who came first, and so would the tables.
const SERVICES: u8 = 30;
/// How many changes are made in all.
const CHANGES: u32 = 10_000;
/// How long one of them takes that is in time, with all writers together.
const PACE: Duration = Duration::from_millis(1);

/// One who writes, and what its Services should be like: the endpoints of those that are there.
struct Writer {
    number: u8,
    services: BTreeMap<u8, BTreeSet<u8>>,
    random: u64,
}

impl Writer {
    fn new(number: u8) -> Self {
        Self { number, services: BTreeMap::new(), random: u64::from(number) + 1 }
    }

    /// A number below `bound`, the same ones in every run. Source: Marsaglia, "Xorshift RNGs".
    fn draw(&mut self, bound: u8) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        u8::try_from(self.random % u64::from(bound)).unwrap()
    }

    fn name(&self, service: u8) -> String {
        format!("app{}-{service}", self.number)
    }

    fn address(&self, service: u8) -> String {
        format!("100.64.{}.{}", self.number + 1, service + 1)
    }

    /// The next change: of a Service that is there mostly its endpoints, else that it goes; of one that is not, that it comes.
    fn next(&mut self) -> Vec<TxnOp> {
        let service = self.draw(SERVICES);
        let slice_key = format!("endpointslices/shop/{}-1", self.name(service));
        let service_key = format!("services/specs/shop/{}", self.name(service));
        let goes = self.draw(5) == 0;
        if self.services.contains_key(&service) && goes {
            self.services.remove(&service);
            return vec![delete(&service_key), delete(&slice_key)];
        }
        let endpoints: BTreeSet<u8> = (1..=2).filter(|_| self.draw(3) > 0).collect();
        let slice = self.slice(service, &endpoints);
        let is_new = self.services.insert(service, endpoints).is_none();
        let mut ops = vec![put(&slice_key, slice)];
        ops.extend(is_new.then(|| put(&service_key, self.service(service))));
        ops
    }

    /// Of every kind some.
    fn service(&self, service: u8) -> Value {
        let mut spec = json!({"clusterIP": self.address(service), "ports": [
            {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
        if service.is_multiple_of(3) {
            spec["sessionAffinity"] = json!("ClientIP");
        }
        if service.is_multiple_of(5) {
            spec["type"] = json!("NodePort");
            spec["externalTrafficPolicy"] = json!(if service.is_multiple_of(2) { "Local" } else { "Cluster" });
            spec["ports"][0]["nodePort"] = json!(30_000 + u32::from(self.number) * 100 + u32::from(service));
        }
        json!({ "spec": spec })
    }

    fn slice(&self, service: u8, endpoints: &BTreeSet<u8>) -> Value {
        let endpoints: Vec<Value> = endpoints.iter().map(|n| endpoint(*n)).collect();
        json!({"metadata": {"labels": {"kubernetes.io/service-name": self.name(service)}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 8053, "protocol": "UDP"}]})
    }

    /// Makes changes, one transaction each, and waits between them so that they are no faster than asked.
    async fn write(&mut self, client: &mut Client, changes: u32, pace: Duration) -> Result<(), etcd_client::Error> {
        let start = Instant::now();
        for n in 0..changes {
            tokio::time::sleep_until(start + pace * n).await;
            client.txn(Txn::new().and_then(self.next())).await?;
        }
        Ok(())
    }

    /// Deletes all that is left.
    async fn clear(&mut self, client: &mut Client) -> Result<(), etcd_client::Error> {
        for service in std::mem::take(&mut self.services).into_keys() {
            let keys = [
                format!("services/specs/shop/{}", self.name(service)),
                format!("endpointslices/shop/{}-1", self.name(service)),
            ];
            client.txn(Txn::new().and_then(keys.map(|key| delete(&key)))).await?;
        }
        Ok(())
    }
}

fn put(key: &str, object: Value) -> TxnOp {
    TxnOp::put(format!("/registry/{key}"), whole(key, object).to_string(), None)
}

fn delete(key: &str) -> TxnOp {
    TxnOp::delete(format!("/registry/{key}"), None)
}

/// Makes so many changes by all writers at the same time, each at its part of the pace; returns how long that took.
fn churn(lab: &Lab, writers: &mut [Writer], changes: u32, pace: Duration) -> Duration {
    let start = std::time::Instant::now();
    let (each, pace) = (changes / u32::from(WRITERS), pace * u32::from(WRITERS));
    std::thread::scope(|scope| {
        for writer in writers {
            scope.spawn(move || lab.etcd_request(async |client| writer.write(client, each, pace).await).unwrap());
        }
    });
    start.elapsed()
}

/// Deletes all Services of the writers.
fn clear(lab: &Lab, writers: &mut [Writer]) {
    for writer in writers {
        lab.etcd_request(async |client| writer.clear(client).await).unwrap();
    }
}

/// Makes a Service after all others, with an endpoint, waits until it is served, and removes it. Then the proxy knows everything that
/// happened before. It is another one each time: of a former one a slice might still be known.
fn settle(lab: &Lab) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (name, address) = (format!("last{number}"), format!("100.64.255.{number}"));
    lab.serve(&name, &address, &[80], &[1]);
    eventually("the last Service is served", || ask(lab.pod(3), &format!("{address}:80")).is_ok());
    lab.delete(&format!("services/specs/shop/{name}"));
    lab.delete(&format!("endpointslices/shop/{name}-1"));
    eventually("the last Service is gone", || !lab.tables().contains(&address));
}

/// Looks whether each Service is as its writer left it: to a client, and to a proxy that starts and computes everything from scratch.
fn assert_final(lab: &mut Lab, writers: &[Writer]) {
    let tables = lab.tables();
    for writer in writers {
        for service in 0..SERVICES {
            let address = writer.address(service);
            let Some(endpoints) = writer.services.get(&service) else {
                assert!(!tables.contains(&format!("{address} ")), "{address} is served, but there is no such Service");
                continue;
            };
            let expected: BTreeSet<String> = endpoints.iter().map(|n| format!("p{n}")).collect();
            let found = ask(lab.pod(3), &format!("{address}:80"));
            let is_right = found.as_ref().map_or(expected.is_empty(), |(pod, _)| expected.contains(pod));
            assert!(is_right, "{address} should lead to {expected:?}, not {found:?}");
        }
    }
    let before = contents(lab);
    lab.kill_proxy();
    lab.start_proxy();
    let (after, adoption) = (contents(lab), last_adoption(lab));
    let difference =
        |one: &[String], other: &[String]| one.iter().filter(|part| !other.contains(part)).cloned().collect::<Vec<_>>();
    assert!(
        adoption.contains("changed=0"),
        "the tables differed from those computed from scratch: {adoption}; before {:#?}, after {:#?}",
        difference(&before, &after),
        difference(&after, &before)
    );
}

/// What the proxy found at its last start.
fn last_adoption(lab: &Lab) -> String {
    let log = lab.proxy_log();
    log.lines().rfind(|line| line.contains("tables")).unwrap_or_default().to_owned()
}

/// The elements and rules of the tables, in the order of their texts: that of a map's elements means nothing.
fn contents(lab: &Lab) -> Vec<String> {
    let text = lab.tables();
    let mut parts: Vec<String> = text.split([',', '{', '}', '\n']).map(|part| part.trim().to_owned()).collect();
    parts.retain(|part| !part.is_empty());
    parts.sort();
    parts
}

/// Leaves a word for [`tell`]: what a test says inside its sandbox is only shown if it fails.
fn note(name: &str, text: &str) {
    std::fs::write(note_file(name), text).unwrap();
}

/// Says what was noted in the sandbox.
fn tell(name: &str) {
    say(&std::fs::read_to_string(note_file(name)).unwrap());
    std::fs::remove_file(note_file(name)).unwrap();
}

fn note_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kproxy-rs-{name}.txt"))
}

/// The memory of the proxy that is in the machine's, in KiB.
fn resident(lab: &Lab) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.proxy_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Says whether the last changes have made the memory larger, by more than 0.2 KiB each.
fn is_growing(sizes: &[u64]) -> bool {
    sizes.last_chunk().is_some_and(|[before, after]| *after > before + 2048)
}

#[test]
fn ten_thousand_changes_leave_what_they_say_and_nothing_more() {
    if is_ours_only(TOO_MUCH) {
        return;
    }
    if is_done() {
        tell("churn");
        return;
    }
    let mut lab = lab();
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    settle(&lab);
    let before = contents(&lab);
    // As many as fast as they can be made: after that the proxy has taken what it needs for these.
    churn(&lab, &mut writers, CHANGES, Duration::ZERO);
    settle(&lab);
    let warm = resident(&lab);
    let mut took = Duration::ZERO;
    let report = under_load(&mut lab, |lab| took = churn(lab, &mut writers, CHANGES, PACE));
    report.assert_flawless();
    settle(&lab);
    let mut sizes = vec![warm, resident(&lab)];
    // What is read and planned at once takes more on a busy machine, once. What leaks takes more every time.
    while is_growing(&sizes) && sizes.len() < 6 {
        churn(&lab, &mut writers, CHANGES, Duration::ZERO);
        settle(&lab);
        sizes.push(resident(&lab));
    }
    assert!(!is_growing(&sizes), "{CHANGES} changes each time, and the resident memory in KiB: {sizes:?}");
    assert_final(&mut lab, &writers);
    clear(&lab, &mut writers);
    settle(&lab);
    assert_eq!(contents(&lab), before);
    let requests = report.requests;
    note(
        "churn",
        &format!("{CHANGES} changes in {took:.1?}, {requests} requests meanwhile; resident memory in KiB {sizes:?}"),
    );
}

#[test]
fn a_burst_of_ten_thousand_changes_becomes_a_few_commits() {
    if is_ours_only(TOO_MUCH) {
        return;
    }
    if is_done() {
        tell("burst");
        return;
    }
    let mut lab = lab();
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    settle(&lab);
    let commits = |lab: &Lab| lab.metric("kubeproxy_sync_proxy_rules_duration_seconds_count");
    let before = commits(&lab);
    lab.while_proxy_sleeps(|lab| {
        churn(lab, &mut writers, CHANGES, Duration::ZERO);
    });
    settle(&lab);
    let count = commits(&lab) - before;
    assert!(count <= 100.0, "{CHANGES} changes became {count} commits");
    assert_final(&mut lab, &writers);
    note("burst", &format!("{CHANGES} changes became {count} commits"));
}
