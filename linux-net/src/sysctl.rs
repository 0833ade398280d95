//! Kernel parameters under `/proc/sys`, read back after they are written.
//!
//! A network namespace has its own copy of most of `net.*`; the files show the copy of the *thread* that opens
//! them. Some parameters belong to the first namespace only, and a write to them in another one may be ignored
//! without an error; so [`set`] reads back what it wrote.

use crate::error::Result;

/// Reads a parameter, without the line end.
///
/// # Examples
///
/// ```
/// assert!(matches!(linux_net::sysctl::get("net.ipv4.ip_forward")?.as_str(), "0" | "1"));
/// # Ok::<(), linux_net::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when this kernel has no such parameter.
pub fn get(key: &str) -> Result<String> {
    let _ = key;
    todo!()
}

/// Writes a parameter and reads it back.
///
/// # Errors
///
/// [`Error::is_not_found`](crate::Error::is_not_found) when this kernel has no such parameter (`net.bridge.*` needs the module `br_netfilter`), a
/// permission error, and [`Error::SysctlNotTaken`](crate::Error::SysctlNotTaken) when the kernel ignored the write.
pub fn set(key: &str, value: &str) -> Result<()> {
    let _ = (key, value);
    todo!()
}
