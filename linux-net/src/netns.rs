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
    hash::{Hash, Hasher},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use crate::error::Result;

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
    id: NetNsId,
}

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
    /// [`Error::is_exists`](crate::Error::is_exists) when the name is taken; [`Error::Invalid`](crate::Error::Invalid) when it cannot be a file
    /// name; a permission error without `CAP_SYS_ADMIN`.
    pub fn create(name: &str) -> Result<Self> {
        let _ = name;
        todo!()
    }

    /// Opens the namespace called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`](crate::Error::is_not_found) when there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let _ = name;
        todo!()
    }

    /// Opens a namespace by a path: `/run/netns/NAME`, `/proc/PID/ns/net`. Its name is the last part of the path.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`](crate::Error::is_not_found) when nothing is there, [`Error::Invalid`](crate::Error::Invalid) when it is not a network namespace.
    pub fn open_path(path: &Path) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// Opens the namespace this thread is in. Its name is `self`.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        todo!()
    }

    /// Removes the name `name`. The namespace ends when nothing else holds it, a moment later.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`](crate::Error::is_not_found) when there is none of that name.
    pub fn delete(name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }

    /// Lists the names that exist, sorted.
    ///
    /// # Errors
    ///
    /// When `/run/netns` is there but cannot be read.
    pub fn list() -> Result<Vec<String>> {
        todo!()
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
        let _ = f;
        todo!()
    }

    /// Moves this thread into the namespace, for good: for a thread whose whole life is there.
    ///
    /// # Errors
    ///
    /// When the kernel does not let this thread in.
    pub fn enter(&self) -> Result<()> {
        todo!()
    }

    /// Returns the name it was created or opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the kernel's identity of the namespace.
    #[must_use]
    pub fn id(&self) -> NetNsId {
        self.id
    }
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
