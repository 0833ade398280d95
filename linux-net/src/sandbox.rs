//! Namespaces of a whole lab: what `unshare` and `nsenter` do.

pub mod mount;

use nix::unistd::Pid;

use crate::error::Result;

/// Which namespaces [`unshare`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent flag of one system call")]
pub struct Namespaces {
    /// Users: the caller becomes root inside, with all capabilities over what is made with it.
    pub user: bool,
    /// Mounts.
    pub mount: bool,
    /// Network.
    pub net: bool,
    /// Processes: the *next child* becomes process 1; the caller itself stays where it is.
    pub pid: bool,
    /// Host name.
    pub uts: bool,
}

impl Namespaces {
    /// All that a lab needs: mount, net, pid, uts, and, when `user`, a user namespace around them.
    #[must_use]
    pub fn lab(user: bool) -> Self {
        Self { user, mount: true, net: true, pid: true, uts: true }
    }
}

/// Moves the calling process, which must have one thread only, into new namespaces.
///
/// With [`Namespaces::user`], user 0 inside is the caller outside, and `setgroups` is denied, as an ordinary
/// user must. Does not change any mount: see [`mount`].
///
/// # Errors
///
/// Says which setting of the system forbids it, when one does.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    let _ = namespaces;
    todo!()
}

/// Moves the calling process, which must have one thread only, into the user, mount, network, uts and pid namespaces of the process
/// `pid`; the pid namespace holds for children. Namespaces it is in already are left out.
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when there is no such process; a permission error for another user's.
pub fn enter(pid: Pid) -> Result<()> {
    let _ = pid;
    todo!()
}
