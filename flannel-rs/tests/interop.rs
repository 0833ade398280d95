//! Ours and flanneld in one cluster: needs `flanneld` on PATH, and is skipped aloud without it.
//!
//! First the same comparison as in `differential.rs`, with flanneld on one worker and ours on the other. Then the life of a cluster
//! of three: a newcomer, restarts, kills, leases lost; after each of them, pods of every worker reach those of every other.

mod support;

use std::time::Duration;

use linux_net::testing::enter_sandbox;
use support::agent::{Agent, Program};
use support::lab::{CONFIG, DIRECT_ROUTING, DUAL_STACK, HOST_GW, Lab, run_in};
use support::scenario::Scenario;
use support::{flanneld_is_here, wait_for, wait_within};

/// Runs a scenario with flanneld on one worker and ours on the other, and compares both with what two flannelds made.
fn mixed(scenario: &str, programs: [Program; 2]) {
    if !flanneld_is_here() || !enter_sandbox() {
        return;
    }
    Scenario::named(scenario).check(programs);
}

#[test]
fn flanneld_and_ours_make_the_same_vxlan() {
    mixed("vxlan", [Program::Flanneld, Program::Ours]);
}

#[test]
fn flanneld_and_ours_make_the_same_dual_stack_vxlan() {
    mixed("vxlan-dual-stack", [Program::Ours, Program::Flanneld]);
}

#[test]
fn flanneld_and_ours_make_the_same_direct_routes() {
    mixed("vxlan-dual-stack-direct-routing", [Program::Flanneld, Program::Ours]);
}

#[test]
fn flanneld_and_ours_make_the_same_group_policy_device() {
    mixed("vxlan-gbp", [Program::Ours, Program::Flanneld]);
}

#[test]
fn flanneld_and_ours_obey_port_and_mtu_alike() {
    mixed("vxlan-port-and-mtu", [Program::Flanneld, Program::Ours]);
}

#[test]
fn flanneld_and_ours_make_the_same_host_gw_routes() {
    mixed("host-gw-dual-stack", [Program::Ours, Program::Flanneld]);
}

#[test]
fn a_mixed_vxlan_cluster_lives_through_restarts_kills_and_lost_leases() {
    live(CONFIG);
}

#[test]
fn a_mixed_dual_stack_cluster_lives_through_restarts_kills_and_lost_leases() {
    live(DUAL_STACK);
}

#[test]
fn a_mixed_host_gw_cluster_lives_through_restarts_kills_and_lost_leases() {
    live(HOST_GW);
}

#[test]
fn a_mixed_direct_routing_cluster_lives_through_restarts_kills_and_lost_leases() {
    live(DIRECT_ROUTING);
}

/// The life of a cluster with flanneld on `w1` and ours on `w2`.
fn live(config: &str) {
    if !flanneld_is_here() || !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(3, config);
    let (theirs, ours) = (Program::Flanneld, Program::Ours);
    let w1 = lab.launch(theirs, 1, &[]).ready();
    let w2 = lab.launch(ours, 2, &[]).ready();
    all_talk(&[&w1, &w2]);

    // A third worker joins, with ours and then with flanneld: it goes on with the same key.
    let w3 = lab.launch(ours, 3, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);
    let subnets: Vec<String> = [&w1, &w2, &w3].map(Agent::subnet).to_vec();
    w3.stop();
    let w3 = lab.launch(theirs, 3, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);

    // Each is ended as by its supervisor, then killed, and comes back.
    w1.stop();
    let w1 = lab.launch(theirs, 1, &[]).ready();
    w2.stop();
    let w2 = lab.launch(ours, 2, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);
    drop(w1);
    let w1 = lab.launch(theirs, 1, &[]).ready();
    drop(w2);
    let w2 = lab.launch(ours, 2, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);

    // The lease of each is deleted. Ours puts the key back; flanneld ends, and takes its former subnet when it is started again.
    let (key2, value2) = (w2.subnet(), lab.etcd.value(&w2.subnet()));
    lab.etcd.delete(&key2);
    wait_for("ours to put its key back", || (lab.etcd.value(&key2) == value2).then_some(()));
    all_talk(&[&w1, &w2, &w3]);
    lab.etcd.delete(&w1.subnet());
    let (status, log) = w1.wait();
    assert!(status.success() && log.contains("Lease has been revoked"), "{status}: {log}");
    let w1 = lab.launch(theirs, 1, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);
    assert_eq!([&w1, &w2, &w3].map(Agent::subnet).to_vec(), subnets, "nobody's subnet has changed");

    // Flanneld is replaced by ours in place: what it left is taken over, not doubled.
    w1.stop();
    let w1 = lab.launch(ours, 1, &[]).ready();
    all_talk(&[&w1, &w2, &w3]);
    let routes = w1.run("ip route; ip -6 route");
    let unmarked: Vec<&str> = routes
        .lines()
        .filter(|line| (line.starts_with("11.") || line.starts_with("fd00:11:")) && !line.contains("proto"))
        .collect();
    assert!(unmarked.is_empty(), "routes of flanneld are left: {unmarked:?}");

    // A worker that is gone is forgotten by both.
    let (base, key) = (w3.base(), w3.subnet());
    w3.stop();
    lab.etcd.delete(&key);
    for worker in [&w1, &w2] {
        wait_for("the vanished worker to be forgotten", || {
            (!worker.run("ip route; ip neigh").contains(&base)).then_some(())
        });
    }
}

/// Waits until a pod of every worker reaches one of every other, over each family.
fn all_talk(workers: &[&Agent]) {
    let pods: Vec<(u8, String)> = workers.iter().map(|worker| (worker.number(), worker.add_pod())).collect();
    let pods6 = workers.iter().filter(|worker| worker.base6().is_some());
    let pods6: Vec<(u8, String)> = pods6.map(|worker| (worker.number(), worker.add_pod6())).collect();
    for pods in [pods, pods6] {
        for (n, from) in &pods {
            for (_, to) in pods.iter().filter(|(other, _)| other != n) {
                wait_within(Duration::from_secs(15), &format!("{from} to reach {to}"), || {
                    run_in(*n, &format!("ping -c 1 -W 1 -I {from} {to}")).ok()
                });
            }
        }
    }
}
