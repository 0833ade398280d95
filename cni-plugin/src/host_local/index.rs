//! Who has which address, without reading a directory of thousands of files.
//!
//! The directory answers "is this address taken?" by a name, but "which addresses has this container?" only by reading
//! every file: 44 ms with 5,000 reservations for the Go plugin, on every ADD (a second ADD must be refused) and DEL.
//! This index answers the second question. It is a file *beside* the directory, because the Go plugin takes every file
//! inside for a reservation:
//!
//! ```text
//!   owners 1 1795167000.123456789        the stamp: modification time of the directory after our last change
//!   + <container id> <ifname> 10.10.0.2  reserved
//!   - <container id> <ifname> 10.10.0.2  released
//! ```
//!
//! The index is a cache and never the truth. The Go plugin knows nothing of it; so after each change we *set* the
//! directory's modification time to a value of our own and note it. Any change by anybody else (and a crash of ours
//! before the note) leaves a different time; the index is then made anew from the directory. What the index names is
//! verified by reading that one file.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::host_local::store::{Owner, scan};

/// The first line has a fixed length, so that a new stamp is written over the old one.
const STAMP_BYTES: usize = 40;

/// An index with more released than living entries is rewritten once it is larger than this.
const COMPACT_ABOVE_BYTES: usize = 64 * 1024;

/// The index of one network, read on opening and written by [`Index::commit`].
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    /// The entries, each line ended by a line feed; the stamp is not part of it.
    entries: String,
    /// How much of `entries` the file holds; zero when the file must be written anew.
    bytes_in_file: usize,
    is_changed: bool,
}

impl Index {
    /// Reads the index, or makes it from `dir` when it does not describe it (any longer).
    ///
    /// # Errors
    ///
    /// Code 5 when the directory cannot be read.
    pub fn open(path: PathBuf, dir: &Path) -> Result<Self> {
        let stamp = fs::metadata(dir).and_then(|meta| meta.modified()).ok().and_then(stamp_line);
        let file = fs::read_to_string(&path).unwrap_or_default();
        let entries = stamp.and_then(|stamp| file.strip_prefix(&stamp));
        // A write that was cut short may leave half a line.
        if let Some(entries) = entries.filter(|entries| entries.is_empty() || entries.ends_with('\n')) {
            let is_worn = entries.len() > COMPACT_ABOVE_BYTES
                && entries.matches("\n- ").count() * 3 > entries.matches('\n').count();
            if !is_worn {
                let entries = entries.to_owned();
                return Ok(Self { path, bytes_in_file: STAMP_BYTES + entries.len(), entries, is_changed: false });
            }
        }
        let mut index = Self { path, entries: String::new(), bytes_in_file: 0, is_changed: true };
        for (owner, address) in scan(dir)? {
            index.added(&owner, address);
        }
        Ok(index)
    }

    /// Notes that `owner` has `address`.
    pub fn added(&mut self, owner: &Owner, address: IpAddr) {
        self.push('+', owner, address);
    }

    /// Notes that `owner` has it no longer.
    pub fn removed(&mut self, owner: &Owner, address: IpAddr) {
        self.push('-', owner, address);
    }

    fn push(&mut self, sign: char, owner: &Owner, address: IpAddr) {
        self.entries.push(sign);
        for word in [&owner.container_id, &owner.ifname, &address.to_string()] {
            self.entries.push(' ');
            self.entries.push_str(word);
        }
        self.entries.push('\n');
        self.is_changed = true;
    }

    /// The addresses noted for exactly this owner, oldest first.
    #[must_use]
    pub fn addresses_of(&self, owner: &Owner) -> Vec<IpAddr> {
        let key = format!(" {} {} ", owner.container_id, owner.ifname);
        let mut addresses = Vec::new();
        for (at, _) in self.entries.match_indices(&key) {
            let rest = &self.entries[at + key.len()..];
            let Some(address) = rest.lines().next().and_then(|text| text.parse::<IpAddr>().ok()) else {
                continue;
            };
            addresses.retain(|other| *other != address);
            if self.entries[..at].ends_with('+') {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Writes the changes. Whatever fails here leaves a stamp that does not fit, which costs time and nothing else.
    pub fn commit(&self, dir: &Path) {
        if self.is_changed {
            let _ = self.try_commit(dir);
        }
    }

    /// The order matters: entries, then the directory's time, then the stamp that declares the entries complete.
    fn try_commit(&self, dir: &Path) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let from = if self.bytes_in_file == 0 {
            file.set_len(0)?;
            STAMP_BYTES
        } else {
            self.bytes_in_file
        };
        file.write_all_at(&self.entries.as_bytes()[from - STAMP_BYTES..], from as u64)?;
        let directory = File::open(dir)?;
        directory.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
        // Read back: the file system may keep fewer digits than the clock has.
        if let Some(stamp) = stamp_line(directory.metadata()?.modified()?) {
            file.write_all_at(stamp.as_bytes(), 0)?;
        }
        (&file).flush()
    }
}

/// The first line for that time; `None` when the file system keeps whole seconds, which cannot tell two changes apart.
fn stamp_line(time: SystemTime) -> Option<String> {
    let time = time.duration_since(UNIX_EPOCH).ok().filter(|time| time.subsec_nanos() != 0)?;
    let text = format!("owners 1 {}.{:09}", time.as_secs(), time.subsec_nanos());
    Some(format!("{text:<width$}\n", width = STAMP_BYTES - 1))
}
