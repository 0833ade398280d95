//! The netlink socket to nftables.

use super::{Batch, Chain, Element, Set, Table};
use crate::{error::Result, netns::NetNs};

/// One `NETLINK_NETFILTER` socket; it belongs to the namespace it was opened in, wherever its thread goes later.
pub struct Nft {}

/// A chain, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// The chain.
    pub chain: Chain,
    /// The kernel's number for it.
    pub handle: u64,
    /// How many jumps and hooks refer to it, and how many rules are in it.
    pub references: u32,
}

/// A rule, as far as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain it is in.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its remark.
    pub comment: Option<String>,
}

/// A set or map, as far as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Whether it is a map.
    pub is_map: bool,
}

impl Nft {
    /// Opens a socket in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket, or has no nftables.
    pub fn open() -> Result<Self> {
        todo!()
    }

    /// Opens a socket in `ns`.
    ///
    /// # Errors
    ///
    /// When this thread may not enter `ns`, or the kernel gives no socket.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Commits a batch: all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`](crate::Error::Refused) with the first change that the kernel did not take, as `nft` text.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        let _ = batch;
        todo!()
    }

    /// Lists the tables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        todo!()
    }

    /// Lists the chains of a table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>> {
        let _ = table;
        todo!()
    }

    /// Lists the rules of a table, in the order of their chains.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>> {
        let _ = table;
        todo!()
    }

    /// Lists the sets and maps of a table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let _ = table;
        todo!()
    }

    /// Reads the elements of a set or map; `set` says how to decode them.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`](crate::Error::is_not_found) when there is no such set.
    pub fn elements(&mut self, set: &Set) -> Result<Vec<Element>> {
        let _ = set;
        todo!()
    }
}
