//! `ipMasq`: what a pod sends out of its own subnet bears the node's address.
//!
//! The Go plugin makes a chain and a jump for every address, by running iptables some ten times. Here the table `cni`
//! holds one chain for every subnet, and a map says which pod goes through which: an ADD is one element, which bears the name of its attachment.
//!
//! ```text
//! table ip cni {
//!     map pods { type ipv4_addr : verdict
//!                elements = { 10.22.0.2 comment "lab c1 eth0" : goto subnet_10.22.0.0/24, … } }
//!     chain postrouting { type nat hook postrouting priority srcnat; ip saddr vmap @pods }
//!     chain subnet_10.22.0.0/24 { ip daddr 10.22.0.0/24 return      # between pods of one subnet: no translation
//!                                 ip daddr 224.0.0.0/4 return       # multicast
//!                                 masquerade fully-random }
//! }
//! ```
//!
//! `ipMasqBackend` may say `iptables`, which is what the Go plugin does when it says nothing, or `nftables`; both mean the above, so that a configuration
//! written for the Go plugin works. DEL takes away what either backend of the Go plugin has left for the container
//! ([`crate::nftables::foreign`]).

use ipnet::IpNet;
use linux_net::ip;
use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Hook, HookPoint, MasqueradeFlags, Op, Policy, Priority, Rule, Set, Spec,
    Statement, Value, Verdict,
};

use crate::attachment::{Mark, Valid};
use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::nftables::{self, Claim, Words, foreign};

const POSTROUTING: &str = "postrouting";

/// Masquerades these addresses from now on. Their prefix lengths say which subnet they belong to.
///
/// # Errors
///
/// Code 100 when the kernel refuses; then nothing is set.
pub fn add(addresses: &[IpNet], mark: &Mark) -> Result<()> {
    let (frame, claims) = plan(addresses);
    // An address that is in the map belongs to this pod now; the one that had it before never got a DEL.
    let added = nftables::claim(&frame, &claims, mark, |_| true)?;
    added.map_err(|taken| Error::new(Code::Kernel, format!("masquerading: {} is in the way", taken.element)))
}

/// Masquerades an attachment no longer, whatever its addresses were and whoever set it up.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn remove(env: &Environment, conf: &Conf) -> Result<()> {
    let mark = Mark::of(env, conf)?;
    nftables::release(&sets(), |text| text == mark.as_str())?;
    foreign::masquerade(&conf.network, &env.container_id, env.ifname()?)
}

/// Masquerades the attachments of this network no longer that GC does not keep.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn remove_stale(valid: &Valid) -> Result<()> {
    nftables::release(&sets(), |text| valid.is_stale(text)).map(drop)
}

/// Looks whether these addresses are masqueraded.
///
/// # Errors
///
/// Code 102 with what is missing.
pub fn check(addresses: &[IpNet], mark: &Mark) -> Result<()> {
    let (frame, claims) = plan(addresses);
    nftables::check(&frame, &claims, mark)
}

/// The rules that these addresses need, and their elements.
fn plan(addresses: &[IpNet]) -> (Batch, Vec<Claim>) {
    let (mut frame, mut claims) = (Batch::new(), Vec::new());
    for address in addresses {
        let words = Words::of(ip::Family::of(address.addr()));
        let goto = Element::verdict([address.addr().into()], Verdict::Goto(chain_name(address)));
        frame.extend(rules(&words, address));
        claims.push(Claim { set: pods(&words), elements: vec![goto] });
    }
    (frame, claims)
}

fn sets() -> [Set; 2] {
    Words::both().map(|words| pods(&words))
}

fn pods(words: &Words) -> Set {
    Set::verdict_map(&words.table, "pods", Spec::types([words.address]))
}

/// Colons are not for names; nothing else in the text of an address is an underscore, so names stay distinct.
fn chain_name(address: &IpNet) -> String {
    format!("subnet_{}", address.trunc()).replace(':', "_")
}

/// Everything, each time: what is there already stays, what is missing or was changed by hand is put right.
fn rules(words: &Words, address: &IpNet) -> Vec<Op> {
    let table = &words.table;
    let chain = chain_name(address);
    let hook = Hook {
        kind: ChainKind::Nat,
        at: HookPoint::Postrouting,
        priority: Priority::SRCNAT,
        policy: Some(Policy::Accept),
        device: None,
    };
    let multicast = match address {
        IpNet::V4(_) => IpNet::new_assert([224, 0, 0, 0].into(), 4),
        IpNet::V6(_) => IpNet::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    let rule = |chain: &str, statements: Vec<Statement>| Op::AddRule(Rule::new(table, chain, statements));
    let flush = |chain: &str| Op::FlushChain { table: table.clone(), chain: chain.to_owned() };
    let to = |net: IpNet| Statement::equal(words.destination, Value::from(net));
    vec![
        Op::AddTable(table.clone()),
        Op::AddSet(pods(words)),
        Op::AddChain(Chain::base(table, POSTROUTING, hook)),
        Op::AddChain(Chain::regular(table, chain.clone())),
        flush(POSTROUTING),
        rule(POSTROUTING, vec![Statement::Vmap { key: words.source.into(), map: pods(words).name }]),
        flush(&chain),
        rule(&chain, vec![to(*address), Statement::ret()]),
        rule(&chain, vec![to(multicast), Statement::ret()]),
        rule(&chain, vec![Statement::Masquerade(MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() })]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_a_subnet_has_a_name_that_nft_can_read() {
        assert_eq!(chain_name(&"10.22.0.9/24".parse().unwrap()), "subnet_10.22.0.0/24");
        assert_eq!(chain_name(&"fd00:22::9/64".parse().unwrap()), "subnet_fd00_22__/64");
    }

    #[test]
    fn one_element_is_all_that_belongs_to_a_pod() {
        let of = |address: &str| plan(&[address.parse().unwrap()]);
        let (first, second) = (of("10.22.0.2/24"), of("10.22.0.3/24"));
        assert_eq!(first.0, second.0);
        assert_ne!(first.1, second.1);
        assert_eq!(first.1[0].elements.len(), 1);
    }
}
