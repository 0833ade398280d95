//! The one error type of the crate.
//!
//! Every variant says what was tried, as the command a student would type where there is one, and keeps the
//! kernel's errno, so that a caller can ask [`Error::is_not_found`] and [`Error::is_exists`] instead of
//! reading text.

use std::{borrow::Cow, io, path::PathBuf};

use nix::errno::Errno;

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on what, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name, address or number is outside of what the kernel accepts; found before the kernel was asked.
    #[error("{what} {value:?} is not valid: {reason}")]
    Invalid {
        /// What kind of thing it should have been: "interface name", "MAC address", …
        what: &'static str,
        /// The text that was given.
        value: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The kernel refused an rtnetlink or nftables operation.
    #[error("{command}: {}{hint}", errno.desc())]
    Refused {
        /// The operation, as the `ip`, `bridge` or `nft` command a student would type.
        command: String,
        /// What the kernel answered.
        errno: Errno,
        /// What the kernel adds, or what to do about it; empty or starting with "; ".
        hint: Cow<'static, str>,
    },
    /// A system call failed outside of netlink: opening a socket, a namespace, a mount, a process.
    #[error("cannot {action}{hint}")]
    System {
        /// What was tried, after "cannot".
        action: String,
        /// What to do about it, when that is known; empty or starting with "; ".
        hint: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A sysctl was written without an error but does not read back as what was written.
    #[error("sysctl {key} is {found:?} after {wanted:?} was written to it; it belongs to another namespace")]
    SysctlNotTaken {
        /// The dotted name.
        key: String,
        /// What was written.
        wanted: String,
        /// What stands there.
        found: String,
    },
    /// A file of the kernel could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// "read", "write", …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel sent something that is not what the protocol says.
    #[error("{what} from the kernel cannot be read: {reason}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Returns the kernel's errno, when the error came from the kernel.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::System { source, .. } | Self::File { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Invalid { .. } | Self::SysctlNotTaken { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Says whether the thing named does not exist: what a delete may take for success.
    ///
    /// The kernel has four words for it: `ENOENT` (a neighbour, a set element, a file), `ENODEV` (a link), `ESRCH`
    /// (a route, a process) and `EADDRNOTAVAIL` (an address).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL))
    }

    /// Says whether the thing named is there already (`EEXIST`): what a create may take for success.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// Says whether a set holds as many elements as it was declared for (`ENFILE`).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.errno() == Some(Errno::ENFILE)
    }

    /// Says whether the caller lacks a privilege (`EPERM`, `EACCES`).
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self.errno(), Some(Errno::EPERM | Errno::EACCES))
    }

    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { action: action.into(), hint: "", source: source.into() }
    }
}
