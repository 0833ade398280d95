//! nftables: a ruleset as data, sent to the kernel as one atomic batch, and printed as `nft` reads it.

mod bytes;
mod compile;
mod constants;
mod decode;
mod element;
mod encode;
mod expr;
mod ffi;
pub(crate) mod message;
mod socket;
mod statement;
mod table;
mod text;
mod userdata;

pub use element::{Data, Element, Value};
pub use expr::{Ct, Expr, FibAddress, FibResult, Field, Meta, NumgenMode};
pub use socket::{ChainInfo, Nft, RuleInfo, SetInfo};
pub use statement::{CmpOp, MasqueradeFlags, NatTarget, Reject, Statement, UpdateKind, Verdict};
pub use table::{Chain, ChainKind, Family, Hook, HookPoint, MapData, Policy, Priority, Rule, Set, Spec, Table, Type};

use crate::error::Result;

/// One change of the ruleset. It prints as the line that `nft -f` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates a table; no error when it is there already.
    AddTable(Table),
    /// Deletes a table with all that is in it; `ENOENT` when it is not there. An [`Op::AddTable`] before it in the same batch
    /// makes it certain to be there: the way to begin from nothing.
    DelTable(Table),
    /// Creates a chain; no error when it is there already with the same hook.
    AddChain(Chain),
    /// Deletes all rules of a chain.
    FlushChain {
        /// The table it is in.
        table: Table,
        /// Its name.
        chain: String,
    },
    /// Deletes a chain, which nothing may jump to.
    DelChain {
        /// The table it is in.
        table: Table,
        /// Its name.
        chain: String,
    },
    /// Appends a rule to its chain.
    AddRule(Rule),
    /// Puts a rule before all others of its chain.
    InsertRule(Rule),
    /// Deletes a rule by the handle that [`Nft::rules`] tells.
    DelRule {
        /// The table it is in.
        table: Table,
        /// The chain it is in.
        chain: String,
        /// The kernel's number for it.
        handle: u64,
    },
    /// Creates a set or a map; no error when it is there already with the same types.
    AddSet(Set),
    /// Deletes all elements of a set or map.
    FlushSet {
        /// The table it is in.
        table: Table,
        /// Its name.
        set: String,
    },
    /// Deletes a set or map, which no rule may refer to.
    DelSet {
        /// The table it is in.
        table: Table,
        /// Its name.
        set: String,
    },
    /// Adds elements to a set or map. One that is there with the same value is no error, with another value is `EEXIST`.
    AddElements {
        /// The set or map, as it was declared: its types say how the elements are encoded.
        set: Set,
        /// What to add.
        elements: Vec<Element>,
    },
    /// Adds elements to a set or map of which none may be there: `EEXIST` even for one with the same value. For those who share a set and
    /// must know whose each element is.
    CreateElements {
        /// The set or map, as it was declared.
        set: Set,
        /// What to add.
        elements: Vec<Element>,
    },
    /// Deletes elements of a set or map; only their keys matter. One that is not there is `ENOENT`.
    DelElements {
        /// The set or map, as it was declared.
        set: Set,
        /// What to delete.
        elements: Vec<Element>,
    },
}

/// Changes that the kernel makes all together or not at all. It prints as a file for `nft -f`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub Vec<Op>);

impl Batch {
    /// Starts an empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one change at the end.
    pub fn push(&mut self, op: Op) {
        self.0.push(op);
    }

    /// Says whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Commits the batch in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// As [`Nft::commit`].
    pub fn commit(&self) -> Result<()> {
        Nft::open()?.commit(self)
    }
}

impl FromIterator<Op> for Batch {
    fn from_iter<T: IntoIterator<Item = Op>>(ops: T) -> Self {
        Self(ops.into_iter().collect())
    }
}

impl Extend<Op> for Batch {
    fn extend<T: IntoIterator<Item = Op>>(&mut self, ops: T) {
        self.0.extend(ops);
    }
}

/// Returns the number of the ruleset's generation in the namespace this thread is in, as [`Nft::generation`].
///
/// # Errors
///
/// When the kernel refuses.
pub fn generation() -> Result<u32> {
    Nft::open()?.generation()
}

/// Says whether a table exists in the namespace this thread is in.
///
/// # Errors
///
/// When the kernel refuses.
pub fn table_exists(table: &Table) -> Result<bool> {
    Ok(Nft::open()?.tables()?.contains(table))
}
