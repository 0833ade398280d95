//! What the plugins promise, measured from outside: rates, settings, who reaches whom.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::{Call, files, install_ours, ip, netns, sh, succeeds};

/// A pod on a bridge, with what bridge answered.
fn pod(plugins: &Path, name: &str, conf: &Value) -> (Call, Value) {
    let call = Call::new(plugins, "bridge", name, &netns(name));
    let result = call.run("ADD", conf).ok();
    (call, result)
}

fn bridge_conf(data: &Path, more: Value) -> Value {
    let conf = json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "bridge", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.9.0.0/24"}]]},
    });
    extended(conf, more)
}

/// The configuration of a plugin behind bridge in the list.
fn chained(kind: &str, more: Value, previous: &Value) -> Value {
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": kind, "prevResult": previous});
    extended(conf, more)
}

fn extended(mut conf: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("more of a configuration is an object") };
    conf.as_object_mut().unwrap().extend(more);
    conf
}

fn other(call: &Call, plugins: &Path, plugin: &str) -> Call {
    Call { program: plugins.join(plugin), ..call.clone() }
}

/// Ends with the test that needs it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn iperf_server(netns: &str) -> Server {
    let child = Command::new("ip")
        .args(["netns", "exec", netns, "iperf3", "-s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if sh(&format!("ip netns exec {netns} ss -Hltn 'sport = :5201'")).contains("5201") {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    Server(child)
}

/// What iperf3 measured in one second, in bits per second, as the receiver saw it.
fn rate(arguments: &str) -> f64 {
    let report: Value = serde_json::from_str(&sh(&format!("iperf3 -J -t 1 -c {arguments}"))).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap()
}

#[test]
fn bandwidth_keeps_the_rate_in_each_direction() {
    if !enter_sandbox() {
        return;
    }
    if !succeeds("iperf3 --version") {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no iperf3; `make deps` installs it");
        return;
    }
    sh("ip link set lo up");
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let (call, result) = pod(plugins.path(), "c1", &bridge_conf(data.path(), json!({})));
    let limits = json!({
        "ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000, "egressBurst": 400_000,
    });
    let conf = chained("bandwidth", json!({"runtimeConfig": {"bandwidth": limits}}), &result);
    let bandwidth = other(&call, plugins.path(), "bandwidth");
    let result = bandwidth.run("ADD", &conf).ok();
    let conf = chained("bandwidth", json!({"runtimeConfig": {"bandwidth": limits}}), &result);
    bandwidth.run("CHECK", &conf).ok();
    let server = iperf_server("c1");
    let (to_pod, from_pod) = (rate("10.9.0.2"), rate("10.9.0.2 -R"));
    drop(server);
    // Less than the limit for the headers of the packets; the burst may come on top within one second.
    assert!((60e6..84e6).contains(&to_pod), "{to_pod} bit/s to the pod, limit 80 Mbit/s");
    assert!((30e6..42e6).contains(&from_pod), "{from_pod} bit/s from the pod, limit 40 Mbit/s");

    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    sh(&format!("tc qdisc del dev {veth} ingress"));
    assert_eq!(bandwidth.run("CHECK", &conf).code(), 102, "nothing leads to the ifb");
    bandwidth.run("DEL", &conf).ok();
    assert_eq!(ip("", "link show type ifb"), json!([]));
}

#[test]
fn gc_frees_the_ifbs_and_backups_of_its_own_network_only() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let tuning = json!({"dataDir": data.path().join("tuning"), "mtu": 1400});
    let limits = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    let mut calls = Vec::new();
    for (name, network) in [("c1", "lab"), ("c2", "lab"), ("c3", "other")] {
        let conf = bridge_conf(data.path(), json!({"name": network}));
        let (call, result) = pod(plugins.path(), name, &conf);
        for (kind, more) in [("tuning", &tuning), ("bandwidth", &limits)] {
            let mut conf = chained(kind, more.clone(), &result);
            conf["name"] = json!(network);
            other(&call, plugins.path(), kind).run("ADD", &conf).ok();
        }
        calls.push(call);
    }
    let state = || (files(&data.path().join("tuning")).into_keys().collect::<Vec<_>>(), ip("", "link show type ifb"));
    assert_eq!((state().0.len(), state().1.as_array().unwrap().len()), (3, 3));
    sh("ip netns del c1");
    let valid = json!([{"containerID": "c2", "ifname": "eth0"}]);
    for (kind, more) in [("tuning", &tuning), ("bandwidth", &limits)] {
        let mut conf = chained(kind, more.clone(), &Value::Null);
        conf["cni.dev/valid-attachments"] = valid.clone();
        for _ in 0..2 {
            other(&calls[0], plugins.path(), kind).run("GC", &conf).ok();
        }
    }
    let (backups, ifbs) = state();
    assert_eq!(backups, ["c2_eth0.json", "c3_eth0.json"]);
    assert_eq!(ifbs.as_array().unwrap().len(), 2, "{ifbs}");
}

#[test]
fn tuning_is_seen_in_the_pod_and_taken_back() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let (call, result) = pod(plugins.path(), "c1", &bridge_conf(data.path(), json!({})));
    let settings = json!({
        "dataDir": data.path().join("tuning"), "mtu": 1300, "txQLen": 77, "allmulti": true, "promisc": true,
        "mac": "02:00:00:00:00:77",
        "sysctl": {"net.core.somaxconn": "512", "net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_local_port_range": "2000 65000"},
    });
    let tuning = other(&call, plugins.path(), "tuning");
    let result = tuning.run("ADD", &chained("tuning", settings.clone(), &result)).ok();
    assert_eq!(
        (&result["interfaces"][2]["mac"], &result["interfaces"][2]["mtu"]),
        (&json!("02:00:00:00:00:77"), &json!(1300))
    );
    let conf = chained("tuning", settings, &result);
    tuning.run("CHECK", &conf).ok();
    let link = || ip("c1", "-d link show eth0")[0].clone();
    let of = |link: &Value| ["mtu", "txqlen", "address", "promiscuity", "allmulti"].map(|key| link[key].clone());
    assert_eq!(of(&link()), [json!(1300), json!(77), json!("02:00:00:00:00:77"), json!(1), json!(1)]);
    let sysctl = |key: &str| sh(&format!("ip netns exec c1 cat /proc/sys/net/{key}")).trim().to_owned();
    assert_eq!((sysctl("core/somaxconn"), sysctl("ipv4/conf/eth0/arp_filter")), ("512".to_owned(), "1".to_owned()));
    sh("ip -n c1 link set eth0 txqueuelen 78");
    let answer = tuning.run("CHECK", &conf);
    assert!(
        answer.code() == 102 && answer.json["msg"].as_str().unwrap().contains("Transmit Queue Length"),
        "{answer:?}"
    );
    tuning.run("DEL", &conf).ok();
    let after = of(&link());
    assert_eq!(after[0], 1500);
    assert_eq!((&after[1], &after[3], &after[4]), (&json!(1000), &json!(0), &json!(0)));
    assert_ne!(after[2], "02:00:00:00:00:77");
    tuning.run("DEL", &conf).ok();

    // A DEL whose namespace has gone, and a file that was cut short.
    tuning.run("ADD", &conf).ok();
    std::fs::write(data.path().join("tuning/c1_eth0.json"), "{\"mac\":").unwrap();
    tuning.run("DEL", &conf).ok();
    tuning.run("ADD", &conf).ok();
    sh("ip netns del c1");
    tuning.run("DEL", &conf).ok();
    assert!(files(&data.path().join("tuning")).is_empty());
}

#[test]
fn a_runtime_that_closes_the_standard_streams_gets_nothing_into_its_files() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path(), json!({}));
    netns("pod");
    let environment = "CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_IFNAME=eth0 CNI_NETNS=/run/netns/pod CNI_PATH=";
    let plugins = plugins.path().display();
    sh(&format!("echo '{conf}' | {environment}{plugins} {plugins}/host-local >&- 2>&-"));
    let expected = [("10.9.0.2", "pod\r\neth0"), ("last_reserved_ip.0", "10.9.0.2"), ("lock", "")];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(files(&data.path().join("lab")), expected.into());
}

#[test]
fn an_allow_list_keeps_other_parameters_from_being_set() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let (call, result) = pod(plugins.path(), "c1", &bridge_conf(data.path(), json!({})));
    sh("mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/tuning");
    std::fs::write("/etc/cni/tuning/allowlist.conf", "^net\\.core\\..*$\n").unwrap();
    let tuning = other(&call, plugins.path(), "tuning");
    let conf = |key: &str| chained("tuning", json!({"sysctl": {key: "512"}}), &result);
    tuning.run("ADD", &conf("net.core.somaxconn")).ok();
    assert_eq!(tuning.run("ADD", &conf("net.ipv4.tcp_keepalive_intvl")).code(), 7);
    std::fs::write("/etc/cni/tuning/allowlist.conf", "(\n").unwrap();
    assert_eq!(tuning.run("STATUS", &conf("net.core.somaxconn")).code(), 50);
}

#[test]
fn isolated_pods_reach_the_gateway_and_not_each_other() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let isolated = bridge_conf(data.path(), json!({"portIsolation": true}));
    let (call, result) = pod(plugins.path(), "c1", &isolated);
    pod(plugins.path(), "c2", &isolated);
    pod(plugins.path(), "c3", &bridge_conf(data.path(), json!({})));
    let reaches = |from: &str, to: &str| succeeds(&format!("ip netns exec {from} ping -c1 -W1 {to}"));
    assert!(reaches("c1", "10.9.0.1") && reaches("c1", "10.9.0.4"));
    assert!(!reaches("c1", "10.9.0.3"), "both are isolated");
    let mut conf = isolated.clone();
    conf["prevResult"] = result.clone();
    call.run("CHECK", &conf).ok();
    sh(&format!("bridge link set dev {} isolated off", result["interfaces"][1]["name"].as_str().unwrap()));
    assert!(call.run("CHECK", &conf).json["msg"].as_str().unwrap().contains("portIsolation"));
}

#[test]
fn a_pod_cannot_send_from_another_mac_address() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path(), json!({"macspoofchk": true}));
    let (call, result) = pod(plugins.path(), "c1", &conf);
    let (second, _) = pod(plugins.path(), "c2", &conf);
    let reaches_the_gateway = || succeeds("ip netns exec c1 ping -c1 -W1 10.9.0.1");
    assert!(reaches_the_gateway());
    let mut checked = conf.clone();
    checked["prevResult"] = result.clone();
    call.run("CHECK", &checked).ok();
    sh("ip -n c1 link set eth0 address 02:00:00:00:00:99");
    sh("ip -n c1 route replace default via 10.9.0.1; ip neigh flush all; ip -n c1 neigh flush all");
    assert!(!reaches_the_gateway(), "frames from a MAC that is not its own");
    sh(&format!("ip -n c1 link set eth0 address {}", result["interfaces"][2]["mac"].as_str().unwrap()));
    sh("ip neigh flush all; ip -n c1 neigh flush all");
    assert!(reaches_the_gateway());
    sh("nft flush set bridge cni spoof_allowed");
    assert_eq!(call.run("CHECK", &checked).code(), 102);

    let elements = || sh("nft list table bridge cni").matches("lab c").count();
    // c1: the port that is checked; c2: both of its elements are gone with the flush but one.
    assert_eq!(elements(), 2);
    call.run("DEL", &conf).ok();
    assert_eq!(elements(), 1);
    sh("ip netns del c2");
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    second.run("GC", &gc).ok();
    assert_eq!(elements(), 0);
}

#[test]
fn a_cable_is_found_by_its_mark_when_its_pod_cannot_be_entered() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let bridge = bridge_conf(data.path(), json!({}));
    let ptp = json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": data.path(), "ranges": [[{"subnet": "10.9.0.0/24"}]]},
    });
    for (kind, conf) in [("bridge", bridge), ("ptp", ptp)] {
        let calls = ["c1", "c2", "c3"].map(|name| Call::new(plugins.path(), kind, name, &netns(name)));
        for call in &calls {
            call.run("ADD", &conf).ok();
        }
        let cables = || ip("", "link show type veth").as_array().unwrap().len();
        // The runtime no longer knows where the namespace is, and something in it is still running.
        calls[0].clone().with("CNI_NETNS", "").run("DEL", &conf).ok();
        assert_eq!(cables(), 2, "{kind}");
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "c3", "ifname": "eth0"}]);
        calls[0].run("GC", &gc).ok();
        assert_eq!(cables(), 1, "{kind}");
        assert!(succeeds("ip netns exec c3 ping -c1 -W1 10.9.0.1"), "{kind}");
        calls[2].run("DEL", &conf).ok();
        assert_eq!(cables(), 0, "{kind}");
        assert!(files(&data.path().join("lab")).keys().all(|name| !name.starts_with("10.")));
        sh("ip netns del c1; ip netns del c2; ip netns del c3; ip link del cni0 2>/dev/null || true");
    }
}

#[test]
fn an_interface_that_is_to_stay_down_stays_down() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf =
        bridge_conf(data.path(), json!({"disableContainerInterface": true, "isDefaultGateway": false, "ipam": {}}));
    let (call, result) = pod(plugins.path(), "c1", &conf);
    assert_eq!(ip("c1", "link show eth0")[0]["operstate"], "DOWN");
    let mut checked = conf.clone();
    checked["prevResult"] = result;
    call.run("CHECK", &checked).ok();
    call.run("DEL", &conf).ok();
    let with_ipam = bridge_conf(data.path(), json!({"disableContainerInterface": true}));
    assert_eq!(call.run("ADD", &with_ipam).code(), 7);
}

#[test]
fn pods_of_one_vlan_reach_each_other_and_no_others() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let in_vlan = |vlan: u16| bridge_conf(data.path(), json!({"vlan": vlan}));
    let has_vlans = succeeds("ip link add probe type bridge vlan_filtering 1") && succeeds("ip link del probe");
    if !has_vlans {
        let call = Call::new(plugins.path(), "bridge", "c1", &netns("c1"));
        let answer = call.run("ADD", &in_vlan(100));
        assert_eq!(answer.code(), 100);
        assert!(answer.json["msg"].as_str().unwrap().contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{answer:?}");
        assert_eq!(ip("", "link show type bridge"), json!([]), "a refused ADD leaves no bridge");
        assert!(files(&data.path().join("lab")).keys().all(|name| !name.starts_with("10.")));
        let _ = writeln!(std::io::stderr(), "SKIPPED: this kernel's bridge knows nothing of VLANs");
        return;
    }
    let (call, result) = pod(plugins.path(), "c1", &in_vlan(100));
    pod(plugins.path(), "c2", &in_vlan(100));
    pod(plugins.path(), "c3", &in_vlan(200));
    let reaches = |from: &str, to: &str| succeeds(&format!("ip netns exec {from} ping -c1 -W1 {to}"));
    assert!(reaches("c1", "10.9.0.3") && reaches("c1", "10.9.0.1"));
    assert!(!reaches("c1", "10.9.0.4"));
    assert_eq!(result["interfaces"][3]["name"], "cni0.100");
    let mut conf = in_vlan(100);
    conf["prevResult"] = result;
    call.run("CHECK", &conf).ok();
}

#[test]
fn pods_on_cables_of_their_own_reach_each_other_through_the_node() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "ptp", "ipMasq": true,
        "ipam": {
            "type": "host-local", "dataDir": data.path(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        },
    });
    let calls = ["c1", "c2"].map(|name| Call::new(plugins.path(), "ptp", name, &netns(name)));
    let results = [0, 1].map(|index: usize| calls[index].run("ADD", &conf).ok());
    for address in ["10.9.0.1", "10.9.0.3", "fd00:9::1", "fd00:9::3"] {
        assert!(succeeds(&format!("ip netns exec c1 ping -c1 -W2 {address}")), "{address}");
    }
    let mut checked = conf.clone();
    checked["prevResult"] = results[0].clone();
    calls[0].run("CHECK", &checked).ok();
    assert_eq!(calls[0].run("ADD", &conf).code(), 100, "a second ADD");
    calls[0].run("CHECK", &checked).ok();
    for call in &calls {
        call.run("DEL", &conf).ok();
    }
    assert_eq!(ip("", "link show type veth"), json!([]));
    assert_eq!(ip("", "route show"), json!([]));
    assert!(!sh("nft list ruleset").contains("10.9.0.2"));

    let mut without_gateway = conf.clone();
    without_gateway["ipam"] = json!({"type": "static", "addresses": [{"address": "10.9.0.2/24"}]});
    let answer = calls[0].run("ADD", &without_gateway);
    assert!(answer.code() == 7 && answer.json["msg"].as_str().unwrap().contains("gateway"), "{answer:?}");
    assert_eq!(ip("", "link show type veth"), json!([]));
}
