//! What ADD gave the delegate, kept for DEL: the node may have another subnet by then.
//!
//! One file per interface, `<dataDir>/<container id>@<ifname>`. The Go plugin keys by container alone
//! (`<dataDir>/<container id>`), so that a second flannel interface of one container overwrites the first one's file;
//! such a file is read and removed where ours is missing, so that a container which the Go plugin attached can be
//! detached by this one.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::env::{ContainerId, Environment};
use crate::error::{Error, Result};
use crate::file;

/// The directory of state files.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// One state file that was found.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    /// The configuration the delegate got; `None` when the file is no JSON (the Go plugin was killed while it wrote).
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

    /// Saves the delegate's configuration, whole or not at all, before the delegate runs.
    ///
    /// It need not be on the disk by then: a machine that goes down takes the container's namespace with it, and what is left of the attachment
    /// are files that may be as old as this one.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn save(&self, env: &Environment, delegate: &Map<String, Value>) -> Result<()> {
        let bytes = serde_json::to_vec(delegate).map_err(|source| Error::decode("delegate config", &source))?;
        file::make_dir(&self.0)?;
        file::write(&self.path(env)?, &bytes)
    }

    /// Finds the state of an attachment, ours or the Go plugin's.
    ///
    /// # Errors
    ///
    /// Code 5 when a file is there and cannot be read.
    pub fn load(&self, env: &Environment) -> Result<Option<State>> {
        for path in [self.path(env)?, self.0.join(env.container_id.as_str())] {
            if let Some(bytes) = file::read(&path)? {
                return Ok(Some(State { path, delegate: serde_json::from_slice(&bytes).ok() }));
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
        let attachment = |name: &String| {
            let (id, ifname) = name.split_once('@')?;
            Some((ContainerId::new(id).ok()?, ifname.to_owned()))
        };
        Ok(file::names(&self.0)?.iter().filter_map(attachment).collect())
    }
}

impl State {
    /// Removes the file.
    ///
    /// # Errors
    ///
    /// Code 5 when it is there and cannot be removed.
    pub fn remove(self) -> Result<()> {
        file::remove(&self.path)
    }
}
