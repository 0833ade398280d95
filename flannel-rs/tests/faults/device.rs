//! The device, its parent or parts of it vanish.
//!
//! Reports: flannel #869, #1070, #1348, #1434, #1759.

use std::time::Duration;

use linux_net::testing::enter_sandbox;

use crate::start;
use crate::support::agent::Agent;
use crate::support::lab::{DIRECT_ROUTING, DUAL_STACK, HOST_GW, Lab, plug_in, run_in};
use crate::support::{stays, wait_for, wait_within};

const SECOND: Duration = Duration::from_secs(1);

/// Two workers that know each other.
fn pair(config: &str, known: impl Fn(&Agent, &Agent) -> bool) -> (Lab, Agent, Agent) {
    let lab = Lab::with_config(2, config);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || known(&w1, &w2).then_some(()));
    (lab, w1, w2)
}

fn overlay_pair() -> (Lab, Agent, Agent) {
    pair(crate::support::lab::CONFIG, Agent::reaches)
}

/// flanneld makes the device again, with another MAC address than its lease announces and without any peer: the worker is cut off until
/// its agent is restarted (seen).
#[test]
fn a_deleted_device_comes_back_within_a_second_with_its_mac_and_all_peers() {
    if !enter_sandbox() {
        return;
    }
    let (lab, w1, w2) = overlay_pair();
    let mac = w1.mac();
    for _ in 0..3 {
        w1.run("ip link del flannel.100");
        wait_within(SECOND, "the device and its peer", || (w1.mac().is_some() && w1.reaches(&w2)).then_some(()));
        assert_eq!(w1.mac(), mac);
    }
    assert!(lab.etcd.value(&w1.subnet()).contains(&mac.unwrap()));
    assert!(w1.run("ip addr show flannel.100").contains(&format!("{}/32", w1.base())));
}

/// As above, for both devices.
#[test]
fn the_devices_of_both_families_come_back_with_their_macs_and_all_peers() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = pair(DUAL_STACK, Agent::reaches);
    let devices = ["flannel.100", "flannel-v6.100"];
    let macs = devices.map(|device| w1.mac_of(device));
    let base6 = w2.base6().unwrap();
    let knows6 = || {
        let show = |command: &str| run_in(1, command).unwrap_or_default();
        show("ip -6 route show dev flannel-v6.100").contains(&format!("{base6}/64 via {base6}"))
            && show("ip -6 neigh show dev flannel-v6.100").contains(&base6)
            && show("bridge fdb show dev flannel-v6.100").contains("dst fd09::2")
    };
    wait_for("the peer over IPv6", || knows6().then_some(()));
    for device in devices {
        w1.run(&format!("ip link del {device}"));
        wait_within(SECOND, "the device and its peer", || (w1.reaches(&w2) && knows6()).then_some(()));
    }
    assert_eq!(devices.map(|device| w1.mac_of(device)), macs);
}

/// flanneld does not look at any of these again.
#[test]
fn each_part_of_the_state_is_put_back_within_a_second() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = overlay_pair();
    let (base, mac2, own) = (w2.base(), w2.mac().unwrap(), w1.base());
    w1.outlives_its_start(); // So does the kernel's own business with a new device, whose events would lead to a repair too.
    for damage in [
        format!("ip route del {base}/20"),
        format!("ip neigh del {base} dev flannel.100"),
        format!("bridge fdb del {mac2} dev flannel.100 dst 10.9.0.2"),
        format!("bridge fdb replace {mac2} dev flannel.100 dst 10.9.0.77"),
        format!("ip neigh replace {base} lladdr 02:00:00:00:00:77 dev flannel.100 nud permanent"),
        "ip link set flannel.100 down".to_owned(),
        "ip link set flannel.100 mtu 1300".to_owned(),
        "ip addr flush dev flannel.100".to_owned(),
        "ip neigh flush all nud permanent; ip route flush dev flannel.100".to_owned(),
    ] {
        let is_whole = || {
            let device = run_in(1, "ip addr show flannel.100").unwrap_or_default();
            w1.reaches(&w2) && device.contains("mtu 1450") && device.contains(&format!("inet {own}/32"))
        };
        // One damage at a time: the echo of the last repair must not be what leads to the next.
        stays(Duration::from_millis(300), "the state", is_whole);
        w1.run(&damage);
        wait_within(SECOND, &format!("the damage by {damage:?} to be repaired"), || is_whole().then_some(()));
    }
}

/// The kernel drops all routes over an interface that goes down. flanneld's host-gw looks for them every ten seconds.
#[test]
fn host_gw_routes_come_back_after_the_external_interface_was_down() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = pair(HOST_GW, Agent::routes_directly_to);
    w1.run("ip link set eth0 down");
    assert!(!w1.routes_directly_to(&w2));
    w1.run("ip link set eth0 up");
    wait_within(SECOND, "the route", || w1.routes_directly_to(&w2).then_some(()));
    w1.run(&format!("ip route del {}/20", w2.base()));
    wait_within(SECOND, "the route", || w1.routes_directly_to(&w2).then_some(()));
}

/// flanneld's vxlan looks at its routes only when an event of the peer comes: with `DirectRouting` the peer is lost (seen).
#[test]
fn direct_routes_come_back_after_the_external_interface_was_down() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = pair(DIRECT_ROUTING, Agent::routes_directly_to);
    w1.run("ip link set eth0 down; ip link set eth0 up");
    wait_within(SECOND, "the route", || w1.routes_directly_to(&w2).then_some(()));
}

/// The overlay outlives a time without its underlay. So does flanneld's.
#[test]
fn pods_talk_again_after_the_external_interface_was_down() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = overlay_pair();
    let (pod1, pod2) = (w1.add_pod(), w2.add_pod());
    w1.run("ip link set eth0 down");
    assert!(!w1.succeeds(&format!("ping -c 1 -W 1 -I {pod1} {pod2}")));
    w1.run("ip link set eth0 up");
    wait_for("pods to talk", || w1.succeeds(&format!("ping -c 1 -W 1 -I {pod1} {pod2}")).then_some(()));
    assert!(w1.reaches(&w2));
}

/// Pulls the external interface out of the machine, and puts a new one of the same name and address in.
fn replug(n: u8) {
    run_in(n, "ip link del eth0").unwrap();
    plug_in(n);
}

/// With its parent the kernel deletes the device. flanneld makes it on the new one, with another MAC address and without peers (seen).
#[test]
fn the_device_comes_back_on_an_external_interface_that_was_replaced() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = overlay_pair();
    let (mac, (pod1, pod2)) = (w1.mac(), (w1.add_pod(), w2.add_pod()));
    replug(1);
    wait_within(3 * SECOND, "the device and its peer", || w1.reaches(&w2).then_some(()));
    assert_eq!(w1.mac(), mac);
    wait_for("pods to talk", || w1.succeeds(&format!("ping -c 1 -W 1 -I {pod1} {pod2}")).then_some(()));
}

/// flanneld's host-gw looks for its routes every ten seconds, and adds them with the number of the former interface.
#[test]
fn host_gw_routes_come_back_on_an_external_interface_that_was_replaced() {
    if !enter_sandbox() {
        return;
    }
    let (_lab, w1, w2) = pair(HOST_GW, Agent::routes_directly_to);
    replug(1);
    wait_within(3 * SECOND, "the route", || w1.routes_directly_to(&w2).then_some(()));
}
