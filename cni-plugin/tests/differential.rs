//! The same requests to Debian's Go plugins and to ours, in twin namespaces: what they answer, what they leave in the
//! kernel and what they leave in files must be the same.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::fs;
use std::path::Path;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::twin::{Side, both, shell, sides};
use support::{Call, files, go_plugins, install_ours, ip, netns, succeeds};

/// Everything that can be seen of a bridge from outside.
fn state(side: &Side) -> Value {
    let mut state = side.addresses_and_routes();
    let ports = ip(&side.host, "-d link show type veth");
    let ports = ports.as_array().unwrap().iter().map(|port| {
        let data = &port["linkinfo"]["info_slave_data"];
        json!({"master": port["master"], "mtu": port["mtu"], "hairpin": data["hairpin"], "state": data["state"]})
    });
    state["ports"] = ports.collect();
    let bridge = ip(&side.host, "-d link show type bridge");
    state["bridge"] = json!([bridge[0]["ifname"], bridge[0]["mtu"], bridge[0]["promiscuity"]]);
    state["files"] = side.files("net");
    let sysctls = [
        ("host", "net/ipv4/ip_forward"),
        ("host", "net/ipv6/conf/all/forwarding"),
        ("pod", "net/ipv4/conf/eth0/arp_notify"),
        ("pod", "net/ipv6/conf/eth0/accept_dad"),
    ];
    for (place, key) in sysctls {
        let netns = if place == "host" { &side.host } else { &side.pod };
        state[key] = shell(netns, &format!("cat /proc/sys/{key} 2>/dev/null || echo none"));
    }
    state
}

/// The whole life of one attachment. The Go bridge's CHECK does not find a route whose next hop IPAM left open, which it
/// made itself; such a life goes without.
fn compare_life(conf: &Value, has_check: bool) {
    let (go, rust, _ours) = sides();
    let confs = [go.conf(conf), rust.conf(conf)];
    let results = both([&go, &rust], "bridge", "ADD", [&confs[0], &confs[1]], state);
    if has_check {
        let checked: Vec<_> = confs
            .iter()
            .zip(&results)
            .map(|(conf, result)| {
                let mut conf = conf.clone();
                conf["prevResult"] = result.clone();
                conf
            })
            .collect();
        both([&go, &rust], "bridge", "CHECK", [&checked[0], &checked[1]], state);
    }
    for _ in 0..2 {
        both([&go, &rust], "bridge", "DEL", [&confs[0], &confs[1]], state);
    }
    go.remove();
    rust.remove();
}

fn conf(version: &str, more: &Value, ipam: &Value) -> Value {
    let mut conf = json!({"cniVersion": version, "name": "net", "type": "bridge", "bridge": "br7"});
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf["ipam"] = json!({"type": "host-local", "dataDir": "DATADIR"});
    for (key, value) in ipam.as_object().unwrap() {
        conf["ipam"][key] = value.clone();
    }
    conf
}

#[test]
fn every_version_gives_the_same_result_and_the_same_kernel_state() {
    if !enter_sandbox() {
        return;
    }
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let ipam =
            json!({"ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "11.0.0.0/8", "gw": "10.22.0.1"}]});
        compare_life(&conf(version, &json!({"isGateway": true}), &ipam), version >= "0.4.0");
    }
}

#[test]
fn every_kind_of_bridge_gives_the_same_result_and_the_same_kernel_state() {
    if !enter_sandbox() {
        return;
    }
    let v4 = json!({"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.20", "rangeEnd": "10.22.0.30", "gateway": "10.22.0.254"});
    let dual = json!({"ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]]});
    let with_routes = json!({
        "ranges": [[{"subnet": "10.22.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.22.0.9"}],
    });
    let with_default_route = json!({
        "ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "10.22.0.9"}],
    });
    for (has_check, more, ipam) in [
        (true, json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450}), dual.clone()),
        (true, json!({"isGateway": true, "promiscMode": true}), v4),
        (false, json!({}), with_routes),
        (true, json!({"isDefaultGateway": true}), with_default_route),
        (true, json!({"isGateway": true, "enabledad": true}), dual),
        (
            true,
            json!({"isGateway": true, "runtimeConfig": {"mac": "02:00:00:00:00:77", "ips": ["10.22.0.99"]}}),
            json!({"ranges": [[{"subnet": "10.22.0.0/24"}]]}),
        ),
    ] {
        compare_life(&conf("1.0.0", &more, &ipam), has_check);
    }
}

#[test]
fn a_bridge_without_ipam_is_the_same() {
    if !enter_sandbox() {
        return;
    }
    let mut conf = conf("1.0.0", &json!({}), &json!({}));
    conf["ipam"] = json!({});
    let (go, rust, _ours) = sides();
    both([&go, &rust], "bridge", "ADD", [&conf, &conf], state);
    both([&go, &rust], "bridge", "DEL", [&conf, &conf], state);
}

#[test]
fn host_local_alone_gives_the_same_answers_and_files() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let template = conf(
        "1.0.0",
        &json!({}),
        &json!({"ranges": [[{"subnet": "10.22.0.0/29"}, {"subnet": "10.23.0.0/30"}], [{"subnet": "fd00::/125"}]]}),
    );
    // Six addresses fit; the seventh ADD is refused by both, and what was released comes back last.
    for step in [
        "ADD a",
        "ADD b",
        "DEL a",
        "ADD c",
        "ADD d",
        "ADD a",
        "ADD e",
        "ADD f",
        "ADD g",
        "ADD b",
        "DEL c",
        "CHECK d",
        "CHECK c",
        "ADD h",
        "DEL nobody",
    ] {
        let (command, id) = step.split_once(' ').unwrap();
        let answers = [&go, &rust]
            .map(|side| side.call("host-local").with("CNI_CONTAINERID", id).run(command, &side.conf(&template)));
        assert_eq!(answers[0].success, answers[1].success, "{step}: {answers:?}");
        if answers[0].success {
            assert_eq!(go.normal(&answers[0].json), rust.normal(&answers[1].json), "{step}");
        } else {
            assert_eq!(answers[0].json["msg"], answers[1].json["msg"], "{step}");
        }
        assert_eq!(files(&go.data.path().join("net")), files(&rust.data.path().join("net")), "{step}");
    }
}

#[test]
fn mistakes_get_the_same_exit_status_and_code() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let good =
        conf("1.0.0", &json!({"isGateway": true}), &json!({"ranges": [[{"subnet": "10.22.0.0/24"}]]})).to_string();
    let patched = |from: &str, to: &str| good.replace(from, to);
    let table: Vec<(&str, &str, &str, &str, String)> = vec![
        ("bridge", "ADD", "CNI_CONTAINERID", "", good.clone()),
        ("bridge", "ADD", "CNI_NETNS", "", good.clone()),
        ("bridge", "ADD", "CNI_IFNAME", "", good.clone()),
        ("bridge", "DEL", "CNI_PATH", "", good.clone()),
        ("bridge", "ADD", "CNI_CONTAINERID", "../etc", good.clone()),
        ("bridge", "ADD", "CNI_IFNAME", "a/b", good.clone()),
        ("bridge", "ADD", "CNI_IFNAME", "sixteen-letters-", good.clone()),
        ("bridge", "ADD", "CNI_IFNAME", "..", good.clone()),
        ("bridge", "ADD", "CNI_NETNS", "/run/netns/nowhere", good.clone()),
        ("bridge", "ADD", "CNI_NETNS", "/etc/passwd", good.clone()),
        ("bridge", "ADD", "CNI_ARGS", "NONSENSE", good.clone()),
        ("bridge", "ADD", "CNI_ARGS", "UNKNOWN=1", good.clone()),
        ("bridge", "NONSENSE", "", "", good.clone()),
        ("bridge", "NONSENSE", "", "", String::new()),
        ("bridge", "ADD", "", "", String::new()),
        ("bridge", "ADD", "", "", "{".to_owned()),
        ("bridge", "ADD", "", "", "{}".to_owned()),
        ("bridge", "ADD", "", "", patched(r#""net""#, r#""a/b""#)),
        ("bridge", "ADD", "", "", patched("1.0.0", "9.9.9")),
        ("bridge", "CHECK", "", "", patched("1.0.0", "0.3.1")),
        ("bridge", "CHECK", "", "", good.clone()),
        ("bridge", "ADD", "", "", patched("host-local", "not-there")),
        ("bridge", "ADD", "", "", patched("10.22.0.0/24", "10.22.0.0/31")),
        ("bridge", "ADD", "", "", patched("10.22.0.0/24", "10.22.0.7/24")),
        ("bridge", "ADD", "", "", patched("10.22.0.0/24", "nonsense")),
        ("host-local", "ADD", "CNI_ARGS", "IP=10.22.0.1", good.clone()),
        ("host-local", "ADD", "CNI_ARGS", "IP=192.0.2.1", good.clone()),
        ("host-local", "ADD", "", "", patched("ranges", "nothing")),
        ("host-local", "CHECK", "", "", good.clone()),
    ];
    for (plugin, command, key, value, stdin) in table {
        let case = format!("{plugin} {command} {key}={value} {stdin}");
        let answers = [&go, &rust].map(|side| {
            let stdin = stdin.replace("DATADIR", side.data.path().to_str().unwrap());
            let call = side.call(plugin);
            let call = if key.is_empty() { call } else { call.with(key, value) };
            call.run_bytes(command, stdin.as_bytes())
        });
        assert!(!answers[0].success && !answers[1].success, "{case}: {answers:?}");
        let code = answers[0].code();
        // 999 is the Go library's word for an error without a code; ours always has one.
        if code != 999 {
            assert_eq!(code, answers[1].code(), "{case}: {answers:?}");
        }
        let left = [&go, &rust].map(|side| files(&side.data.path().join("net")).contains_key("10.22.0.2"));
        assert_eq!(left, [false, false], "{case}: a refused ADD keeps no address");
    }
}

#[test]
fn both_share_one_directory_at_the_same_time() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let conf = go.conf(&conf("1.0.0", &json!({}), &json!({"ranges": [[{"subnet": "10.22.0.0/24"}]]})));
    let adds: Vec<_> = (0..40).map(|index| (if index % 2 == 0 { &go } else { &rust }, format!("c{index}"))).collect();
    let run = |side: &Side, id: &str, command: &str| {
        side.call("host-local").with("CNI_CONTAINERID", id).run(command, &conf).ok()
    };
    let addresses: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = adds.iter().map(|(side, id)| scope.spawn(|| run(side, id, "ADD"))).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.map(|result| result["ips"][0]["address"].as_str().unwrap().to_owned()).collect()
    });
    assert_eq!(addresses.len(), 40);
    // Each detaches what the other attached.
    for (index, (_, id)) in adds.iter().enumerate() {
        run(if index % 2 == 0 { &rust } else { &go }, id, "DEL");
    }
    assert_eq!(files(&go.data.path().join("net")).keys().collect::<Vec<_>>(), ["last_reserved_ip.0", "lock"]);
}

#[test]
fn mixed_chains_work_both_ways() {
    if !enter_sandbox() {
        return;
    }
    let (ours, go, data) = (install_ours(), go_plugins(), tempfile::tempdir().unwrap());
    let mixed = tempfile::tempdir().unwrap();
    let link = |from: &Path, name: &str, to: &str| {
        fs::create_dir_all(mixed.path().join(to)).unwrap();
        std::os::unix::fs::symlink(from.join(name), mixed.path().join(to).join(name)).unwrap();
    };
    // "middle": our flannel → the Go bridge → our host-local; "inner": our flannel → our bridge → the Go host-local.
    for (to, bridge, ipam) in [("middle", go.as_path(), ours.path()), ("inner", ours.path(), go.as_path())] {
        link(ours.path(), "flannel", to);
        link(bridge, "bridge", to);
        link(ipam, "host-local", to);
    }
    fs::write(
        data.path().join("subnet.env"),
        "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "flannel", "subnetFile": data.path().join("subnet.env"),
        "dataDir": data.path().join("flannel"), "delegate": {"isDefaultGateway": true},
        "ipam": {"dataDir": data.path().join("networks")},
    });
    for dir in ["middle", "inner"] {
        let pod = format!("pod-{dir}");
        let call = Call::new(&mixed.path().join(dir), "flannel", &pod, &netns(&pod));
        let result = call.run("ADD", &conf).ok();
        assert_eq!(result["ips"][0]["gateway"], "11.14.64.1", "{dir}");
        assert!(succeeds(&format!("ip netns exec {pod} ping -c1 -W2 11.14.64.1")), "{dir}");
        let mut checked = conf.clone();
        checked["prevResult"] = result;
        // The Go bridge's CHECK does not find a route whose next hop IPAM left open.
        if dir == "inner" {
            call.run("CHECK", &checked).ok();
        }
    }
    assert!(succeeds("ip netns exec pod-middle ping -c1 -W2 11.14.64.3"), "pods of both chains share the bridge");
    for dir in ["middle", "inner"] {
        let pod = format!("pod-{dir}");
        let call = Call::new(&mixed.path().join(dir), "flannel", &pod, &Path::new("/run/netns").join(&pod));
        call.run("DEL", &conf).ok();
    }
    assert_eq!(files(&data.path().join("networks/net")).len(), 2);
    assert!(files(&data.path().join("flannel")).is_empty());
}
