//! The flannel plugin with leases of two families, and without a lease.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use std::fs;
use std::path::Path;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::{Call, files, install_ours, ip, netns, sh, succeeds};

const DUAL_LEASE: &str = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\n\
                          FLANNEL_IPV6_NETWORK=fd00:11::/48\nFLANNEL_IPV6_SUBNET=fd00:11:0:7::1/64\n\
                          FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

fn conf(dir: &Path, delegate: &Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "flannel", "subnetFile": dir.join("subnet.env"),
        "dataDir": dir.join("flannel"), "delegate": delegate, "ipam": {"dataDir": dir.join("networks")},
    })
}

#[test]
fn a_lease_of_two_families_gives_a_pod_an_address_of_each_through_bridge_and_through_ptp() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("subnet.env"), DUAL_LEASE).unwrap();
    for delegate in [json!({"isDefaultGateway": true}), json!({"type": "ptp"})] {
        let conf = conf(dir.path(), &delegate);
        let calls = ["c1", "c2"].map(|name| Call::new(plugins.path(), "flannel", name, &netns(name)));
        let results = [0, 1].map(|index: usize| calls[index].run("ADD", &conf).ok());
        let addresses =
            |result: &Value| [0, 1].map(|at: usize| result["ips"][at]["address"].as_str().unwrap().to_owned());
        let [_, second] = results.each_ref().map(addresses);
        assert!(second[0].ends_with("/20") && second[1].starts_with("fd00:11:0:7::") && second[1].ends_with("/64"));
        assert_eq!(ip("c1", "link show eth0")[0]["mtu"], 1430);
        let routes: Vec<_> =
            results[0]["routes"].as_array().unwrap().iter().map(|route| route["dst"].clone()).collect();
        assert!(routes.contains(&json!("11.0.0.0/8")) && routes.contains(&json!("fd00:11::/48")), "{routes:?}");
        for address in
            ["11.14.64.1", "fd00:11:0:7::1"].into_iter().chain(second.iter().map(|a| a.split('/').next().unwrap()))
        {
            assert!(succeeds(&format!("ip netns exec c1 ping -c1 -W2 {address}")), "{delegate} {address}");
        }
        let mut checked = conf.clone();
        checked["prevResult"] = results[0].clone();
        calls[0].run("CHECK", &checked).ok();
        sh("ip -n c1 -6 addr flush dev eth0 scope global");
        assert_eq!(calls[0].run("CHECK", &checked).code(), 102);
        for call in &calls {
            call.run("DEL", &conf).ok();
        }
        let left = files(&dir.path().join("networks/lab")).into_keys().filter(|name| name.starts_with(['1', 'f']));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
        sh("ip netns del c1; ip netns del c2; ip link del cni0 2>/dev/null || true");
    }
}

#[test]
fn without_a_lease_status_says_why_add_asks_to_try_again_and_gc_does_its_work() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    let conf = conf(dir.path(), &json!({}));
    let call = Call::new(plugins.path(), "flannel", "c1", &netns("c1"));
    let gc = |keep: Value| {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = keep;
        call.run("GC", &conf)
    };
    let answer = call.run("STATUS", &conf);
    assert!(answer.code() == 50 && answer.json["msg"].as_str().unwrap().contains("subnet.env"), "{answer:?}");
    assert_eq!(call.run("ADD", &conf).code(), 11);
    assert_eq!(gc(json!([])).code(), 11, "nobody says where to look");

    fs::write(dir.path().join("subnet.env"), DUAL_LEASE).unwrap();
    call.run("STATUS", &conf).ok();
    call.run("ADD", &conf).ok();
    fs::remove_file(dir.path().join("subnet.env")).unwrap();
    let addresses =
        || files(&dir.path().join("networks/lab")).into_keys().filter(|name| !name.starts_with('l')).count();
    gc(json!([{"containerID": "c1", "ifname": "eth0"}])).ok();
    assert_eq!((files(&dir.path().join("flannel")).len(), addresses()), (1, 2));
    gc(json!([])).ok();
    assert_eq!((files(&dir.path().join("flannel")).len(), addresses()), (0, 0));
}
