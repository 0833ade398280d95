//! `subnet.env`: how the agent tells the CNI plugins of its worker which addresses pods may have.
//!
//! ```text
//! FLANNEL_NETWORK=11.0.0.0/8
//! FLANNEL_SUBNET=11.10.0.1/20
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=true
//! ```
//!
//! `FLANNEL_SUBNET` is the address of the worker's bridge, the first of the subnet, not its base. The file appears only when device
//! and rules are in place, so a plugin that finds it may start pods; and it stays when the agent ends, because the pods stay too.
//!
//! Source: flannel `pkg/subnet/subnet.go`, `WriteSubnetFile`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipnet::Ipv4Net;

/// What `subnet.env` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The pod network of the cluster.
    pub network: Ipv4Net,
    /// The subnet of this worker.
    pub subnet: Ipv4Net,
    /// The MTU that a pod's interface must have, in bytes: what is left of the underlay's after the VXLAN headers.
    pub mtu_bytes: u32,
    /// Whether the agent masquerades what leaves the pod network, so that the plugins need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Renders the file.
    #[must_use]
    pub fn render(&self) -> String {
        let gateway = Ipv4Addr::from(u32::from(self.subnet.network()).saturating_add(1));
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            self.subnet.prefix_len(),
            self.mtu_bytes,
            self.ip_masq
        )
    }

    /// Writes the file with mode 0644, whatever the umask, so that a reader sees the old one or the new one and never a part.
    ///
    /// # Errors
    ///
    /// That of the file system, when the directory cannot be made or the file not be written or renamed.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp"); // The same directory, because a rename cannot cross file systems.
        fs::write(&temporary, self.render())?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
        fs::rename(&temporary, path)
    }
}

/// Reads the subnet of a former run, host bits cleared; `None` when there is no file or none that can be read.
///
/// A missing or damaged file is no error: the worker then simply has no wish.
#[must_use]
pub fn previous_subnet(path: &Path) -> Option<Ipv4Net> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.trim().strip_prefix("FLANNEL_SUBNET="))?;
    let subnet: Ipv4Net = value.trim_matches('"').parse().ok()?;
    Some(subnet.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SubnetEnv {
        SubnetEnv {
            network: "11.0.0.0/8".parse().unwrap(),
            subnet: "11.10.16.0/20".parse().unwrap(),
            mtu_bytes: 1450,
            ip_masq: false,
        }
    }

    #[test]
    fn the_file_has_the_bytes_that_flanneld_writes() {
        let expected =
            "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.16.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(example().render(), expected);
    }

    #[test]
    fn the_file_is_readable_by_all_in_a_directory_that_is_made_and_leaves_nothing_beside_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("flannel/subnet.env");
        example().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(previous_subnet(&path), Some(example().subnet));
    }

    #[test]
    fn a_missing_or_damaged_file_gives_no_wish() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("subnet.env");
        assert_eq!(previous_subnet(&path), None);
        fs::write(&path, "FLANNEL_SUBNET=11.10\n").unwrap();
        assert_eq!(previous_subnet(&path), None);
    }
}
