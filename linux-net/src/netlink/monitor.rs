//! What changes in a namespace, as the kernel tells it to a multicast group.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::{Address, FdbEntry, Link, Neighbour, Route};
use crate::{error::Result, netns::NetNs};

/// What a [`Monitor`] listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Links that come, change and go (`ip monitor link`).
    Links,
    /// Addresses, IPv4 and IPv6 (`ip monitor address`).
    Addresses,
    /// Routes, IPv4 and IPv6 (`ip monitor route`).
    Routes,
    /// Neighbour and forwarding entries (`ip monitor neigh`).
    Neighbours,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is new, or something about it is.
    NewLink(Link),
    /// A link has gone.
    DelLink(Link),
    /// An address is new.
    NewAddress(Address),
    /// An address has gone.
    DelAddress(Address),
    /// A route is new.
    NewRoute(Route),
    /// A route has gone.
    DelRoute(Route),
    /// A neighbour entry is new or changed.
    NewNeighbour(Neighbour),
    /// A neighbour entry has gone.
    DelNeighbour(Neighbour),
    /// A forwarding entry is new or changed.
    NewFdb(FdbEntry),
    /// A forwarding entry has gone.
    DelFdb(FdbEntry),
    /// The kernel dropped messages because nobody read them in time: read the whole state again.
    Overrun,
}

/// A socket that hears of changes; non-blocking reads through [`Monitor::try_recv`] suit `tokio::io::unix::AsyncFd`.
pub struct Monitor {}

impl Monitor {
    /// Listens in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open(groups: &[Group]) -> Result<Self> {
        let _ = groups;
        todo!()
    }

    /// Listens in `ns`.
    ///
    /// # Errors
    ///
    /// When this thread may not enter `ns`, or the kernel gives no socket.
    pub fn open_in(ns: &NetNs, groups: &[Group]) -> Result<Self> {
        ns.run(|| Self::open(groups))?
    }

    /// Waits for the next changes.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn recv(&mut self) -> Result<Vec<Event>> {
        todo!()
    }

    /// Returns the changes that wait, or `None` when there are none.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn try_recv(&mut self) -> Result<Option<Vec<Event>>> {
        todo!()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        todo!()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}
