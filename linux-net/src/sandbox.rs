//! Namespaces of a whole lab: what `unshare` and `nsenter` do.

pub mod mount;

use nix::{
    errno::Errno,
    sched::{self, CloneFlags},
    unistd::{Pid, getegid, geteuid},
};

use std::path::Path;

use crate::{
    error::{Error, Result},
    name::IfName,
    netlink::{Netlink, Op},
};

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
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::empty();
    for (wanted, flag) in [
        (namespaces.user, CloneFlags::CLONE_NEWUSER),
        (namespaces.mount, CloneFlags::CLONE_NEWNS),
        (namespaces.net, CloneFlags::CLONE_NEWNET),
        (namespaces.pid, CloneFlags::CLONE_NEWPID),
        (namespaces.uts, CloneFlags::CLONE_NEWUTS),
    ] {
        flags.set(flag, wanted);
    }
    sched::unshare(flags).map_err(|errno| Error::System {
        action: "make new namespaces".to_owned(),
        hint: unshare_hint(errno),
        source: errno.into(),
    })?;
    if namespaces.user {
        // An ordinary user may map a group only after giving up setgroups (user_namespaces(7)).
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
        write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// Moves the calling process, which must have one thread only, into the user, mount, network, uts and pid namespaces of the process
/// `pid`; the pid namespace holds for children. Namespaces it is in already are left out.
///
/// # Errors
///
/// [`Error::is_not_found`] when there is no such process; a permission error for another user's.
pub fn enter(pid: Pid) -> Result<()> {
    let failed = |errno| Error::System {
        action: format!("enter the namespaces of process {pid}"),
        hint: "; only the user who made them, and root, may",
        source: std::io::Error::from(errno),
    };
    let process = crate::process::pidfd_open(pid)?;
    let mut flags = CloneFlags::empty();
    // setns(2) refuses the user namespace that the caller is in already; the others it takes again.
    for (name, flag) in [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
    ] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}"));
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) if theirs == ours => {}
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => return Err(failed(Errno::ESRCH)),
            _ => flags.insert(flag),
        }
    }
    if flags.is_empty() {
        return Ok(());
    }
    sched::setns(process, flags).map_err(failed)
}

/// Moves the calling process, which must have one thread only, to where whatever it makes leaves nothing behind: fresh user, mount and network
/// namespaces, an empty `/run`, and a loopback device that is up. Root does without a user namespace where those are forbidden.
///
/// # Errors
///
/// As [`unshare`] and [`mount::tmpfs`].
pub fn isolate() -> Result<()> {
    let namespaces = Namespaces { user: true, mount: true, net: true, pid: false, uts: false };
    match unshare(namespaces) {
        Err(_) if geteuid().is_root() => unshare(Namespaces { user: false, ..namespaces })?,
        result => result?,
    }
    furnish()
}

/// Prepares fresh mount and network namespaces: nothing mounted from here on shows outside, `/run` is empty, `lo` is up.
pub(crate) fn furnish() -> Result<()> {
    let run = Path::new("/run");
    mount::make_all_private()?;
    mount::tmpfs(run)?;
    mount::make_shared(run)?;
    Netlink::open()?.apply(&Op::SetUp { dev: IfName::loopback() })
}

fn write(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| Error::File { action: "write", path: path.into(), source })
}

/// What may forbid namespaces, by the error.
fn unshare_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "; allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or \
             kernel.unprivileged_userns_clone=1), run as root, or give the container --privileged"
        }
        Errno::ENOSPC | Errno::EUSERS => "; there may be no more of them: raise sysctl user.max_user_namespaces",
        Errno::EINVAL => "; the process has several threads, or the kernel lacks namespaces",
        _ => "",
    }
}
