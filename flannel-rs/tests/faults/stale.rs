//! Entries that nobody needs any more.
//!
//! Reports: flannel #2554, #333, #996, #739.

use linux_net::testing::enter_sandbox;

use crate::start;
use crate::support::agent::Agent;
use crate::support::lab::{CONFIG, DIRECT_ROUTING, DUAL_STACK, HOST_GW, Lab, RouteMonitor, run_in};
use crate::support::wait_for;

/// All that leads to other workers, as text.
fn ways(n: u8) -> String {
    let devices = "for d in flannel.100 flannel-v6.100; do bridge fdb show dev $d 2>/dev/null; done; true";
    run_in(n, &format!("ip route; ip -6 route; ip neigh show nud permanent; {devices}")).unwrap()
}

/// What shows in [`ways`] of others as long as they know this worker.
fn traces(worker: &Agent) -> Vec<String> {
    let macs = ["flannel.100", "flannel-v6.100"].map(|device| worker.mac_of(device));
    macs.into_iter().chain([Some(worker.base()), worker.base6()]).flatten().collect()
}

/// A peer vanishes while our agent is down.
fn a_peer_vanishes_while_the_agent_is_down(config: &str) {
    let lab = Lab::with_config(3, config);
    let (w1, w2, w3) = (start(&lab, 1), start(&lab, 2), start(&lab, 3));
    let (traces2, traces3) = (traces(&w2), traces(&w3));
    let known = |traces: &[String]| traces.iter().filter(|trace| ways(1).contains(*trace)).count();
    let full = if config == HOST_GW || config == DIRECT_ROUTING { 1 } else { traces3.len() };
    wait_for("w1 to know all", || (known(&traces2) == full && known(&traces3) == full).then_some(()));

    drop(w1);
    let key = w2.subnet();
    w2.stop();
    lab.etcd.delete(&key);
    let monitor = RouteMonitor::start(1);
    let _w1 = start(&lab, 1);
    wait_for("the vanished peer to be forgotten", || (known(&traces2) == 0).then_some(()));
    assert_eq!(known(&traces3), full, "the living peer is known");
    let deleted = monitor.deleted();
    assert!(
        !deleted.iter().any(|line| line.contains(&w3.base())),
        "the way to a living peer was interrupted: {deleted:?}"
    );
}

/// flanneld keeps route, neighbour and FDB entry for ever: it only handles events, and there is none (seen).
#[test]
fn a_peer_that_vanished_while_the_agent_was_down_is_forgotten_at_start() {
    if enter_sandbox() {
        a_peer_vanishes_while_the_agent_is_down(CONFIG);
    }
}

/// As above, in both families.
#[test]
fn a_dual_stack_peer_that_vanished_while_the_agent_was_down_is_forgotten_at_start() {
    if enter_sandbox() {
        a_peer_vanishes_while_the_agent_is_down(DUAL_STACK);
    }
}

/// As above: flanneld's host-gw re-adds routes that are missing and never removes one that it does not remember.
#[test]
fn a_host_gw_peer_that_vanished_while_the_agent_was_down_is_forgotten_at_start() {
    if enter_sandbox() {
        a_peer_vanishes_while_the_agent_is_down(HOST_GW);
    }
}

/// As above.
#[test]
fn a_directly_routed_peer_that_vanished_while_the_agent_was_down_is_forgotten_at_start() {
    if enter_sandbox() {
        a_peer_vanishes_while_the_agent_is_down(DIRECT_ROUTING);
    }
}

/// What a crashed run may have left is swept, and what is somebody else's stays. flanneld cannot tell the two apart, because its
/// routes bear no mark, and leaves both.
#[test]
fn planted_rubbish_is_swept_and_what_belongs_to_others_stays() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w2, w1) = (start(&lab, 2), start(&lab, 1));
    drop(w1); // kill -9
    for planted in [
        "ip route add 11.77.0.0/20 via 11.77.0.0 dev flannel.100 onlink proto 70",
        "ip route add 11.78.0.0/20 via 11.78.0.0 dev flannel.100 onlink", // as a flanneld before us
        "ip neigh add 11.77.0.0 lladdr 02:00:00:00:00:77 dev flannel.100 nud permanent",
        "bridge fdb append 02:00:00:00:00:77 dev flannel.100 dst 10.9.0.77",
        "ip route add blackhole 11.88.0.0/20 proto 99",
        "ip route add 192.0.2.0/24 via 10.9.0.77 proto static",
    ] {
        run_in(1, planted).unwrap();
    }
    let w1 = start(&lab, 1);
    wait_for("what is stale to be swept", || {
        let ways = ways(1);
        (!ways.contains("11.77.") && !ways.contains("11.78.") && !ways.contains("00:77")).then_some(())
    });
    assert!(ways(1).contains("11.88.0.0") && ways(1).contains("192.0.2.0"), "a route of somebody else's was removed");
    assert!(w1.reaches(&w2));
}

/// A worker gets the subnet that another one had. flanneld's host-gw keeps the route to it, and the worker sends the packets for its
/// own pods to the machine that had the subnet before.
#[test]
fn a_worker_that_gets_a_former_peers_subnet_keeps_no_route_to_the_peer() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, HOST_GW);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the route", || w1.routes_directly_to(&w2).then_some(()));
    let env = std::fs::read_to_string(lab.subnet_file(2)).unwrap();
    let (key1, key2) = (w1.subnet(), w2.subnet());
    drop(w1);
    w2.stop();
    lab.etcd.delete(&key1);
    lab.etcd.delete(&key2);
    lab.plant_subnet_file(1, &env);
    let w1 = start(&lab, 1);
    assert_eq!(w1.subnet(), key2);
    wait_for("the route to our own subnet to go", || (!ways(1).contains("via 10.9.0.2")).then_some(()));
}

/// Somebody replaces the route to a peer by one of his own. flanneld's vxlan never looks again (seen); its host-gw takes ten seconds.
#[test]
fn a_route_that_somebody_put_in_place_of_ours_is_replaced() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    w1.run(&format!("ip route replace {}/20 via 10.9.0.77 proto static", w2.base()));
    wait_for("our route", || (w1.reaches(&w2) && !w1.run("ip route").contains("10.9.0.77")).then_some(()));
}

/// An agent that was stopped, as by a debugger or a swapping machine, catches up with what it missed. So does flanneld.
#[test]
fn what_happened_while_the_agent_was_stopped_is_caught_up() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(3);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    w1.signal("STOP");
    let (mac, key) = (w2.mac().unwrap(), w2.subnet());
    w2.stop();
    lab.etcd.delete(&key);
    let w3 = start(&lab, 3); // It may well get the subnet that is free again.
    assert!(ways(1).contains(&mac));
    w1.signal("CONT");
    wait_for("the present state", || (w1.reaches(&w3) && !ways(1).contains(&mac)).then_some(()));
}
