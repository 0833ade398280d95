//! What ADD gave the delegate, kept for DEL: the node may have another subnet by then.
//!
//! One file per interface, `<dataDir>/<container id>@<ifname>`. The Go plugin keys by container alone
//! (`<dataDir>/<container id>`), so that a second flannel interface of one container overwrites the first one's file;
//! such a file is read and removed where ours is missing, so that a container which the Go plugin attached can be
//! detached by this one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::env::{ContainerId, Environment};
use crate::error::{Error, Result};

/// The directory of state files.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// One state file that was found.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    /// The configuration the delegate got; `None` when the file is no JSON (a crash while it was written).
    pub delegate: Option<Map<String, Value>>,
}

impl StateDir {
    /// Names the directory; it is made by the first [`StateDir::save`].
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    fn path(&self, env: &Environment) -> Result<PathBuf> {
        Ok(self.0.join(format!("{}@{}", env.container_id, env.ifname()?)))
    }

    /// Saves the delegate's configuration, on disk before the delegate runs.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn save(&self, env: &Environment, delegate: &Map<String, Value>) -> Result<()> {
        let path = self.path(env)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(|source| Error::io("create directory", &self.0, &source))?;
        let bytes = serde_json::to_vec(delegate).map_err(|source| Error::decode("delegate config", &source))?;
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(&bytes)?;
            file.sync_data()
        };
        write().map_err(|source| Error::io("write", &path, &source))
    }

    /// Finds the state of an attachment, ours or the Go plugin's.
    ///
    /// # Errors
    ///
    /// Code 5 when a file is there and cannot be read.
    pub fn load(&self, env: &Environment) -> Result<Option<State>> {
        for path in [self.path(env)?, self.0.join(env.container_id.as_str())] {
            match fs::read(&path) {
                Ok(bytes) => return Ok(Some(State { path, delegate: serde_json::from_slice(&bytes).ok() })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::io("read", &path, &source)),
            }
        }
        Ok(None)
    }

    /// The attachments that have a state file of ours, in order; those of all networks that share the directory.
    ///
    /// # Errors
    ///
    /// Code 5 when the directory is there and cannot be read.
    pub fn list(&self) -> Result<Vec<(ContainerId, String)>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::io("read directory", &self.0, &source)),
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let (id, ifname) = name.to_str()?.split_once('@')?;
                Some((ContainerId::new(id).ok()?, ifname.to_owned()))
            })
            .collect();
        found.sort();
        Ok(found)
    }
}

impl State {
    /// Removes the file.
    ///
    /// # Errors
    ///
    /// Code 5 when it is there and cannot be removed.
    pub fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &source)),
        Ok(()) | Err(_) => Ok(()),
    }
}
