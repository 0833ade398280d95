//! The directory of reservations, shared with the Go plugin at the same time.
//!
//! ```text
//!   <dataDir>/<network>/lock                  flock: one plugin at a time
//!                      /10.10.0.2             "<container id>\r\n<ifname>", one file per reserved address
//!                      /last_reserved_ip.0    the address range set 0 gave last
//!   <dataDir>/.<network>.owners               ours alone: who has which address, see `index`
//! ```
//!
//! A reservation is the *existence* of a file, which appears with its content: it is written without a name, and then linked to the one that
//! nobody else may have (`O_TMPFILE`, open(2)). The Go plugin makes the file and writes to it afterwards; killed in between, it leaves an empty one,
//! which has no owner and is never given out again. Whoever holds the lock and finds an empty file knows that, and takes it over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;

use crate::conf::NetworkName;
use crate::env::Environment;
use crate::error::{Error, Result};
use crate::file;
use crate::host_local::index::Index;

/// Who holds an address: an interface of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The container's id.
    pub container_id: String,
    /// The interface; empty in files that plugins before 0.8 wrote.
    pub ifname: String,
}

impl Owner {
    /// The owner a request speaks of.
    ///
    /// # Errors
    ///
    /// Code 4 when the request names no interface.
    pub fn of(env: &Environment) -> Result<Self> {
        Ok(Self { container_id: env.container_id.to_string(), ifname: env.ifname()?.to_string() })
    }

    fn to_content(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }

    fn from_content(content: &str) -> Self {
        let (container_id, ifname) = content.trim().split_once("\r\n").unwrap_or((content.trim(), ""));
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }
}

/// The reservations of one network, locked as long as this value lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    index: Index,
    /// Held for its effect: dropping it unlocks.
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory of a network, makes it if need be, and waits for the lock.
    ///
    /// # Errors
    ///
    /// Code 5 naming the path.
    pub fn open(data_dir: &Path, network: &NetworkName) -> Result<Self> {
        let dir = data_dir.join(network.as_str());
        fs::create_dir_all(&dir).map_err(|source| Error::io("create directory", &dir, &source))?;
        let lock = lock(&dir.join("lock"))?;
        let index = Index::open(data_dir.join(format!(".{network}.owners")), &dir)?;
        Ok(Self { dir, index, _lock: lock })
    }

    /// The address that range set `set` gave last. Anything unreadable is as good as none: only fairness suffers.
    #[must_use]
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_path(set)).ok()?.trim().parse().ok()
    }

    fn last_reserved_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }

    /// Tries to reserve `address`; `false` when someone has it.
    ///
    /// # Errors
    ///
    /// Code 5 when a file cannot be written.
    pub fn reserve(&mut self, owner: &Owner, address: IpAddr, set: usize) -> Result<bool> {
        let path = self.dir.join(address.to_string());
        if !create(&path, owner)? {
            // We hold the lock, so nobody is about to write it.
            let is_left_over = fs::metadata(&path).is_ok_and(|meta| meta.len() == 0);
            if !is_left_over {
                return Ok(false);
            }
            fs::write(&path, owner.to_content()).map_err(|source| Error::io("write", &path, &source))?;
        }
        let last = self.last_reserved_path(set);
        fs::write(&last, address.to_string()).map_err(|source| Error::io("write", &last, &source))?;
        self.index.added(owner, address);
        Ok(true)
    }

    /// The addresses that `owner` holds. Files from before 0.8, which name no interface, belong to all of a container's.
    ///
    /// # Errors
    ///
    /// Code 5 when the directory cannot be read.
    pub fn addresses_of(&self, owner: &Owner) -> Result<Vec<IpAddr>> {
        let mut addresses = self.verified(owner);
        if addresses.is_empty() {
            addresses = self.verified(&Owner { ifname: String::new(), ..owner.clone() });
        }
        Ok(addresses)
    }

    /// The index says where to look; the file itself has the last word.
    fn verified(&self, owner: &Owner) -> Vec<IpAddr> {
        let mut addresses = self.index.addresses_of(owner);
        addresses
            .retain(|address| read_owner(&self.dir.join(address.to_string())).is_some_and(|found| found == *owner));
        addresses
    }

    /// Removes every reservation of `owner`; there may be none.
    ///
    /// # Errors
    ///
    /// Code 5 when a file cannot be removed.
    pub fn release(&mut self, owner: &Owner) -> Result<()> {
        for address in self.addresses_of(owner)? {
            self.release_address(owner, address)?;
        }
        Ok(())
    }

    /// Removes one reservation of `owner`.
    ///
    /// # Errors
    ///
    /// Code 5 when the file cannot be removed.
    pub fn release_address(&mut self, owner: &Owner, address: IpAddr) -> Result<()> {
        file::remove(&self.dir.join(address.to_string()))?;
        self.index.removed(owner, address);
        Ok(())
    }

    /// Removes every reservation whose owner `is_kept` does not vouch for.
    ///
    /// # Errors
    ///
    /// Code 5 when the directory cannot be read or a file cannot be removed.
    pub fn release_all_but(&mut self, is_kept: impl Fn(&Owner) -> bool) -> Result<()> {
        for (owner, address) in scan(&self.dir)? {
            if !is_kept(&owner) {
                self.release_address(&owner, address)?;
            }
        }
        Ok(())
    }

    /// Removes what was reserved in an earlier boot of the machine, and says whether there was anything.
    ///
    /// # Errors
    ///
    /// Code 5 when a file cannot be removed.
    pub fn release_earlier_boots(&mut self) -> Result<bool> {
        let mut found = false;
        for (owner, address) in self.index.of_earlier_boots() {
            if read_owner(&self.dir.join(address.to_string())).is_some_and(|holder| holder == owner) {
                self.release_address(&owner, address)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Writes the index out. What is not committed (a crash) costs the next call one reading of the directory.
    pub fn commit(self) {
        self.index.commit(&self.dir);
    }
}

/// Makes a reservation that appears with its content, or not at all; `false` when there is one.
fn create(path: &Path, owner: &Owner) -> Result<bool> {
    let failed = |source: &io::Error| Error::io("create", path, source);
    let dir = path.parent().unwrap_or(Path::new("."));
    let nameless = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = match open(dir, nameless, Mode::from_bits_truncate(0o600)) {
        Ok(file) => File::from(file),
        // A file system without nameless files: as the Go plugin does it.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => return create_then_write(path, owner),
        Err(errno) => return Err(failed(&errno.into())),
    };
    (&file).write_all(owner.to_content().as_bytes()).map_err(|source| failed(&source))?;
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(AT_FDCWD, itself.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        // Without /proc a file has no path by which it could be linked.
        Err(Errno::ENOENT) => create_then_write(path, owner),
        Err(errno) => Err(failed(&errno.into())),
    }
}

fn create_then_write(path: &Path, owner: &Owner) -> Result<bool> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(source) => return Err(Error::io("create", path, &source)),
    };
    if let Err(source) = file.write_all(owner.to_content().as_bytes()) {
        // A reservation without an owner could never be released; the first error is the one to report.
        let _ = fs::remove_file(path);
        return Err(Error::io("write", path, &source));
    }
    Ok(true)
}

/// Every reservation of the directory, read file by file.
pub(crate) fn scan(dir: &Path) -> Result<Vec<(Owner, IpAddr)>> {
    let failed = |source| Error::io("read directory", dir, &source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(address) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(owner) = read_owner(&dir.join(&name))
        {
            found.push((owner, address));
        }
    }
    found.sort();
    Ok(found)
}

fn read_owner(path: &Path) -> Option<Owner> {
    fs::read_to_string(path).ok().map(|content| Owner::from_content(&content))
}

/// Takes the lock that the Go plugin takes: `flock` on a file that is opened for reading only, made with mode 0750.
fn lock(path: &Path) -> Result<Flock<File>> {
    let failed = |errno: nix::Error| Error::io("lock", path, &io::Error::from(errno));
    let flags = OFlag::O_CREAT | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(open(path, flags, Mode::from_bits_truncate(0o750)).map_err(failed)?);
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno))
}
