//! Twins for differential tests: the Go plugins in one, ours in the other, each with a "host", a pod and a directory of its own.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Call, files, go_plugins, install_ours, ip, netns, normalise, sh};

/// One of the two.
pub(crate) struct Side {
    pub(crate) plugins: PathBuf,
    pub(crate) host: String,
    pub(crate) pod: String,
    pub(crate) data: tempfile::TempDir,
}

impl Side {
    pub(crate) fn new(plugins: &Path, name: &str) -> Self {
        let side = Self {
            plugins: plugins.to_owned(),
            host: format!("{name}-host"),
            pod: format!("{name}-pod"),
            data: tempfile::tempdir().unwrap(),
        };
        netns(&side.host);
        netns(&side.pod);
        sh(&format!("ip -n {} link set lo up; ip -n {} link set lo up", side.host, side.pod));
        side
    }

    pub(crate) fn call(&self, plugin: &str) -> Call {
        let mut call = Call::new(&self.plugins, plugin, "c1", &Path::new("/run/netns").join(&self.pod));
        call.host.clone_from(&self.host);
        call
    }

    /// A configuration in which `DATADIR` and `POD` mean this side's.
    pub(crate) fn conf(&self, conf: &Value) -> Value {
        let text = conf.to_string().replace("DATADIR", self.data.path().to_str().unwrap()).replace("POD", &self.pod);
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn normal(&self, value: &Value) -> Value {
        let data = self.data.path().to_str().unwrap();
        normalise(value, &[(&self.pod, "POD"), (&self.host, "HOST"), (data, "DATADIR")])
    }

    /// Addresses and routes of both namespaces.
    pub(crate) fn addresses_and_routes(&self) -> Value {
        let mut state = json!({});
        for netns in [&self.host, &self.pod] {
            for what in ["-4 addr", "-6 addr", "-4 route", "-6 route"] {
                let mut found = self.normal(&ip(netns, what));
                // A link that has but a link-local address, which comes when it likes, has none.
                found.as_array_mut().unwrap().retain(|item| item["addr_info"] != json!([]));
                state[format!("{} {what}", self.normal(&json!(netns)))] = found;
            }
        }
        state
    }

    /// The files in a directory below this side's own, with their contents.
    pub(crate) fn files(&self, dir: &str) -> Value {
        json!(files(&self.data.path().join(dir)))
    }

    pub(crate) fn remove(&self) {
        sh(&format!("ip netns del {}; ip netns del {}", self.host, self.pod));
    }
}

/// The output of a command line in a named namespace, as a text.
pub(crate) fn shell(netns: &str, line: &str) -> Value {
    json!(sh(&format!("ip netns exec {netns} sh -c '{line}'")).trim())
}

/// Both sides, Go first, and the directory of our plugins, which must outlive them.
pub(crate) fn sides() -> (Side, Side, tempfile::TempDir) {
    let ours = install_ours();
    (Side::new(&go_plugins(), "go"), Side::new(ours.path(), "rust"), ours)
}

/// Sends one request to both and compares exit status, answer and what `state` sees; gives both answers.
pub(crate) fn both(
    [go, rust]: [&Side; 2],
    plugin: &str,
    command: &str,
    confs: [&Value; 2],
    state: impl Fn(&Side) -> Value,
) -> [Value; 2] {
    let answers = [(go, confs[0]), (rust, confs[1])].map(|(side, conf)| side.call(plugin).run(command, conf));
    let context = format!("{plugin} {command} {}\nGo: {:?}\nours: {:?}", confs[0], answers[0], answers[1]);
    assert_eq!(answers[0].success, answers[1].success, "{context}");
    if answers[0].success {
        assert_eq!(go.normal(&answers[0].json), rust.normal(&answers[1].json), "{context}");
    }
    assert_eq!(state(go), state(rust), "{context}");
    answers.map(|answer| answer.json)
}
