//! Files that are there whole or not at all.
//!
//! A plugin can be killed between any two system calls, and what it kept for DEL must not then be half a file. So the content goes into a file
//! that has no name yet (`O_TMPFILE`, open(2)), which gets its name when it is complete; killed before, it is gone with the process. Writing to
//! a second name and renaming would leave that name behind.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;

use crate::error::{Error, Result};

/// Makes a directory and those above it, for root alone; it may be there.
///
/// # Errors
///
/// Code 5 naming the path.
pub fn make_dir(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::io("create directory", dir, &source))
}

/// Writes a file for root alone (mode 0600), in the place of one that may be there. Its directory must be there.
///
/// # Errors
///
/// Code 5 naming the path.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    write_nameless(path, content).map_err(|source| Error::io("write", path, &source))
}

fn write_nameless(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let nameless = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut file = match open(dir, nameless, Mode::from_bits_truncate(0o600)) {
        Ok(file) => File::from(file),
        // A file system without nameless files: as libcni does it.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => return write_named(path, content),
        Err(errno) => return Err(errno.into()),
    };
    file.write_all(content)?;
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    let name_it = || linkat(AT_FDCWD, itself.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW);
    match name_it() {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => {
            fs::remove_file(path)?;
            name_it().map_err(io::Error::from)
        }
        // Without /proc a file has no path by which it could be linked.
        Err(Errno::ENOENT) => write_named(path, content),
        Err(errno) => Err(errno.into()),
    }
}

fn write_named(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

/// Reads a file; `None` when it is not there.
///
/// # Errors
///
/// Code 5 naming the path.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("read", path, &source)),
    }
}

/// The names in a directory, in order; none when it is not there.
///
/// # Errors
///
/// Code 5 naming the path.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("read directory", dir, &source);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Removes a file; it may be gone.
///
/// # Errors
///
/// Code 5 naming the path.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &source)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_written_again_in_the_place_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for content in ["first", "second"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), content.as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()).unwrap(), ["a"], "nothing else is left");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
