//! What the settings of an interface were before ADD, kept for DEL in the Go plugin's format.
//!
//! `<dataDir>/<container id>_<ifname>.json`: `{"mac": "…", "promisc": false, "mtu": 1500, "allmulti": false, "txQLen": 1000}`, those that were
//! changed. Either plugin finds and understands the other's files. Ours has one field more, `attachment`, by which GC knows whose file it is: the
//! directory is shared by all networks, and neither name nor content of the Go plugin's files tells.

use std::path::{Path, PathBuf};

use linux_net::MacAddr;
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

use crate::attachment::{Mark, Valid};
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::file;
use crate::tuning::config::Settings;

/// The directory of backups.
#[derive(Debug)]
pub struct BackupDir(PathBuf);

/// One file's content.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backup {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "txQLen")]
    tx_queue_packets: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    attachment: String,
}

impl Backup {
    /// The backup of these settings.
    #[must_use]
    pub fn new(before: &Settings, mark: &Mark) -> Self {
        Self {
            mac: before.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: before.promiscuous,
            mtu: before.mtu_bytes,
            allmulti: before.all_multicast,
            tx_queue_packets: before.tx_queue_packets,
            attachment: mark.to_string(),
        }
    }

    /// The settings to put back; `None` when the MAC cannot be understood.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        let mac = Some(self.mac.as_str()).filter(|mac| !mac.is_empty());
        Some(Settings {
            mac: mac.map(str::parse::<MacAddr>).transpose().ok()?,
            promiscuous: self.promisc,
            mtu_bytes: self.mtu.filter(|mtu| *mtu != 0),
            all_multicast: self.allmulti,
            tx_queue_packets: self.tx_queue_packets,
        })
    }
}

impl BackupDir {
    /// Names the directory; it is made by the first [`BackupDir::save`].
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    fn path(&self, env: &Environment) -> Result<PathBuf> {
        Ok(self.0.join(format!("{}_{}.json", env.container_id, env.ifname()?)))
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn save(&self, env: &Environment, backup: &Backup) -> Result<()> {
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b" "));
        backup.serialize(&mut serializer).map_err(|source| Error::decode("backup", &source))?;
        file::make_dir(&self.0)?;
        file::write(&self.path(env)?, &bytes)
    }

    /// Reads an attachment's file; `None` when there is none. One that cannot be understood is as good as an empty one.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn load(&self, env: &Environment) -> Result<Option<Backup>> {
        let bytes = file::read(&self.path(env)?)?;
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// Removes an attachment's file; it may be gone.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn remove(&self, env: &Environment) -> Result<()> {
        file::remove(&self.path(env)?)
    }

    /// Removes the files of attachments that are not to be kept. Files of the Go plugin stay: they may be another network's.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn remove_stale(&self, valid: &Valid) -> Result<()> {
        let paths = file::names(&self.0)?.into_iter().map(|name| self.0.join(name));
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let Some(bytes) = file::read(&path)? else { continue };
            let backup: Backup = serde_json::from_slice(&bytes).unwrap_or_default();
            if valid.is_stale(&backup.attachment) {
                file::remove(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_go_plugin_is_understood() {
        let text = "{\n \"mac\": \"02:00:00:00:00:01\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"txQLen\": 1000\n}";
        let backup: Backup = serde_json::from_str(text).unwrap();
        assert_eq!(
            backup.settings().unwrap(),
            Settings {
                mac: Some("02:00:00:00:00:01".parse().unwrap()),
                promiscuous: Some(false),
                mtu_bytes: Some(1500),
                all_multicast: None,
                tx_queue_packets: Some(1000),
            }
        );
    }
}
