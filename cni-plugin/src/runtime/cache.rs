//! The result of ADD, kept for CHECK and DEL in libcni's own format and place.
//!
//! `/var/lib/cni/results/<network>-<container id>-<ifname>`, mode 0600. Any runtime that uses libcni (containerd, the Go
//! cnitool) finds what ours has attached, and the other way round.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::result::CniResult;
use crate::runtime::Attachment;
use crate::runtime::conflist::Conflist;

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
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
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
        let path = self.path(list, attachment);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.results)
            .map_err(|source| Error::io("create directory", &self.results, &source))?;
        let write = || -> io::Result<()> {
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?.write_all(&bytes)
        };
        write().map_err(|source| Error::io("write", &path, &source))
    }

    /// The result of the ADD, if one is cached.
    ///
    /// # Errors
    ///
    /// Code 5 when the file cannot be read, code 6 when it is not what this or libcni writes.
    pub fn load(&self, list: &Conflist, attachment: &Attachment) -> Result<Option<CniResult>> {
        let path = self.path(list, attachment);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("read", &path, &source)),
        };
        let entry: Entry =
            serde_json::from_slice(&bytes).map_err(|source| Error::decode(&path.display().to_string(), &source))?;
        entry.result.map(|value| CniResult::from_value(&value, list.version)).transpose()
    }

    /// Forgets the attachment; it may not be there.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn remove(&self, list: &Conflist, attachment: &Attachment) -> Result<()> {
        let path = self.path(list, attachment);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, &source)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
