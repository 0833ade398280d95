//! The lease of a worker is lost while pods live on its subnet.
//!
//! Reports: flannel #904, #1240, #520, #29, #621. When flanneld sees that its lease is gone it ends, with "Lease has been revoked"; what it
//! takes when its supervisor starts it again depends on its subnet file and on who was faster.

use std::fs;
use std::time::Duration;

use linux_net::testing::enter_sandbox;

use crate::start;
use crate::support::agent::Agent;
use crate::support::lab::{Lab, RouteMonitor};
use crate::support::{stays, wait_for, wait_within};

/// A lease of somebody at 10.9.0.77.
const STRANGER: &str = r#"{"PublicIP":"10.9.0.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"02:00:00:00:00:77"}}"#;

/// What must not change under the pods of a worker.
#[derive(Debug, PartialEq)]
struct Ground {
    subnet_file: String,
    mac: Option<String>,
    address: bool,
}

fn ground(lab: &Lab, worker: &Agent) -> Ground {
    Ground {
        subnet_file: fs::read_to_string(lab.subnet_file(worker.number())).unwrap(),
        mac: worker.mac(),
        address: worker.succeeds(&format!("ip addr show flannel.100 | grep -q {}/32", worker.base())),
    }
}

/// Two workers that know each other, and what is under the pods of the first.
fn pair() -> (Lab, Agent, Agent, Ground) {
    let lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peers", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    let ground = ground(&lab, &w1);
    (lab, w1, w2, ground)
}

/// Seen: flanneld ends.
#[test]
fn a_key_deleted_by_hand_comes_back_as_it_was() {
    if !enter_sandbox() {
        return;
    }
    let (lab, w1, w2, before) = pair();
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    let monitor = RouteMonitor::start(1);
    for _ in 0..2 {
        lab.etcd.delete(&key);
        wait_for("the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
        assert_ne!(lab.etcd.lease_id(&key), 0, "it hangs on a lease");
    }
    wait_for("the peer to know us again", || w2.reaches(&w1).then_some(()));
    assert_eq!(monitor.deleted(), [""; 0], "our own way to the peer was never in question");
    assert_eq!(ground(&lab, &w1), before);
    assert_eq!(lab.etcd.subnets().len(), 2);
}

/// As after a day without a renewal. Seen: flanneld ends.
#[test]
fn a_lease_that_ran_out_is_followed_by_a_new_one_on_the_same_key() {
    if !enter_sandbox() {
        return;
    }
    let (lab, w1, w2, before) = pair();
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    lab.etcd.expire(&key);
    wait_for("the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
    assert_eq!(lab.etcd.granted_seconds(lab.etcd.lease_id(&key)), 86_400);
    wait_for("the peer to know us again", || w2.reaches(&w1).then_some(()));
    assert_eq!(ground(&lab, &w1), before);
}

/// The lease runs out behind the agent's back. Seen: flanneld ends when etcd is there again.
#[test]
fn a_lease_that_ran_out_while_etcd_was_away_is_put_back_when_it_returns() {
    if !enter_sandbox() {
        return;
    }
    let (mut lab, w1, w2, before) = pair();
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    w1.signal("STOP");
    lab.etcd.kill();
    lab.etcd.restart();
    lab.etcd.expire(&key);
    w1.signal("CONT");
    wait_within(Duration::from_secs(15), "the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
    wait_for("the peer to know us again", || w2.reaches(&w1).then_some(()));
    assert_eq!(ground(&lab, &w1), before);
}

/// The lease runs out while the agent is down, and a lower subnet is free by now: the one in the subnet file is taken, because pods live
/// on it. So in flanneld.
#[test]
fn a_lease_that_ran_out_while_the_agent_was_down_is_taken_again_from_the_subnet_file() {
    if !enter_sandbox() {
        return;
    }
    let (lab, w1, w2, _) = pair();
    let (key1, key2) = (w1.subnet(), w2.subnet());
    drop(w1);
    drop(w2);
    lab.etcd.delete(&key1);
    lab.etcd.delete(&key2);
    let w2 = start(&lab, 2);
    assert_eq!(w2.subnet(), key2);
}

/// The worst case: the subnet is somebody else's by the time we look. A worker that took another one would cut its pods off; ours keeps
/// its data plane, reports itself not ready, and goes on when the operator has deleted the other key. flanneld ends (seen), and when
/// it is started again it takes another subnet.
#[test]
fn a_subnet_that_was_taken_meanwhile_is_not_exchanged_for_another() {
    if !enter_sandbox() {
        return;
    }
    let (lab, w1, w2, before) = pair();
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    w1.signal("STOP");
    lab.etcd.delete(&key);
    lab.etcd.put(&key, STRANGER);
    w1.signal("CONT");
    wait_for("the agent to say that it is not ready", || (w1.http("/readyz").0 == 503).then_some(()));
    let lines = w1.log_lines();
    stays(Duration::from_secs(3), "the ground under the pods", || ground(&lab, &w1) == before);
    assert_eq!(
        (lab.etcd.value(&key).as_str(), lab.etcd.subnets().len()),
        (STRANGER, 2),
        "it keeps to the subnet it has"
    );
    assert!(w1.reaches(&w2), "it keeps its data plane");
    assert!(w1.log().contains("10.9.0.77"), "the log says who has it");
    assert!(w1.log_lines() - lines <= 10, "the log is bounded");

    lab.etcd.delete(&key);
    wait_for("the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
    wait_for("the agent to be ready", || w1.is_ready().then_some(()));
    wait_for("the peer to know us again", || w2.reaches(&w1).then_some(()));
    assert_eq!(ground(&lab, &w1), before);
}

/// An operator restores etcd from a snapshot of the time before the second worker joined. flanneld's watch waits for a revision
/// that is far in the future, so it does not notice that its key is gone (seen), until the lease would have to be renewed.
#[test]
fn after_etcd_was_restored_from_an_older_snapshot_everybody_has_the_same_subnet_as_before() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(3);
    let w1 = start(&lab, 1);
    let snapshot = lab.etcd.snapshot();
    let (w2, w3) = (start(&lab, 2), start(&lab, 3));
    let workers = [&w1, &w2, &w3];
    let all_know_all =
        || workers.iter().all(|one| workers.iter().all(|other| one.number() == other.number() || one.reaches(other)));
    wait_for("the peers", || all_know_all().then_some(()));
    let (before, keys) = (workers.map(|worker| ground(&lab, worker)), lab.etcd.subnets());
    lab.etcd.kill();
    lab.etcd.restart_from(&snapshot);
    wait_within(Duration::from_secs(20), "the keys to be back", || (lab.etcd.subnets() == keys).then_some(()));
    wait_for("the peers", || all_know_all().then_some(()));
    assert_eq!(workers.map(|worker| ground(&lab, worker)), before);
}

/// All data is lost, the network configuration included. flanneld does not notice (seen).
#[test]
fn after_etcd_lost_all_data_a_running_worker_writes_its_key_again() {
    if !enter_sandbox() {
        return;
    }
    let (mut lab, w1, w2, before) = pair();
    let (keys, value) = (lab.etcd.subnets(), lab.etcd.value(&w1.subnet()));
    lab.etcd.kill();
    lab.etcd.restart_empty();
    wait_within(Duration::from_secs(20), "the keys to be back", || (lab.etcd.subnets() == keys).then_some(()));
    assert_eq!(lab.etcd.value(&w1.subnet()), value);
    wait_for("the peers", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    assert_eq!(ground(&lab, &w1), before);
}
