//! Network namespaces that have a name, without the `ip` program.
//!
//! A network namespace lives as long as something holds it: a process in it, an open file descriptor, or a bind
//! mount of `/proc/<pid>/ns/net`. `ip netns add NAME` makes the third kind, on the file `/run/netns/NAME`, and
//! so do we; therefore `ip netns list` and `ip netns exec` see our namespaces, and we see theirs.
//!
//! Source: iproute2 `ip/ipnetns.c`, `netns_add()`; man 7 `network_namespaces`, man 2 `setns`.

use std::{
    cmp::Ordering,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{Hash, Hasher},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use crate::error::{Error, Result};

/// The directory in which named namespaces stand.
pub const DIRECTORY: &str = "/run/netns";

/// An open network namespace: a file descriptor that keeps it alive, and the name it was opened by.
///
/// Cloning shares the descriptor. Two values are equal when they are the same namespace of the kernel, whatever
/// their names.
#[derive(Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
    /// What `ip … netns X` takes: the name, or the path when it is not in [`DIRECTORY`].
    argument: Arc<str>,
    id: NetNsId,
}

/// The file that stands for the network namespace of the thread that opens it.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// The kernel's own identity of a namespace: device and inode of its file in `nsfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// The device number of `nsfs`.
    pub device: u64,
    /// The inode number, which `ls -l /proc/self/ns/net` prints as `net:[4026531840]`.
    pub inode: u64,
}

impl NetNs {
    /// Creates a namespace called `name`, kept alive by a bind mount on `/run/netns/NAME`.
    ///
    /// All of it is empty: the only interface is `lo`, and that is down.
    ///
    /// # Errors
    ///
    /// [`Error::is_exists`] when the name is taken; [`Error::Invalid`] when it cannot be a file
    /// name; a permission error without `CAP_SYS_ADMIN`.
    pub fn create(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        let action = || format!("create the network namespace {name}");
        let _lock = prepare_directory().map_err(|error| Error::system(action(), error))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path)
            .map_err(|error| Error::system(action(), error))?;
        let born = mount_new_namespace(&path).map_err(|error| Error::System {
            action: action(),
            hint: if error == Errno::EPERM { NEEDS_ROOT } else { "" },
            source: error.into(),
        });
        if let Err(error) = born {
            // The empty file would be in the way of the next attempt.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens the namespace called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        Self::open_file(&path, name, name)
    }

    /// Opens a namespace by a path: `/run/netns/NAME`, `/proc/PID/ns/net`. Its name is the last part of the path.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when nothing is there, [`Error::Invalid`] when it is not a network namespace.
    pub fn open_path(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let in_directory = path.parent().is_some_and(|parent| parent == Path::new(DIRECTORY));
        let argument = if in_directory { name.clone() } else { path.to_string_lossy() };
        Self::open_file(path, &name, &argument)
    }

    /// Opens the namespace this thread is in. Its name is `self`.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open_file(Path::new(OF_THIS_THREAD), "self", &format!("/proc/{}/ns/net", process::id()))
    }

    /// Removes the name `name`. The namespace ends when nothing else holds it, a moment later.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is none of that name.
    pub fn delete(name: &str) -> Result<()> {
        let path = path_of(name)?;
        let refused = |error: io::Error| Error::system(format!("delete the network namespace {name}"), error);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: the file is there, but nothing is mounted on it; a run that was killed half-way leaves that.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(refused(error.into())),
        }
        fs::remove_file(&path).map_err(refused)
    }

    /// Lists the names that exist, sorted.
    ///
    /// # Errors
    ///
    /// When `/run/netns` is there but cannot be read.
    pub fn list() -> Result<Vec<String>> {
        let refused = |source| Error::File { action: "read", path: DIRECTORY.into(), source };
        let entries = match fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(refused(error)),
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(refused)?;
        names.sort();
        Ok(names)
    }

    /// Runs `f` in this namespace: this thread enters, calls, and comes back, also when `f` panics.
    ///
    /// Sockets that `f` opens belong to this namespace for as long as they live. `f` must not hand work to other
    /// threads: those are where they were.
    ///
    /// # Errors
    ///
    /// When the kernel does not let this thread in.
    ///
    /// # Panics
    ///
    /// When the thread cannot return to where it came from: going on in the wrong namespace would be worse.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let home = Self::current()?;
        self.enter()?;
        let _way_back = WayBack(home);
        Ok(f())
    }

    /// Moves this thread into the namespace, for good: for a thread whose whole life is there.
    ///
    /// # Errors
    ///
    /// When the kernel does not let this thread in.
    pub fn enter(&self) -> Result<()> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|error| Error::System {
            action: format!("enter the network namespace {}", self.name),
            hint: if error == Errno::EPERM { NEEDS_ROOT } else { "" },
            source: error.into(),
        })
    }

    /// Returns the name it was created or opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what `ip` takes after `netns`: the name, or a path when the namespace was not opened by name.
    #[must_use]
    pub fn argument(&self) -> &str {
        &self.argument
    }

    /// Returns the kernel's identity of the namespace.
    #[must_use]
    pub fn id(&self) -> NetNsId {
        self.id
    }

    fn open_file(path: &Path, name: &str, argument: &str) -> Result<Self> {
        let refused = |error: io::Error| Error::system(format!("open the network namespace {argument}"), error);
        let file = File::open(path).map_err(refused)?;
        let kind = fstatfs(&file).map_err(|errno| refused(errno.into()))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(Error::Invalid {
                what: "network namespace",
                value: path.display().to_string(),
                reason: "it is a file, but no namespace is mounted on it",
            });
        }
        let metadata = file.metadata().map_err(refused)?;
        let id = NetNsId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { fd: Arc::new(file.into()), name: name.into(), argument: argument.into(), id })
    }
}

/// What to do when a namespace may not be made or entered.
const NEEDS_ROOT: &str = "; it takes root, or a user namespace (unshare -Urnm)";

/// Brings the thread back when it goes out of scope, also in a panic.
struct WayBack(NetNs);

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(error) = self.0.enter() {
            panic!("a thread cannot return to its network namespace: {error}");
        }
    }
}

/// Returns the file of a namespace.
fn path_of(name: &str) -> Result<PathBuf> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name == "." || name == ".." || name.contains(['/', '\0']) {
        "it cannot be the name of a file"
    } else if name.len() > 255 {
        "it is longer than 255 bytes"
    } else {
        return Ok(Path::new(DIRECTORY).join(name));
    };
    Err(Error::Invalid { what: "network namespace name", value: name.to_owned(), reason })
}

/// Makes [`DIRECTORY`] a mount point that shares what is mounted in it with other mount namespaces, so that a name
/// that is made or deleted in one of them is so in all. Returns a lock on it.
fn prepare_directory() -> io::Result<Flock<File>> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    // Two processes that do this at once would mount the directory on itself twice.
    let lock = Flock::lock(File::open(DIRECTORY)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let share = || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        // EINVAL: it is an ordinary directory as yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            share()?;
        }
        result => result?,
    }
    Ok(lock)
}

/// Makes a network namespace and mounts it on the file `path`.
///
/// A thread of its own does it: `unshare` moves its caller, and this way there is no way back to miss.
fn mount_new_namespace(path: &Path) -> nix::Result<()> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some(OF_THIS_THREAD), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    thread::scope(|scope| scope.spawn(make).join().expect("neither system call panics"))
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl PartialOrd for NetNs {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NetNs {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

impl Hash for NetNs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetNs({} net:[{}])", self.name, self.id.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_be_the_name_of_a_file() {
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert!(matches!(NetNs::open(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
        assert!(NetNs::open(&"n".repeat(256)).is_err());
    }

    #[test]
    fn a_missing_namespace_is_not_found() {
        let error = NetNs::open("no-such-namespace").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "cannot open the network namespace no-such-namespace");
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        assert!(matches!(NetNs::open_path(Path::new("/proc/self/status")), Err(Error::Invalid { .. })));
    }
}
