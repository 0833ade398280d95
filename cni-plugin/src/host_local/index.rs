//! Who has which address, without reading a directory of thousands of files.
//!
//! The directory answers "is this address taken?" by a name, but "which addresses has this container?" only by reading
//! every file: 44 ms with 5,000 reservations for the Go plugin, on every ADD (a second ADD must be refused) and DEL.
//! This index answers the second question. It is a file *beside* the directory, because the Go plugin takes every file
//! inside for a reservation:
//!
//! ```text
//!   owners 2 1795167000.123456789        the stamp: modification time of the directory after our last change
//!   b 5c0e6f2a-…                         from here on, in this boot of the machine; "-" when that is not known
//!   + <container id> <ifname> 10.10.0.2  reserved
//!   - <container id> <ifname> 10.10.0.2  released
//! ```
//!
//! The index is a cache and never the truth. The Go plugin knows nothing of it; so after each change we *set* the
//! directory's modification time to a value of our own and note it. Any change by anybody else (and a crash of ours
//! before the note) leaves a different time; the index is then made anew from the directory. What the index names is
//! verified by reading that one file.
//!
//! What only the index knows is the boot: no container outlives one, so a reservation of an earlier boot is a leak, and may be given
//! out again when the range is full. The kernel draws a new `boot_id` each time, so this needs no clock that can be trusted.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use linux_net::sysctl;

use crate::error::Result;
use crate::host_local::store::{Owner, scan};

/// The first line has a fixed length, so that a new stamp is written over the old one.
const STAMP_BYTES: usize = 40;

/// An index with more released than living entries is rewritten once it is larger than this.
const COMPACT_ABOVE_BYTES: usize = 64 * 1024;

/// The boot of a reservation that was made by somebody else.
const UNKNOWN_BOOT: &str = "-";

/// The index of one network, read on opening and written by [`Index::commit`].
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    /// The boot of the machine that we are in.
    boot: String,
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
        let boot = sysctl::get("kernel.random.boot_id").ok().filter(|boot| !boot.is_empty());
        let boot = boot.unwrap_or_else(|| UNKNOWN_BOOT.to_owned());
        let stamp = fs::metadata(dir).and_then(|meta| meta.modified()).ok().and_then(stamp_line);
        let file = fs::read_to_string(&path).unwrap_or_default();
        let entries = stamp.and_then(|stamp| file.strip_prefix(&stamp));
        // A write that was cut short may leave half a line.
        if let Some(entries) = entries.filter(|entries| entries.is_empty() || entries.ends_with('\n')) {
            let is_worn = entries.len() > COMPACT_ABOVE_BYTES
                && entries.matches("\n- ").count() * 3 > entries.matches('\n').count();
            if !is_worn {
                let entries = entries.to_owned();
                return Ok(Self { path, boot, bytes_in_file: STAMP_BYTES + entries.len(), entries, is_changed: false });
            }
        }
        // What an outdated index says of boots still holds for reservations that have the same owner.
        let known = living(file.split_once('\n').map_or("", |(_, entries)| entries));
        let mut index = Self { path, boot, entries: String::new(), bytes_in_file: 0, is_changed: true };
        let found = scan(dir)?.into_iter().map(|(owner, address)| {
            let boot = known.get(&address).filter(|(known_owner, _)| *known_owner == owner);
            (boot.map_or(UNKNOWN_BOOT, |(_, boot)| boot).to_owned(), owner, address)
        });
        let mut found: Vec<_> = found.collect();
        found.sort();
        for (boot, owner, address) in found {
            index.push(&boot, '+', &owner, address);
        }
        Ok(index)
    }

    /// Notes that `owner` has `address`.
    pub fn added(&mut self, owner: &Owner, address: IpAddr) {
        self.push(&self.boot.clone(), '+', owner, address);
    }

    /// Notes that `owner` has it no longer.
    pub fn removed(&mut self, owner: &Owner, address: IpAddr) {
        self.push(&self.boot.clone(), '-', owner, address);
    }

    fn push(&mut self, boot: &str, sign: char, owner: &Owner, address: IpAddr) {
        let last = self.entries.rfind("b ").filter(|at| *at == 0 || self.entries[..*at].ends_with('\n'));
        let last = last.and_then(|at| self.entries[at + 2..].lines().next());
        if last != Some(boot) {
            self.entries.push_str(&format!("b {boot}\n"));
        }
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

    /// The reservations that were made in an earlier boot of the machine.
    #[must_use]
    pub fn of_earlier_boots(&self) -> Vec<(Owner, IpAddr)> {
        let is_earlier = |boot: &str| boot != UNKNOWN_BOOT && boot != self.boot && self.boot != UNKNOWN_BOOT;
        let earlier = living(&self.entries).into_iter().filter(|(_, (_, boot))| is_earlier(boot));
        earlier.map(|(address, (owner, _))| (owner, address)).collect()
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

/// The reservations that were not released again, each with its boot.
fn living(entries: &str) -> BTreeMap<IpAddr, (Owner, &str)> {
    let mut living = BTreeMap::new();
    let mut boot = UNKNOWN_BOOT;
    for line in entries.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["b", name] => boot = name,
            [sign @ ("+" | "-"), container_id, ifname, address] => {
                let Ok(address) = address.parse::<IpAddr>() else { continue };
                living.remove(&address);
                if sign == "+" {
                    let owner = Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
                    living.insert(address, (owner, boot));
                }
            }
            // Half a line of a write that was cut short; the directory has the truth.
            _ => {}
        }
    }
    living
}

/// The first line for that time; `None` when the file system keeps whole seconds, which cannot tell two changes apart.
fn stamp_line(time: SystemTime) -> Option<String> {
    let time = time.duration_since(UNIX_EPOCH).ok().filter(|time| time.subsec_nanos() != 0)?;
    let text = format!("owners 2 {}.{:09}", time.as_secs(), time.subsec_nanos());
    Some(format!("{text:<width$}\n", width = STAMP_BYTES - 1))
}
