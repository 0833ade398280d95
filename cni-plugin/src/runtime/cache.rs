//! The result of ADD, kept for CHECK, DEL and GC in libcni's own format and place.
//!
//! `/var/lib/cni/results/<network>-<container id>-<ifname>`, mode 0600. Any runtime that uses libcni (containerd, the Go
//! cnitool) finds what ours has attached, and the other way round.
//!
//! Source: containernetworking/cni, `libcni/api.go`, `cachedInfo`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf::NetworkName;
use crate::env::{ContainerId, parse_ifname};
use crate::error::{Error, Result};
use crate::file;
use crate::result::CniResult;
use crate::result::wire::null_as_default;
use crate::runtime::Attachment;
use crate::runtime::conflist::Conflist;
use crate::version::SpecVersion;

/// Where libcni keeps its cache.
pub const DEFAULT_CACHE_DIR: &str = "/var/lib/cni";

const KIND: &str = "cniCacheV1";

/// The directory of cached results.
#[derive(Debug, Clone)]
pub struct Cache {
    results: PathBuf,
}

/// A cache file. Field names are libcni's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: String,
    container_id: String,
    /// The list, in base64: how Go encodes bytes.
    #[serde(default, deserialize_with = "null_as_default")]
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "null_as_default")]
    capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

/// What is known of an attachment from its ADD.
#[derive(Debug)]
pub struct Cached {
    /// The attachment as ADD was asked for it; `None` in a file of libcni before 0.8, which holds a result and nothing else.
    pub attachment: Option<Attachment>,
    /// What ADD answered; `None` when the file has no result that can be read.
    pub result: Option<CniResult>,
}

impl Cache {
    /// The cache below `dir`, which is [`DEFAULT_CACHE_DIR`] for libcni.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { results: dir.join("results") }
    }

    fn path(&self, list: &Conflist, attachment: &Attachment) -> PathBuf {
        self.results.join(format!("{}-{}-{}", list.name, attachment.container_id, attachment.ifname))
    }

    /// Writes the result of a finished ADD.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn save(&self, list: &Conflist, attachment: &Attachment, result: &CniResult) -> Result<()> {
        let entry = Entry {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.to_string(),
            config: STANDARD.encode(&list.bytes),
            if_name: attachment.ifname.to_string(),
            network_name: list.name.to_string(),
            netns: attachment.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capability_args.clone(),
            result: Some(result.to_value(list.version)?),
        };
        let bytes = serde_json::to_vec(&entry).map_err(|source| Error::decode("cache entry", &source))?;
        file::make_dir(&self.results)?;
        file::write(&self.path(list, attachment), &bytes)
    }

    /// What is known of the attachment; `None` when it is not cached.
    ///
    /// # Errors
    ///
    /// Code 5 when the file cannot be read, code 6 when it is not what this or libcni writes.
    pub fn load(&self, list: &Conflist, attachment: &Attachment) -> Result<Option<Cached>> {
        let path = self.path(list, attachment);
        let Some(bytes) = file::read(&path)? else { return Ok(None) };
        decode(&bytes, list.version).map(Some).map_err(|error| error.with_details(path.display().to_string()))
    }

    /// The attachments of a network, in the order of their file names. Files that cannot be understood are passed over, as libcni does: nothing
    /// could be done about them.
    ///
    /// # Errors
    ///
    /// Code 5 when the directory is there and cannot be read.
    pub fn attachments(&self, network: &NetworkName) -> Result<Vec<Attachment>> {
        let names = file::names(&self.results)?;
        // The name alone does not tell: "a-b-c-eth0" may be of the network "a" or of "a-b".
        let prefix = format!("{network}-");
        let of_network = names.iter().filter(|name| name.starts_with(&prefix)).filter_map(|name| {
            let bytes = file::read(&self.results.join(name)).ok().flatten()?;
            let entry: Entry = serde_json::from_slice(&bytes).ok()?;
            (entry.kind == KIND && entry.network_name == network.as_str()).then(|| entry.attachment().ok()).flatten()
        });
        Ok(of_network.collect())
    }

    /// Forgets the attachment; it may not be there.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn remove(&self, list: &Conflist, attachment: &Attachment) -> Result<()> {
        file::remove(&self.path(list, attachment))
    }
}

fn decode(bytes: &[u8], version: SpecVersion) -> Result<Cached> {
    let object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|source| Error::decode("cached result", &source))?;
    let value = Value::Object(object);
    if value.get("kind").is_none() {
        // Before it had a kind, a file was the result itself.
        return Ok(Cached { attachment: None, result: Some(CniResult::from_value(&value, version)?) });
    }
    let entry = Entry::deserialize(value).map_err(|source| Error::decode("cached result", &source))?;
    if entry.kind != KIND {
        return Err(Error::new(
            crate::error::Code::Decode,
            format!("cached result is of kind \"{}\" and not {KIND}", entry.kind),
        ));
    }
    let result = entry.result.as_ref().map(|value| CniResult::from_value(value, version)).transpose()?;
    Ok(Cached { attachment: Some(entry.attachment()?), result })
}

impl Entry {
    fn attachment(self) -> Result<Attachment> {
        Ok(Attachment {
            container_id: ContainerId::new(&self.container_id)?,
            netns: Some(PathBuf::from(self.netns)).filter(|path| !path.as_os_str().is_empty()),
            ifname: parse_ifname(&self.if_name)?,
            args: self.cni_args,
            capability_args: self.capability_args,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_of_the_go_library_is_understood() {
        let entry = json!({
            "kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0", "networkName": "net",
            "netns": "/run/netns/c1", "cniArgs": [["MAC", "02:00:00:00:00:01"]],
            "capabilityArgs": {"ips": ["10.1.0.9"]},
            "result": {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.9/24"}], "dns": {}},
        });
        let cached = decode(entry.to_string().as_bytes(), SpecVersion::V1_0_0).unwrap();
        let attachment = cached.attachment.unwrap();
        assert_eq!(attachment.args, [("MAC".to_owned(), "02:00:00:00:00:01".to_owned())]);
        assert_eq!(attachment.capability_args["ips"], json!(["10.1.0.9"]));
        assert_eq!(cached.result.unwrap().ips[0].address.to_string(), "10.1.0.9/24");
    }

    #[test]
    fn a_file_from_before_libcni_0_8_is_the_result_itself() {
        let bytes = br#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.9/24"}],"dns":{}}"#;
        let cached = decode(bytes, SpecVersion::V0_4_0).unwrap();
        assert!(cached.attachment.is_none());
        assert_eq!(cached.result.unwrap().ips.len(), 1);
    }

    #[test]
    fn what_is_no_cache_file_is_refused() {
        for bytes in ["", "{", "[]", r#"{"kind":"cniCacheV9"}"#, r#"{"kind":"cniCacheV1"}"#] {
            assert!(decode(bytes.as_bytes(), SpecVersion::V1_0_0).is_err(), "{bytes}");
        }
    }
}
