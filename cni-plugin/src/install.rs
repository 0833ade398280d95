//! `cni-plugin install DIR`: gives the one binary the names it is called by.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::error::{Error, Result};
use crate::plugin;

/// Makes `dir/<name>` a link to `binary` for every plugin and for cnitool. A second run changes nothing.
///
/// # Errors
///
/// Code 5 naming the path; a file of that name that is no link is somebody else's plugin and is not replaced.
pub fn install(binary: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|source| Error::io("create directory", dir, &source))?;
    for name in plugin::names().chain(["cnitool"]) {
        let link = dir.join(name);
        match fs::read_link(&link) {
            Ok(target) if target == binary => continue,
            Ok(_) => fs::remove_file(&link).map_err(|source| Error::io("replace", &link, &source))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("replace what is no link:", &link, &source)),
        }
        symlink(binary, &link).map_err(|source| Error::io("link", &link, &source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_gives_the_same_links() {
        let dir = tempfile::tempdir().unwrap();
        let binary = Path::new("/opt/knetsim/cni-plugin");
        for _ in 0..2 {
            install(binary, dir.path()).unwrap();
            let mut names: Vec<_> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            let mut wanted: Vec<_> = plugin::names().chain(["cnitool"]).collect();
            wanted.sort_unstable();
            assert_eq!(names, wanted);
            assert_eq!(fs::read_link(dir.path().join("bridge")).unwrap(), binary);
        }
    }

    #[test]
    fn a_real_plugin_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge"), "somebody else's").unwrap();
        install(Path::new("/opt/knetsim/cni-plugin"), dir.path()).unwrap_err();
        assert_eq!(fs::read_to_string(dir.path().join("bridge")).unwrap(), "somebody else's");
    }
}
