//! The table `cni`, which bridge, portmap and firewall share: one in family `ip`, one in family `ip6`.
//!
//! The Go plugins make a chain for every container. Here the rules are the same for all containers, and look into sets and maps; a container
//! is some *elements* of these. Looking an address up costs the same for one container as for a thousand, an ADD is one transaction, and
//! what a container leaves is found by the remark of its elements ([`crate::attachment`]). `nft list ruleset` shows all of it.

pub mod foreign;

use std::collections::{BTreeMap, BTreeSet};

use linux_net::ip;
use linux_net::nft::{Batch, Element, Field, Nft, Op, Set, Table, Type};

use crate::attachment::Mark;
use crate::error::{Code, Error, Result};

/// The name of our tables.
pub const TABLE: &str = "cni";

/// How often a transaction is tried again when others change the same elements at the same time.
const ATTEMPTS: usize = 5;

/// One family's words: its table, its type of addresses, its fields of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The table `cni` of the family.
    pub table: Table,
    /// `ipv4_addr` or `ipv6_addr`.
    pub address: Type,
    /// `ip saddr` or `ip6 saddr`.
    pub source: Field,
    /// `ip daddr` or `ip6 daddr`.
    pub destination: Field,
}

impl Words {
    /// Those of one family.
    #[must_use]
    pub fn of(family: ip::Family) -> Self {
        Self {
            table: Table::new(family.into(), TABLE),
            address: Type::address(family),
            source: Field::source(family),
            destination: Field::destination(family),
        }
    }

    /// Those of both families, IPv4 first.
    #[must_use]
    pub fn both() -> [Self; 2] {
        ip::FAMILIES.map(Self::of)
    }
}

/// Elements that one attachment wants in one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The set or map.
    pub set: Set,
    /// The elements, still without a remark.
    pub elements: Vec<Element>,
}

impl Claim {
    /// The elements with their owner's remark, of which none may be there.
    fn creation(&self, owner: &Mark) -> Op {
        let elements = self.elements.iter().map(|element| element.clone().with_comment(owner.as_str()));
        Op::CreateElements { set: self.set.clone(), elements: elements.collect() }
    }
}

/// An element that is in the way of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The element, with the remark whose it is.
    pub element: Element,
}

/// Makes `frame` (tables, sets, chains, rules) and adds the elements with their owner's remark, all in one transaction.
///
/// What is in the way goes when it is the same attachment's, left by an ADD without a DEL, or when `gives_way` says so; anything else is the
/// `Err` inside.
///
/// A frame that stands is left alone: to take its rules away and make them again would cost nothing in the transaction, but the kernel lets no
/// process end before it has waited until no packet sees the old ones (some milliseconds).
///
/// # Errors
///
/// Code 100 when the kernel refuses for another reason.
pub fn claim(
    frame: &Batch,
    claims: &[Claim],
    owner: &Mark,
    gives_way: impl Fn(&Element) -> bool,
) -> Result<Result<(), Taken>> {
    let wanted = claims.iter().filter(|claim| !claim.elements.is_empty());
    let elements: Batch = wanted.map(|claim| claim.creation(owner)).collect();
    let whole: Batch = frame.0.iter().chain(&elements.0).cloned().collect();
    let mut nft = Nft::open()?;
    let mut batch = if missing_rule(&mut nft, frame)?.is_none() { &elements } else { &whole };
    for _ in 0..ATTEMPTS {
        match nft.commit(batch) {
            // The rules are there and a set is not: somebody has been at it by hand.
            Err(error) if error.is_not_found() && batch != &whole => {
                batch = &whole;
                continue;
            }
            Err(error) if error.is_exists() => {}
            other => return Ok(Ok(other?)),
        }
        let mut make_room = Batch::new();
        for claim in claims {
            let mut in_the_way = self::elements(&mut nft, &claim.set)?;
            in_the_way.retain(|there| claim.elements.iter().any(|wanted| wanted.key == there.key));
            let is_ours = |there: &Element| there.comment.as_deref() == Some(owner.as_str()) || gives_way(there);
            if let Some(element) = in_the_way.iter().find(|there| !is_ours(there)) {
                return Ok(Err(Taken { element: element.clone() }));
            }
            if !in_the_way.is_empty() {
                make_room.push(Op::DelElements { set: claim.set.clone(), elements: in_the_way });
            }
        }
        commit_unless_gone(&mut nft, &make_room)?;
    }
    Err(contended())
}

/// Deletes the elements whose remark says so, in one transaction, and returns them.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn release(sets: &[Set], is_doomed: impl Fn(&str) -> bool) -> Result<Vec<Element>> {
    let mut nft = Nft::open()?;
    for _ in 0..ATTEMPTS {
        let mut batch = Batch::new();
        let mut released = Vec::new();
        for set in sets {
            let mut found = elements(&mut nft, set)?;
            found.retain(|element| element.comment.as_deref().is_some_and(&is_doomed));
            if !found.is_empty() {
                batch.push(Op::DelElements { set: set.clone(), elements: found.clone() });
                released.extend(found);
            }
        }
        if commit_unless_gone(&mut nft, &batch)? {
            return Ok(released);
        }
    }
    Err(contended())
}

/// Compares with what an ADD would make: every element with its remark, and every chain of `frame` with as many rules.
///
/// # Errors
///
/// Code 102 with the first thing that is missing, as the `nft` command that would add it.
pub fn check(frame: &Batch, claims: &[Claim], mark: &Mark) -> Result<()> {
    let mut nft = Nft::open()?;
    for claim in claims {
        let there = elements(&mut nft, &claim.set)?;
        for wanted in &claim.elements {
            let wanted = wanted.clone().with_comment(mark.as_str());
            if !there.contains(&wanted) {
                let missing = Op::AddElements { set: claim.set.clone(), elements: vec![wanted] };
                return Err(Error::check(format!("expected element is not there: nft {missing}")));
            }
        }
    }
    match missing_rule(&mut nft, frame)? {
        Some(rule) => Err(Error::check(format!("expected rule is not there: nft {rule}"))),
        None => Ok(()),
    }
}

/// The first rule of a frame whose chain has fewer rules than the frame leaves in it.
fn missing_rule<'a>(nft: &mut Nft, frame: &'a Batch) -> Result<Option<&'a Op>> {
    let mut missing: BTreeMap<(&Table, &str), usize> = BTreeMap::new();
    for op in &frame.0 {
        match op {
            Op::FlushChain { table, chain } => drop(missing.insert((table, chain), 0)),
            Op::AddRule(rule) => *missing.entry((&rule.table, &rule.chain)).or_default() += 1,
            _ => {}
        }
    }
    let tables: BTreeSet<_> = missing.keys().map(|(table, _)| *table).collect();
    for table in tables {
        let there = nft.rules(table)?;
        for ((of, chain), count) in &mut missing {
            let in_chain = there.iter().filter(|rule| *of == table && rule.chain == *chain).count();
            *count = count.saturating_sub(in_chain);
        }
    }
    let is_missing = |op: &&Op| matches!(op, Op::AddRule(rule) if missing[&(&rule.table, rule.chain.as_str())] > 0);
    Ok(frame.0.iter().find(is_missing))
}

/// Whether nftables answers at all, for STATUS.
///
/// # Errors
///
/// Code 50 with the reason when it does not.
pub fn status() -> Result<()> {
    let answer = Nft::open().and_then(|mut nft| nft.generation());
    answer.map(drop).map_err(|error| Error::new(Code::Unavailable, format!("nftables does not answer: {error}")))
}

/// The elements of a set; none when it is not there.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn elements(nft: &mut Nft, set: &Set) -> Result<Vec<Element>> {
    match nft.elements(set) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => Ok(other?),
    }
}

/// Commits deletions; `false` when somebody else was faster with one of them, so that nothing was changed.
fn commit_unless_gone(nft: &mut Nft, deletions: &Batch) -> Result<bool> {
    match nft.commit(deletions) {
        Err(error) if error.is_not_found() => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

fn contended() -> Error {
    Error::new(Code::TryAgain, format!("others change the table {TABLE} all the time"))
}
