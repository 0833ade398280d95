//! What the Go plugins leave, so that a DEL of ours can follow an ADD of theirs.
//!
//! They call iptables, and the iptables of today (`iptables-nft`) keeps its rules in nftables: a chain of iptables is a chain of the table
//! `nat` or `filter`, and can be taken away without the program. Their newest versions have tables of nftables themselves:
//!
//! | plugin             | table                         | what is the container's                                          |
//! |--------------------|-------------------------------|------------------------------------------------------------------|
//! | portmap            | `ip nat`, `ip6 nat`           | chain `CNI-DN-HASH` (once also `CNI-SN-HASH`) and jumps to it    |
//! | portmap, nftables  | `ip`, `ip6 cni_hostport`      | rules whose comment is the container's id                        |
//! | bridge, ptp        | `ip nat`, `ip6 nat`           | chain `CNI-HASH` and jumps to it                                 |
//! | the same, nftables | `inet cni_plugins_masquerade` | rules whose comment begins with a hash                           |
//! | firewall           | `ip filter`, `ip6 filter`     | rules of chain `CNI-FORWARD` that compare with its address       |
//!
//! `HASH` is the beginning of the SHA-512 of network and container id, one behind the other. Chains that all containers share
//! (`CNI-HOSTPORT-DNAT`, `CNI-FORWARD`) stay, as the Go plugins let them stay.
//!
//! Source: containernetworking/plugins, `pkg/utils/utils.go`, `pkg/ip/ipmasq_*`, `plugins/meta/portmap`, `plugins/meta/firewall`.

use std::net::IpAddr;

use linux_net::IfName;
use linux_net::nft::{Batch, Family, Nft, Op, RuleInfo, Table};
use sha2::{Digest, Sha512};

use crate::conf::NetworkName;
use crate::env::ContainerId;
use crate::error::Result;
use crate::nftables::commit_unless_gone;

/// How long the Go plugins make a chain's name: iptables allows no more than 28.
const CHAIN_NAME_BYTES: usize = 28;

/// Takes away a container's host ports.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn portmap(network: &NetworkName, id: &ContainerId) -> Result<()> {
    let mut nft = Nft::open()?;
    let chains = ["CNI-DN-", "CNI-SN-"].map(|prefix| chain_of(prefix, network, id));
    for family in [Family::Ip, Family::Ip6] {
        delete_chains(&mut nft, &Table::new(family, "nat"), &chains)?;
        let is_of_container = |rule: &RuleInfo| rule.comment.as_deref() == Some(id.as_str());
        delete_rules(&mut nft, &Table::new(family, "cni_hostport"), is_of_container)?;
    }
    Ok(())
}

/// Takes away what masquerades a container.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn masquerade(network: &NetworkName, id: &ContainerId, ifname: &IfName) -> Result<()> {
    let mut nft = Nft::open()?;
    let chains = [chain_of("CNI-", network, id)];
    for family in [Family::Ip, Family::Ip6] {
        delete_chains(&mut nft, &Table::new(family, "nat"), &chains)?;
    }
    let short = |text: &str| sha512(text)[..16].to_owned();
    let hashes = format!("{}-{}", short(network.as_str()), short(&format!("{ifname}:{id}")));
    let is_of_attachment = |rule: &RuleInfo| rule.comment.as_deref().is_some_and(|text| text.starts_with(&hashes));
    delete_rules(&mut nft, &Table::new(Family::Inet, "cni_plugins_masquerade"), is_of_attachment)
}

/// Takes away what lets packets of these addresses through.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn firewall(addresses: &[IpAddr]) -> Result<()> {
    const FORWARD: &str = "CNI-FORWARD";
    let mut nft = Nft::open()?;
    for family in [Family::Ip, Family::Ip6] {
        let table = Table::new(family, "filter");
        // Looking for one chain first spares the reading of all rules where the Go plugin has never been.
        if !nft.chains(&table)?.iter().any(|info| info.chain.name == FORWARD) {
            continue;
        }
        let is_of_container = |rule: &RuleInfo| {
            let compares_with = |address: &IpAddr| rule.constants.iter().any(|constant| *constant == bytes(address));
            rule.chain == FORWARD && addresses.iter().any(compares_with)
        };
        delete_rules(&mut nft, &table, is_of_container)?;
    }
    Ok(())
}

/// The name the Go plugins give a container's chain.
fn chain_of(prefix: &str, network: &NetworkName, id: &ContainerId) -> String {
    let name = format!("{prefix}{}", sha512(&format!("{network}{id}")));
    name[..CHAIN_NAME_BYTES].to_owned()
}

fn sha512(text: &str) -> String {
    Sha512::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Deletes those of the chains that are there, and the rules that jump to them.
fn delete_chains(nft: &mut Nft, table: &Table, chains: &[String]) -> Result<()> {
    let mut doomed: Vec<_> = nft.chains(table)?.into_iter().map(|info| info.chain.name).collect();
    doomed.retain(|name| chains.contains(name));
    if doomed.is_empty() {
        return Ok(());
    }
    let jumps = nft.rules(table)?.into_iter();
    let jumps = jumps.filter(|rule| rule.target.as_ref().is_some_and(|target| doomed.contains(target)));
    let mut batch: Batch = jumps.map(|rule| deletion(table, rule)).collect();
    batch.extend(doomed.iter().map(|chain| Op::FlushChain { table: table.clone(), chain: chain.clone() }));
    batch.extend(doomed.into_iter().map(|chain| Op::DelChain { table: table.clone(), chain }));
    commit_unless_gone(nft, &batch).map(drop)
}

fn delete_rules(nft: &mut Nft, table: &Table, is_doomed: impl Fn(&RuleInfo) -> bool) -> Result<()> {
    let doomed = nft.rules(table)?.into_iter().filter(is_doomed);
    let batch = doomed.map(|rule| deletion(table, rule)).collect();
    commit_unless_gone(nft, &batch).map(drop)
}

fn deletion(table: &Table, rule: RuleInfo) -> Op {
    Op::DelRule { table: table.clone(), chain: rule.chain, handle: rule.handle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_the_name_that_the_go_plugins_give_it() {
        // Their own test: pkg/utils/utils_test.go, "test" and "1234".
        let chain = |prefix| chain_of(prefix, &NetworkName::new("test").unwrap(), &ContainerId::new("1234").unwrap());
        assert_eq!(chain("CNI-"), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(chain("CNI-").len(), CHAIN_NAME_BYTES);
        assert_eq!(chain("CNI-DN-"), "CNI-DN-2bbe0c48b91a7d1b8a675");
    }
}
