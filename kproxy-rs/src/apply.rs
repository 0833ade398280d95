//! Brings the kernel's tables to what the plan says, and notices when somebody else touches them.
//!
//! nftables numbers its commits, for the whole network namespace: the *generation*. As long as it is the one that our own commit
//! left, nobody can have touched the tables, and asking costs microseconds. When it has moved on, they are read
//! back and compared.
//!
//! A proxy that starts finds the tables of a former run, which has served on meanwhile. Elements can be read back as they were written. Rules
//! cannot, the kernel keeps programs; so the first rule of chain `pre` bears a *fingerprint* of all fixed rules as its comment, and the chains
//! that come and go say in their names what is in them. If all of that agrees, only the difference is written, and no packet notices.

mod memory;

use std::collections::{BTreeMap, BTreeSet};

use linux_net::conntrack::Conntrack;
use linux_net::nft::{Batch, Element, Nft, Op, Set};

use self::memory::Memories;
use crate::diff::{Change, Layouts, grouped, replacement};
use crate::entry::Entry;
use crate::flow::{Flows, contradictions};
use crate::plan::Planner;
use crate::table::{Layout, fingerprint_of};

/// Our tables in the kernel.
pub struct Kernel {
    nft: Nft,
    layouts: Layouts,
    /// What stood there after our last commit; `None` while unknown.
    last: Option<Snapshot>,
}

#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    generation: u32,
    rules: Rules,
}

/// The kernel's numbers for the rules of each chain of each table: a rule that is replaced gets a new one.
type Rules = BTreeMap<(String, String), Vec<u64>>;

/// What the tables look like to someone who has just looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As we left them.
    Intact,
    /// Not as we left them, and how.
    Damaged(String),
}

/// What became of the tables at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// Those of a former run serve on, after so many elements were deleted and added.
    Adopted {
        /// How many differed.
        changed: usize,
    },
    /// There were none, or they were of another shape: new ones stand in their place.
    Replaced,
}

impl Kernel {
    /// Opens nftables in the network namespace that this thread is in. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open(layouts: Layouts) -> linux_net::Result<Self> {
        Ok(Self { nft: Nft::open()?, layouts, last: None })
    }

    /// Goes on with the tables of a former run if they are of our shape, or puts new ones in their place.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the former tables then stay.
    pub fn adopt<'a>(&mut self, entries: impl Iterator<Item = &'a Entry> + Clone) -> linux_net::Result<Adoption> {
        if let Some(steps) = self.difference(entries.clone())? {
            match self.commit(&steps) {
                Err(error) if error.is_full() => {}
                other => {
                    other?;
                    let memories = Memories::of(entries);
                    let forgotten = self.forget(|client| !memories.has(client))?;
                    let changed = steps.iter().flat_map(|batch| &batch.0).map(size).sum::<usize>() + forgotten;
                    return Ok(Adoption::Adopted { changed });
                }
            }
        }
        self.replace(entries)?;
        Ok(Adoption::Replaced)
    }

    /// Puts the whole of both tables in place of what is there, in one step: no packet meets a table that is half there.
    ///
    /// Connections that exist are not touched; their translation stands in conntrack. Sticky clients stay remembered.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the former tables then stay.
    pub fn replace<'a>(&mut self, entries: impl Iterator<Item = &'a Entry> + Clone) -> linux_net::Result<()> {
        let memories = Memories::of(entries.clone());
        let mut batch = replacement(&self.layouts, entries);
        for layout in self.layouts.iter() {
            let set = layout.clients().clone();
            let clients = clients(&mut self.nft, layout)?.into_iter();
            let has_time = |client: &Element| client.expires.is_none_or(|left| !left.is_zero());
            let elements: Vec<_> = clients.filter(|client| has_time(client) && memories.has(client)).collect();
            batch.extend((!elements.is_empty()).then_some(Op::AddElements { set, elements }));
        }
        self.commit(&[batch])
    }

    /// Makes a change to the tables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then no packet meets anything of the change. If a set has no room for it ([`linux_net::Error::is_full`]),
    /// [`Kernel::replace`] makes some.
    pub fn change(&mut self, change: &Change) -> linux_net::Result<()> {
        self.commit(&change.steps(&self.layouts))
    }

    /// Deletes the tables, if they are there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn delete(&mut self) -> linux_net::Result<()> {
        let ops = self.layouts.iter().flat_map(Layout::delete);
        self.commit(&[ops.collect()])
    }

    /// Ends the connections that a change contradicts, and forgets sticky clients of endpoints that have gone. Returns how many there were.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_flows(&mut self, flows: &Flows) -> linux_net::Result<usize> {
        let mut ended = 0;
        if !flows.contradicted.is_empty() {
            let filters: Vec<_> = flows.contradicted.iter().cloned().collect();
            ended += Conntrack::open()?.delete(&filters)?;
        }
        if !flows.forgotten.is_empty() {
            let memories: Memories = flows.forgotten.iter().collect();
            ended += self.forget(|client| memories.has(client))?;
        }
        Ok(ended)
    }

    /// Forgets sticky clients. Returns how many there were.
    fn forget(&mut self, is_gone: impl Fn(&Element) -> bool) -> linux_net::Result<usize> {
        let (mut ops, mut count) = (Vec::new(), 0);
        for layout in self.layouts.iter() {
            let gone = clients(&mut self.nft, layout)?.into_iter().filter(&is_gone);
            let elements: Vec<Element> = gone.map(|client| Element::key(client.key)).collect();
            count += elements.len();
            let set = layout.clients().clone();
            ops.extend((!elements.is_empty()).then_some(Op::DelElements { set, elements }));
        }
        match self.commit(&[Batch(ops)]) {
            // One ran out by itself meanwhile; the others go with the next change, or by themselves too.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
        Ok(count)
    }

    /// Ends the connections that contradict the Services as they are: for a start.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_contradictions(planner: &Planner) -> linux_net::Result<usize> {
        let mut conntrack = Conntrack::open()?;
        let filters: Vec<_> = contradictions(planner.udp_fronts(), &conntrack.entries()?).into_iter().collect();
        if filters.is_empty() { Ok(0) } else { conntrack.delete(&filters) }
    }

    /// Looks whether the tables are as our last commit left them, with `entries`.
    ///
    /// # Errors
    ///
    /// When the kernel does not let us read.
    pub fn inspect<'a>(&mut self, entries: impl Iterator<Item = &'a Entry> + Clone) -> linux_net::Result<Finding> {
        let generation = self.nft.generation()?;
        let Some(last) = &self.last else { return Ok(Finding::Damaged("the last commit failed".to_owned())) };
        if last.generation == generation {
            return Ok(Finding::Intact);
        }
        let tables = self.nft.tables()?;
        if !self.layouts.iter().all(|layout| tables.contains(layout.table())) {
            return Ok(Finding::Damaged("a table is gone".to_owned()));
        }
        let rules = rules(&mut self.nft, &self.layouts)?;
        if let Some((table, chain)) = first_difference(&last.rules, &rules) {
            return Ok(Finding::Damaged(format!("chain {chain} of {table} was edited")));
        }
        for (set, wanted) in wanted_elements(&self.layouts, entries) {
            let found = match self.nft.elements(set) {
                Err(error) if error.is_not_found() => return Ok(Finding::Damaged(format!("{} is gone", set.name))),
                other => other?,
            };
            if found.into_iter().collect::<BTreeSet<_>>() != wanted {
                return Ok(Finding::Damaged(format!("the elements of {} were edited", set.name)));
            }
        }
        self.last = Some(Snapshot { generation, rules });
        Ok(Finding::Intact)
    }

    /// What makes the tables of a former run into ours, in the steps of [`Change::steps`]; `None` when they are of another shape.
    fn difference<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry> + Clone,
    ) -> linux_net::Result<Option<[Batch; 3]>> {
        let tables = self.nft.tables()?;
        let (mut prepare, mut additions, mut deletions, mut tidy) =
            (Batch::new(), Batch::new(), Batch::new(), Batch::new());
        for layout in self.layouts.iter() {
            if !tables.contains(layout.table()) {
                return Ok(None);
            }
            let found = chains(&mut self.nft, layout)?;
            let ours = entries.clone().filter(|entry| entry.family() == layout.family());
            let mut wanted: BTreeMap<String, &Entry> =
                ours.filter_map(|entry| Some((layout.chain_of(entry)?.0, entry))).collect();
            if !is_of_shape(layout, &found) {
                return Ok(None);
            }
            for (name, chain) in found.into_iter().filter(|(name, _)| is_transient(name)) {
                match wanted.remove(&name) {
                    // As many rules as it should have; what they are its name says.
                    Some(entry) if layout.chain_of(entry).is_some_and(|(_, rules)| rules.len() == chain.rules) => {}
                    Some(_) => return Ok(None),
                    None => {
                        let table = layout.table().clone();
                        tidy.push(Op::FlushChain { table: table.clone(), chain: name.clone() });
                        tidy.push(Op::DelChain { table, chain: name });
                    }
                }
            }
            prepare.extend(wanted.into_values().flat_map(|entry| layout.create_chain(entry)));
        }
        for (set, wanted) in wanted_elements(&self.layouts, entries) {
            let found: BTreeSet<Element> = match self.nft.elements(set) {
                Err(error) if error.is_not_found() => return Ok(None),
                other => other?.into_iter().collect(),
            };
            let ops = |elements: Vec<Element>, op: fn(Set, Vec<Element>) -> Op| {
                (!elements.is_empty()).then(|| op(set.clone(), elements))
            };
            let stale = found.difference(&wanted).map(|element| Element::key(element.key.clone())).collect();
            deletions.extend(ops(stale, |set, elements| Op::DelElements { set, elements }));
            let missing = wanted.difference(&found).cloned().collect();
            additions.extend(ops(missing, |set, elements| Op::AddElements { set, elements }));
        }
        let change = deletions.0.into_iter().chain(additions.0).collect();
        Ok(Some([prepare, change, tidy]))
    }

    fn commit(&mut self, steps: &[Batch]) -> linux_net::Result<()> {
        let former = self.last.take();
        let before = self.nft.generation()?;
        let mut count = 0;
        for batch in steps.iter().filter(|batch| !batch.0.is_empty()) {
            self.nft.commit(batch)?;
            count += 1;
        }
        let rules = match &former {
            Some(former) if steps.iter().all(is_of_elements) => former.rules.clone(),
            _ => rules(&mut self.nft, &self.layouts)?,
        };
        let after = self.nft.generation()?;
        // Somebody else's commit between two of ours must not pass for one of ours: then the generation of before makes the next
        // inspection look closely.
        let is_ours_alone =
            after == before.wrapping_add(count) && former.is_none_or(|former| former.generation == before);
        self.last = Some(Snapshot { generation: if is_ours_alone { after } else { before }, rules });
        Ok(())
    }
}

/// Says whether a batch leaves all chains and their rules as they are.
fn is_of_elements(batch: &Batch) -> bool {
    batch.0.iter().all(|op| matches!(op, Op::AddElements { .. } | Op::DelElements { .. }))
}

/// How much of a change an operation is.
fn size(op: &Op) -> usize {
    match op {
        Op::AddElements { elements, .. } | Op::DelElements { elements, .. } => elements.len(),
        _ => 1,
    }
}

/// The sticky clients of a table; none when it is not there.
fn clients(nft: &mut Nft, layout: &Layout) -> linux_net::Result<Vec<Element>> {
    match nft.elements(layout.clients()) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

/// All sets that we fill, each with the elements that it should have.
fn wanted_elements<'a, 'b>(
    layouts: &'a Layouts,
    entries: impl Iterator<Item = &'b Entry>,
) -> Vec<(&'a Set, BTreeSet<Element>)> {
    let mut wanted: BTreeMap<&Set, BTreeSet<Element>> =
        layouts.iter().flat_map(Layout::sets).map(|set| (set, BTreeSet::new())).collect();
    let fixed = layouts.iter().flat_map(Layout::fixed_elements);
    for (set, elements) in grouped(layouts, entries).into_iter().chain(fixed) {
        wanted.entry(set).or_default().extend(elements);
    }
    wanted.into_iter().collect()
}

/// A chain as it was found.
#[derive(Debug, Default)]
struct FoundChain {
    rules: usize,
    /// The comment of its first rule.
    comment: Option<String>,
}

fn chains(nft: &mut Nft, layout: &Layout) -> linux_net::Result<BTreeMap<String, FoundChain>> {
    let mut chains: BTreeMap<String, FoundChain> =
        nft.chains(layout.table())?.into_iter().map(|info| (info.chain.name, FoundChain::default())).collect();
    for rule in nft.rules(layout.table())? {
        let chain = chains.entry(rule.chain).or_default();
        if chain.rules == 0 {
            chain.comment = rule.comment;
        }
        chain.rules += 1;
    }
    Ok(chains)
}

/// Says whether the fixed chains are ours: as many rules in each, and the fingerprint of what they say.
fn is_of_shape(layout: &Layout, found: &BTreeMap<String, FoundChain>) -> bool {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (chain, _) in layout.fixed_rules() {
        *counts.entry(chain).or_default() += 1;
    }
    let has_rules = counts.iter().all(|(name, count)| found.get(*name).is_some_and(|chain| chain.rules == *count));
    let fingerprint = found.get("pre").and_then(|chain| chain.comment.clone());
    has_rules && fingerprint == Some(fingerprint_of(layout))
}

/// Says whether a chain is one of those that come and go with Services.
fn is_transient(chain: &str) -> bool {
    ["lb-", "any-", "learn-"].iter().any(|prefix| chain.starts_with(prefix))
}

fn rules(nft: &mut Nft, layouts: &Layouts) -> linux_net::Result<Rules> {
    let mut rules = Rules::new();
    for layout in layouts.iter() {
        let table = layout.table().to_string();
        for info in nft.chains(layout.table())? {
            rules.insert((table.clone(), info.chain.name), Vec::new());
        }
        for rule in nft.rules(layout.table())? {
            rules.entry((table.clone(), rule.chain)).or_default().push(rule.handle);
        }
    }
    Ok(rules)
}

fn first_difference(one: &Rules, other: &Rules) -> Option<(String, String)> {
    one.keys().chain(other.keys()).find(|chain| one.get(*chain) != other.get(*chain)).cloned()
}
