//! The real program on the real kernel, against a real etcd: what a cluster of workers sees of each other.

mod support;

use std::time::Duration;

use linux_net::testing::enter_sandbox;
use support::lab::{CONFIG, Lab, RouteMonitor};
use support::wait_for;

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
fn a_killed_worker_keeps_subnet_mac_and_lease_and_its_peers_stay_reachable() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let w2 = lab.start_ready(2, &[]);
    let w1 = lab.start_ready(1, &[]);
    let (subnet, mac, lease) = (w1.subnet(), w1.mac(), lab.etcd.lease_id(&w1.subnet()));
    drop(w1); // kill -9
    let monitor = RouteMonitor::start(1);
    let w1 = lab.restart_ready(1, &[]);
    assert_eq!((w1.subnet(), w1.mac(), lab.etcd.lease_id(&w1.subnet())), (subnet, mac, lease));
    assert_eq!(monitor.deleted(), [""; 0], "the way to a living peer was interrupted");
    assert!(w1.reaches(&w2));
}

#[test]
fn an_agent_that_starts_while_etcd_is_away_waits_for_it() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(1);
    lab.etcd.kill();
    let w1 = lab.start(1, &[]);
    wait_for("the agent to say what it waits for", || w1.log().contains("waiting for etcd").then_some(()));
    assert_eq!((w1.http("/healthz").0, w1.http("/readyz").0), (200, 503));
    lab.etcd.restart();
    wait_for("the agent to be ready", || w1.is_ready().then_some(()));
}

#[test]
fn an_agent_waits_for_the_configuration_and_for_its_repair() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::new(1);
    let w1 = lab.start(1, &[]);
    wait_for("the agent to say what it waits for", || w1.log().contains("waiting for somebody to write").then_some(()));
    lab.etcd.configure(r#"{"Network": "11.0.0.0/8", "SubnetLen": 31, "Backend": {"Type": "vxlan"}}"#);
    wait_for("the agent to say what is wrong", || {
        w1.log().contains("SubnetLen is 31: leaves no address for a pod; use 30 or less").then_some(())
    });
    assert!(!lab.subnet_file(1).exists());
    lab.etcd.configure(CONFIG);
    wait_for("the agent to be ready", || w1.is_ready().then_some(()));
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
