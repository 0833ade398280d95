//! The lab's directory on the host: logs and files that outlive the lab, the lock that keeps two labs of one name apart,
//! and the record by which a second terminal finds the lab.
//!
//! | who, `--name` | directory on the host | inside the lab |
//! |---|---|---|
//! | root, none | `/tmp/knetsim` | `/tmp/knetsim` |
//! | root, `x` | `/tmp/knetsim-x` | `/tmp/knetsim` |
//! | user 1000, none | `/tmp/knetsim-u1000` | `/tmp/knetsim` |
//! | user 1000, `x` | `/tmp/knetsim-u1000-x` | `/tmp/knetsim` |

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The name of a lab that was given none.
pub const DEFAULT_NAME: &str = "knetsim";
/// The file that is locked while the lab runs.
const LOCK: &str = ".lock";
/// The file that says where the lab runs.
const RECORD: &str = "lab.json";

/// What a second terminal needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The lab's name.
    pub name: String,
    /// Process 1 of the lab, as the host numbers it.
    pub pid: i32,
}

/// A lab's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabDir {
    name: String,
    path: PathBuf,
}

impl LabDir {
    /// The directory of the lab `name`, which need not exist.
    ///
    /// # Errors
    ///
    /// When the name cannot be part of a file's name.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let fits = (1..=32).contains(&name.len())
            && name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !fits {
            bail!("lab name {name:?} must be 1 to 32 letters, digits, '-' or '_', a letter or digit first");
        }
        let uid = nix::unistd::geteuid();
        let user = if uid.is_root() { String::new() } else { format!("-u{uid}") };
        let suffix = if name == DEFAULT_NAME { String::new() } else { format!("-{name}") };
        Ok(Self { name: name.to_owned(), path: PathBuf::from(format!("/tmp/knetsim{user}{suffix}")) })
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the directory for a new lab: locks it and removes what an earlier lab of this name left in it. The lab runs
    /// for as long as some process holds the returned file open.
    ///
    /// # Errors
    ///
    /// When a lab of this name runs, or the directory belongs to somebody else or to something else.
    pub fn claim(&self) -> anyhow::Result<File> {
        let existed = self.path.exists();
        // mkdir fails on whatever stands there, a link that somebody planted in /tmp included; then it is looked at.
        if let Err(error) = DirBuilder::new().mode(0o755).create(&self.path)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("make {}", self.path.display()));
        }
        self.check_owner()?;
        let lock_path = self.path.join(LOCK);
        let foreign = existed && !lock_path.exists() && std::fs::read_dir(&self.path)?.next().is_some();
        if foreign {
            bail!("{} holds files that are not of a lab; move them away or choose another --name", self.path.display());
        }
        let lock = self.open_lock(true)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "a lab named {} runs already; end it with `knetsim down --name {0}` or choose another --name",
                    self.name
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", lock_path.display()));
            }
        }
        self.clear()?;
        Ok(lock)
    }

    /// Whether a lab of this name runs: somebody holds the lock.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.open_lock(false).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Makes the file of the record, still empty. That happens before process 1 exists, because process 1 covers `/tmp`.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn create_record(&self) -> anyhow::Result<File> {
        let path = self.path.join(RECORD);
        File::create(&path).with_context(|| format!("write {}", path.display()))
    }

    /// Writes the record.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_record(&self, mut file: &File, pid: i32) -> anyhow::Result<()> {
        let record = Record { name: self.name.clone(), pid };
        let text = serde_json::to_string(&record)?;
        file.write_all(text.as_bytes()).context("write the lab's record")
    }

    /// The record of the running lab.
    ///
    /// # Errors
    ///
    /// When no lab of this name runs, with the names of those that do.
    pub fn record(&self) -> anyhow::Result<Record> {
        if !self.is_running() {
            let running = running_labs();
            let others = if running.is_empty() {
                "no lab runs; `knetsim up` boots one".to_owned()
            } else {
                format!("running labs: {} (choose with --name)", running.join(", "))
            };
            bail!("no lab named {} runs; {others}", self.name);
        }
        let path = self.path.join(RECORD);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("read {}; is the lab still booting?", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record of a lab", path.display()))
    }

    fn open_lock(&self, create: bool) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(self.path.join(LOCK))
    }

    fn check_owner(&self) -> anyhow::Result<()> {
        let metadata = std::fs::symlink_metadata(&self.path)?;
        if !metadata.is_dir() {
            bail!("{} is no directory; remove it or choose another --name", self.path.display());
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            bail!("{} belongs to user {}; choose another --name", self.path.display(), metadata.uid());
        }
        Ok(())
    }

    fn clear(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == LOCK) {
                continue;
            }
            let is_directory = std::fs::symlink_metadata(&path)?.is_dir();
            let removed = if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("remove {} of an earlier lab", path.display()))?;
        }
        Ok(())
    }
}

/// The names of this user's running labs.
fn running_labs() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/tmp") else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("knetsim"))
        .filter_map(|entry| std::fs::read_to_string(entry.path().join(RECORD)).ok())
        .filter_map(|text| serde_json::from_str::<Record>(&text).ok())
        .filter(|record| LabDir::new(&record.name).is_ok_and(|directory| directory.is_running()))
        .map(|record| record.name)
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_temporary(directory: &tempfile::TempDir) -> LabDir {
        LabDir { name: "test".to_owned(), path: directory.path().join("lab") }
    }

    #[test]
    fn a_name_is_checked_before_it_becomes_part_of_a_path() {
        for wrong in ["", "../etc", "a b", "-x", "ü"] {
            assert!(LabDir::new(wrong).is_err(), "{wrong}");
        }
        assert!(LabDir::new("second-lab").unwrap().path().to_string_lossy().ends_with("-second-lab"));
    }

    #[test]
    fn a_lab_of_the_same_name_is_refused_while_one_runs() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = in_temporary(&temporary);
        assert!(!directory.is_running());
        let lock = directory.claim().unwrap();
        assert!(directory.is_running());
        assert!(directory.claim().unwrap_err().to_string().contains("runs already"));
        drop(lock);
        assert!(!directory.is_running());
    }

    #[test]
    fn a_new_lab_removes_what_an_earlier_one_left() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = in_temporary(&temporary);
        let lock = directory.claim().unwrap();
        std::fs::create_dir(directory.path().join("C0w1")).unwrap();
        std::fs::write(directory.path().join("C0w1/flannel.log"), "old").unwrap();
        drop(lock);
        let _lock = directory.claim().unwrap();
        assert!(!directory.path().join("C0w1").exists());
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = in_temporary(&temporary);
        std::fs::create_dir(directory.path()).unwrap();
        std::fs::write(directory.path().join("thesis.txt"), "years of work").unwrap();
        assert!(directory.claim().unwrap_err().to_string().contains("not of a lab"));
        assert!(directory.path().join("thesis.txt").exists());

        let elsewhere = temporary.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let planted = LabDir { name: "test".to_owned(), path: temporary.path().join("planted") };
        std::os::unix::fs::symlink(&elsewhere, planted.path()).unwrap();
        assert!(planted.claim().unwrap_err().to_string().contains("no directory"));
    }

    #[test]
    fn the_record_is_read_only_while_the_lab_runs() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = in_temporary(&temporary);
        let lock = directory.claim().unwrap();
        directory.write_record(&directory.create_record().unwrap(), 4711).unwrap();
        assert_eq!(directory.record().unwrap().pid, 4711);
        drop(lock);
        assert!(directory.record().unwrap_err().to_string().contains("no lab named test runs"));
    }
}
