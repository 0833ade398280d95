//! A change: what two rulesets differ by, and the batch that makes one into the other.
//!
//! nftables commits a batch all together or not at all, so no packet ever sees half of a change: neither a class without its
//! chain, nor a Service with the number of slots of before and the endpoints of now.

use std::collections::{BTreeMap, BTreeSet};

use linux_net::nft::{Batch, Op, Set};

use crate::entry::Entry;
use crate::table::{Layout, elements};

/// Entries to delete and to add, each list in order and without duplicates.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Change {
    /// Entries that the kernel has and must not have.
    pub removed: Vec<Entry>,
    /// Entries that the kernel lacks.
    pub added: Vec<Entry>,
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

    /// Says whether chains come or go, and not only elements of maps and sets.
    #[must_use]
    pub fn touches_chains(&self) -> bool {
        self.removed.iter().chain(&self.added).any(|entry| matches!(entry, Entry::Class(_)))
    }

    /// The batch for the kernel.
    ///
    /// Deletions go first, since a map refuses a second value for a key that it has; a class's chain is made before, and deleted
    /// after, the element that points to it.
    #[must_use]
    pub fn batch(&self, layout: &Layout) -> Batch {
        let mut batch = Batch::new();
        batch.extend(grouped(layout, &self.removed).into_iter().map(|(set, entries)| Op::DelElements {
            set: set.clone(),
            elements: entries.into_iter().flat_map(elements).collect(),
        }));
        batch.extend(classes(&self.added).flat_map(|class| layout.create_class(class)));
        batch.extend(additions(layout, &self.added));
        batch.extend(classes(&self.removed).flat_map(|class| layout.delete_class(class)));
        batch
    }
}

/// The batch that puts the whole table in place of whatever bears its name, or of nothing.
#[must_use]
pub fn replacement<'a>(layout: &Layout, entries: impl Iterator<Item = &'a Entry> + Clone) -> Batch {
    let mut batch = Batch::new();
    batch.extend(layout.delete());
    batch.extend(layout.create());
    batch.extend(classes(entries.clone()).flat_map(|class| layout.create_class(class)));
    batch.extend(additions(layout, entries));
    batch
}

fn additions<'a>(layout: &Layout, entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Op> {
    let groups = grouped(layout, entries).into_iter();
    groups
        .map(|(set, entries)| Op::AddElements {
            set: set.clone(),
            elements: entries.into_iter().flat_map(elements).collect(),
        })
        .collect()
}

/// The entries of each set, so that each set is named once in a batch.
fn grouped<'a, 'b>(
    layout: &'a Layout,
    entries: impl IntoIterator<Item = &'b Entry>,
) -> BTreeMap<&'a Set, Vec<&'b Entry>> {
    let mut groups: BTreeMap<&Set, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        groups.entry(layout.set_of(entry)).or_default().push(entry);
    }
    groups
}

fn classes<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> impl Iterator<Item = crate::tag::Class> {
    entries.into_iter().filter_map(|entry| if let Entry::Class(class) = entry { Some(*class) } else { None })
}
