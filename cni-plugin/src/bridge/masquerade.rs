//! `ipMasq`: what a pod sends out of its own subnet bears the node's address.
//!
//! The Go plugin makes a chain and a jump for every address, by running iptables some ten times. Here the table `cni`
//! holds one chain for every subnet, and a map says which pod goes through which: an ADD is one element.
//!
//! ```text
//! table ip cni {
//!     map pods { type ipv4_addr : verdict
//!                elements = { 10.22.0.2 : goto subnet_10.22.0.0/24, … } }
//!     chain postrouting { type nat hook postrouting priority srcnat; ip saddr vmap @pods }
//!     chain subnet_10.22.0.0/24 { ip daddr 10.22.0.0/24 return      # between pods of one subnet: no translation
//!                                 ip daddr 224.0.0.0/4 return       # multicast
//!                                 masquerade fully-random }
//! }
//! ```

use ipnet::IpNet;
use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, HookPoint, MasqueradeFlags, Op, Priority, Rule, Set, Spec,
    Statement, Table, Type, Value, Verdict,
};

use crate::error::Result;

const TABLE: &str = "cni";
const POSTROUTING: &str = "postrouting";

/// Masquerades these addresses from now on. Their prefix lengths say which subnet they belong to.
///
/// # Errors
///
/// Code 100 when the kernel refuses; then nothing of that address is set.
pub fn add(addresses: &[IpNet]) -> Result<()> {
    for address in addresses {
        let batch = plan_add(address);
        match batch.commit() {
            // Left by a pod of another subnet that had the same address.
            Err(error) if error.is_exists() => {
                remove(std::slice::from_ref(address))?;
                batch.commit()?;
            }
            done => done?,
        }
    }
    Ok(())
}

/// Masquerades these addresses no longer; they need not be in the map.
///
/// # Errors
///
/// Code 100 when the kernel refuses for another reason.
pub fn remove(addresses: &[IpNet]) -> Result<()> {
    for address in addresses {
        match plan_remove(address).commit() {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The table of a family, its words for addresses, and its multicast network.
struct Words {
    table: Table,
    kind: Type,
    source: Field,
    destination: Field,
    multicast: Value,
}

impl Words {
    fn of(address: &IpNet) -> Self {
        match address {
            IpNet::V4(_) => Self {
                table: Table::new(Family::Ip, TABLE),
                kind: Type::Ipv4Addr,
                source: Field::IpSaddr,
                destination: Field::IpDaddr,
                multicast: Value::Ipv4Net(ipnet::Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
            },
            IpNet::V6(_) => Self {
                table: Table::new(Family::Ip6, TABLE),
                kind: Type::Ipv6Addr,
                source: Field::Ip6Saddr,
                destination: Field::Ip6Daddr,
                multicast: Value::Ipv6Net(ipnet::Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
            },
        }
    }

    fn pods(&self) -> Set {
        Set::verdict_map(&self.table, "pods", Spec::types([self.kind]))
    }
}

fn host(address: &IpNet) -> Value {
    match address {
        IpNet::V4(net) => Value::Ipv4(net.addr()),
        IpNet::V6(net) => Value::Ipv6(net.addr()),
    }
}

fn subnet(address: &IpNet) -> Value {
    match address {
        IpNet::V4(net) => Value::Ipv4Net(net.trunc()),
        IpNet::V6(net) => Value::Ipv6Net(net.trunc()),
    }
}

/// Colons are not for names; nothing else in the text of an address is an underscore, so names stay distinct.
fn chain_name(address: &IpNet) -> String {
    format!("subnet_{}", address.trunc()).replace(':', "_")
}

/// Everything, each time: what is there already stays, what is missing or was changed by hand is put right.
fn plan_add(address: &IpNet) -> Batch {
    let words = Words::of(address);
    let (table, pods) = (&words.table, words.pods());
    let chain = chain_name(address);
    let hook = Hook {
        kind: ChainKind::Nat,
        at: HookPoint::Postrouting,
        priority: Priority::SRCNAT,
        policy: Some(linux_net::nft::Policy::Accept),
        device: None,
    };
    let rule = |chain: &str, statements: Vec<Statement>| Op::AddRule(Rule::new(table, chain, statements));
    let flush = |chain: &str| Op::FlushChain { table: table.clone(), chain: chain.to_owned() };
    let to = |net: Value| Statement::equal(words.destination, net);
    let goto = Element::verdict([host(address)], Verdict::Goto(chain.clone()));
    Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddSet(pods.clone()),
        Op::AddChain(Chain::base(table, POSTROUTING, hook)),
        Op::AddChain(Chain::regular(table, chain.clone())),
        flush(POSTROUTING),
        rule(POSTROUTING, vec![Statement::Vmap { key: words.source.into(), map: "pods".to_owned() }]),
        flush(&chain),
        rule(&chain, vec![to(subnet(address)), Statement::ret()]),
        rule(&chain, vec![to(words.multicast), Statement::ret()]),
        rule(&chain, vec![Statement::Masquerade(MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() })]),
        Op::AddElements { set: pods, elements: vec![goto] },
    ])
}

fn plan_remove(address: &IpNet) -> Batch {
    let pods = Words::of(address).pods();
    Batch(vec![Op::DelElements { set: pods, elements: vec![Element::key([host(address)])] }])
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
        let of = |address: &str| plan_add(&address.parse().unwrap()).0;
        let (first, second) = (of("10.22.0.2/24"), of("10.22.0.3/24"));
        assert_eq!(first[..first.len() - 1], second[..second.len() - 1]);
        assert_ne!(first.last(), second.last());
    }
}
