//! What two agents can be compared by: everything that they leave in etcd and in the kernel, as lines of text.
//!
//! ```text
//! lease 11.10.0.0-20 {"PublicIP":"10.9.0.1",…,"VtepMAC":"<w1 flannel.100>"} for 86400 s
//! link flannel.100 mtu 1450
//! neighbour 11.10.16.0 dev flannel.100 lladdr <w2 flannel.100>
//! route unicast 11.10.16.0/20 via 11.10.16.0 dev flannel.100 protocol boot scope global flags onlink
//! rule ip iptables -A FLANNEL-FWD -s 11.0.0.0/8 -m comment --comment "flanneld forward" -j ACCEPT
//! ```
//!
//! What differs from run to run is written as a placeholder: a MAC address as the worker and the device that bear it, the addresses that
//! the kernel derives from one, the numbers of interfaces and leases.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::Etcd;
use super::agent::Agent;
use super::lab::{Lab, run_in};

/// Files by name: `etcd.txt`, and per worker `w1.txt` and `w1.subnet.env`.
pub type State = BTreeMap<String, String>;

/// The attributes of a device that show how it was made.
const LINK_ATTRIBUTES: [&str; 5] = ["flags", "mtu", "qdisc", "address", "inet6_addr_gen_mode"];

/// Looks at everything that the agents of `workers` have made.
pub fn capture(lab: &Lab, workers: &[&Agent]) -> State {
    let macs = MacNames::of(workers);
    let mut state = State::new();
    state.insert("etcd.txt".to_owned(), macs.replace_in(&leases(&lab.etcd)));
    for worker in workers {
        let n = worker.number();
        state.insert(format!("w{n}.txt"), kernel(n, &macs));
        let subnet_file = fs::read_to_string(lab.subnet_file(n)).unwrap_or_default();
        state.insert(format!("w{n}.subnet.env"), subnet_file);
    }
    state
}

/// The leases, one a line.
fn leases(etcd: &Etcd) -> String {
    let line = |subnet: &String| {
        let life = match etcd.lease_id(subnet) {
            0 => "for ever".to_owned(),
            lease => format!("for {} s", etcd.granted_seconds(lease)),
        };
        format!("lease {subnet} {} {life}\n", etcd.value(subnet))
    };
    etcd.subnets().iter().map(line).collect()
}

/// The devices of worker `n`, and all that leads to other workers; rules last, in their order.
fn kernel(n: u8, macs: &MacNames) -> String {
    let mut lines = Vec::new();
    for device in json(n, "ip -d -j link show").iter().filter(|device| is_ours(text(device, "ifname"))) {
        lines.extend(link_lines(device));
        let name = text(device, "ifname");
        let addresses = &json(n, &format!("ip -j addr show dev {name}"))[0]["addr_info"];
        lines.extend(addresses.as_array().into_iter().flatten().map(|address| address_line(name, address)));
        let fdb = json(n, &format!("bridge -j fdb show dev {name}"));
        lines.extend(fdb.iter().filter(|entry| entry.get("dst").is_some()).map(|entry| fdb_line(name, entry)));
    }
    let neighbours = json(n, "ip -j neigh show nud permanent");
    lines.extend(neighbours.iter().map(|entry| {
        format!("neighbour {} dev {} lladdr {}", text(entry, "dst"), text(entry, "dev"), text(entry, "lladdr"))
    }));
    for family in ["-4", "-6"] {
        let routes = json(n, &format!("ip -d -j {family} route show"));
        let theirs = routes.iter().filter(|route| text(route, "protocol") != "kernel");
        lines.extend(theirs.map(route_line));
    }
    let mut lines: Vec<String> = lines.iter().map(|line| macs.replace_in(line)).collect();
    lines.sort_unstable();
    lines.extend(rules(n));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn is_ours(device: &str) -> bool {
    device.starts_with("flannel")
}

fn link_lines(device: &Value) -> Vec<String> {
    let name = text(device, "ifname");
    let general = LINK_ATTRIBUTES.map(|attribute| format!("link {name} {attribute} {}", plain(&device[attribute])));
    let kind = &device["linkinfo"];
    let vxlan = kind["info_data"].as_object().into_iter().flatten();
    let special =
        vxlan.map(|(attribute, value)| format!("link {name} {} {attribute} {}", text(kind, "info_kind"), plain(value)));
    general.into_iter().chain(special).collect()
}

fn address_line(device: &str, address: &Value) -> String {
    let (local, scope) = (text(address, "local"), text(address, "scope"));
    let local = if scope == "link" { "(from the MAC address)" } else { local };
    format!("address {local}/{} dev {device} scope {scope}", address["prefixlen"])
}

fn fdb_line(device: &str, entry: &Value) -> String {
    let flags = plain(&entry["flags"]);
    format!("fdb {} dst {} dev {device} {flags} {}", text(entry, "mac"), text(entry, "dst"), text(entry, "state"))
}

fn route_line(route: &Value) -> String {
    let field = |word: &str, key: &str| {
        let value = route.get(key).map(plain).filter(|value| !value.is_empty());
        value.map_or_else(String::new, |value| format!(" {word} {value}"))
    };
    let known = [
        ("via", "gateway"),
        ("dev", "dev"),
        ("protocol", "protocol"),
        ("scope", "scope"),
        ("src", "prefsrc"),
        ("metric", "metric"),
        ("mtu", "mtu"),
        ("flags", "flags"),
    ];
    let fields: String = known.map(|(word, key)| field(word, key)).concat();
    format!("route {} {}{fields}", text(route, "type"), text(route, "dst"))
}

/// The firewall rules, of iptables and of the tables `flannel`, those of one hook together and in their order.
fn rules(n: u8) -> Vec<String> {
    let mut rules = Vec::new();
    for (family, save) in [("ip", "iptables-save"), ("ip6", "ip6tables-save")] {
        let saved = run_in(n, &format!("{save} 2>/dev/null")).unwrap_or_default();
        let theirs = saved.lines().filter(|line| line.starts_with("-A") && line.contains("FLANNEL"));
        rules.extend(theirs.map(|line| format!("rule {family} iptables {line}")));

        let table = run_in(n, &format!("nft list table {family} flannel")).unwrap_or_default();
        let mut by_hook: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut hook = "";
        for line in table.lines().map(str::trim) {
            if line.starts_with("type ") {
                hook = line.split_once("hook ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
            } else if !line.is_empty() && !line.ends_with(['{', '}']) {
                by_hook.entry(hook).or_default().push(format!("rule {family} nft {hook} {line}"));
            }
        }
        rules.extend(by_hook.into_values().flatten());
    }
    rules
}

/// The names of the MAC addresses of the lab: who bears them.
struct MacNames(Vec<(String, String)>);

impl MacNames {
    fn of(workers: &[&Agent]) -> Self {
        let mut names = Vec::new();
        for worker in workers {
            for link in json(worker.number(), "ip -j link show") {
                let name = text(&link, "ifname");
                if is_ours(name) {
                    names.push((text(&link, "address").to_owned(), format!("<w{} {name}>", worker.number())));
                }
            }
        }
        Self(names)
    }

    fn replace_in(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (mac, name)| text.replace(mac, name))
    }
}

fn json(n: u8, command: &str) -> Vec<Value> {
    serde_json::from_str(&run_in(n, command).unwrap_or_default()).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A JSON value as a word: no quotes, lists with commas.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
