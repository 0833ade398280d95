//! Each way of carrying packets, on the real kernel: what the workers make of it, and that pods talk.

mod support;

use std::time::Duration;

use linux_net::testing::enter_sandbox;
use support::agent::Agent;
use support::lab::{CONFIG, DIRECT_ROUTING, DUAL_STACK, HOST_GW, Lab, RouteMonitor, run_in};
use support::{shell, wait_for, wait_within};

/// Dual stack without an overlay.
const DUAL_STACK_HOST_GW: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.99.0.0",
    "EnableIPv6": true, "IPv6Network": "fd00:11::/32", "Backend": {"Type": "host-gw"}}"#;

/// Waits until a pod of one worker reaches one of the other, at the full size that the subnet file promises.
#[track_caller]
fn pods_talk(one: &Agent, other: &Agent) {
    let mtu: u32 = one.subnet_env("FLANNEL_MTU").and_then(|mtu| mtu.parse().ok()).expect("an MTU in the subnet file");
    let mut pods = vec![(one.add_pod(), other.add_pod(), mtu - 28)]; // 20 of IP and 8 of ICMP
    if one.base6().is_some() {
        pods.push((one.add_pod6(), other.add_pod6(), mtu - 48)); // 40 of IP and 8 of ICMP
    }
    for (from, to, size) in pods {
        wait_for(&format!("{from} to reach {to}"), || {
            run_in(one.number(), &format!("ping -c 1 -W 1 -M do -s {size} -I {from} {to}")).ok()
        });
    }
}

#[test]
fn dual_stack_pods_talk_over_both_families_at_the_announced_mtu() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, DUAL_STACK);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    pods_talk(&w1, &w2);
    assert_eq!(w1.subnet_env("FLANNEL_MTU").as_deref(), Some("1430"));
    assert!(w1.run("ip -6 -o addr show flannel-v6.100").contains(&format!("{}/128", w1.base6().unwrap())));
}

#[test]
fn without_an_overlay_pods_talk_at_the_mtu_of_the_underlay() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, DUAL_STACK_HOST_GW);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    pods_talk(&w1, &w2);
    assert_eq!(w1.subnet_env("FLANNEL_MTU").as_deref(), Some("1500"));
    assert!(!w1.run("ip link").contains("flannel"), "host-gw needs no device");
}

#[test]
fn host_gw_refuses_a_public_address_that_is_not_the_interfaces_own() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(1, HOST_GW);
    let (status, log) = lab.start(1, &["--public-ip", "192.0.2.1"]).wait();
    assert!(!status.success() && log.contains("192.0.2.1") && log.contains("host-gw"), "{log}");
    assert!(lab.etcd.subnets().is_empty());
}

/// Moves worker 3 behind a router, the machine that etcd runs on.
///
/// ```text
///   w1, w2 ── 10.9.0.0/24 ── router ── 10.9.1.0/24 ── w3
/// ```
fn move_behind_a_router() {
    shell(
        "sysctl -qw net.ipv4.ip_forward=1; ip link add t1 type bridge; ip addr add 10.9.1.254/24 dev t1; \
         ip link set t1 up; ip link set w3-eth0 master t1",
    );
    for n in [1, 2] {
        shell(&format!("ip -n w{n} route add default via 10.9.0.254"));
    }
    shell(
        "ip -n w3 addr flush dev eth0; ip -n w3 addr add 10.9.1.3/24 dev eth0; ip -n w3 route add default via 10.9.1.254",
    );
}

#[test]
fn direct_routing_wraps_packets_for_workers_behind_a_router_only() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(3, DIRECT_ROUTING);
    move_behind_a_router();
    let (w1, w2, w3) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]), lab.start_ready(3, &[]));
    wait_for("the neighbour on our link", || (w1.routes_directly_to(&w2) && w2.routes_directly_to(&w1)).then_some(()));
    let wraps = |one: &Agent, other: &Agent, ip: &str| {
        other.mac().is_some_and(|mac| one.entries_towards(&other.base(), &mac, ip) == 3)
    };
    wait_for("the worker behind the router", || {
        (wraps(&w1, &w3, "10.9.1.3") && wraps(&w3, &w1, "10.9.0.1")).then_some(())
    });
    assert!(!w1.run("bridge fdb show dev flannel.100").contains("10.9.0.2"), "nothing is wrapped for a neighbour");
    pods_talk(&w1, &w2);
    pods_talk(&w1, &w3);

    // The router goes: w1 is told that w3's network is on its own link.
    w1.run("ip route add 10.9.1.0/24 dev eth0");
    let direct = |base: &str| w1.run("ip route").contains(&format!("{base}/20 via 10.9.1.3 dev eth0"));
    wait_within(Duration::from_secs(2), "the direct route", || direct(&w3.base()).then_some(()));
    w1.run("ip route del 10.9.1.0/24 dev eth0");
    wait_within(Duration::from_secs(2), "the overlay", || wraps(&w1, &w3, "10.9.1.3").then_some(()));
    pods_talk(&w1, &w3);
}

#[test]
fn a_network_that_changes_its_backend_keeps_its_subnets_and_loses_the_former_ways() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, CONFIG);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    let keys = lab.etcd.subnets();
    lab.etcd.configure(HOST_GW);
    drop((w1, w2));
    let (w1, w2) = (lab.restart_ready(1, &[]), lab.restart_ready(2, &[]));
    wait_for("the plain route", || w1.routes_directly_to(&w2).then_some(()));
    pods_talk(&w1, &w2);
    assert_eq!(lab.etcd.subnets(), keys);
    let leftover = run_in(1, "ip route show dev flannel.100").unwrap_or_default();
    assert!(!leftover.contains("proto 70"), "{leftover}");

    lab.etcd.configure(CONFIG);
    drop((w1, w2));
    let (w1, w2) = (lab.restart_ready(1, &[]), lab.restart_ready(2, &[]));
    wait_for("the overlay", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    pods_talk(&w1, &w2);
    assert_eq!(lab.etcd.subnets(), keys);
    assert!(!w1.routes_directly_to(&w2));
}

#[test]
fn a_network_that_gains_and_loses_ipv6_keeps_its_ipv4_subnets() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, CONFIG);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    let bases = [w1.base(), w2.base()];
    lab.etcd.configure(DUAL_STACK);
    drop((w1, w2));
    let (w1, w2) = (lab.restart_ready(1, &[]), lab.restart_ready(2, &[]));
    pods_talk(&w1, &w2);
    assert_eq!([w1.base(), w2.base()], bases);
    assert!(w1.base6().is_some() && lab.etcd.subnets().len() == 2, "{:?}", lab.etcd.subnets());

    lab.etcd.configure(CONFIG);
    drop((w1, w2));
    let (w1, w2) = (lab.restart_ready(1, &[]), lab.restart_ready(2, &[]));
    pods_talk(&w1, &w2);
    assert_eq!([w1.base(), w2.base()], bases);
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20", "11.10.16.0-20"]);
    wait_for("the IPv6 routes to go", || (!w1.run("ip -6 route").contains("proto 70")).then_some(()));
}

#[test]
fn packets_to_pods_that_are_not_there_are_swallowed_if_asked_for() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (lab.start_ready(1, &["--ip-blackhole-route"]), lab.start_ready(2, &[]));
    let blackhole = format!("blackhole {}/20 proto 70", w1.base());
    assert!(w1.run("ip route").contains(&blackhole), "{}", w1.run("ip route"));
    pods_talk(&w2, &w1); // The route of the pods' bridge goes before it.
    w1.run("ip route flush proto 70");
    wait_within(Duration::from_secs(1), "the route", || w1.run("ip route").contains(&blackhole).then_some(()));
    // It goes with the option.
    drop(w1);
    let w1 = lab.restart_ready(1, &[]);
    wait_for("the route to go", || (!w1.run("ip route").contains("blackhole")).then_some(()));
}

#[test]
fn the_interface_is_found_by_name_address_expression_or_by_whom_it_reaches() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(1);
    shell("ip -n w1 link add other type bridge; ip -n w1 addr add 192.0.2.1/24 dev other; ip -n w1 link set other up");
    let endpoint = lab.etcd.endpoint();
    for choice in [
        ["-iface", "10.9.0.1"],
        ["--iface-regex", r"^10\.9\."],
        ["--iface-regex", "^eth"],
        ["--iface-can-reach", "10.9.0.99"],
    ] {
        let arguments = [&["-etcd-endpoints", endpoint.as_str()][..], &choice].concat();
        let w1 = lab.launch_with(support::agent::Program::Ours, 1, &arguments).ready();
        assert!(lab.etcd.value(&w1.subnet()).contains(r#""PublicIP":"10.9.0.1""#), "{choice:?}");
    }
}

fn a_restart_interrupts_no_way(config: &str) {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(2, config);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    pods_talk(&w1, &w2);
    drop(w1);
    let monitor = RouteMonitor::start(1);
    let w1 = lab.restart_ready(1, &[]);
    pods_talk(&w1, &w2);
    let deleted = monitor.deleted();
    assert!(deleted.iter().all(|line| !line.contains("proto 70")), "{deleted:?}");
}

#[test]
fn a_restart_interrupts_no_host_gw_route() {
    a_restart_interrupts_no_way(HOST_GW);
}

#[test]
fn a_restart_interrupts_no_direct_route() {
    a_restart_interrupts_no_way(DIRECT_ROUTING);
}

#[test]
fn a_restart_interrupts_no_way_of_either_family() {
    a_restart_interrupts_no_way(DUAL_STACK);
}
