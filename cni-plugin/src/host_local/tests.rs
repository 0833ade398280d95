//! Allocation against a real directory.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn env(id: &str, ifname: &str, args: &str) -> Environment {
    Environment::of(id, ifname, args).unwrap()
}

/// A network on a fresh directory.
struct Lab {
    dir: tempfile::TempDir,
    ipam: Value,
}

impl Lab {
    fn new(ranges: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ipam = json!({"type": "host-local", "dataDir": dir.path(), "ranges": ranges});
        Self { dir, ipam }
    }

    fn conf(&self, more: &Value) -> Conf {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": self.ipam});
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        Conf::parse(conf.to_string().as_bytes()).unwrap()
    }

    fn add(&self, id: &str) -> Result<Vec<String>> {
        self.add_with(id, "", &json!({}))
    }

    fn add_with(&self, id: &str, args: &str, more: &Value) -> Result<Vec<String>> {
        let result = HostLocal.add(&env(id, "eth0", args), &self.conf(more))?;
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    fn del(&self, id: &str) {
        HostLocal.del(&env(id, "eth0", ""), &self.conf(&json!({}))).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("net").join(name)
    }

    /// The reservations as anyone sees who reads the directory.
    fn reservations(&self) -> Vec<(String, String)> {
        let found = store::scan(&self.dir.path().join("net")).unwrap();
        found.into_iter().map(|(owner, address)| (owner.container_id, address.to_string())).collect()
    }
}

fn slash_29() -> Lab {
    Lab::new(&json!([[{"subnet": "10.1.2.0/29"}]]))
}

#[test]
fn files_are_those_of_the_go_plugin() {
    let lab = slash_29();
    assert_eq!(lab.add("c1").unwrap(), ["10.1.2.2/29"]);
    assert_eq!(fs::read(lab.file("10.1.2.2")).unwrap(), b"c1\r\neth0");
    assert_eq!(fs::read(lab.file("last_reserved_ip.0")).unwrap(), b"10.1.2.2");
    assert!(lab.file("lock").exists());
    lab.del("c1");
    assert!(!lab.file("10.1.2.2").exists());
    assert_eq!(lab.add("c2").unwrap(), ["10.1.2.3/29"], "the address just released comes last");
}

#[test]
fn an_exhausted_range_says_which() {
    let lab = slash_29();
    for id in ["a", "b", "c", "d", "e"] {
        lab.add(id).unwrap();
    }
    let error = lab.add("f").unwrap_err();
    assert_eq!(error.code, Code::Allocation);
    assert_eq!(error.msg, "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6");
    lab.del("c");
    assert_eq!(lab.add("f").unwrap(), ["10.1.2.4/29"]);
}

#[test]
fn a_second_add_without_a_del_is_refused_and_changes_nothing() {
    let lab = slash_29();
    lab.add("c1").unwrap();
    let error = lab.add("c1").unwrap_err();
    assert!(error.msg.ends_with("10.1.2.2 has been allocated to c1, duplicate allocation is not allowed"), "{error}");
    assert_eq!(lab.reservations(), [("c1".to_owned(), "10.1.2.2".to_owned())]);
}

#[test]
fn a_reservation_made_behind_the_index_is_found() {
    let lab = slash_29();
    lab.add("c1").unwrap();
    // As the Go plugin does: a file in the directory and nothing else.
    fs::write(lab.file("10.1.2.5"), "c2\r\neth0").unwrap();
    lab.add("c2").unwrap_err();
    fs::remove_file(lab.file("10.1.2.2")).unwrap();
    lab.add("c1").unwrap();
    lab.del("c2");
    assert_eq!(lab.reservations(), [("c1".to_owned(), "10.1.2.3".to_owned())]);
}

#[test]
fn a_file_of_an_old_plugin_without_an_interface_is_released() {
    let lab = slash_29();
    fs::create_dir_all(lab.dir.path().join("net")).unwrap();
    fs::write(lab.file("10.1.2.4"), "c1").unwrap();
    lab.del("c1");
    assert_eq!(lab.reservations(), []);
}

#[test]
fn an_empty_file_that_a_killed_plugin_left_belongs_to_nobody() {
    let lab = slash_29();
    fs::create_dir_all(lab.dir.path().join("net")).unwrap();
    for last in 2..=6 {
        fs::write(lab.file(&format!("10.1.2.{last}")), "").unwrap();
    }
    assert_eq!(lab.add("c1").unwrap(), ["10.1.2.2/29"]);
    assert_eq!(lab.add("c2").unwrap(), ["10.1.2.3/29"]);
    lab.del("c1");
    assert!(!lab.file("10.1.2.2").exists());
    // GC takes the rest away.
    let keep = json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
    HostLocal.gc(&env("any", "eth0", ""), &lab.conf(&keep)).unwrap();
    assert_eq!(lab.reservations(), [("c2".to_owned(), "10.1.2.3".to_owned())]);
}

#[test]
fn reservations_of_an_earlier_boot_are_given_out_again_when_the_range_is_full() {
    let lab = slash_29();
    for id in ["c1", "c2", "c3"] {
        lab.add(id).unwrap();
    }
    // The machine boots: what was noted under the present boot becomes an earlier one's.
    let index = lab.dir.path().join(".net.owners");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&index).unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&index, text.replace(boot.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
    for id in ["d1", "d2"] {
        lab.add(id).unwrap();
    }
    assert_eq!(lab.reservations().len(), 5, "as long as there is room, nothing is taken from anybody");
    assert_eq!(lab.add("d3").unwrap(), ["10.1.2.2/29"]);
    let holders: Vec<_> = lab.reservations().into_iter().map(|(id, _)| id).collect();
    assert_eq!(holders, ["d1", "d2", "d3"]);
    // The Go plugin's are of an unknown boot, and stay.
    fs::write(lab.file("10.1.2.3"), "g1\r\neth0").unwrap();
    fs::write(lab.file("10.1.2.4"), "g2\r\neth0").unwrap();
    lab.add("d4").unwrap_err();
}

#[test]
fn the_same_address_asked_for_in_three_ways_is_one_request() {
    let lab = slash_29();
    let more = json!({"runtimeConfig": {"ips": ["10.1.2.5/29"]}, "args": {"cni": {"ips": ["10.1.2.5"]}}});
    assert_eq!(lab.add_with("c1", "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.1.2.5", &more).unwrap(), ["10.1.2.5/29"]);
}

#[test]
fn addresses_that_cannot_be_had_leave_no_reservation() {
    let lab = Lab::new(&json!([[{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00::/120"}]]));
    lab.add_with("other", "IP=fd00::5", &json!({})).unwrap();
    for (ip, reason) in [
        ("10.1.2.1", "gateway"),
        ("fd00::5", "is not available in range set"),
        ("192.0.2.1", "failed to allocate all requested IPs: 192.0.2.1"),
        ("nonsense", "cannot understand ip"),
    ] {
        let error = lab.add_with("c1", &format!("IP={ip}"), &json!({})).unwrap_err();
        assert!(error.msg.contains(reason), "{ip}: {error}");
    }
    assert!(lab.reservations().iter().all(|(id, _)| id == "other"));
}

#[test]
fn every_range_set_gives_one_address() {
    let lab = Lab::new(&json!([[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]));
    assert_eq!(lab.add("c1").unwrap(), ["10.1.2.2/24", "fd00::2/64"]);
    lab.del("c1");
    assert_eq!(lab.reservations(), []);
}

#[test]
fn gc_keeps_what_is_listed() {
    let lab = slash_29();
    for id in ["a", "b", "c"] {
        lab.add(id).unwrap();
    }
    let list = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
    HostLocal.gc(&env("x", "eth0", ""), &lab.conf(&list)).unwrap();
    assert_eq!(lab.reservations(), [("b".to_owned(), "10.1.2.3".to_owned())]);
}

#[test]
fn a_resolver_file_goes_into_the_result() {
    let dns = parse_resolv_conf("# comment\nnameserver 10.0.0.10\nsearch a.local b.local\noptions ndots:5\ndomain x\n");
    assert_eq!(dns.nameservers, ["10.0.0.10"]);
    assert_eq!(dns.search, ["a.local", "b.local"]);
    assert_eq!((dns.options, dns.domain), (vec!["ndots:5".to_owned()], "x".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the order of ADD and DEL, and with the index thrown away now and then: every container has one
    /// address, no two the same, none of them the gateway's, and the directory says exactly what we said.
    #[test]
    fn addresses_are_unique_and_the_directory_agrees(
        steps in prop::collection::vec((0..12u8, any::<bool>(), prop::bool::weighted(0.1)), 1..60),
    ) {
        let lab = Lab::new(&json!([[
            {"subnet": "10.1.2.0/29"}, {"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.1", "rangeEnd": "10.9.0.4"},
        ]]));
        let mut expected: BTreeSet<(String, String)> = BTreeSet::new();
        for (container, is_add, lose_index) in steps {
            let id = format!("c{container}");
            if lose_index {
                let _ = fs::remove_file(lab.dir.path().join(".net.owners"));
            }
            let has_one = expected.iter().any(|(owner, _)| *owner == id);
            if is_add {
                match lab.add(&id) {
                    Ok(ips) => {
                        prop_assert!(!has_one);
                        let address = ips[0].split('/').next().unwrap().to_owned();
                        prop_assert!(address != "10.1.2.1" && address != "10.9.0.1");
                        prop_assert!(expected.iter().all(|(_, taken)| *taken != address));
                        expected.insert((id, address));
                    }
                    // Five and three addresses can be given.
                    Err(_) => prop_assert!(has_one || expected.len() == 8),
                }
            } else {
                lab.del(&id);
                expected.retain(|(owner, _)| *owner != id);
            }
            let found: BTreeSet<_> = if lab.file("").exists() { lab.reservations().into_iter().collect() } else { BTreeSet::new() };
            prop_assert_eq!(&found, &expected);
        }
    }
}
