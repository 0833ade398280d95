//! Kernel parameters under `/proc/sys`, read back after they are written.
//!
//! A network namespace has its own copy of most of `net.*`; the files show the copy of the *thread* that opens
//! them. Some parameters belong to the first namespace only, and a write to them in another one may be ignored
//! without an error; so [`set`] reads back what it wrote.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

use crate::error::{Error, Result};

/// The kernel gives no parameter more room than this.
const PAGE_BYTES: usize = 4096;

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
/// [`Error::is_not_found`] when this kernel has no such parameter.
pub fn get(key: &str) -> Result<String> {
    let path = path_of(key)?;
    File::open(&path).and_then(|file| read(&file)).map_err(|source| Error::File { action: "read", path, source })
}

/// One read gives all of a parameter.
fn read(file: &File) -> io::Result<String> {
    let mut value = [0; PAGE_BYTES];
    let length = file.read_at(&mut value, 0)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end().to_owned())
}

/// Writes a parameter and reads it back (`sysctl -w KEY=VALUE`).
///
/// # Errors
///
/// [`Error::is_not_found`] when this kernel has no such parameter (`net.bridge.*` needs the module `br_netfilter`), a
/// permission error, and [`Error::SysctlNotTaken`] when the kernel ignored the write.
pub fn set(key: &str, value: &str) -> Result<()> {
    let path = path_of(key)?;
    let replace = || {
        let file = File::options().read(true).write(true).open(&path)?;
        file.write_all_at(value.as_bytes(), 0)?;
        read(&file)
    };
    let found = replace().map_err(|source| Error::File { action: "write", path, source })?;
    // A parameter of several numbers reads back with tabs between them.
    if found.split_whitespace().eq(value.split_whitespace()) {
        return Ok(());
    }
    Err(Error::SysctlNotTaken { key: key.to_owned(), wanted: value.to_owned(), found })
}

/// Returns the file of a parameter.
///
/// As in `sysctl`, the first separator decides: `net.ipv4.conf.flannel/100.rp_filter` and `net/ipv4/conf/flannel.100/rp_filter` are the
/// same parameter, of the interface `flannel.100`.
fn path_of(key: &str) -> Result<PathBuf> {
    let slashes_separate = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let names: Vec<String> = if slashes_separate {
        key.split('/').map(str::to_owned).collect()
    } else {
        key.split('.').map(|name| name.replace('/', ".")).collect()
    };
    if names.iter().any(|name| name.is_empty() || name == "." || name == "..") {
        let reason = "write it as net.ipv4.ip_forward";
        return Err(Error::Invalid { what: "sysctl", value: key.to_owned(), reason });
    }
    Ok(["/proc", "sys"].into_iter().map(str::to_owned).chain(names).collect())
}

/// Returns the name of a parameter of one interface: `interface_key(4, "flannel.100", "rp_filter")` is
/// `net.ipv4.conf.flannel/100.rp_filter`.
#[must_use]
pub fn interface_key(version: u8, dev: &crate::name::IfName, parameter: &str) -> String {
    format!("net.ipv{version}.conf.{}.{parameter}", dev.as_str().replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_in_an_interface_name_is_written_as_a_slash() {
        let key = interface_key(4, &"flannel.100".parse().unwrap(), "rp_filter");
        assert_eq!(path_of(&key).unwrap(), PathBuf::from("/proc/sys/net/ipv4/conf/flannel.100/rp_filter"));
        assert_eq!(path_of(&key).unwrap(), path_of("net/ipv4/conf/flannel.100/rp_filter").unwrap());
    }

    #[test]
    fn a_key_does_not_lead_out_of_proc_sys() {
        for bad in ["", "net..ipv4", "net.//.x", ".", "../etc/passwd", "net/../../etc", "/etc"] {
            assert!(path_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_parameter_that_does_not_exist_is_not_found() {
        assert!(get("net.ipv4.no_such_parameter").unwrap_err().is_not_found());
    }

    #[test]
    fn a_namespace_has_parameters_of_its_own() {
        if !crate::testing::enter_sandbox() {
            return;
        }
        assert_eq!(get("net.ipv4.ip_forward").unwrap(), "0");
        set("net.ipv4.ip_forward", "1").unwrap();
        assert_eq!(get("net.ipv4.ip_forward").unwrap(), "1");
    }
}
