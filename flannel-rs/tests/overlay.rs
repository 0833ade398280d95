//! The real program on the real kernel, against a real etcd: what a cluster of workers sees of each other.

mod support;

use std::time::Duration;

use linux_net::testing::enter_sandbox;
use support::lab::{CONFIG, Lab, RouteMonitor};
use support::{wait_for, wait_within};

#[test]
fn workers_find_each_other_and_their_pods_can_talk() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(3);
    let w1 = lab.start_ready(1, &["--ip-masq"]);
    let w2 = lab.start_ready(2, &[]);
    let w3 = lab.start_ready(3, &[]);
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20", "11.10.16.0-20", "11.10.32.0-20"]);

    // The lease and the subnet file, byte for byte.
    let mac = w1.mac().unwrap();
    let value = format!(
        r#"{{"PublicIP":"10.9.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":100,"VtepMAC":"{mac}"}}}}"#
    );
    assert_eq!(lab.etcd.value("11.10.0.0-20"), value);
    let env = std::fs::read_to_string(lab.subnet_file(1)).unwrap();
    assert_eq!(env, "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.0.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");

    // The device, attribute by attribute as flanneld makes it.
    let link = &w1.ip_json("-d link show flannel.100")[0];
    assert_eq!(link["mtu"], 1450);
    let vxlan = &link["linkinfo"]["info_data"];
    assert_eq!(
        (&vxlan["id"], &vxlan["local"], &vxlan["link"], &vxlan["port"]),
        (&100.into(), &"10.9.0.1".into(), &"eth0".into(), &8472.into())
    );
    assert_eq!((&vxlan["learning"], vxlan.get("group")), (&false.into(), None));
    assert!(w1.run("ip -4 -o addr show flannel.100").contains("inet 11.10.0.0/32 "));

    // Everybody knows everybody, also those that came later.
    for (one, other) in [(&w1, &w2), (&w1, &w3), (&w2, &w1), (&w2, &w3), (&w3, &w1), (&w3, &w2)] {
        wait_for("three entries per peer", || one.reaches(other).then_some(()));
    }
    let (pod1, pod3) = (w1.add_pod(), w3.add_pod());
    w1.run(&format!("ping -c 1 -W 2 -I {pod1} {pod3}"));
    w3.run(&format!("ping -c 1 -W 2 -I {pod3} -s 1422 -M do {pod1}")); // 1450 with the headers of ICMP and IP

    // A worker whose lease is gone is forgotten, and only he.
    let (base3, mac3) = (w3.base(), w3.mac().unwrap());
    let subnet3 = w3.subnet();
    drop(w3);
    lab.etcd.delete(&subnet3);
    wait_for("the entries of a vanished peer to go", || {
        (w1.entries_towards(&base3, &mac3, "10.9.0.3") == 0).then_some(())
    });
    assert!(w1.reaches(&w2));
    assert!(w1.http("/metrics").1.contains("flannel_peers 1"));
}

#[test]
fn a_restarted_worker_keeps_subnet_and_mac_and_sweeps_what_is_stale() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let w2 = lab.start_ready(2, &[]);
    let w1 = lab.start_ready(1, &[]);
    let (subnet, mac, lease) = (w1.subnet(), w1.mac(), lab.etcd.lease_id(&w1.subnet()));
    drop(w1); // kill -9
    // What a crashed run may leave: a peer that vanished while nobody looked, and an FDB entry of a peer's former MAC.
    for planted in [
        "ip route add 11.77.0.0/20 via 11.77.0.0 dev flannel.100 onlink proto 70",
        "ip neigh add 11.77.0.0 lladdr 02:00:00:00:00:77 dev flannel.100 nud permanent",
        "bridge fdb append 02:00:00:00:00:77 dev flannel.100 dst 10.9.0.77",
        "ip route add blackhole 11.88.0.0/20 proto 99",
    ] {
        support::lab::run_in(1, planted).unwrap();
    }

    let monitor = RouteMonitor::start(1);
    let w1 = lab.restart_ready(1, &[]);
    let deleted = monitor.deleted();
    assert!(deleted.iter().any(|line| line.contains("11.77.0.0/20")), "{deleted:?}");
    assert!(
        !deleted.iter().any(|line| line.contains(&w2.base())),
        "the way to a living peer was interrupted: {deleted:?}"
    );
    assert_eq!((w1.subnet(), w1.mac(), lab.etcd.lease_id(&w1.subnet())), (subnet, mac.clone(), lease));
    let state = w1.run("ip route; ip neigh; bridge fdb show dev flannel.100");
    assert!(!state.contains("11.77.0.0") && !state.contains("00:77"), "{state}");
    assert!(state.contains("11.88.0.0"), "a route of somebody else's was removed");
    assert!(w1.reaches(&w2));

    // Even with the device gone, the MAC is known from the lease: no peer has to learn a new one.
    drop(w1);
    support::shell("ip -n w1 link del flannel.100");
    let w1 = lab.restart_ready(1, &[]);
    assert_eq!(w1.mac(), mac);
}

#[test]
fn a_deleted_device_comes_back_within_a_second_with_its_mac_and_all_peers() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (lab.start_ready(1, &["--iptables-resync", "60"]), lab.start_ready(2, &[]));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    let mac = w1.mac();
    w1.run("ip link del flannel.100");
    wait_within(Duration::from_secs(1), "the device and its peer", || w1.reaches(&w2).then_some(()));
    assert_eq!(w1.mac(), mac);
    // The same for a part of it.
    let base = w2.base();
    w1.run(&format!("ip route del {base}/20"));
    w1.run(&format!("ip neigh del {base} dev flannel.100"));
    wait_within(Duration::from_secs(1), "the route and the neighbour", || w1.reaches(&w2).then_some(()));
    w1.run("ip link set flannel.100 down");
    wait_within(Duration::from_secs(1), "the device to be up", || w1.reaches(&w2).then_some(()));
    w1.run("ip link set flannel.100 address 02:00:00:00:00:01");
    wait_within(Duration::from_secs(1), "the announced MAC", || (w1.mac() == mac && w1.reaches(&w2)).then_some(()));
}

#[test]
fn a_key_deleted_by_hand_comes_back_as_it_was() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    let (subnet, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    lab.etcd.delete(&subnet);
    wait_for("the key to be back", || (lab.etcd.value(&subnet) == value).then_some(()));
    // The etcd lease ends, as after a day without etcd.
    lab.etcd.expire(&subnet);
    wait_for("the key to be back", || (lab.etcd.value(&subnet) == value).then_some(()));
    wait_for("the peer to know us again", || w2.reaches(&w1).then_some(()));
}

#[test]
fn a_peer_with_a_new_mac_loses_its_old_fdb_entry() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let w1 = lab.start_ready(1, &[]);
    let lease = |mac: &str| {
        let value = format!(
            r#"{{"PublicIP":"10.9.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":100,"VtepMAC":"{mac}"}}}}"#
        );
        lab.etcd.put("11.20.0.0-20", &value);
    };
    let (old, new) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    lease(old);
    wait_for("the peer", || (w1.entries_towards("11.20.0.0", old, "10.9.0.2") == 3).then_some(()));
    lease(new);
    wait_for("its new MAC", || (w1.entries_towards("11.20.0.0", new, "10.9.0.2") == 3).then_some(()));
    assert!(!w1.run("bridge fdb show dev flannel.100").contains(old));
}

#[test]
fn while_etcd_is_away_pods_keep_talking_and_later_news_are_caught_up() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(3);
    let (w1, w2) = (lab.start_ready(1, &[]), lab.start_ready(2, &[]));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    lab.etcd.kill();
    let (pod1, pod2) = (w1.add_pod(), w2.add_pod());
    w1.run(&format!("ping -c 1 -W 2 -I {pod1} {pod2}"));
    w1.run("ip link del flannel.100");
    wait_within(Duration::from_secs(1), "the device, without etcd", || w1.reaches(&w2).then_some(()));

    // An agent that starts while etcd is away waits for it.
    let w3 = lab.start(3, &[]);
    wait_for("the agent to say what it waits for", || w3.log().contains("waiting for etcd").then_some(()));
    assert_eq!((w3.http("/healthz").0, w3.http("/readyz").0), (200, 503));
    lab.etcd.restart();
    wait_for("the newcomer", || (w3.http("/readyz").0 == 200 && w1.reaches(&w3) && w3.reaches(&w1)).then_some(()));
}

#[test]
fn an_agent_waits_for_the_configuration_and_refuses_a_wrong_one() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::new(1);
    let w1 = lab.start(1, &[]);
    wait_for("the agent to say what it waits for", || w1.log().contains("waiting for somebody to write").then_some(()));
    assert!(!lab.subnet_file(1).exists());
    lab.etcd.configure(CONFIG);
    wait_for("the agent to be ready", || (w1.http("/readyz").0 == 200).then_some(()));
    drop(w1);

    lab.etcd.configure(r#"{"Network": "11.0.0.0/8", "SubnetLen": 31, "Backend": {"Type": "vxlan"}}"#);
    let (status, log) = lab.start(1, &[]).wait();
    assert!(!status.success() && log.contains("SubnetLen is 31: leaves no address for a pod; use 30 or less"), "{log}");
}

#[test]
fn two_agents_that_start_at_once_share_a_range_of_two_and_a_third_is_told_why_not() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::new(3);
    lab.etcd.configure(r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.10.16.0", "Backend": {"Type": "vxlan", "VNI": 100}}"#);
    let (w1, w2) = (lab.start(1, &[]), lab.start(2, &[]));
    wait_for("both to be ready", || (w1.http("/readyz").0 == 200 && w2.http("/readyz").0 == 200).then_some(()));
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20", "11.10.16.0-20"]);
    assert_ne!(w1.subnet(), w2.subnet());
    let (status, log) = lab.start(3, &[]).wait();
    assert!(!status.success() && log.contains("every /20 from 11.10.0.0 to 11.10.16.0 is taken"), "{log}");
}

#[test]
fn termination_is_quick_and_leaves_lease_and_data_plane_unless_release_is_asked_for() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let w2 = lab.start_ready(2, &[]);
    let w1 = lab.start_ready(1, &[]);
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    let (status, took) = w1.terminate();
    assert!(status.success() && took < Duration::from_secs(2), "{status} after {took:?}");
    assert_eq!(lab.etcd.subnets().len(), 2);
    assert!(lab.subnet_file(1).exists());
    assert!(support::lab::run_in(1, "ip route show dev flannel.100").unwrap().contains("proto 70"));

    let w1 = lab.restart_ready(1, &["--release-on-exit"]);
    let (status, _) = w1.terminate();
    assert!(status.success());
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20"]);
}

#[test]
fn masquerade_rules_come_with_the_option_and_go_with_it() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(1);
    let w1 = lab.start_ready(1, &["--ip-masq", "--iptables-resync", "1"]);
    let rules = w1.run("nft list table ip flannel");
    let expected = [
        "meta mark & 0x00004000 == 0x00004000 return",
        "ip saddr 11.10.0.0/20 ip daddr 11.0.0.0/8 return",
        "ip saddr 11.0.0.0/8 ip daddr 11.10.0.0/20 return",
        "ip saddr != 11.0.0.0/8 ip daddr 11.10.0.0/20 return",
        "ip saddr 11.0.0.0/8 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 11.0.0.0/8 ip daddr 11.0.0.0/8 masquerade fully-random",
    ];
    let mut rest = rules.as_str();
    for rule in expected {
        let at = rest.find(rule).unwrap_or_else(|| panic!("{rule} is missing or out of order in\n{rules}"));
        rest = &rest[at..];
    }
    assert!(rules.contains("type filter hook forward") && rules.contains("ip daddr 11.0.0.0/8 accept"), "{rules}");
    w1.run("nft delete table ip flannel");
    wait_for("the rules to be restored", || w1.succeeds("nft list table ip flannel").then_some(()));
    drop(w1);
    let w1 = lab.restart_ready(1, &["--iptables-forward-rules=false"]);
    assert!(!w1.succeeds("nft list table ip flannel"));
}
