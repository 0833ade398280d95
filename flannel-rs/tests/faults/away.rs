//! etcd is away for a while, and has compacted what was missed.
//!
//! Reports: flannel #2470, #2524.

use std::time::Duration;

use linux_net::testing::enter_sandbox;

use crate::start;
use crate::support::agent::Agent;
use crate::support::lab::{Lab, run_in};
use crate::support::{stays, wait_for, wait_within};

/// How many lines a fault of a few seconds may add to the log.
const FEW_LINES: usize = 12;

/// Lets an agent miss what `changes` do in etcd: the connection is cut, and the revisions in between are compacted.
fn miss(lab: &mut Lab, agent: &Agent, changes: impl FnOnce(&Lab)) {
    agent.signal("STOP");
    lab.etcd.kill();
    lab.etcd.restart();
    changes(lab);
    lab.etcd.compact();
    agent.signal("CONT");
}

/// Before v0.28.6 flanneld asked for the compacted revision again and again, without a pause, and never saw an event again; the watch of
/// its own key did so until v0.28.9. v0.28.9 lists anew as ours does, but then tries for more than
/// fifteen seconds to delete what is not there, and later events wait (seen).
#[test]
fn what_was_compacted_while_the_connection_was_down_is_found_by_a_new_listing() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(4);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    let (lines, mac2, key2) = (w1.log_lines(), w2.mac().unwrap(), w2.subnet());
    w2.stop();
    let mut newcomer = None;
    miss(&mut lab, &w1, |lab| {
        lab.etcd.delete(&key2);
        newcomer = Some(start(lab, 3));
    });
    let w3 = newcomer.unwrap();
    wait_within(Duration::from_secs(15), "the present state", || {
        (w1.reaches(&w3) && !w1.run("ip neigh; bridge fdb").contains(&mac2)).then_some(())
    });
    let w4 = start(&lab, 4);
    wait_for("what comes after it", || w1.reaches(&w4).then_some(()));
    let added = w1.log_lines() - lines;
    assert!(added <= FEW_LINES, "{added} lines in the log:\n{}", w1.log());
}

/// The key of the worker itself is what was missed; and its deletion is the very last revision before the compaction. An etcd before
/// 3.4.36 forgets such a deletion although a watch from that revision on is still allowed, so a watch that is merely resumed never
/// hears of it. flanneld asks for its own key when it is connected again, and ends (seen).
#[test]
fn an_own_key_that_vanished_behind_a_compaction_is_put_back() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    miss(&mut lab, &w1, |lab| lab.etcd.delete(&key));
    wait_within(Duration::from_secs(15), "the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
    wait_for("the peer to know us", || w2.reaches(&w1).then_some(()));
}

/// The data plane does without etcd, and its absence is not worth a line per attempt. So it is with flanneld.
#[test]
fn while_etcd_is_away_the_data_plane_stays_and_the_log_is_short() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(3);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    let (pod1, pod2) = (w1.add_pod(), w2.add_pod());
    let lines = w1.log_lines();
    lab.etcd.kill();
    let ping = format!("ping -c 1 -W 1 -I {pod1} {pod2}");
    stays(Duration::from_secs(4), "pods reach each other", || run_in(1, &ping).is_ok() && w1.reaches(&w2));
    lab.etcd.restart();
    let w3 = start(&lab, 3);
    wait_within(Duration::from_secs(15), "what comes after it", || w1.reaches(&w3).then_some(()));
    let added = w1.log_lines() - lines;
    assert!(added <= FEW_LINES, "{added} lines in the log:\n{}", w1.log());
}

/// A device that is deleted while etcd is away is made again all the same. flanneld reads the configuration from etcd first, so it waits.
#[test]
fn a_device_deleted_while_etcd_is_away_comes_back_all_the_same() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    lab.etcd.kill();
    w1.run("ip link del flannel.100");
    wait_within(Duration::from_secs(1), "the device and its peer", || w1.reaches(&w2).then_some(()));
}
