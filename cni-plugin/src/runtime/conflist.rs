//! Network configuration lists: the files in `/etc/cni/net.d`.
//!
//! ```json
//! {"cniVersion": "1.0.0", "name": "C0w1",
//!  "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true}},
//!              {"type": "portmap", "capabilities": {"portMappings": true}}]}
//! ```
//!
//! Further plugins may stand in files of their own, `<name of the network>/*.conf` beside the list; they come after those of the list, in the
//! order of file names, unless the list says `loadOnlyInlinedPlugins`.
//!
//! Source: CNI specification 1.1.0, section 1, "Network configuration format"; containernetworking/cni, `libcni/conf.go`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::conf::{NetworkName, text};
use crate::error::{Error, Result};
use crate::file;
use crate::result::CniResult;
use crate::version::SpecVersion;

/// A list, checked, with the bytes it came from (the cache keeps them).
#[derive(Debug, Clone)]
pub struct Conflist {
    /// The network's name.
    pub name: NetworkName,
    /// The version every plugin is called with.
    pub version: SpecVersion,
    /// The runtime must not call CHECK.
    pub disable_check: bool,
    /// The runtime must not call GC: others use the same network.
    pub disable_gc: bool,
    /// The plugins' configurations as the file has them, in the order of ADD; at least one.
    pub plugins: Vec<Map<String, Value>>,
    /// The list as JSON text.
    pub bytes: Vec<u8>,
}

impl Conflist {
    /// Reads a list from the bytes of a file; the form of a single plugin (`.conf`) is read as a list of one.
    ///
    /// # Errors
    ///
    /// Code 6 for broken JSON, 7 for a list without name or plugins or a plugin without `type`, 1 for the version.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes, |_| Ok(Vec::new()))
    }

    /// As [`Conflist::parse`], with `more` for the plugins beside the list.
    fn read(bytes: &[u8], more: impl FnOnce(&NetworkName) -> Result<Vec<Map<String, Value>>>) -> Result<Self> {
        let mut object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|source| Error::decode("configuration list", &source))?;
        let name = NetworkName::new(text(&object, "name")?)?;
        let version = newest_version(&object)?;
        let only_inlined = flag(&object, "loadOnlyInlinedPlugins")?;
        let mut bytes = bytes.to_vec();
        if !object.contains_key("plugins") && object.contains_key("type") {
            let list = json!({"cniVersion": version.as_str(), "name": name.as_str(), "plugins": [object]});
            bytes = list.to_string().into_bytes();
            object = list.as_object().cloned().unwrap_or_default();
        }
        let mut plugins = inlined(&object)?;
        if !only_inlined {
            let more = more(&name)?;
            if !more.is_empty() {
                // What is cached must be what was run, whatever happens to those files.
                plugins.extend(more);
                object.insert("plugins".to_owned(), plugins.iter().cloned().map(Value::Object).collect());
                object.insert("loadOnlyInlinedPlugins".to_owned(), Value::from(true));
                bytes = Value::Object(object.clone()).to_string().into_bytes();
            }
        }
        if plugins.is_empty() {
            return Err(Error::config("no plugins in list"));
        }
        for plugin in &plugins {
            if text(plugin, "type")?.is_empty() {
                return Err(Error::config(format!("a plugin of list {name} has no \"type\"")));
            }
        }
        let (disable_check, disable_gc) = (flag(&object, "disableCheck")?, flag(&object, "disableGC")?);
        Ok(Self { name, version, disable_check, disable_gc, plugins, bytes })
    }

    /// Finds the list of that name in a directory: among the `*.conflist` in order of file name, then among the `*.conf` and `*.json`, which are
    /// single plugins.
    ///
    /// # Errors
    ///
    /// Code 7 when there is none; its details name the files that could not be understood.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let (lists, singles) = (files(dir, &["conflist"])?, files(dir, &["conf", "json"])?);
        if lists.is_empty() && singles.is_empty() {
            return Err(Error::config(format!("no net configurations found in {}", dir.display())));
        }
        let mut broken = Vec::new();
        for (path, is_list) in lists.iter().map(|path| (path, true)).chain(singles.iter().map(|path| (path, false))) {
            let bytes = fs::read(path).map_err(|source| Error::io("read", path, &source))?;
            let more = |network: &NetworkName| {
                let wanted = is_list && network.as_str() == name;
                if wanted { beside(&dir.join(network.as_str())) } else { Ok(Vec::new()) }
            };
            match Self::read(&bytes, more) {
                Ok(list) if list.name.as_str() == name => return Ok(list),
                Ok(_) => {}
                Err(error) => broken.push(format!("{}: {error}", path.display())),
            }
        }
        let error = Error::config(format!("no net configuration with name \"{name}\" in {}", dir.display()));
        Err(error.with_details(broken.join("; ")))
    }

    /// The configuration of the plugin at `index` as that plugin is to get it: with the list's name and version,
    /// those of the runtime's capabilities that the plugin says it has, and what the plugins before it made.
    ///
    /// # Errors
    ///
    /// Code 7 when `previous` cannot be told in the list's version.
    pub fn plugin_conf(
        &self,
        index: usize,
        capability_args: &Map<String, Value>,
        previous: Option<&CniResult>,
    ) -> Result<Map<String, Value>> {
        let mut conf = self.plugins[index].clone();
        conf.insert("name".to_owned(), Value::from(self.name.as_str()));
        conf.insert("cniVersion".to_owned(), Value::from(self.version.as_str()));
        let has = |key: &str| conf.get("capabilities").and_then(|set| set.get(key)).and_then(Value::as_bool);
        let runtime_config: Map<String, Value> = capability_args
            .iter()
            .filter(|(key, _)| has(key) == Some(true))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !runtime_config.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(runtime_config));
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.to_value(self.version)?);
        }
        Ok(conf)
    }
}

/// `cniVersions` lists what the author allows: the newest of them that we speak; without it, `cniVersion`.
fn newest_version(object: &Map<String, Value>) -> Result<SpecVersion> {
    let listed = object.get("cniVersions").and_then(Value::as_array);
    let listed = listed.into_iter().flatten().filter_map(|version| SpecVersion::parse(version.as_str()?).ok());
    match (listed.max(), text(object, "cniVersion")?) {
        (Some(newest), "") => Ok(newest),
        (Some(newest), single) => Ok(SpecVersion::parse(single).map_or(newest, |single| single.max(newest))),
        (None, single) => SpecVersion::parse(single),
    }
}

/// A flag that people also write as a text.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(Error::config(format!("\"{key}\" is neither true nor false but {other}"))),
    }
}

/// The plugins that the list itself holds; none when it has no such member.
fn inlined(object: &Map<String, Value>) -> Result<Vec<Map<String, Value>>> {
    match object.get("plugins") {
        Some(Value::Array(list)) if list.is_empty() => Err(Error::config("no plugins in list")),
        Some(Value::Array(list)) => {
            let objects = list.iter().map(|plugin| plugin.as_object().cloned()).collect::<Option<Vec<_>>>();
            objects.ok_or_else(|| Error::config("\"plugins\" holds something that is no object"))
        }
        Some(_) => Err(Error::config("\"plugins\" is not a list")),
        None => Ok(Vec::new()),
    }
}

/// The plugins in a list's own directory, which may be missing.
fn beside(dir: &Path) -> Result<Vec<Map<String, Value>>> {
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).map_err(|source| Error::io("read", path, &source))?;
        serde_json::from_slice(&bytes).map_err(|source| Error::decode(&path.display().to_string(), &source))
    };
    files(dir, &["conf"])?.iter().map(read).collect()
}

/// The files of a directory with one of these extensions, in order of name; none when the directory is not there.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let has_extension = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension)) && path.is_file()
    };
    Ok(file::names(dir)?.iter().map(|name| dir.join(name)).filter(has_extension).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn list(value: &Value) -> Conflist {
        Conflist::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn each_plugin_gets_name_version_its_own_capabilities_and_the_previous_result() {
        let list = list(&json!({
            "cniVersion": "1.0.0", "name": "net",
            "plugins": [
                {"type": "bridge", "capabilities": {"ips": true, "mac": false}},
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        }));
        let Value::Object(args) = json!({"ips": ["10.0.0.9"], "mac": "02:00:00:00:00:01", "portMappings": []}) else {
            unreachable!("an object literal");
        };
        let first = Value::Object(list.plugin_conf(0, &args, None).unwrap());
        assert_eq!(
            first,
            json!({
                "type": "bridge", "capabilities": {"ips": true, "mac": false}, "name": "net", "cniVersion": "1.0.0",
                "runtimeConfig": {"ips": ["10.0.0.9"]},
            })
        );
        let second = list.plugin_conf(1, &args, Some(&CniResult::default())).unwrap();
        assert_eq!(second["runtimeConfig"], json!({"portMappings": []}));
        assert_eq!(second["prevResult"], json!({"cniVersion": "1.0.0"}));
        assert_eq!(second["snat"], true);
    }

    #[test]
    fn the_form_of_a_single_plugin_is_a_list_of_one() {
        let list = list(&json!({"cniVersion": "0.4.0", "name": "one", "type": "loopback"}));
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(Conflist::parse(&list.bytes).unwrap().plugins, list.plugins);
    }

    #[test]
    fn of_several_versions_the_newest_we_speak_is_taken() {
        let list = list(&json!({
            "cniVersions": ["0.4.0", "1.0.0", "7.0.0"], "name": "n", "plugins": [{"type": "x"}],
        }));
        assert_eq!(list.version, SpecVersion::V1_0_0);
    }

    #[test]
    fn a_broken_neighbour_does_not_hide_a_list_but_is_named_when_the_list_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00-broken.conf"), "{").unwrap();
        fs::write(dir.path().join("10-n.conflist"), r#"{"name":"n","plugins":[{"type":"x"}]}"#).unwrap();
        fs::write(dir.path().join("README"), "not JSON").unwrap();
        assert_eq!(Conflist::load(dir.path(), "n").unwrap().name.as_str(), "n");
        let error = Conflist::load(dir.path(), "other").unwrap_err();
        assert!(error.msg.contains("other") && error.details.contains("00-broken.conf"), "{error}");
    }

    #[test]
    fn plugins_beside_the_list_come_after_its_own_unless_the_list_forbids_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
        fs::create_dir(dir.path().join("n")).unwrap();
        write("n/20-b.conf", json!({"type": "b"}));
        write("n/10-a.conf", json!({"type": "a"}));
        write("n/README.json", json!({"type": "not a .conf"}));
        let types = || {
            let list = Conflist::load(dir.path(), "n").unwrap();
            assert_eq!(
                Conflist::parse(&list.bytes).unwrap().plugins,
                list.plugins,
                "the cached list is the list that ran"
            );
            list.plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        write("n.conflist", json!({"name": "n", "plugins": [{"type": "x"}]}));
        assert_eq!(types(), ["x", "a", "b"]);
        write("n.conflist", json!({"name": "n"}));
        assert_eq!(types(), ["a", "b"]);
        write("n.conflist", json!({"name": "n", "plugins": [{"type": "x"}], "loadOnlyInlinedPlugins": true}));
        assert_eq!(types(), ["x"]);
        write("n.conflist", json!({"name": "n", "loadOnlyInlinedPlugins": true}));
        assert_eq!(Conflist::load(dir.path(), "n").unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn a_list_goes_before_a_single_plugin_of_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00.conf"), r#"{"name":"n","type":"single"}"#).unwrap();
        fs::write(dir.path().join("99.conflist"), r#"{"name":"n","plugins":[{"type":"list"}],"disableGC":"true"}"#)
            .unwrap();
        let list = Conflist::load(dir.path(), "n").unwrap();
        assert_eq!(list.plugins[0]["type"], "list");
        assert!(list.disable_gc && !list.disable_check);
    }

    #[test]
    fn lists_that_cannot_be_run_are_refused() {
        for (text, code) in [
            ("{", Code::Decode),
            (r#"{"plugins":[{"type":"x"}]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":[]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":[{}]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":{}}"#, Code::InvalidConfig),
            (r#"{"name":"n"}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":[{"type":"x"}],"disableGC":"perhaps"}"#, Code::InvalidConfig),
            (r#"{"name":"n","cniVersion":"9.9.9","plugins":[{"type":"x"}]}"#, Code::IncompatibleVersion),
        ] {
            assert_eq!(Conflist::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
    }
}
