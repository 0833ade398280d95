//! Sticky clients: the one map that the kernel fills by itself.
//!
//! A client that is remembered is sent to its endpoint without a look at `eps`. So who is remembered must go with the endpoint, and must
//! stay when the table is made anew for another reason.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux_net::nft::{Data, Element, Value};

use crate::entry::Entry;
use crate::flow::Memory;

/// What clients may remember, or must not: the mark that their connections keep, the protocol's number, the endpoint.
#[derive(Debug, Default)]
pub(super) struct Memories(BTreeSet<(u32, u8, IpAddr, u16)>);

impl Memories {
    /// The endpoints that a ruleset sends sticky clients to.
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let of_entry = |entry: &Entry| match *entry {
            Entry::Endpoint { id, is_sticky: true, protocol, target, .. } => {
                Some((id.sticky_mark(), protocol.number(), target.address, target.port.get()))
            }
            _ => None,
        };
        Self(entries.filter_map(of_entry).collect())
    }

    /// Whether an element of the map of clients is one of these.
    pub(super) fn has(&self, client: &Element) -> bool {
        let [_, Value::Mark(mark), Value::Protocol(protocol)] = client.key[..] else { return false };
        let Some(Data::Value(endpoint)) = &client.data else { return false };
        let (address, port) = match endpoint[..] {
            [Value::Ipv4(address), Value::Port(port)] => (IpAddr::from(address), port),
            [Value::Ipv6(address), Value::Port(port)] => (IpAddr::from(address), port),
            _ => return false,
        };
        self.0.contains(&(mark, protocol, address, port))
    }
}

impl<'a> FromIterator<&'a Memory> for Memories {
    fn from_iter<T: IntoIterator<Item = &'a Memory>>(memories: T) -> Self {
        let of = |memory: &Memory| {
            (memory.id.sticky_mark(), memory.protocol.number(), memory.target.address, memory.target.port.get())
        };
        Self(memories.into_iter().map(of).collect())
    }
}
