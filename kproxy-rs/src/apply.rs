//! Brings the kernel's table to what the plan says, and notices when somebody else touches it.
//!
//! nftables numbers its commits, for the whole network namespace: the *generation*. As long as it is the one that our own commit
//! left, nobody can have touched the table, and asking costs microseconds. When it has moved on, the table is read
//! back and compared.

use std::collections::{BTreeMap, BTreeSet};

use linux_net::nft::{Batch, Element, Nft, Value};

use crate::diff::{Change, replacement};
use crate::entry::Entry;
use crate::table::{Layout, elements};

/// Our table in the kernel.
pub struct Kernel {
    nft: Nft,
    layout: Layout,
    /// What stood there after our last commit; `None` while unknown.
    last: Option<Snapshot>,
}

#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    generation: u32,
    rules: Rules,
}

/// The kernel's numbers for the rules of each chain: a rule that is replaced gets a new one.
type Rules = BTreeMap<String, Vec<u64>>;

/// What the table looks like to someone who has just looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As we left it.
    Intact,
    /// Not as we left it, and how.
    Damaged(String),
}

impl Kernel {
    /// Opens nftables in the network namespace that this thread is in. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open(layout: Layout) -> linux_net::Result<Self> {
        Ok(Self { nft: Nft::open()?, layout, last: None })
    }

    /// Puts the whole table in place of the one that is there, in one step: no packet meets a table that is half there.
    ///
    /// Connections that exist are not touched; their translation stands in conntrack.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the former table then stays.
    pub fn replace<'a>(&mut self, entries: impl Iterator<Item = &'a Entry> + Clone) -> linux_net::Result<()> {
        self.commit(&replacement(&self.layout, entries), true)
    }

    /// Makes a change to the table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then nothing of the change is made.
    pub fn change(&mut self, change: &Change) -> linux_net::Result<()> {
        self.commit(&change.batch(&self.layout), change.touches_chains())
    }

    /// Deletes the table, if it is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn delete(&mut self) -> linux_net::Result<()> {
        self.commit(&Batch::from_iter(self.layout.delete()), true)
    }

    /// Looks whether the table is as our last commit left it, with `entries`.
    ///
    /// # Errors
    ///
    /// When the kernel does not let us read.
    pub fn inspect<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> linux_net::Result<Finding> {
        let generation = self.nft.generation()?;
        let Some(last) = &self.last else { return Ok(Finding::Damaged("the last commit failed".to_owned())) };
        if last.generation == generation {
            return Ok(Finding::Intact);
        }
        if !self.nft.tables()?.contains(self.layout.table()) {
            return Ok(Finding::Damaged("the table is gone".to_owned()));
        }
        let rules = rules(&mut self.nft, &self.layout)?;
        if let Some(chain) = first_difference(&last.rules, &rules) {
            return Ok(Finding::Damaged(format!("chain {chain} was edited")));
        }
        let mut desired: BTreeMap<&str, BTreeSet<Element>> = BTreeMap::new();
        for entry in entries {
            desired.entry(&self.layout.set_of(entry).name).or_default().extend(elements(entry));
        }
        desired.insert("pods", self.layout.pods().iter().map(|net| Element::key([Value::Ipv4Net(*net)])).collect());
        for set in self.layout.sets() {
            let found = match self.nft.elements(set) {
                Err(error) if error.is_not_found() => return Ok(Finding::Damaged(format!("{} is gone", set.name))),
                other => other?,
            };
            let found: BTreeSet<Element> = found.into_iter().collect();
            if found != desired.remove(set.name.as_str()).unwrap_or_default() {
                return Ok(Finding::Damaged(format!("the elements of {} were edited", set.name)));
            }
        }
        self.last = Some(Snapshot { generation, rules });
        Ok(Finding::Intact)
    }

    fn commit(&mut self, batch: &Batch, touches_chains: bool) -> linux_net::Result<()> {
        let former = self.last.take();
        let before = self.nft.generation()?;
        self.nft.commit(batch)?;
        let rules = match &former {
            Some(former) if !touches_chains => former.rules.clone(),
            _ => rules(&mut self.nft, &self.layout)?,
        };
        let after = self.nft.generation()?;
        // Somebody else's commit between two of ours must not pass for one of ours: then the generation of before makes the next
        // inspection look closely.
        let is_ours_alone = after == before.wrapping_add(1) && former.is_none_or(|former| former.generation == before);
        self.last = Some(Snapshot { generation: if is_ours_alone { after } else { before }, rules });
        Ok(())
    }
}

fn rules(nft: &mut Nft, layout: &Layout) -> linux_net::Result<Rules> {
    let chains = nft.chains(layout.table())?;
    let mut rules: Rules = chains.into_iter().map(|info| (info.chain.name, Vec::new())).collect();
    for rule in nft.rules(layout.table())? {
        rules.entry(rule.chain).or_default().push(rule.handle);
    }
    Ok(rules)
}

fn first_difference(one: &Rules, other: &Rules) -> Option<String> {
    one.keys().chain(other.keys()).find(|chain| one.get(*chain) != other.get(*chain)).cloned()
}
