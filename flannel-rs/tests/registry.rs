//! Leases in a real etcd: taking, losing and keeping them, without any kernel state.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

#[path = "support/client.rs"]
mod client;
mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use client::{registry, registry_at};
use flannel_rs::error::RegistryError;
use flannel_rs::lease::{Attributes, Entry, OwnLease, PublicAddresses, Subnet, VxlanData};
use flannel_rs::network::NetworkConfig;
use flannel_rs::registry::{LEASE_TTL, Registry};
use flannel_rs::subnet_env::FormerSubnets;
use flannel_rs::watch::{SubnetEvent, watch_subnets};
use linux_net::{MacAddr, Vni};
use support::Etcd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Eight subnets to share out: 10.5.1.0/24 to 10.5.8.0/24.
const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.8.0", "Backend": {"Type": "vxlan", "VNI": 100}}"#;

fn network() -> NetworkConfig {
    NetworkConfig::parse(CONFIG.as_bytes()).unwrap()
}

fn data(mac: [u8; 6]) -> VxlanData {
    VxlanData { vni: Vni::new(100).unwrap(), vtep_mac: MacAddr(mac) }
}

fn worker(number: u8) -> Attributes {
    let addresses = PublicAddresses { ipv4: Ipv4Addr::new(10, 0, 0, number), ipv6: None };
    Attributes::vxlan(addresses, data([2, 0, 0, 0, 0, number]), None)
}

fn dual_stack_worker(number: u8) -> Attributes {
    let ipv6 = Some(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number.into()));
    let addresses = PublicAddresses { ipv4: Ipv4Addr::new(10, 0, 0, number), ipv6 };
    Attributes::vxlan(addresses, data([2, 0, 0, 0, 0, number]), Some(data([2, 0, 0, 0, 6, number])))
}

/// What a worker had in a former run.
fn former(ipv4: Option<&str>) -> FormerSubnets {
    FormerSubnets { ipv4: ipv4.map(|net| net.parse().unwrap()), ipv6: None }
}

async fn acquire(registry: &Registry, worker: &Attributes, previous: Option<&str>) -> Result<OwnLease, RegistryError> {
    let mut listing = registry.list().await?;
    registry.acquire(&network(), worker, former(previous), &mut listing).await
}

fn lease_count(etcd: &Etcd) -> usize {
    etcd.ctl(&["lease", "list"]).lines().count() - 1 // The first line says how many.
}

#[tokio::test]
async fn a_lease_stands_in_etcd_byte_for_byte_as_flanneld_writes_it() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let own = acquire(&registry, &worker(3), None).await.unwrap();

    assert_eq!(etcd.subnets(), ["10.5.1.0-24"]);
    let expected = r#"{"PublicIP":"10.0.0.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"02:00:00:00:00:03"}}"#;
    assert_eq!(etcd.value("10.5.1.0-24"), expected);
    assert_eq!(etcd.lease_id("10.5.1.0-24"), own.lease_id());
    let life = etcd.ctl(&["lease", "timetolive", &format!("{:x}", own.lease_id())]);
    assert!(life.contains(&format!("granted with TTL({}s)", LEASE_TTL.as_secs())), "{life}");
}

#[tokio::test]
async fn workers_that_start_at_once_get_different_subnets_and_one_too_many_gets_none() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let mut workers = JoinSet::new();
    for number in 1..=9 {
        let registry = registry.clone();
        workers.spawn(async move { acquire(&registry, &worker(number), None).await });
    }
    let results = workers.join_all().await;
    let subnets: BTreeSet<_> = results.iter().filter_map(|result| result.as_ref().ok()).map(|own| own.subnet).collect();
    assert_eq!(subnets.len(), 8);
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(matches!(failures[..], [RegistryError::Allocate(_)]), "{failures:?}");
    assert_eq!(lease_count(&etcd), 8, "the loser gave its etcd lease back");
}

#[tokio::test]
async fn workers_with_other_subnet_lengths_never_overlap() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let wide = NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "SubnetLen": 22, "SubnetMin": "10.5.0.0", "SubnetMax": "10.5.28.0", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let mut workers = JoinSet::new();
    for number in 1..=12 {
        let (registry, wide) = (registry.clone(), wide.clone());
        workers.spawn(async move {
            let config = if number % 3 == 0 { wide } else { network() };
            let mut listing = registry.list().await.unwrap();
            registry.acquire(&config, &worker(number), FormerSubnets::default(), &mut listing).await
        });
    }
    let won: Vec<Subnet> = workers.join_all().await.into_iter().filter_map(Result::ok).map(|own| own.subnet).collect();
    assert!(won.len() >= 4, "there is always room for the four long ones");
    for (index, one) in won.iter().enumerate() {
        for other in &won[index + 1..] {
            assert!(!one.overlaps(other), "{one} and {other} overlap");
        }
    }
}

/// Eight subnets of each family.
fn dual_stack() -> NetworkConfig {
    let json =
        br#"{"Network": "10.5.0.0/16", "SubnetMax": "10.5.8.0", "EnableIPv6": true, "IPv6Network": "fd00:5::/48",
        "IPv6SubnetMax": "fd00:5:0:8::", "Backend": {"Type": "vxlan", "VNI": 100}}"#;
    NetworkConfig::parse(json).unwrap()
}

#[tokio::test]
async fn a_dual_stack_lease_stands_in_etcd_byte_for_byte_as_flanneld_writes_it() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let mut listing = registry.list().await.unwrap();
    registry.acquire(&dual_stack(), &dual_stack_worker(3), former(None), &mut listing).await.unwrap();
    assert_eq!(etcd.subnets(), ["10.5.1.0-24&fd00:5:0:1::-64"]);
    let expected = r#"{"PublicIP":"10.0.0.3","PublicIPv6":"fd09::3","BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"02:00:00:00:00:03"},"BackendV6Data":{"VNI":100,"VtepMAC":"02:00:00:00:06:03"}}"#;
    assert_eq!(etcd.value("10.5.1.0-24&fd00:5:0:1::-64"), expected);
}

#[tokio::test]
async fn neither_half_of_a_dual_stack_subnet_is_handed_out_twice() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    // Somebody has the first subnet of IPv4 with the second of IPv6.
    etcd.put("10.5.1.0-24&fd00:5:0:2::-64", r#"{"PublicIP":"10.0.0.99","PublicIPv6":"fd09::99"}"#);
    let registry = registry(&etcd).await;
    let mut workers = JoinSet::new();
    for number in 1..=7 {
        let registry = registry.clone();
        workers.spawn(async move {
            let mut listing = registry.list().await.unwrap();
            registry
                .acquire(&dual_stack(), &dual_stack_worker(number), former(None), &mut listing)
                .await
                .unwrap()
                .subnet
        });
    }
    let subnets = workers.join_all().await;
    let ipv4: BTreeSet<_> = subnets.iter().map(|subnet| subnet.ipv4.to_string()).collect();
    let ipv6: BTreeSet<_> = subnets.iter().map(|subnet| subnet.ipv6.unwrap().to_string()).collect();
    assert_eq!((ipv4.len(), ipv6.len()), (7, 7));
    assert!(!ipv4.contains("10.5.1.0/24") && !ipv6.contains("fd00:5:0:2::/64"), "{ipv4:?} {ipv6:?}");
}

#[tokio::test]
async fn a_restarted_worker_takes_up_its_key_on_the_same_lease_and_writes_it_so_that_a_rival_hears_of_it() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let first = acquire(&registry, &worker(3), None).await.unwrap();
    let (value, revision) = (etcd.value("10.5.1.0-24"), etcd.revision());
    let again = acquire(&registry, &worker(3), None).await.unwrap();
    assert_eq!((again.subnet, again.term, again.mod_revision), (first.subnet, first.term, revision + 1));
    assert_eq!((etcd.value("10.5.1.0-24"), lease_count(&etcd)), (value, 1));
    // With another MAC the value is written anew, on the same etcd lease.
    let changed = Attributes { backend_data: worker(4).backend_data, ..worker(3) };
    assert_eq!(acquire(&registry, &changed, None).await.unwrap().term, first.term);
    assert!(etcd.value("10.5.1.0-24").contains("02:00:00:00:00:04"));
}

#[tokio::test]
async fn a_reservation_keeps_lease_zero_for_ever() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    etcd.put("10.5.7.0-24", r#"{"PublicIP":"10.0.0.3","PublicIPv6":null}"#);
    let registry = registry(&etcd).await;
    let own = acquire(&registry, &worker(3), None).await.unwrap();
    assert_eq!((own.subnet.to_string().as_str(), own.term), ("10.5.7.0-24", None));
    assert_eq!((etcd.value("10.5.7.0-24").contains("VtepMAC"), etcd.lease_id("10.5.7.0-24")), (true, 0));
    registry.release(&own).await.unwrap();
    assert_eq!(etcd.subnets(), ["10.5.7.0-24"]);
    let other = acquire(&registry, &worker(4), Some("10.5.7.0/24")).await.unwrap();
    assert_eq!(other.subnet.to_string(), "10.5.1.0-24", "a reservation is for its worker only");
}

#[tokio::test]
async fn the_previous_subnet_is_taken_up_again_after_the_lease_ran_out() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let own = acquire(&registry, &worker(3), Some("10.5.6.0/24")).await.unwrap();
    assert_eq!(own.subnet.to_string(), "10.5.6.0-24");
}

#[tokio::test]
async fn a_lease_that_no_longer_fits_the_configuration_is_given_up() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let narrow = br#"{"Network": "10.5.0.0/16", "SubnetLen": 25, "SubnetMin": "10.5.1.0", "Backend": {"Type": "vxlan", "VNI": 100}}"#;
    let narrow = NetworkConfig::parse(narrow).unwrap();
    let mut listing = registry.list().await.unwrap();
    registry.acquire(&narrow, &worker(3), FormerSubnets::default(), &mut listing).await.unwrap();
    assert_eq!(etcd.subnets(), ["10.5.1.0-25"]);
    acquire(&registry, &worker(3), None).await.unwrap();
    assert_eq!(etcd.subnets(), ["10.5.1.0-24"]);
}

#[tokio::test]
async fn a_deleted_key_is_put_back_as_it_was_unless_another_worker_has_it() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let own = acquire(&registry, &worker(3), None).await.unwrap();
    let value = etcd.value("10.5.1.0-24");
    etcd.delete("10.5.1.0-24");
    let back = registry.reclaim(&own).await.unwrap();
    assert_eq!((back.subnet, back.term), (own.subnet, own.term));
    assert_eq!(etcd.value("10.5.1.0-24"), value);

    // The etcd lease itself is ended: a new one carries the same key.
    registry.release(&own).await.unwrap();
    assert_eq!(registry.keep_alive(own.lease_id()).await.unwrap(), None);
    let again = registry.reclaim(&own).await.unwrap();
    assert_eq!((again.subnet, etcd.value("10.5.1.0-24")), (own.subnet, value));
    assert_ne!(again.term, own.term);

    registry.release(&again).await.unwrap();
    acquire(&registry, &worker(4), None).await.unwrap();
    let error = registry.reclaim(&again).await.unwrap_err();
    assert!(matches!(error, RegistryError::Taken { .. }), "{error}");
    assert!(error.to_string().contains("10.0.0.4"), "{error}");
}

#[tokio::test]
async fn renewal_starts_the_life_of_the_lease_anew() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let own = acquire(&registry, &worker(3), None).await.unwrap();
    assert_eq!(registry.keep_alive(own.lease_id()).await.unwrap(), Some(LEASE_TTL));
    assert_eq!(registry.keep_alive(12345).await.unwrap(), None);
}

#[tokio::test]
async fn a_member_that_is_down_is_passed_over() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    // Nothing listens on port 1.
    let registry = registry_at(vec!["http://127.0.0.1:1".to_owned(), etcd.endpoint()]).await;
    for number in 1..=8 {
        let own = acquire(&registry, &worker(number), None).await.unwrap();
        assert_eq!(registry.keep_alive(own.lease_id()).await.unwrap(), Some(LEASE_TTL));
    }
    let mut watch = Watch::start(&registry, registry.list().await.unwrap().revision);
    etcd.delete("10.5.1.0-24");
    assert!(matches!(&watch.next().await[..], [SubnetEvent::Deleted(_)]));
}

/// A watch that runs beside the test.
struct Watch {
    events: mpsc::Receiver<Vec<SubnetEvent>>,
    _task: JoinSet<()>,
}

impl Watch {
    fn start(registry: &Registry, revision: i64) -> Self {
        let (sender, events) = mpsc::channel(8);
        let mut task = JoinSet::new();
        task.spawn(watch_subnets(registry.clone(), revision, sender));
        Self { events, _task: task }
    }

    async fn next(&mut self) -> Vec<SubnetEvent> {
        timeout(Duration::from_secs(15), self.events.recv()).await.expect("no event came").unwrap()
    }
}

fn listed(event: &SubnetEvent) -> Vec<String> {
    match event {
        SubnetEvent::Listed(entries) => entries.iter().map(|entry| entry.subnet.to_string()).collect(),
        other => panic!("expected a listing, got {other:?}"),
    }
}

#[tokio::test]
async fn a_watch_tells_of_puts_and_deletions_and_skips_what_it_cannot_read() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let mut watch = Watch::start(&registry, registry.list().await.unwrap().revision);
    etcd.put("nonsense", "1");
    etcd.put("10.5.9.0-24", "not json");
    let unreadable = watch.next().await;
    assert!(matches!(&unreadable[..], [SubnetEvent::Put(Entry { attributes: None, .. })]), "{unreadable:?}");
    let own = acquire(&registry, &worker(3), None).await.unwrap();
    assert!(matches!(&watch.next().await[..], [SubnetEvent::Put(entry)] if entry.subnet == own.subnet));
    registry.release(&own).await.unwrap();
    assert_eq!(watch.next().await, [SubnetEvent::Deleted(own.subnet)]);
}

#[tokio::test]
async fn a_watch_misses_nothing_when_etcd_comes_back() {
    let mut etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    let mut watch = Watch::start(&registry, registry.list().await.unwrap().revision);
    let own = acquire(&registry, &worker(3), None).await.unwrap();
    watch.next().await;
    etcd.kill();
    etcd.restart();
    etcd.delete(&own.subnet.to_string());
    // The deletion shows in the new listing, or as an event after it.
    let batch = watch.next().await;
    if listed(&batch[0]) != [""; 0] {
        assert_eq!(watch.next().await, [SubnetEvent::Deleted(own.subnet)]);
    }
    let other = acquire(&registry, &worker(4), None).await.unwrap();
    assert!(matches!(&watch.next().await[..], [SubnetEvent::Put(entry)] if entry.subnet == other.subnet));
}

#[tokio::test]
async fn a_watch_lists_anew_when_what_it_missed_was_compacted() {
    let etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    acquire(&registry, &worker(3), None).await.unwrap();
    acquire(&registry, &worker(4), None).await.unwrap();
    etcd.compact();
    let mut watch = Watch::start(&registry, 0);
    let batch = watch.next().await;
    assert_eq!(listed(&batch[0]), ["10.5.1.0-24", "10.5.2.0-24"]);
    let own = acquire(&registry, &worker(5), None).await.unwrap();
    assert!(matches!(&watch.next().await[..], [SubnetEvent::Put(entry)] if entry.subnet == own.subnet));
}

#[tokio::test]
async fn a_watch_lists_anew_when_etcd_was_restored_from_an_older_snapshot() {
    let mut etcd = Etcd::start(Ipv4Addr::LOCALHOST);
    let registry = registry(&etcd).await;
    for number in 3..=6 {
        acquire(&registry, &worker(number), None).await.unwrap();
    }
    let mut watch = Watch::start(&registry, registry.list().await.unwrap().revision);
    // The stream stands once something came through it.
    acquire(&registry, &worker(7), None).await.unwrap();
    watch.next().await;
    etcd.kill();
    etcd.restart_empty();
    assert_eq!(listed(&watch.next().await[0]), [""; 0]);
}
