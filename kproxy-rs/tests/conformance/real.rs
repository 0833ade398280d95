//! The real kube-proxy, if there is one: a part of the suite again, with it in the place of ours.

use std::process::Command;

use crate::support::program::{self, Program};
use crate::support::say;

/// What it runs: one test or a few of each kind, some thirty seconds in all.
const PART: [&str; 9] = [
    "services::",
    "lifecycle::a_service_changes_its_type",
    "dual_stack::each_family",
    "endpoints::endpoints_that_terminate",
    "topology::traffic_stays_in_the_zone",
    "outside::external_policy_local",
    "clients::pods_are_known_by_their_bridge",
    "udp::a_client_that_began",
    "connections::connections_survive",
];

#[test]
fn kube_proxy_keeps_the_same_promises() {
    if program::tested() == Program::KubeProxy {
        return; // The whole suite runs under it.
    }
    if program::kube_proxy().is_none() {
        say("SKIPPED: kube-proxy is not on PATH; with it, a part of this suite would run once more, under it");
        return;
    }
    let suite = std::env::current_exe().unwrap();
    let output = Command::new(suite).args(PART).env(program::REAL, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text.lines().filter(|line| line.starts_with("SKIPPED")).for_each(say);
}
