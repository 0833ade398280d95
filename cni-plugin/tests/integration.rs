//! The plugins as programs, in namespaces of the real kernel.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::{Call, files, install_ours, ip, netns, sh, succeeds};

fn bridge_conf(data_dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "cni0",
        "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": data_dir,
            "ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "11.0.0.0/8"}],
        },
    })
}

fn with_prev_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

#[test]
fn a_pod_gets_interface_address_routes_gateway_and_a_loopback_that_is_up() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path());
    let call = Call::new(plugins.path(), "bridge", "c1", &netns("p1"));

    let result = call.run("ADD", &conf).ok();
    assert_eq!(result["ips"], json!([{"interface": 2, "address": "10.22.0.2/24", "gateway": "10.22.0.1"}]));
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert!(veth.len() == 12 && veth.starts_with("veth"), "{veth}");

    let link = &ip("", &format!("-d link show {veth}"))[0];
    assert_eq!(link["master"], "cni0");
    assert_eq!(link["address"], result["interfaces"][1]["mac"]);
    assert_eq!(link["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert_eq!(ip("", "-4 addr show cni0")[0]["addr_info"][0]["local"], "10.22.0.1");

    let eth0 = &ip("p1", "addr show eth0")[0];
    assert_eq!(eth0["address"], result["interfaces"][2]["mac"]);
    assert_eq!((&eth0["addr_info"][0]["local"], &eth0["addr_info"][0]["prefixlen"]), (&json!("10.22.0.2"), &json!(24)));
    let lo = &ip("p1", "link show lo")[0];
    assert!(lo["flags"].as_array().unwrap().contains(&json!("UP")), "{lo}");
    let routes = ip("p1", "route");
    for (dst, gateway) in [("default", "10.22.0.1"), ("11.0.0.0/8", "10.22.0.1")] {
        let has_it = |route: &Value| route["dst"] == dst && route["gateway"] == gateway && route["dev"] == "eth0";
        assert!(routes.as_array().unwrap().iter().any(has_it), "{routes}");
    }
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert!(succeeds("ip netns exec p1 ping -c1 -W2 10.22.0.1"));

    let checked = with_prev_result(&conf, &result);
    call.run("CHECK", &checked).ok();
    call.run("DEL", &checked).ok();
    assert!(!succeeds(&format!("ip link show {veth}")));
    assert_eq!(
        files(&data.path().join("net")).keys().map(String::as_str).collect::<Vec<_>>(),
        ["last_reserved_ip.0", "lock"]
    );
    call.run("DEL", &checked).ok();
}

#[test]
fn check_notices_what_was_changed_by_hand() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path());
    for (index, sabotage) in [
        "ip -n POD addr del 10.22.0.ADDRESS/24 dev eth0",
        "ip -n POD route del 11.0.0.0/8",
        "ip -n POD route del default",
        "ip link set VETH nomaster",
        "ip -n POD link del eth0",
        "rm DATA/net/10.22.0.ADDRESS",
    ]
    .into_iter()
    .enumerate()
    {
        let pod = format!("p{index}");
        let call = Call::new(plugins.path(), "bridge", &pod, &netns(&pod));
        let result = call.run("ADD", &conf).ok();
        let checked = with_prev_result(&conf, &result);
        call.run("CHECK", &checked).ok();
        let address = result["ips"][0]["address"].as_str().unwrap();
        let last = address.split(['.', '/']).nth(3).unwrap();
        let veth = result["interfaces"][1]["name"].as_str().unwrap();
        let line = sabotage.replace("POD", &pod).replace("ADDRESS", last).replace("VETH", veth);
        sh(&line.replace("DATA", data.path().to_str().unwrap()));
        let answer = call.run("CHECK", &checked);
        assert_eq!(answer.code(), 102, "{sabotage}: {answer:?}");
        call.run("DEL", &checked).ok();
    }
}

#[test]
fn two_pods_of_one_bridge_reach_each_other_by_their_own_addresses() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let mut conf = bridge_conf(data.path());
    // Even with masquerading on, pods of one subnet see each other's own address.
    conf["ipMasq"] = json!(true);
    let calls = ["p1", "p2"].map(|pod| Call::new(plugins.path(), "bridge", pod, &netns(pod)));
    let results = calls.each_ref().map(|call| call.run("ADD", &conf).ok());
    assert!(succeeds("ip netns exec p1 ping -c1 -W2 10.22.0.3"));
    assert!(succeeds("ip netns exec p2 ping -c1 -W2 10.22.0.2"));
    let ruleset = sh("nft list table ip cni");
    assert!(
        ruleset.contains("masquerade") && ruleset.contains("10.22.0.2") && ruleset.contains("10.22.0.3"),
        "{ruleset}"
    );

    // The first goes with its namespace given, the second without, as containerd does it.
    calls[0].run("DEL", &with_prev_result(&conf, &results[0])).ok();
    calls[1].clone().with("CNI_NETNS", "").run("DEL", &with_prev_result(&conf, &results[1])).ok();
    let ruleset = sh("nft list table ip cni");
    assert!(!ruleset.contains("10.22.0.2 ") && !ruleset.contains("10.22.0.3 "), "{ruleset}");
}

#[test]
fn what_leaves_the_subnet_is_masqueraded_only_when_asked_for() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    // An outside host that has no route back to pods: it answers only to the node's own address.
    netns("outside");
    sh("ip link add up0 type veth peer name up1 netns outside");
    sh("ip addr add 192.0.2.1/24 dev up0; ip link set up0 up");
    sh("ip -n outside addr add 192.0.2.2/24 dev up1; ip -n outside link set up1 up");
    for (pod, ip_masq) in [("p1", false), ("p2", true)] {
        let mut conf = bridge_conf(data.path());
        conf["ipMasq"] = json!(ip_masq);
        Call::new(plugins.path(), "bridge", pod, &netns(pod)).run("ADD", &conf).ok();
        let reached = succeeds(&format!("ip netns exec {pod} ping -c1 -W1 192.0.2.2"));
        assert_eq!(reached, ip_masq, "{pod}");
    }
}

#[test]
fn a_failed_add_leaves_nothing() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let mut conf = bridge_conf(data.path());
    // The kernel refuses a route whose next hop is on no link of the pod: the last step of an ADD.
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    let call = Call::new(plugins.path(), "bridge", "c1", &netns("p1"));
    let answer = call.run("ADD", &conf);
    assert_eq!(answer.code(), 100, "{answer:?}");
    assert!(answer.json["msg"].as_str().unwrap().contains("192.0.2.0/24"), "{answer:?}");
    assert!(!files(&data.path().join("net")).contains_key("10.22.0.2"));
    assert_eq!(ip("", "link show master cni0"), json!([]));
    assert!(!succeeds("ip -n p1 link show eth0"));

    call.run("ADD", &bridge_conf(data.path())).ok();
    let again = call.run("ADD", &bridge_conf(data.path()));
    assert!(!again.success);
    assert!(succeeds("ip netns exec p1 ping -c1 -W2 10.22.0.1"), "a refused second ADD breaks nothing");
}

#[test]
fn del_needs_no_namespace() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path());
    for netns_at_del in ["", "/run/netns/vanished"] {
        let path = netns("p1");
        let call = Call::new(plugins.path(), "bridge", "c1", &path);
        call.run("ADD", &conf).ok();
        sh("ip netns del p1");
        call.with("CNI_NETNS", netns_at_del).run("DEL", &conf).ok();
        assert_eq!(files(&data.path().join("net")).len(), 2, "the lock and the last address");
    }
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let call = Call::new(plugins.path(), "bridge", "c1", Path::new("/proc/self/ns/net"));
    assert_eq!(call.run("ADD", &bridge_conf(data.path())).code(), 8);
    assert!(!files(&data.path().join("net")).contains_key("10.22.0.2"));
    let loopback = Call::new(plugins.path(), "loopback", "c1", Path::new("/proc/self/ns/net"));
    assert_eq!(loopback.run("DEL", &json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"})).code(), 8);
}

#[test]
fn a_hundred_adds_at_once_get_a_hundred_addresses_and_a_hundred_dels_leave_nothing() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, data) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = bridge_conf(data.path());
    let calls: Vec<_> = (0..100)
        .map(|index| {
            let pod = format!("p{index}");
            Call::new(plugins.path(), "bridge", &pod, &netns(&pod))
        })
        .collect();
    let addresses: BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.run("ADD", &conf).ok())).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.map(|result| result["ips"][0]["address"].as_str().unwrap().to_owned()).collect()
    });
    assert_eq!(addresses.len(), 100, "{addresses:?}");
    assert_eq!(ip("", "link show master cni0").as_array().unwrap().len(), 100);
    std::thread::scope(|scope| {
        for call in &calls {
            scope.spawn(|| call.run("DEL", &conf).ok());
        }
    });
    assert_eq!(ip("", "link show master cni0"), json!([]));
    assert_eq!(files(&data.path().join("net")).len(), 2, "the lock, and the address that was given last");
}

/// Writes `subnet.env` and a list of the flannel plugin; gives the list's directory.
fn flannel_lab(dir: &Path) {
    fs::write(
        dir.join("subnet.env"),
        "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    let list = json!({
        "cniVersion": "1.0.0", "name": "C0w1",
        "plugins": [{
            "type": "flannel", "subnetFile": dir.join("subnet.env"), "dataDir": dir.join("flannel"),
            "delegate": {"isDefaultGateway": true, "hairpinMode": true},
            "ipam": {"dataDir": dir.join("networks")},
        }],
    });
    fs::write(dir.join("10-flannel.conflist"), list.to_string()).unwrap();
}

fn cnitool(plugins: &Path, path: &str, dir: &Path, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(plugins.join("cnitool"))
        .args(arguments)
        .env("CNI_PATH", path)
        .env("NETCONFPATH", dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// The cache is in `/var/lib/cni`, whoever calls; the sandbox gets a `/var/lib` of its own.
fn private_var_lib() {
    sh("mount -t tmpfs tmpfs /var/lib");
}

#[test]
fn cnitool_attaches_checks_and_detaches_through_the_whole_chain() {
    if !enter_sandbox() {
        return;
    }
    private_var_lib();
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    flannel_lab(dir.path());
    netns("k0_c1");
    let path = plugins.path().to_str().unwrap();
    let tool = |verb: &str| cnitool(plugins.path(), path, dir.path(), &[verb, "C0w1", "/run/netns/k0_c1"]);

    let (success, _, stderr) = tool("check");
    assert!(!success && stderr.contains("C0w1"), "{stderr}");
    let (success, stdout, stderr) = tool("add");
    assert!(success && stderr.is_empty(), "{stderr}");
    assert!(stdout.starts_with("{\n    \"cniVersion\": \"1.0.0\","), "{stdout}");
    let result: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["ips"][0]["address"], "11.14.64.2/20");
    assert_eq!(ip("k0_c1", "link show eth0")[0]["mtu"], 1450);
    assert!(succeeds("ip netns exec k0_c1 ping -c1 -W2 11.14.64.1"));
    assert!(!succeeds("nft list table ip cni"), "the agent masquerades, so the bridge does not");

    let cached = files(Path::new("/var/lib/cni/results"));
    let (name, entry) = cached.iter().next().unwrap();
    assert!(name.starts_with("C0w1-cnitool-") && name.ends_with("-eth0"), "{name}");
    let entry: Value = serde_json::from_str(entry).unwrap();
    assert_eq!((&entry["kind"], &entry["ifName"], &entry["result"]), (&json!("cniCacheV1"), &json!("eth0"), &result));

    assert!(tool("check").0);
    assert!(!tool("add").0);
    assert!(tool("check").0, "a second ADD is refused and breaks nothing");
    sh("ip -n k0_c1 addr flush dev eth0");
    let (success, stdout, stderr) = tool("check");
    assert!(!success && stdout.is_empty() && stderr.contains("11.14.64.2"), "{stderr}");
    for _ in 0..2 {
        assert_eq!(tool("del"), (true, String::new(), String::new()));
    }
    assert!(files(Path::new("/var/lib/cni/results")).is_empty());
    assert!(files(&dir.path().join("flannel")).is_empty());
    assert_eq!(files(&dir.path().join("networks/C0w1")).len(), 2);
}

#[test]
fn a_chain_that_fails_late_is_rolled_back() {
    if !enter_sandbox() {
        return;
    }
    private_var_lib();
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    flannel_lab(dir.path());
    let path = dir.path().join("10-flannel.conflist");
    let mut list: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(json!({"type": "not-there"}));
    fs::write(&path, list.to_string()).unwrap();
    netns("k0_c1");
    let plugin_path = plugins.path().to_str().unwrap();
    let (success, stdout, stderr) =
        cnitool(plugins.path(), plugin_path, dir.path(), &["add", "C0w1", "/run/netns/k0_c1"]);
    assert!(!success && stdout.is_empty() && stderr.contains("not-there"), "{stderr}");
    assert_eq!(ip("", "link show master cni0"), json!([]));
    assert_eq!(files(&dir.path().join("networks/C0w1")).len(), 2);
    assert!(files(&dir.path().join("flannel")).is_empty());
}

#[test]
fn a_lost_state_file_does_not_leak_the_address() {
    if !enter_sandbox() {
        return;
    }
    private_var_lib();
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    flannel_lab(dir.path());
    netns("k0_c1");
    let path = plugins.path().to_str().unwrap();
    let tool = |verb: &str| cnitool(plugins.path(), path, dir.path(), &[verb, "C0w1", "/run/netns/k0_c1"]);
    assert!(tool("add").0);
    fs::remove_dir_all(dir.path().join("flannel")).unwrap();
    assert_eq!(tool("del"), (true, String::new(), String::new()));
    assert_eq!(files(&dir.path().join("networks/C0w1")).len(), 2);
}

#[test]
fn without_a_lease_the_runtime_is_asked_to_try_again() {
    if !enter_sandbox() {
        return;
    }
    let plugins = install_ours();
    let conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "flannel", "subnetFile": "/nonexistent/subnet.env"});
    let call = Call::new(plugins.path(), "flannel", "c1", &netns("p1"));
    assert_eq!(call.run("ADD", &conf).code(), 11);
    assert_eq!(call.run("STATUS", &conf).code(), 50);
    call.run("DEL", &conf).ok();
}

#[test]
fn gc_frees_what_no_listed_attachment_holds() {
    if !enter_sandbox() {
        return;
    }
    private_var_lib();
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    flannel_lab(dir.path());
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "C0w1", "type": "flannel", "subnetFile": dir.path().join("subnet.env"),
        "dataDir": dir.path().join("flannel"), "ipam": {"dataDir": dir.path().join("networks")},
    });
    for pod in ["kept", "lost", "half"] {
        Call::new(plugins.path(), "flannel", pod, &netns(pod)).run("ADD", &conf).ok();
    }
    // One went with its node's memory, of another only the reservation is left.
    sh("ip netns del lost");
    fs::remove_file(dir.path().join("flannel/half@eth0")).unwrap();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    let gc = Call::new(plugins.path(), "flannel", "", Path::new(""));
    gc.run("GC", &conf).ok();
    assert_eq!(files(&dir.path().join("flannel")).keys().collect::<Vec<_>>(), ["kept@eth0"]);
    let reservations = files(&dir.path().join("networks/C0w1"));
    assert_eq!(reservations.keys().collect::<Vec<_>>(), ["11.14.64.2", "last_reserved_ip.0", "lock"]);
    assert!(succeeds("ip netns exec kept ping -c1 -W2 11.14.64.1"));
    conf["cniVersion"] = json!("1.0.0");
    assert_eq!(gc.run("GC", &conf).code(), 1, "GC is new in 1.1.0");
}

#[test]
fn loopback_goes_up_and_passes_a_previous_result_on() {
    if !enter_sandbox() {
        return;
    }
    let plugins = install_ours();
    let conf = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let call = Call::new(plugins.path(), "loopback", "c1", &netns("p1")).with("CNI_IFNAME", "lo");
    let result = call.run("ADD", &conf).ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert!(succeeds("ip netns exec p1 ping -c1 -W1 127.0.0.1"));
    call.run("CHECK", &with_prev_result(&conf, &result)).ok();
    sh("ip -n p1 link set lo down");
    assert_eq!(call.run("CHECK", &with_prev_result(&conf, &result)).code(), 102);

    let previous = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]});
    assert_eq!(call.run("ADD", &with_prev_result(&conf, &previous)).ok(), previous);
    call.run("DEL", &conf).ok();
    call.clone().with("CNI_NETNS", "/run/netns/vanished").run("DEL", &conf).ok();
}

#[test]
fn a_person_who_runs_a_plugin_is_told_what_it_is() {
    let plugins = install_ours();
    for name in ["flannel", "bridge", "host-local", "loopback"] {
        let output = Command::new(plugins.path().join(name)).env_clear().output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(name) && text.contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{text}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_cni-plugin")).arg("--help").output().unwrap();
    assert!(String::from_utf8(help.stdout).unwrap().contains("install"));
}

#[test]
fn version_needs_neither_standard_input_nor_a_container() {
    let plugins = install_ours();
    let call = Call::new(plugins.path(), "bridge", "", Path::new("dummy"));
    let answer = call.run_bytes("VERSION", b"").ok();
    assert_eq!(answer["cniVersion"], "1.1.0");
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
}
