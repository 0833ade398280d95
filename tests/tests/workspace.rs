//! What the crates may use of each other, read from their manifests.

use std::{collections::BTreeSet, path::Path};

const OURS: [&str; 8] =
    ["linux-net", "flannel-rs", "cni-plugin", "kproxy-rs", "ingress-rs", "interconnect-rs", "knetsim", "tests"];

fn manifest(name: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).expect("every crate has a manifest");
    text.parse().expect("cargo has read the manifest")
}

fn uses(name: &str, section: &str) -> BTreeSet<String> {
    let manifest = manifest(name);
    let table = manifest.get(section).and_then(toml::Value::as_table).cloned().unwrap_or_default();
    table.keys().filter(|used| OURS.contains(&used.as_str())).cloned().collect()
}

#[test]
fn components_meet_at_run_time_and_not_in_code() {
    for name in OURS {
        let allowed: &[&str] = match name {
            "linux-net" => &[],
            "knetsim" => &["linux-net", "flannel-rs", "cni-plugin", "kproxy-rs", "ingress-rs", "interconnect-rs"],
            "tests" => &OURS,
            _ => &["linux-net"],
        };
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for used in uses(name, section) {
                assert!(allowed.contains(&used.as_str()), "{name} may not use {used} ([{section}])");
            }
        }
    }
}

#[test]
fn every_crate_is_a_member_and_takes_the_workspaces_lints() {
    let root = manifest(".");
    let members: BTreeSet<&str> =
        root["workspace"]["members"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
    assert_eq!(members, OURS.into_iter().collect());
    for name in OURS {
        assert_eq!(manifest(name)["lints"]["workspace"].as_bool(), Some(true), "{name}");
    }
}

#[test]
fn unsafe_code_stands_in_linux_net_only() {
    for name in OURS.into_iter().filter(|name| *name != "linux-net") {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let mut directories = vec![source.join("src"), source.join("tests")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let block = ["unsafe", " {"].concat();
                    assert!(!text.contains(&block), "{} has an unsafe block", path.display());
                }
            }
        }
    }
}
