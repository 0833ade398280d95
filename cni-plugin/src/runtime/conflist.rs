//! Network configuration lists: the files in `/etc/cni/net.d`.
//!
//! ```json
//! {"cniVersion": "1.0.0", "name": "C0w1",
//!  "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true}},
//!              {"type": "portmap", "capabilities": {"portMappings": true}}]}
//! ```
//!
//! Source: CNI specification 1.1.0, section 1, "Network configuration format".

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::conf::{NetworkName, text};
use crate::error::{Code, Error, Result};
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
        let object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|source| Error::decode("configuration list", &source))?;
        let name = NetworkName::new(text(&object, "name")?)?;
        let version = newest_version(&object)?;
        let (plugins, bytes) = match object.get("plugins") {
            Some(Value::Array(list)) => {
                let objects = list.iter().map(|plugin| plugin.as_object().cloned());
                let plugins = objects.collect::<Option<Vec<_>>>();
                (plugins.ok_or_else(|| Error::config("\"plugins\" holds something that is no object"))?, bytes.to_vec())
            }
            Some(_) => return Err(Error::config("\"plugins\" is not a list")),
            None => {
                let list = serde_json::json!({
                    "cniVersion": version.as_str(), "name": name.as_str(), "plugins": [Value::Object(object.clone())],
                });
                (vec![object.clone()], list.to_string().into_bytes())
            }
        };
        if plugins.is_empty() {
            return Err(Error::config("no plugins in list"));
        }
        for plugin in &plugins {
            if text(plugin, "type")?.is_empty() {
                return Err(Error::config(format!("a plugin of list {name} has no \"type\"")));
            }
        }
        Ok(Self { name, version, disable_check: flag(&object, "disableCheck")?, plugins, bytes })
    }

    /// Finds the list of that name among the `*.conflist`, `*.conf` and `*.json` of a directory, in order of file name.
    ///
    /// # Errors
    ///
    /// Code 7 when there is none; its details name the files that could not be understood.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let mut broken = Vec::new();
        for path in files(dir)? {
            let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, &source))?;
            match Self::parse(&bytes) {
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
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(other) => Err(Error::config(format!("\"{key}\" is neither true nor false but {other}"))),
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::io("read directory", dir, &source);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Error::new(Code::InvalidConfig, format!("no net configurations found in {}", dir.display())));
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
    fn lists_that_cannot_be_run_are_refused() {
        for (text, code) in [
            ("{", Code::Decode),
            (r#"{"plugins":[{"type":"x"}]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":[]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":[{}]}"#, Code::InvalidConfig),
            (r#"{"name":"n","plugins":{}}"#, Code::InvalidConfig),
            (r#"{"name":"n","cniVersion":"9.9.9","plugins":[{"type":"x"}]}"#, Code::IncompatibleVersion),
        ] {
            assert_eq!(Conflist::parse(text.as_bytes()).unwrap_err().code, code, "{text}");
        }
    }
}
