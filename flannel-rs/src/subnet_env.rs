//! `subnet.env`: how the agent tells the CNI plugins of its worker which addresses pods may have.
//!
//! ```text
//! FLANNEL_NETWORK=11.0.0.0/8
//! FLANNEL_SUBNET=11.10.0.1/20
//! FLANNEL_IPV6_NETWORK=fd00:11::/48          these two in a dual-stack cluster only
//! FLANNEL_IPV6_SUBNET=fd00:11:0:1::1/64
//! FLANNEL_MTU=1430
//! FLANNEL_IPMASQ=true
//! ```
//!
//! `FLANNEL_SUBNET` is the address of the worker's bridge, the first of the subnet, not its base. The file appears only when device
//! and rules are in place, so a plugin that finds it may start pods; and it stays when the agent ends, because the pods stay too.
//!
//! There is one MTU for both families, because a pod has one interface: the smaller of the two. flanneld announces that of IPv4, 1450, although
//! its IPv6 device takes 1430 bytes at most, and large IPv6 packets between pods depend on an ICMP message then.
//!
//! Source: flannel `pkg/subnet/subnet.go`, `WriteSubnetFile`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::family::Prefix;
use crate::lease::Subnet;

/// What `subnet.env` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The IPv4 pod network of the cluster.
    pub network: Ipv4Net,
    /// The IPv6 one, in a dual-stack cluster.
    pub ipv6_network: Option<Ipv6Net>,
    /// The subnet of this worker.
    pub subnet: Subnet,
    /// The MTU that a pod's interface must have, in bytes: what is left of the underlay's after the headers of the overlay.
    pub mtu_bytes: u32,
    /// Whether the agent masquerades what leaves the pod network, so that the plugins need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Renders the file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\n", self.network, gateway(&self.subnet.ipv4));
        if let (Some(network), Some(subnet)) = (self.ipv6_network, self.subnet.ipv6) {
            text.push_str(&format!("FLANNEL_IPV6_NETWORK={network}\nFLANNEL_IPV6_SUBNET={}\n", gateway(&subnet)));
        }
        text.push_str(&format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu_bytes, self.ip_masq));
        text
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

/// The address of the worker's bridge with the length of the subnet: the one behind the base.
fn gateway<P: Prefix>(subnet: &P) -> String {
    let length = subnet.length();
    // A host's own network first, so that the text has the address rather than the base.
    let address = P::containing(subnet.first() + 1, P::FAMILY.host_prefix_len());
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    format!("{}/{length}", address.split('/').next().unwrap_or_default())
}

/// The subnets that a former run of the agent had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FormerSubnets {
    /// That of `FLANNEL_SUBNET`, host bits cleared.
    pub ipv4: Option<Ipv4Net>,
    /// That of `FLANNEL_IPV6_SUBNET`, host bits cleared.
    pub ipv6: Option<Ipv6Net>,
}

impl FormerSubnets {
    /// Reads them from the file that the former run wrote.
    ///
    /// A missing or damaged file is no error: the worker then simply has no wish.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let Ok(text) = fs::read_to_string(path) else { return Self::default() };
        Self { ipv4: subnet_in(&text, "FLANNEL_SUBNET="), ipv6: subnet_in(&text, "FLANNEL_IPV6_SUBNET=") }
    }

    /// Adds the halves of a key of ours that does not fit any more, where the file says nothing: a worker that becomes dual stack
    /// keeps its IPv4 subnet.
    pub fn or_halves_of(&mut self, subnet: Subnet) {
        self.ipv4 = self.ipv4.or(Some(subnet.ipv4));
        self.ipv6 = self.ipv6.or(subnet.ipv6);
    }
}

fn subnet_in<P: Prefix>(text: &str, variable: &str) -> Option<P> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(variable))?;
    let subnet: P = value.trim_matches('"').parse().ok()?;
    P::containing(subnet.first(), subnet.length())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SubnetEnv {
        SubnetEnv {
            network: "11.0.0.0/8".parse().unwrap(),
            ipv6_network: None,
            subnet: "11.10.16.0-20".parse().unwrap(),
            mtu_bytes: 1450,
            ip_masq: false,
        }
    }

    #[test]
    fn the_file_has_the_bytes_that_flanneld_writes() {
        let expected =
            "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.16.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(example().render(), expected);
        let dual = SubnetEnv {
            ipv6_network: Some("fd00:11::/48".parse().unwrap()),
            subnet: "11.10.16.0-20&fd00:11:0:1::-64".parse().unwrap(),
            mtu_bytes: 1430,
            ip_masq: true,
            ..example()
        };
        let expected = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.16.1/20\nFLANNEL_IPV6_NETWORK=fd00:11::/48\n\
                        FLANNEL_IPV6_SUBNET=fd00:11:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";
        assert_eq!(dual.render(), expected);
    }

    #[test]
    fn the_file_is_readable_by_all_in_a_directory_that_is_made_and_leaves_nothing_beside_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("flannel/subnet.env");
        example().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(FormerSubnets::read(&path), FormerSubnets { ipv4: Some(example().subnet.ipv4), ipv6: None });
    }

    #[test]
    fn a_missing_or_damaged_file_gives_no_wish() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("subnet.env");
        assert_eq!(FormerSubnets::read(&path), FormerSubnets::default());
        fs::write(&path, "FLANNEL_SUBNET=11.10\nFLANNEL_IPV6_SUBNET=\n").unwrap();
        assert_eq!(FormerSubnets::read(&path), FormerSubnets::default());
    }
}
