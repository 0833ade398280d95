//! Mounts inside a sandbox, each one small function with an error that says what failed.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, Result};

/// Cuts the mount namespace off from the one it was copied from (`mount --make-rprivate /`).
///
/// # Errors
///
/// Without `CAP_SYS_ADMIN`.
pub fn make_all_private() -> Result<()> {
    set_propagation(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE, "make all mounts private")
}

/// Mounts an empty file system in memory on `target` (`mount -t tmpfs -o mode=755 tmpfs TARGET`).
///
/// # Errors
///
/// [`Error::is_not_found`] when `target` does not exist.
pub fn tmpfs(target: &Path) -> Result<()> {
    mount_type("tmpfs", target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
}

/// Shows the file or directory `source` at `target` too (`mount --rbind SOURCE TARGET`).
///
/// # Errors
///
/// [`Error::is_not_found`] when either does not exist.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    let action = || format!("show {} at {}", source.display(), target.display());
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| Error::system(action(), errno))
}

/// Makes `target` writable without changing what is under it: an overlay whose upper layer is a fresh tmpfs on `scratch`.
///
/// # Errors
///
/// When the kernel has no overlayfs, or does not allow it in a user namespace.
pub fn overlay(target: &Path, scratch: &Path) -> Result<()> {
    tmpfs(scratch)?;
    let directory = |name: &str| -> Result<String> {
        let path = scratch.join(name);
        std::fs::create_dir(&path).map_err(|source| Error::File { action: "create", path: path.clone(), source })?;
        Ok(path.display().to_string())
    };
    let (upper, work) = (directory("upper")?, directory("work")?);
    // userxattr: in a user namespace the kernel lets an overlay keep its marks in user.* attributes only.
    let options = format!("lowerdir={},upperdir={upper},workdir={work},userxattr", target.display());
    mount_type("overlay", target, MsFlags::empty(), Some(&options))
}

/// Mounts the view of this pid namespace on `target` (`mount -t proc proc TARGET`).
///
/// # Errors
///
/// A permission error in a container whose `/proc` is masked.
pub fn proc(target: &Path) -> Result<()> {
    mount_type("proc", target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None)
}

/// Mounts the view of this network namespace on `target` (`mount -t sysfs sysfs TARGET`).
///
/// # Errors
///
/// A permission error in a container whose `/sys` is masked.
pub fn sysfs(target: &Path) -> Result<()> {
    mount_type("sysfs", target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None)
}

/// Makes `target`, which must be a mount point, hand what is mounted below it to mount namespaces made from now on
/// (`mount --make-rshared TARGET`).
///
/// # Errors
///
/// [`Error::System`] when `target` is not a mount point.
pub fn make_shared(target: &Path) -> Result<()> {
    set_propagation(target, MsFlags::MS_REC | MsFlags::MS_SHARED, &format!("share {}", target.display()))
}

/// Detaches what is mounted on `target`, even when it is in use (`umount -l TARGET`).
///
/// # Errors
///
/// When nothing is mounted there.
pub fn unmount(target: &Path) -> Result<()> {
    umount2(target, MntFlags::MNT_DETACH).map_err(|errno| Error::system(format!("unmount {}", target.display()), errno))
}

fn mount_type(kind: &str, target: &Path, flags: MsFlags, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, options)
        .map_err(|errno| Error::system(format!("mount {kind} on {}", target.display()), errno))
}

fn set_propagation(target: &Path, flags: MsFlags, action: &str) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|errno| Error::system(action, errno))
}
