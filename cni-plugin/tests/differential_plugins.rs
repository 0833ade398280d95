//! ptp, static, tuning and bandwidth beside Debian's Go plugins: the same requests, the same answers, the same state.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does: by panicking")]

mod support;

use linux_net::testing::enter_sandbox;
use serde_json::{Value, json};
use support::twin::{Side, both, shell, sides};
use support::{ip, sh};

fn merged(base: &Value, more: &Value) -> Value {
    let mut merged = base.clone();
    merged.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    merged
}

fn with_prev_result(confs: &[Value; 2], results: [Value; 2]) -> [Value; 2] {
    let mut results = results.into_iter();
    confs.clone().map(|conf| merged(&conf, &json!({"prevResult": results.next().unwrap()})))
}

/// Addresses, routes, cables and reservations.
fn ptp_state(side: &Side) -> Value {
    let mut state = side.addresses_and_routes();
    let cables = ip(&side.host, "-d link show type veth");
    let cables = cables.as_array().unwrap().iter().map(|cable| json!([cable["mtu"], cable["operstate"]]));
    state["cables"] = cables.collect();
    state["files"] = side.files("net");
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        state[key] = shell(&side.host, &format!("cat /proc/sys/{key}"));
    }
    state
}

#[test]
fn ptp_lays_the_same_cable_in_every_version() {
    if !enter_sandbox() {
        return;
    }
    let v4 = json!({"ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]});
    let dual = json!({
        "ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "fd00:22::/64"}]],
        "routes": [{"dst": "192.0.2.0/24", "gw": "10.22.0.1"}, {"dst": "::/0", "gw": "fd00:22::1"}],
    });
    for (version, ipam, more, has_check) in [
        ("", &v4, json!({}), false),
        ("0.2.0", &v4, json!({"mtu": 1400}), false),
        ("0.3.1", &v4, json!({}), false),
        // The Go plugin's CHECK does not find a route whose next hop IPAM left open, which it made itself.
        ("0.4.0", &dual, json!({}), true),
        ("1.0.0", &v4, json!({"dns": {"nameservers": ["10.22.0.1"], "search": ["a.example"]}}), false),
        ("1.0.0", &dual, json!({"mtu": 1400}), true),
    ] {
        let (go, rust, _ours) = sides();
        let mut conf = merged(&json!({"cniVersion": version, "name": "net", "type": "ptp"}), &more);
        conf["ipam"] = merged(ipam, &json!({"type": "host-local", "dataDir": "DATADIR"}));
        let confs = [go.conf(&conf), rust.conf(&conf)];
        let results = both([&go, &rust], "ptp", "ADD", [&confs[0], &confs[1]], ptp_state);
        if has_check {
            let checked = with_prev_result(&confs, results);
            both([&go, &rust], "ptp", "CHECK", [&checked[0], &checked[1]], ptp_state);
            for side in [&go, &rust] {
                sh(&format!("ip -n {} addr del 10.22.0.2/24 dev eth0", side.pod));
            }
            let answers =
                [&go, &rust].map(|side| side.call("ptp").run("CHECK", &checked[usize::from(side.host == rust.host)]));
            assert!(answers.iter().all(|answer| !answer.success), "{answers:?}");
            for side in [&go, &rust] {
                sh(&format!("ip -n {} addr add 10.22.0.2/24 dev eth0 brd +", side.pod));
            }
        }
        for _ in 0..2 {
            both([&go, &rust], "ptp", "DEL", [&confs[0], &confs[1]], ptp_state);
        }
        assert_eq!(ip(&rust.host, "link show type veth"), json!([]));
        go.remove();
        rust.remove();
    }
}

#[test]
fn static_gives_the_same_addresses_and_makes_the_same_mistakes() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let ipam = json!({
        "type": "static", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.10.0.9"}],
        "addresses": [{"address": "10.10.0.7/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64"}],
        "dns": {"nameservers": ["10.10.0.1"], "domain": "a.example", "options": ["ndots:2"]},
    });
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let base = json!({"cniVersion": version, "name": "net", "type": "ptp", "ipam": ipam});
        for (more, args) in [
            (json!({}), ""),
            (json!({}), "IP=10.20.0.7/24;GATEWAY=10.20.0.1"),
            (json!({}), "IP=10.20.0.7"),
            (json!({}), "GATEWAY=nonsense"),
            (json!({"runtimeConfig": {"ips": ["10.30.0.7/24", "fd00::7/64"]}}), "IgnoreUnknown=1;K8S_POD_NAME=p"),
            (json!({"runtimeConfig": {"ips": ["10.30.0.7"]}}), ""),
            (json!({"args": {"cni": {"ips": ["10.40.0.7/24"]}}}), ""),
            (json!({"ipam": {"type": "static"}}), "IP=10.20.0.7/24"),
            (json!({"ipam": {"type": "static", "addresses": [{"address": "10.10.0.7"}]}}), ""),
            (json!({"ipam": null}), ""),
        ] {
            let conf = merged(&base, &more);
            for command in ["ADD", "DEL"] {
                let answers = [&go, &rust].map(|side| side.call("static").with("CNI_ARGS", args).run(command, &conf));
                let context = format!("{command} {args} {conf}: {answers:?}");
                // Neither keeps anything that a DEL could need, and ours does not fail about it either.
                assert_eq!(answers[0].success, answers[1].success, "{context}");
                if answers[0].success {
                    assert_eq!(go.normal(&answers[0].json), rust.normal(&answers[1].json), "{context}");
                }
            }
        }
    }
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipam": ipam,
        "prevResult": {"cniVersion": "1.0.0", "ips": [
            {"address": "10.10.0.7/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:1ff::1/64"}]},
    });
    both([&go, &rust], "static", "CHECK", [&conf, &conf], |_| Value::Null);
    let mut other = conf.clone();
    other["prevResult"]["ips"][0]["gateway"] = json!("10.10.0.1");
    both([&go, &rust], "static", "CHECK", [&other, &other], |_| Value::Null);
}

/// A cable into the pod, and what a first plugin would have answered.
fn lay_cable(side: &Side) -> Value {
    sh(&format!(
        "ip -n {host} link add veth00000001 address 02:00:00:00:00:01 type veth \
         peer name eth0 address 02:00:00:00:00:02 netns {pod}; \
         ip -n {host} link set veth00000001 up; ip -n {pod} link set eth0 up",
        host = side.host,
        pod = side.pod
    ));
    json!({
        "interfaces": [
            {"name": "veth00000001", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": format!("/run/netns/{}", side.pod)},
        ],
        "ips": [{"version": "4", "interface": 1, "address": "10.1.0.2/24"}],
    })
}

/// The interface with its settings, the parameters, and the backup.
fn tuning_state(side: &Side) -> Value {
    let link = &ip(&side.pod, "-d link show eth0")[0];
    let mut files = side.files("tuning");
    for (_, text) in files.as_object_mut().unwrap() {
        // Ours says whose file it is; the Go plugin's does not.
        let mut backup: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        backup.as_object_mut().unwrap().remove("attachment");
        *text = backup;
    }
    let parameters = ["net/core/somaxconn", "net/ipv4/conf/eth0/arp_filter"];
    let parameters = parameters.map(|key| shell(&side.pod, &format!("cat /proc/sys/{key}")));
    json!([
        link["address"],
        link["mtu"],
        link["promiscuity"],
        link["allmulti"],
        link["txqlen"],
        link["flags"],
        files,
        parameters
    ])
}

#[test]
fn tuning_changes_keeps_and_puts_back_the_same() {
    if !enter_sandbox() {
        return;
    }
    sh("mkdir -p /run/cni");
    let everything = json!({
        "mac": "02:00:00:00:00:77", "mtu": 1400, "promisc": true, "allmulti": true,
        "sysctl": {"net.core.somaxconn": "512", "net.ipv4.conf.IFNAME.arp_filter": "1"},
    });
    for (version, more) in [
        ("0.3.0", everything.clone()),
        ("0.4.0", json!({"mtu": 1300, "args": {"cni": {"mtu": 1200}}})),
        ("1.0.0", json!({"sysctl": {"net.core.somaxconn": "256"}})),
        (
            "1.0.0",
            json!({"runtimeConfig": {"mac": "02:00:00:00:00:78"}, "mac": "02:00:00:00:00:77", "allmulti": false}),
        ),
        // The Go plugin's CHECK does not know what IFNAME stands for.
        ("1.0.0", merged(&everything, &json!({"sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}))),
    ] {
        let (go, rust, _ours) = sides();
        let base = merged(
            &json!({"cniVersion": version, "name": "net", "type": "tuning", "dataDir": "DATADIR/tuning"}),
            &more,
        );
        let results = [&go, &rust].map(|side| merged(&lay_cable(side), &json!({"cniVersion": version})));
        let confs = with_prev_result(&[go.conf(&base), rust.conf(&base)], results);
        let results = both([&go, &rust], "tuning", "ADD", [&confs[0], &confs[1]], tuning_state);
        let confs = with_prev_result(&confs, results);
        if version >= "0.4.0" {
            both([&go, &rust], "tuning", "CHECK", [&confs[0], &confs[1]], tuning_state);
            for side in [&go, &rust] {
                sh(&format!(
                    "ip -n {pod} link set eth0 mtu 1234; ip -n {pod} link set eth0 promisc on",
                    pod = side.pod
                ));
                sh(&format!("ip netns exec {} sysctl -qw net.core.somaxconn=300", side.pod));
            }
            both([&go, &rust], "tuning", "CHECK", [&confs[0], &confs[1]], tuning_state);
        }
        for _ in 0..2 {
            both([&go, &rust], "tuning", "DEL", [&confs[0], &confs[1]], tuning_state);
        }
        assert_eq!(rust.files("tuning"), json!({}));
        go.remove();
        rust.remove();
    }
}

#[test]
fn each_puts_back_what_the_other_changed() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    for (adds, dels) in [(&go, &rust), (&rust, &go)] {
        let side = adds;
        let result = lay_cable(side);
        let conf = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": side.data.path().join("tuning"),
            "mtu": 1400, "mac": "02:00:00:00:00:77", "promisc": true, "prevResult": merged(&result, &json!({"cniVersion": "1.0.0"})),
        });
        side.call("tuning").run("ADD", &conf).ok();
        assert_eq!(ip(&side.pod, "link show eth0")[0]["mtu"], 1400);
        let mut del = side.call("tuning");
        del.program = dels.plugins.join("tuning");
        del.run("DEL", &conf).ok();
        let link = &ip(&side.pod, "link show eth0")[0];
        assert_eq!(
            (&link["mtu"], &link["address"], &link["promiscuity"]),
            (&json!(1500), &json!("02:00:00:00:00:02"), &Value::Null)
        );
        assert_eq!(side.files("tuning"), json!({}));
    }
}

#[test]
fn tuning_refuses_the_same() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let results = [&go, &rust].map(lay_cable);
    for more in [
        json!({"sysctl": {"kernel.hostname": "x"}}),
        json!({"sysctl": {"net/../kernel/hostname": "x"}}),
        json!({"sysctl": {"net.no.such.parameter": "1"}}),
        json!({"sysctl": {"net.core.somaxconn": 5}}),
        json!({"mac": "nonsense"}),
        json!({"mtu": "1400"}),
        json!({"prevResult": null, "mtu": 1400}),
    ] {
        let base = merged(
            &json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": "DATADIR/tuning"}),
            &more,
        );
        let answers = [(&go, &results[0]), (&rust, &results[1])].map(|(side, result)| {
            let result = merged(result, &json!({"cniVersion": "1.0.0"}));
            let conf = merged(&json!({"prevResult": result}), &side.conf(&base));
            side.call("tuning").run("ADD", &conf)
        });
        assert!(answers.iter().all(|answer| !answer.success), "{more}: {answers:?}");
    }
    assert_eq!(rust.files("tuning"), json!({}), "a refused ADD keeps no backup");
}

/// Queues, filters and the ifb, without what differs from run to run.
fn bandwidth_state(side: &Side) -> Value {
    let json_of = |line: &str| -> Value {
        let text = sh(&format!("ip netns exec {} {line}", side.host));
        if text.trim().is_empty() { json!([]) } else { serde_json::from_str(&text).unwrap() }
    };
    let ifbs = ip(&side.host, "-d link show type ifb");
    let ifbs = ifbs.as_array().unwrap().iter();
    let ifbs: Value =
        ifbs.map(|ifb| json!([ifb["ifname"], ifb["mtu"], ifb["txqlen"], ifb["flags"], ifb["qdisc"]])).collect();
    let filters =
        sh(&format!("ip netns exec {} tc filter show dev veth00000001 parent ffff: 2>/dev/null || true", side.host));
    // What the Go plugin's library adds to the first action, which takes the packet away, never happens.
    let filters = filters.split("action order 2").next().unwrap_or_default().trim();
    json!({"qdiscs": json_of("tc -j -d qdisc show"), "ifbs": ifbs, "filters": filters})
}

#[test]
fn bandwidth_makes_the_same_queues() {
    if !enter_sandbox() {
        return;
    }
    let ingress = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000});
    let egress = json!({"egressRate": 1_234_567, "egressBurst": 7_654_321});
    let both_ways = merged(&ingress, &egress);
    for (version, more) in [
        ("0.3.0", both_ways.clone()),
        ("0.3.1", ingress),
        ("0.4.0", egress),
        ("1.0.0", json!({"runtimeConfig": {"bandwidth": both_ways.clone()}})),
        (
            "1.0.0",
            merged(&both_ways, &json!({"runtimeConfig": {"bandwidth": {"ingressRate": 16, "ingressBurst": 16}}})),
        ),
        ("1.0.0", json!({"ingressRate": 50_000_000_000_u64, "ingressBurst": 800_000_000})),
        ("1.0.0", json!({})),
    ] {
        let (go, rust, _ours) = sides();
        let base = merged(&json!({"cniVersion": version, "name": "net", "type": "bandwidth"}), &more);
        let results = [&go, &rust].map(|side| merged(&lay_cable(side), &json!({"cniVersion": version})));
        let confs = with_prev_result(&[base.clone(), base.clone()], results);
        let results = both([&go, &rust], "bandwidth", "ADD", [&confs[0], &confs[1]], bandwidth_state);
        let confs = with_prev_result(&confs, results);
        // Without a limit the Go plugin's CHECK ends in a panic.
        if version >= "0.4.0" && more != json!({}) {
            both([&go, &rust], "bandwidth", "CHECK", [&confs[0], &confs[1]], bandwidth_state);
        }
        for _ in 0..2 {
            both([&go, &rust], "bandwidth", "DEL", [&confs[0], &confs[1]], bandwidth_state);
        }
        assert_eq!(ip(&rust.host, "link show type ifb"), json!([]));
        go.remove();
        rust.remove();
    }
}

#[test]
fn each_takes_away_the_others_ifb() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    for (adds, dels) in [(&go, &rust), (&rust, &go)] {
        let result = merged(&lay_cable(adds), &json!({"cniVersion": "1.0.0"}));
        let conf = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "egressRate": 8000, "egressBurst": 8000,
            "prevResult": result,
        });
        adds.call("bandwidth").run("ADD", &conf).ok();
        assert_eq!(ip(&adds.host, "link show type ifb").as_array().unwrap().len(), 1);
        let mut other = adds.call("bandwidth");
        other.program = dels.plugins.join("bandwidth");
        other.run("CHECK", &conf).ok();
        other.run("DEL", &conf).ok();
        assert_eq!(ip(&adds.host, "link show type ifb"), json!([]));
    }
}

#[test]
fn bandwidth_refuses_the_same() {
    if !enter_sandbox() {
        return;
    }
    let (go, rust, _ours) = sides();
    let results = [&go, &rust].map(lay_cable);
    for more in [
        json!({"ingressRate": 8000}),
        json!({"egressBurst": 8000}),
        json!({"ingressRate": 8000, "ingressBurst": 40_000_000_000_u64}),
        json!({"ingressRate": "8000", "ingressBurst": 8000}),
        json!({"runtimeConfig": {"bandwidth": {"egressRate": 8000}}}),
        json!({"ingressRate": 8000, "ingressBurst": 8000, "prevResult": {"cniVersion": "1.0.0", "ips": []}}),
        json!({"ingressRate": 8000, "ingressBurst": 8000, "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "lo"}]}}),
    ] {
        let answers = [(&go, &results[0]), (&rust, &results[1])].map(|(side, result)| {
            let result = merged(result, &json!({"cniVersion": "1.0.0"}));
            let base = json!({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "prevResult": result});
            side.call("bandwidth").run("ADD", &merged(&base, &more))
        });
        assert!(answers.iter().all(|answer| !answer.success), "{more}: {answers:?}");
        assert!(answers[1].code() != 999);
    }
    assert_eq!(bandwidth_state(&rust)["ifbs"], json!([]));
}
