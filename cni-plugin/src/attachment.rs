//! The mark by which everything that an ADD leaves in the kernel is found again: `NETWORK CONTAINERID IFNAME`.
//!
//! It is the comment of an nftables element and the alias of a link. A DEL that gets neither namespace nor `prevResult` reads the marks back and
//! takes what bears its own; GC takes what bears one of its network that is not to be kept.

use std::collections::BTreeSet;
use std::fmt;

use linux_net::IfName;
use sha2::{Digest, Sha512};

use crate::conf::{Conf, NetworkName};
use crate::env::{ContainerId, Environment};
use crate::error::Result;

/// A network's name takes at most so much of a mark; with the container's id, the interface's name (15) and two blanks 127 bytes, because a
/// comment in nftables has room for 128.
const MAX_NETWORK_BYTES: usize = 40;
/// A container's id takes at most so much; those of container engines have 64.
const MAX_ID_BYTES: usize = 70;

/// The mark of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(String);

impl Mark {
    /// The mark of one interface of one container on a network.
    #[must_use]
    pub fn new(network: &NetworkName, container_id: &ContainerId, ifname: &IfName) -> Self {
        Self::of_words(network, container_id.as_str(), ifname.as_str())
    }

    /// The mark of the attachment that a command is about.
    ///
    /// # Errors
    ///
    /// Code 4 when `CNI_IFNAME` is missing.
    pub fn of(env: &Environment, conf: &Conf) -> Result<Self> {
        Ok(Self::new(&conf.network, &env.container_id, env.ifname()?))
    }

    fn of_words(network: &NetworkName, container_id: &str, ifname: &str) -> Self {
        let (network, id) = (shortened(network.as_str(), MAX_NETWORK_BYTES), shortened(container_id, MAX_ID_BYTES));
        Self(format!("{network} {id} {ifname}"))
    }

    /// The mark as it stands in a comment or an alias: at most 127 bytes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a GC keeps, and what it does not.
#[derive(Debug, Clone)]
pub struct Valid {
    network: String,
    marks: BTreeSet<Mark>,
}

impl Valid {
    /// Reads the list that GC is given.
    ///
    /// # Errors
    ///
    /// Code 7 when the list is missing or of another shape.
    pub fn of(conf: &Conf) -> Result<Self> {
        let marks = conf
            .valid_attachments()?
            .iter()
            .map(|kept| Mark::of_words(&conf.network, &kept.container_id, &kept.ifname))
            .collect();
        Ok(Self { network: format!("{} ", shortened(conf.network.as_str(), MAX_NETWORK_BYTES)), marks })
    }

    /// Whether what bears this text as its mark is to be freed: it is of this network, and of no attachment that is kept.
    #[must_use]
    pub fn is_stale(&self, text: &str) -> bool {
        text.starts_with(&self.network) && !self.marks.contains(&Mark(text.to_owned()))
    }
}

/// Text that is too long ends in a hash of itself instead; the `~` is in no name and no id, so that nothing else looks like it.
fn shortened(text: &str, max_bytes: usize) -> String {
    const HASH_DIGITS: usize = 16;
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let hash: String = Sha512::digest(text).iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    let kept: String = text.chars().take(max_bytes - 1 - HASH_DIGITS).collect();
    format!("{kept}~{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(network: &str, id: &str) -> Mark {
        Mark::new(&NetworkName::new(network).unwrap(), &ContainerId::new(id).unwrap(), &"eth0".parse().unwrap())
    }

    #[test]
    fn the_id_of_a_container_engine_stands_whole() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(mark("lab", &id).as_str(), format!("lab {id} eth0"));
    }

    #[test]
    fn the_longest_names_fit_and_stay_different() {
        let of = |end: char| mark(&"n".repeat(200), &format!("{}{end}", "c".repeat(199)));
        assert_ne!(of('a'), of('b'));
        let longest = Mark::new(
            &NetworkName::new(&"n".repeat(200)).unwrap(),
            &ContainerId::new(&"c".repeat(200)).unwrap(),
            &"fifteen-letters".parse().unwrap(),
        );
        assert_eq!(longest.as_str().len(), 127);
    }

    #[test]
    fn gc_frees_what_is_of_its_network_and_not_kept() {
        let conf =
            Conf::parse(br#"{"name": "lab", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}"#);
        let valid = Valid::of(&conf.unwrap()).unwrap();
        let verdicts = ["lab c1 eth0", "lab c1 eth1", "lab c2 eth0", "lab2 c2 eth0", "somebody's"];
        assert_eq!(verdicts.map(|text| valid.is_stale(text)), [false, true, true, false, false]);
    }
}
