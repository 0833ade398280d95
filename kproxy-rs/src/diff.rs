//! A change: what two rulesets differ by, and the batch that makes one into the other.
//!
//! nftables commits a batch all together or not at all. So a packet that comes sees the Services of before or those of after, never a
//! number of slots of before with the endpoints of after. What can still go wrong for a packet that is being looked at in that very
//! moment, [`Change::steps`] and the last rule of `dispatch` take care of.

use std::collections::{BTreeMap, BTreeSet};

use linux_net::nft::{Batch, Element, Op, Set};

use crate::entry::Entry;
use crate::table::{Layout, element};
use linux_net::ip::{FAMILIES, Family};

/// The layouts of both families.
#[derive(Debug, Clone)]
pub struct Layouts {
    /// That of `table ip kproxy`.
    pub ipv4: Layout,
    /// That of `table ip6 kproxy`.
    pub ipv6: Layout,
}

/// Entries to delete and to add, each list in order and without duplicates.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Change {
    /// Entries that the kernel has and must not have.
    pub removed: Vec<Entry>,
    /// Entries that the kernel lacks.
    pub added: Vec<Entry>,
}

impl Layouts {
    /// That of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> &Layout {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }

    /// Both.
    pub fn iter(&self) -> impl Iterator<Item = &Layout> {
        FAMILIES.into_iter().map(|family| self.of(family))
    }
}

impl Change {
    /// What makes `current` into `desired`.
    #[must_use]
    pub fn between(current: &BTreeSet<Entry>, desired: &BTreeSet<Entry>) -> Self {
        Self {
            removed: current.difference(desired).copied().collect(),
            added: desired.difference(current).copied().collect(),
        }
    }

    /// Says whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// The batches for the kernel, to be committed one after the other.
    ///
    /// The second one makes the change, all of it at once; there deletions go first, since a map refuses a second value for a key that it has. The
    /// first makes the chains that it needs, the third deletes what nobody needs any more. They are apart because of the packets that are on
    /// their way through the rules while a commit takes place: a lookup finds the elements of after the commit, but a chain has the rules of
    /// before. Such a packet would find a new chain empty, or its class gone.
    #[must_use]
    pub fn steps(&self, layouts: &Layouts) -> [Batch; 3] {
        let is_class = |entry: &&Entry| matches!(entry, Entry::Class { .. });
        let goes_at_once = |entry: &Entry| match *entry {
            Entry::Class { family, spread } => self.added.iter().any(|other| match other {
                Entry::Class { family: other_family, spread: other } => {
                    *other_family == family && other.mark() == spread.mark()
                }
                _ => false,
            }),
            _ => true,
        };
        let chain = |entry: &Entry| layouts.of(entry.family()).create_chain(entry);
        let prepare: Batch = self.added.iter().flat_map(chain).collect();
        let mut change = Batch::new();
        change.extend(deletions(layouts, self.removed.iter().filter(|entry| goes_at_once(entry))));
        let added = grouped(layouts, &self.added).into_iter();
        change.extend(added.map(|(set, elements)| Op::AddElements { set: set.clone(), elements }));
        let mut tidy = Batch::new();
        tidy.extend(deletions(layouts, self.removed.iter().filter(is_class).filter(|entry| !goes_at_once(entry))));
        tidy.extend(self.removed.iter().flat_map(|entry| layouts.of(entry.family()).delete_chain(entry)));
        [prepare, change, tidy]
    }
}

fn deletions<'a>(layouts: &Layouts, entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Op> {
    let groups = grouped(layouts, entries).into_iter();
    groups.map(|(set, elements)| Op::DelElements { set: set.clone(), elements }).collect()
}

/// The batch that puts the whole of both tables in place of whatever bears their name, or of nothing.
#[must_use]
pub fn replacement<'a>(layouts: &Layouts, entries: impl Iterator<Item = &'a Entry> + Clone) -> Batch {
    let mut batch = Batch::new();
    let additions = grouped(layouts, entries.clone());
    let count = |set: &Set| {
        let of_set = additions.iter().filter(|(other, _)| *other == set);
        of_set.map(|(_, elements)| elements.len()).sum()
    };
    for layout in layouts.iter() {
        batch.extend(layout.delete());
        batch.extend(layout.create(count));
    }
    batch.extend(entries.flat_map(|entry| layouts.of(entry.family()).create_chain(entry)));
    batch.extend(additions.into_iter().map(|(set, elements)| Op::AddElements { set: set.clone(), elements }));
    batch
}

/// The elements of each set, so that each set is named once in a batch.
pub fn grouped<'a, 'b>(
    layouts: &'a Layouts,
    entries: impl IntoIterator<Item = &'b Entry>,
) -> Vec<(&'a Set, Vec<Element>)> {
    let mut groups: BTreeMap<(Family, &str), (&Set, Vec<Element>)> = BTreeMap::new();
    for entry in entries {
        let family = entry.family();
        if let (Some(set), Some(element)) = (layouts.of(family).set_of(entry), element(entry)) {
            groups.entry((family, &set.name)).or_insert_with(|| (set, Vec::new())).1.push(element);
        }
    }
    groups.into_values().collect()
}
