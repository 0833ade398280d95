//! What the tests share: calling plugins as a runtime does, and looking at the kernel through `ip -j`.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod traffic;
pub(crate) mod twin;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Debian's package containernetworking-plugins.
pub(crate) const GO_PLUGINS: &str = "/usr/lib/cni";

/// Makes a directory with links to the binary under test, by the binary itself.
pub(crate) fn install_ours() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_cni-plugin")).arg("install").arg(dir.path()).status().unwrap();
    assert!(status.success());
    dir
}

/// The directory of the Go plugins.
pub(crate) fn go_plugins() -> PathBuf {
    let dir = PathBuf::from(GO_PLUGINS);
    assert!(
        dir.join("bridge").exists() && dir.join("host-local").exists(),
        "the Go plugins are not in {GO_PLUGINS}; `make deps` installs them (Debian package containernetworking-plugins)"
    );
    dir
}

/// Runs a command line and gives its standard output; panics with everything it said when it fails.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command line and says whether it succeeded.
pub(crate) fn succeeds(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).output().unwrap().status.success()
}

/// `ip -j …` inside a named namespace, or in this one for `""`.
pub(crate) fn ip(netns: &str, arguments: &str) -> Value {
    let netns = if netns.is_empty() { String::new() } else { format!("-n {netns}") };
    let text = sh(&format!("ip {netns} -j {arguments}"));
    if text.trim().is_empty() { json!([]) } else { serde_json::from_str(&text).unwrap() }
}

/// Makes a named namespace, as a pod sandbox is before CNI: with everything down.
pub(crate) fn netns(name: &str) -> PathBuf {
    sh(&format!("ip netns add {name}"));
    Path::new("/run/netns").join(name)
}

/// The newest version that Debian's Go plugins speak.
pub(crate) fn as_version_1(mut conf: Value) -> Value {
    conf["cniVersion"] = json!("1.0.0");
    conf["prevResult"]["cniVersion"] = json!("1.0.0");
    conf
}

/// All elements of our tables, as text.
pub(crate) fn elements() -> Vec<String> {
    let ruleset: Value = serde_json::from_str(&sh("nft -j list ruleset")).unwrap();
    let items = ruleset["nftables"].as_array().unwrap().iter();
    let sets = items.filter_map(|item| item.get("set").or_else(|| item.get("map")));
    sets.filter_map(|set| set["elem"].as_array()).flatten().map(ToString::to_string).collect()
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Answer {
    fn new(output: &Output) -> Self {
        Self {
            success: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The result; panics with the plugin's error.
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.json
    }

    /// The error's code; panics when there was none.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json["code"].as_u64().unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// One call of one plugin.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) program: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    /// The named namespace that stands for the host; empty for this one.
    pub(crate) host: String,
}

impl Call {
    pub(crate) fn new(plugins: &Path, plugin: &str, id: &str, netns: &Path) -> Self {
        let env = [
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns.to_str().unwrap()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", plugins.to_str().unwrap()),
        ];
        Self {
            program: plugins.join(plugin),
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            host: String::new(),
        }
    }

    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn run(&self, command: &str, conf: &Value) -> Answer {
        self.run_bytes(command, conf.to_string().as_bytes())
    }

    pub(crate) fn run_bytes(&self, command: &str, stdin: &[u8]) -> Answer {
        let mut process = if self.host.is_empty() {
            Command::new(&self.program)
        } else {
            let mut process = Command::new("ip");
            process.args(["netns", "exec", &self.host]).arg(&self.program);
            process
        };
        let mut child = process
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(&self.env)
            .envs((!command.is_empty()).then_some(("CNI_COMMAND", command)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin that refuses its environment does not read.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Answer::new(&child.wait_with_output().unwrap())
    }
}

/// The files of a directory with their contents, but for hidden ones; empty when it is not there.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// Takes out of JSON what no two runs have in common: MACs, names of veths, indices, link-local addresses.
pub(crate) fn normalise(value: &Value, renames: &[(&str, &str)]) -> Value {
    match value {
        Value::Array(list) => Value::Array(
            list.iter()
                .filter(|item| item["scope"] != "link" || item["family"] != "inet6")
                .filter(|item| item["dst"] != "fe80::/64" && item["dst"] != "multicast")
                .map(|item| normalise(item, renames))
                .collect(),
        ),
        Value::Object(object) => {
            let is_noise = |key: &str, value: &Value| {
                matches!(key, "mac" | "address" if value.as_str().is_some_and(is_mac))
                    || matches!(
                        key,
                        "ifindex"
                            | "tentative"
                            | "broadcast"
                            | "link_index"
                            | "link_netnsid"
                            | "link"
                            | "operstate"
                            | "flags"
                            | "txqlen"
                    )
                    || key == "dns" && *value == json!({})
            };
            let members = object.iter().filter(|(key, value)| !is_noise(key, value));
            let members: BTreeMap<_, _> =
                members.map(|(key, value)| (key.clone(), normalise(value, renames))).collect();
            Value::Object(members.into_iter().collect())
        }
        Value::String(text) => {
            if text.len() == 12 && text.starts_with("veth") {
                return Value::from("VETH");
            }
            let text = renames.iter().fold(text.clone(), |text, (from, to)| text.replace(from, to));
            Value::from(text)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn is_mac(text: &str) -> bool {
    text.len() == 17 && text.split(':').count() == 6
}
