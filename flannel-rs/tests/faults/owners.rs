//! Two agents want one subnet, one key or one address.
//!
//! Reports: flannel #1289, #813, #805, #1129.

use std::time::Duration;

use linux_net::testing::enter_sandbox;

use crate::support::agent::Agent;
use crate::support::lab::Lab;
use crate::support::{stays, wait_for};
use crate::{program, start};

const FIVE_SUBNETS: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.10.64.0",
    "Backend": {"Type": "vxlan", "VNI": 100}}"#;

/// flanneld draws at random among the free subnets; when two draw the same one, the slower ends with "subnet already exists" (seen), and
/// of five that start at once on five subnets hardly ever all get through.
#[test]
fn five_agents_that_start_at_once_share_a_range_of_five_and_a_sixth_is_told_why_not() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(6, FIVE_SUBNETS);
    let agents = [1, 2, 3, 4, 5].map(|n| lab.launch(program(), n, &[]));
    wait_for("all to be ready", || agents.iter().all(Agent::is_ready).then_some(()));
    let mut subnets = agents.iter().map(Agent::subnet).collect::<Vec<String>>();
    subnets.sort_unstable();
    assert_eq!(subnets, ["11.10.0.0-20", "11.10.16.0-20", "11.10.32.0-20", "11.10.48.0-20", "11.10.64.0-20"]);
    assert_eq!(lab.etcd.subnets(), subnets);
    let sixth = lab.launch(program(), 6, &[]);
    let why = ["every subnet from 11.10.0.0/20 to 11.10.64.0/20 is taken", "out of subnets"];
    wait_for("the sixth to be told", || why.iter().any(|why| sixth.log().contains(why)).then_some(()));
    assert_eq!(lab.etcd.subnets(), subnets);
}

/// Somebody writes our key, as a second cluster with the same prefix would. flanneld takes any write of its key for its own renewal, and
/// goes on with a subnet that is announced as another's (seen).
#[test]
fn an_overwritten_key_is_reported_and_not_fought_over() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    let (key, value, mac) = (w1.subnet(), lab.etcd.value(&w1.subnet()), w1.mac());
    let foreign = value.replace("10.9.0.1", "10.9.0.77");
    lab.etcd.put(&key, &foreign);
    wait_for("the agent to say that it is not ready", || (w1.http("/readyz").0 == 503).then_some(()));
    stays(Duration::from_secs(2), "the other's key and our data plane", || {
        lab.etcd.value(&key) == foreign && w1.subnet() == key && w1.mac() == mac && w1.reaches(&w2)
    });
    assert_eq!(lab.etcd.subnets().len(), 2, "no other subnet was taken");
    lab.etcd.delete(&key);
    wait_for("our key to be back", || (lab.etcd.value(&key) == value).then_some(()));
    wait_for("the agent to be ready", || w1.is_ready().then_some(()));
}

/// A value that nobody can read stands in our key. flanneld takes it for its own renewal, and its peers no longer reach it.
#[test]
fn an_own_key_with_a_damaged_value_is_repaired() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(1);
    let w1 = start(&lab, 1);
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    lab.etcd.put(&key, "not json");
    wait_for("the key to be repaired", || (lab.etcd.value(&key) == value && w1.is_ready()).then_some(()));
    assert_eq!((w1.subnet(), lab.etcd.subnets()), (key.clone(), vec![key]));
}

/// Two machines are told the same `--public-ip`, or were cloned with it. By its address each takes the key for its own, and writes its
/// own MAC address there. One can win only: the elder writes its lease again, and the younger ends and says why. In flanneld both
/// go on, say nothing, and the key shows the MAC address of whichever wrote last (seen).
#[test]
fn of_two_agents_with_one_public_ip_the_elder_goes_on_and_the_younger_says_why_it_ends() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(3);
    let w1 = lab.launch(program(), 1, &["-public-ip", "10.9.0.50"]).ready();
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    w1.outlives_its_start();
    let (status, log) = lab.launch(program(), 2, &["-public-ip", "10.9.0.50"]).wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another agent with the public IP 10.9.0.50"), "{log}");
    wait_for("the lease of the elder", || (lab.etcd.value(&key) == value).then_some(()));
    assert!(w1.log().contains("another agent announces our public IP"), "{}", w1.log());
    assert!(w1.http("/metrics").1.contains("flannel_leases_contested_total 1"));
    wait_for("the elder to be ready", || w1.is_ready().then_some(()));
    assert_eq!(lab.etcd.subnets(), [key]);

    // A restart of the elder is nobody's rival, and a third worker finds the elder.
    drop(w1);
    let w1 = lab.launch(program(), 1, &["-public-ip", "10.9.0.50"]).ready();
    let w3 = start(&lab, 3);
    wait_for("the elder as a peer", || (w3.entries_towards(&w1.base(), &w1.mac()?, "10.9.0.50") == 3).then_some(()));
}

/// The same for two agents in one network namespace: the second would take the first one's device.
#[test]
fn a_second_agent_on_the_same_worker_ends_at_once() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(1);
    let w1 = start(&lab, 1);
    let (key, revision) = (w1.subnet(), lab.etcd.revision());
    // Without the health port, which is the first one's.
    let (status, log) = lab.launch(program(), 1, &["-healthz-port", "0"]).wait();
    assert!(!status.success() && log.contains("another flannel-rs runs in this network namespace"), "{log}");
    assert_eq!((lab.etcd.revision(), w1.subnet(), w1.is_ready()), (revision, key, true));
}

/// A reservation, a key without a lease, is for ever. flanneld puts it on a lease of a day when its worker restarts, and loses it
/// a day later (seen).
#[test]
fn a_reservation_outlives_the_restarts_of_its_worker() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let key = "11.50.0.0-20";
    lab.etcd.put(key, r#"{"PublicIP":"10.9.0.1","PublicIPv6":null}"#);
    let mut w1 = start(&lab, 1);
    for _ in 0..2 {
        assert_eq!((w1.subnet().as_str(), lab.etcd.lease_id(key)), (key, 0));
        assert!(lab.etcd.value(key).contains("VtepMAC"));
        drop(w1);
        w1 = start(&lab, 1);
    }
    // Deleted by hand and put back while its agent runs, it is a reservation still.
    lab.etcd.put(key, &lab.etcd.value(key));
    let w2 = start(&lab, 2);
    wait_for("the peer", || w2.reaches(&w1).then_some(()));
    assert_eq!(lab.etcd.lease_id(key), 0);
}
