//! Is the state that our agent makes the state that flanneld makes?
//!
//! Each folder under `recorded/` holds one scenario: a network configuration, and all that two flannelds on two workers made of it.
//! Here two of ours do the same, and the outcome is compared line by line. What is different on purpose stands in one table,
//! `DELIBERATE` in `support/scenario.rs`.
//!
//! To record anew, with flanneld on PATH: `KNETSIM_RECORD=1 cargo test -p flannel-rs --test differential`.

mod support;

use linux_net::testing::enter_sandbox;
use support::agent::Program;
use support::flanneld_is_here;
use support::scenario::Scenario;

/// Runs a scenario with our agents and compares, or with flanneld and records.
fn compare(scenario: &str) {
    let record = std::env::var_os("KNETSIM_RECORD").is_some();
    if (record && !flanneld_is_here()) || !enter_sandbox() {
        return;
    }
    let scenario = Scenario::named(scenario);
    if record { scenario.record() } else { scenario.check([Program::Ours; 2]) }
}

#[test]
fn a_vxlan_is_made_as_by_flanneld() {
    compare("vxlan");
}

#[test]
fn direct_routing_uses_plain_routes_as_flanneld_does() {
    compare("vxlan-direct-routing");
}

#[test]
fn group_policy_is_set_as_by_flanneld() {
    compare("vxlan-gbp");
}

#[test]
fn learning_is_set_as_by_flanneld() {
    compare("vxlan-learning");
}

#[test]
fn port_and_mtu_are_obeyed_as_by_flanneld() {
    compare("vxlan-port-and-mtu");
}

#[test]
fn a_dual_stack_vxlan_is_made_as_by_flanneld() {
    compare("vxlan-dual-stack");
}

#[test]
fn dual_stack_with_direct_routing_uses_plain_routes_as_flanneld_does() {
    compare("vxlan-dual-stack-direct-routing");
}

#[test]
fn host_gw_routes_are_made_as_by_flanneld() {
    compare("host-gw");
}

#[test]
fn dual_stack_host_gw_routes_are_made_as_by_flanneld() {
    compare("host-gw-dual-stack");
}
