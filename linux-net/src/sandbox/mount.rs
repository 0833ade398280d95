//! Mounts inside a sandbox, each one small function with an error that says what failed.

use std::path::Path;

use crate::error::Result;

/// Cuts the mount namespace off from the one it was copied from (`mount --make-rprivate /`).
///
/// # Errors
///
/// Without `CAP_SYS_ADMIN`.
pub fn make_all_private() -> Result<()> {
    todo!()
}

/// Mounts an empty file system in memory on `target` (`mount -t tmpfs -o mode=755 tmpfs TARGET`).
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when `target` does not exist.
pub fn tmpfs(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}

/// Shows the file or directory `source` at `target` too (`mount --rbind SOURCE TARGET`).
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when either does not exist.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    let _ = (source, target);
    todo!()
}

/// Makes `target` writable without changing what is under it: an overlay whose upper layer is a fresh tmpfs on `scratch`.
///
/// # Errors
///
/// When the kernel has no overlayfs, or does not allow it in a user namespace.
pub fn overlay(target: &Path, scratch: &Path) -> Result<()> {
    let _ = (target, scratch);
    todo!()
}

/// Mounts the view of this pid namespace on `target` (`mount -t proc proc TARGET`).
///
/// # Errors
///
/// A permission error in a container whose `/proc` is masked.
pub fn proc(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}

/// Mounts the view of this network namespace on `target` (`mount -t sysfs sysfs TARGET`).
///
/// # Errors
///
/// A permission error in a container whose `/sys` is masked.
pub fn sysfs(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}

/// Makes `target`, which must be a mount point, hand what is mounted below it to mount namespaces made from now on
/// (`mount --make-rshared TARGET`).
///
/// # Errors
///
/// [`Error::System`](crate::Error::System) when `target` is not a mount point.
pub fn make_shared(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}

/// Detaches what is mounted on `target`, even when it is in use (`umount -l TARGET`).
///
/// # Errors
///
/// When nothing is mounted there.
pub fn unmount(target: &Path) -> Result<()> {
    let _ = target;
    todo!()
}
