//! `subnet.env`, the file by which the overlay agent tells the CNI plugin which subnet this node has.
//!
//! ```text
//!   FLANNEL_NETWORK=11.0.0.0/8        the cluster's pods: becomes a route
//!   FLANNEL_SUBNET=11.14.64.1/20      this node's pods: becomes the range of host-local
//!   FLANNEL_MTU=1450                  becomes the mtu of the bridge
//!   FLANNEL_IPMASQ=true               the agent masquerades, so the bridge must not
//! ```

use std::fs;
use std::path::Path;

use ipnet::IpNet;

use crate::error::{Code, Error, Result};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's networks, IPv4 ones first, each once.
    pub networks: Vec<IpNet>,
    /// This node's subnets, at most one of each family, IPv4 first.
    pub subnets: Vec<IpNet>,
    /// The MTU of the overlay in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades what leaves the cluster.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// Code 11 when the file is not there: the agent may just not have got its lease yet. Code 7 when it is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|source| {
            Error::new(Code::TryAgain, format!("cannot read {}: {source}", path.display()))
                .with_details("the overlay agent (flanneld, flannel-rs) writes it once it has a lease; is it running?")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of the file; `name` is for messages.
    ///
    /// # Errors
    ///
    /// Code 7 naming every variable that is missing, or the one that is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let get = |key: &str| {
            text.lines()
                .filter_map(|line| line.trim().split_once('='))
                .rfind(|(k, _)| *k == key)
                .map(|(_, value)| value)
        };
        let wrong = |key: &str, value: &str| Error::config(format!("{name}: {key}={value} cannot be understood"));
        let nets = |key: &str| -> Result<Vec<IpNet>> {
            let parts = get(key).into_iter().flat_map(|value| value.split(',')).filter(|part| !part.is_empty());
            parts.map(|part| part.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| wrong(key, part))).collect()
        };
        let mut networks = nets("FLANNEL_NETWORK")?;
        networks.extend(nets("FLANNEL_IPV6_NETWORK")?);
        let mut unique = Vec::with_capacity(networks.len());
        networks.retain(|net| {
            !unique.contains(net) && {
                unique.push(*net);
                true
            }
        });
        let mut subnets = nets("FLANNEL_SUBNET")?;
        subnets.extend(nets("FLANNEL_IPV6_SUBNET")?);

        let missing: Vec<_> = [
            ("FLANNEL_NETWORK", networks.is_empty()),
            ("FLANNEL_SUBNET", subnets.is_empty()),
            ("FLANNEL_MTU", get("FLANNEL_MTU").is_none()),
            ("FLANNEL_IPMASQ", get("FLANNEL_IPMASQ").is_none()),
        ]
        .into_iter()
        .filter_map(|(key, is_missing)| is_missing.then_some(key))
        .collect();
        if !missing.is_empty() {
            return Err(Error::config(format!("{name} is missing {}", missing.join(", "))));
        }
        let mtu = get("FLANNEL_MTU").unwrap_or_default();
        Ok(Self {
            networks,
            subnets,
            mtu: mtu.parse().map_err(|_| wrong("FLANNEL_MTU", mtu))?,
            ip_masq: get("FLANNEL_IPMASQ") == Some("true"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_file_gives_both_families() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16,10.5.0.0/16\nFLANNEL_SUBNET=10.5.29.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:3::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let env = SubnetEnv::parse(text, "subnet.env").unwrap();
        assert_eq!(env.networks, ["10.5.0.0/16", "fd00:5::/48"].map(|net| net.parse().unwrap()));
        assert_eq!(env.subnets, ["10.5.29.0/24", "fd00:5:0:3::/64"].map(|net| net.parse().unwrap()));
        assert!(env.ip_masq);
        assert_eq!(env.mtu, 1450);
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let error = SubnetEnv::parse("FLANNEL_NETWORK=10.5.0.0/16\n", "subnet.env").unwrap_err();
        assert_eq!(error.msg, "subnet.env is missing FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
    }

    #[test]
    fn only_the_word_true_is_true() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=TRUE\n";
        assert!(!SubnetEnv::parse(text, "subnet.env").unwrap().ip_masq);
    }

    #[test]
    fn a_file_that_is_not_there_yet_asks_to_try_again() {
        let error = SubnetEnv::read(Path::new("/nonexistent/subnet.env")).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
    }
}
