//! A fuzz target for what a runtime sends: the environment and standard input of every plugin, bent and broken.
//!
//! It runs for five seconds, or for `CNI_FUZZ_SECONDS`. Whatever comes in, a plugin must not panic, must answer an error with JSON
//! that bears a code, and must leave nothing behind once the container is gone and DEL and GC were called. What fails is shrunk by proptest.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

mod support;

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use cni_plugin::plugin;
use linux_net::testing::enter_sandbox;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};
use support::{install_ours, ip, netns, sh};

/// One change of a document.
#[derive(Debug, Clone)]
enum Bend {
    /// Puts another value in the place of one.
    Replace(Index, Value),
    /// Takes a member or an item away.
    Remove(Index),
    /// Says a member a second time, in capitals.
    Repeat(Index, Value),
}

/// One call.
#[derive(Debug, Clone)]
struct Call {
    plugin: usize,
    command: String,
    container_id: String,
    netns: String,
    ifname: String,
    args: String,
    bends: Vec<Bend>,
    /// Where the text is cut, and which byte is flipped, if it is.
    cut: Option<Index>,
    flip: Option<(Index, u8)>,
}

/// Configurations that work, by plugin.
fn conf(plugin: &str) -> Value {
    let ipam = json!({
        "type": "host-local", "dataDir": "ipam", "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9", "gateway": "10.22.0.1"}], [{"subnet": "fd22::/64"}]]
    });
    let previous = json!({
        "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"interface": 0, "address": "10.22.0.9/24", "gateway": "10.22.0.1"}]
    });
    let mut conf = match plugin {
        "flannel" => {
            json!({"subnetFile": "subnet.env", "dataDir": "flannel", "delegate": {"isDefaultGateway": true}, "ipam": {"dataDir": "ipam"}})
        }
        "bridge" => {
            json!({"bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400, "ipam": ipam})
        }
        "ptp" => json!({"ipMasq": true, "mtu": 1400, "ipam": ipam}),
        "host-local" => json!({"ipam": ipam}),
        "static" => {
            json!({"ipam": {"type": "static", "addresses": [{"address": "10.22.0.9/24", "gateway": "10.22.0.1"}], "routes": [{"dst": "0.0.0.0/0"}]}})
        }
        "portmap" => {
            json!({"snat": true, "prevResult": previous, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
        }
        "firewall" => json!({"ingressPolicy": "open", "prevResult": previous}),
        "tuning" => {
            json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400, "dataDir": "tuning", "prevResult": previous})
        }
        "bandwidth" => json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "prevResult": previous}),
        _ => json!({}),
    };
    let more = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": plugin,
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]
    });
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// Values that a careless reader trips over. Paths stay in the directory of the test or lead nowhere.
fn hostile() -> impl Strategy<Value = Value> {
    let long = "a".repeat(300);
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(u64::MAX),
        json!(65_536),
        json!(""),
        json!("\u{0}"),
        json!("../up"),
        json!("/dev/null/x"),
        json!("/proc/nope"),
        json!(long),
        json!("10.22.0.0/33"),
        json!("10.22.0.255"),
        json!("::/0"),
        json!("0.0.0.0/0"),
        json!("255.255.255.255/32"),
        json!("fd22::1"),
        json!("zz"),
        json!("eth0"),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!([null]),
        json!({"a": {"b": null}}),
        json!("0.1.0"),
        json!("0.4.0"),
        json!("1.1.0"),
        json!("9.9.9"),
        json!("host-local"),
        json!("static"),
        json!("bridge"),
        json!("nope"),
        json!("Ünïcödé"),
    ];
    select(values.to_vec())
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    let bend = prop_oneof![
        3 => (any::<Index>(), hostile()).prop_map(|(index, value)| Bend::Replace(index, value)),
        1 => any::<Index>().prop_map(Bend::Remove),
        1 => (any::<Index>(), hostile()).prop_map(|(index, value)| Bend::Repeat(index, value)),
    ];
    proptest::collection::vec(bend, 0..4)
}

fn calls() -> impl Strategy<Value = Call> {
    let text = |values: &'static [&'static str]| select(values).prop_map(str::to_owned);
    let command = prop_oneof![
        9 => text(&["ADD", "ADD", "DEL", "CHECK", "GC", "STATUS"]),
        1 => text(&["VERSION", "", "add", "ADD ", "\u{0}"]),
    ];
    let container_id = prop_oneof![9 => text(&["c1", "c2"]), 1 => text(&["", "../c1", "a b", "-c"])];
    let netns = prop_oneof![
        9 => text(&["/run/netns/c1", "/run/netns/c2"]),
        1 => text(&["", "/run/netns/gone", "/dev/null", "/proc/self/ns/net", "relative"]),
    ];
    let ifname = prop_oneof![9 => text(&["eth0", "eth1"]), 1 => text(&["", "lo", "..", "a/b", "sixteen-bytes-xx"])];
    let args = prop_oneof![
        6 => text(&["", "IgnoreUnknown=1;K8S_POD_NAME=p"]),
        1 => text(&["IP=10.22.0.77", "IP=", "=;=", "MAC=02:00:00:00:00:07", "MAC=zz", "X", "IgnoreUnknown=1;;"]),
    ];
    let cut = prop_oneof![9 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let flip = prop_oneof![9 => Just(None), 1 => (any::<Index>(), any::<u8>()).prop_map(Some)];
    let plugins = plugin::names().count();
    ((0..plugins, command, container_id, netns, ifname, args), bends(), cut, flip).prop_map(
        |((plugin, command, container_id, netns, ifname, args), bends, cut, flip)| Call {
            plugin,
            command,
            container_id,
            netns,
            ifname,
            args,
            bends,
            cut,
            flip,
        },
    )
}

/// Counts the values of a document, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(object) => object.values().map(size).sum(),
        _ => 0,
    }
}

/// Carries out a change at the value with this number, counted from the root in depth.
fn bend(value: &mut Value, at: &mut usize, change: &Bend) {
    if *at == 0 {
        *at = usize::MAX;
        *value = match change {
            Bend::Replace(_, new) | Bend::Repeat(_, new) => new.clone(),
            Bend::Remove(_) => Value::Null,
        };
        return;
    }
    *at -= 1;
    match value {
        Value::Array(list) => {
            if matches!(change, Bend::Remove(_)) && *at < list.len() {
                list.remove(*at);
                *at = usize::MAX;
                return;
            }
            for item in list {
                bend(item, at, change);
                if *at == usize::MAX {
                    return;
                }
            }
        }
        Value::Object(object) => {
            let keys: Vec<String> = object.keys().cloned().collect();
            for key in keys {
                if *at == 0 && bend_member(object, &key, change) {
                    *at = usize::MAX;
                    return;
                }
                if let Some(member) = object.get_mut(&key) {
                    bend(member, at, change);
                }
                if *at == usize::MAX {
                    return;
                }
            }
        }
        _ => {}
    }
}

fn bend_member(object: &mut Map<String, Value>, key: &str, change: &Bend) -> bool {
    match change {
        Bend::Replace(..) => false,
        Bend::Remove(_) => object.remove(key).is_some(),
        Bend::Repeat(_, value) => {
            object.insert(key.to_uppercase(), value.clone());
            true
        }
    }
}

impl Call {
    fn stdin(&self, name: &str) -> Vec<u8> {
        let mut conf = conf(name);
        for change in &self.bends {
            let (Bend::Replace(index, _) | Bend::Remove(index) | Bend::Repeat(index, _)) = change;
            let mut at = index.index(size(&conf));
            bend(&mut conf, &mut at, change);
        }
        let mut bytes = serde_json::to_vec(&conf).unwrap();
        if let Some((index, byte)) = &self.flip {
            let at = index.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = &self.cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }

    fn run(&self, path: &Path) -> plugin::Answer {
        let name = plugin::names().nth(self.plugin).unwrap();
        let variable = |key: &str| match key {
            "CNI_COMMAND" => Some(self.command.clone()),
            "CNI_CONTAINERID" => Some(self.container_id.clone()),
            "CNI_NETNS" => Some(self.netns.clone()),
            "CNI_IFNAME" => Some(self.ifname.clone()),
            "CNI_ARGS" => Some(self.args.clone()),
            "CNI_PATH" => Some(path.display().to_string()),
            _ => None,
        };
        plugin::answer(plugin::find(name).unwrap(), variable, || Ok(self.stdin(name)))
    }
}

/// Checks the form of an answer.
fn check(call: &Call, answer: &plugin::Answer) -> Result<(), TestCaseError> {
    if answer.is_success {
        let has_result = call.command == "ADD" || call.command == "VERSION";
        let is_json = serde_json::from_str::<Value>(&answer.text).is_ok();
        prop_assert!(answer.text.is_empty() || (has_result && is_json), "{}", answer.text);
        return Ok(());
    }
    let error: Value = serde_json::from_str(&answer.text).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{error}");
    prop_assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
    Ok(())
}

#[test]
fn no_input_makes_a_plugin_panic_answer_out_of_form_or_leak() {
    if !enter_sandbox() {
        return;
    }
    let (plugins, dir) = (install_ours(), tempfile::tempdir().unwrap());
    // Relative paths of the configurations are in here, and one level up at most.
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::env::set_current_dir(dir.path().join("a/b")).unwrap();
    let lease = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    std::fs::write("subnet.env", lease).unwrap();
    sh("mount -t tmpfs tmpfs /var/lib");
    netns("c1");
    netns("c2");

    let seconds = std::env::var("CNI_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (calls_made, added) = (Cell::new(0_u32), Cell::new(0_u32));
    let strategy = calls();
    while Instant::now() < deadline {
        let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&strategy, |call| {
            let answer = call.run(plugins.path());
            calls_made.set(calls_made.get() + 1);
            added.set(added.get() + u32::from(answer.is_success && call.command == "ADD"));
            check(&call, &answer)
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(
        added.get() * 50 > calls_made.get(),
        "only {} of {} calls were an ADD that worked",
        added.get(),
        calls_made.get()
    );

    // The containers go; DEL and GC take away what is left of them.
    sh("ip netns del c1 && ip netns del c2");
    for (number, name) in plugin::names().enumerate() {
        for (container_id, ifname) in [("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0"), ("c2", "eth1")] {
            let call = Call {
                plugin: number,
                command: "DEL".to_owned(),
                container_id: container_id.to_owned(),
                netns: String::new(),
                ifname: ifname.to_owned(),
                args: String::new(),
                bends: Vec::new(),
                cut: None,
                flip: None,
            };
            let answer = call.run(plugins.path());
            assert!(answer.is_success || name == "loopback", "{name}: {}", answer.text);
        }
    }
    let links = ip("", "link show");
    let left: Vec<_> = links
        .as_array()
        .unwrap()
        .iter()
        .filter(|link| link["ifname"] != "lo" && link["linkinfo"]["info_kind"] != "bridge")
        .collect();
    let left: Vec<_> = left
        .into_iter()
        .filter(|link| {
            ip("", &format!("-d link show {}", link["ifname"].as_str().unwrap()))[0]["linkinfo"]["info_kind"]
                != "bridge"
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
