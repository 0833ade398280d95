//! What changes in a namespace, as the kernel tells it to a multicast group.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteAttribute};
use nix::errno::Errno;

use super::{
    Address, FdbEntry, Link, Neighbour, Netlink, Route,
    decode::{self, Names},
    socket::Socket,
};
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
    /// A neighbour entry is new or changed; its MAC is [`MacAddr::ZERO`](crate::MacAddr::ZERO) when it has none (any more).
    NewNeighbour(Neighbour),
    /// A neighbour entry has gone; its MAC may be [`MacAddr::ZERO`](crate::MacAddr::ZERO).
    DelNeighbour(Neighbour),
    /// A forwarding entry is new or changed.
    NewFdb(FdbEntry),
    /// A forwarding entry has gone.
    DelFdb(FdbEntry),
    /// The kernel dropped messages because nobody read them in time: read the whole state again, but only when no more events wait. Until
    /// the queue is empty the kernel goes on dropping, and does not say so a second time.
    Overrun,
}

/// A socket that hears of changes; non-blocking reads through [`Monitor::try_recv`] suit `tokio::io::unix::AsyncFd`.
pub struct Monitor {
    socket: Socket,
    /// Asked for the names of links, which events bear as numbers.
    netlink: Netlink,
    names: Names,
}

impl Group {
    /// `RTNLGRP_*` of `linux/rtnetlink.h`.
    fn numbers(self) -> &'static [u32] {
        match self {
            Self::Links => &[1],
            Self::Addresses => &[5, 9],
            Self::Routes => &[7, 11],
            Self::Neighbours => &[3],
        }
    }
}

impl Monitor {
    /// Listens in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open(groups: &[Group]) -> Result<Self> {
        let numbers: Vec<u32> = groups.iter().flat_map(|group| group.numbers()).copied().collect();
        let socket = Socket::open(&numbers)?;
        let mut netlink = Netlink::open()?;
        let names = netlink.names()?;
        Ok(Self { socket, netlink, names })
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
        self.socket.set_non_blocking(false)?;
        loop {
            let events = self.receive()?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Returns the changes that wait, or `None` when there are none.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn try_recv(&mut self) -> Result<Option<Vec<Event>>> {
        self.socket.set_non_blocking(true)?;
        match self.receive() {
            Err(error) if error.errno() == Some(Errno::EAGAIN) => Ok(None),
            other => other.map(Some),
        }
    }

    fn receive(&mut self) -> Result<Vec<Event>> {
        let messages = match self.socket.receive() {
            Err(error) if error.errno() == Some(Errno::ENOBUFS) => {
                self.names = self.netlink.names()?;
                return Ok(vec![Event::Overrun]);
            }
            other => other?,
        };
        let mut events = Vec::new();
        for message in messages {
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                self.learn_names(&message)?;
                events.extend(event(message, &self.names));
            }
        }
        Ok(events)
    }

    /// Keeps the names up to date. Those of links that have gone stay, for the messages about what went with them.
    fn learn_names(&mut self, message: &RouteNetlinkMessage) -> Result<()> {
        let index = match message {
            RouteNetlinkMessage::NewLink(message) => {
                self.names.extend(Names::of(std::slice::from_ref(message)));
                return Ok(());
            }
            RouteNetlinkMessage::NewAddress(message) => message.header.index,
            RouteNetlinkMessage::NewNeighbour(message) => message.header.ifindex,
            RouteNetlinkMessage::NewRoute(message) => match message.attributes.iter().find_map(outgoing_link) {
                Some(index) => index,
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        if self.names.get(index).is_none() {
            self.names.extend(self.netlink.names()?);
        }
        Ok(())
    }
}

fn outgoing_link(attribute: &RouteAttribute) -> Option<u32> {
    if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }
}

/// What a message tells. One about a link that has gone meanwhile, and whose name is unknown for that, tells nothing.
fn event(message: RouteNetlinkMessage, names: &Names) -> Option<Event> {
    match message {
        // A message of the family "bridge" is about a port only, and comes beside that about the link.
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family == AddressFamily::Bridge =>
        {
            None
        }
        RouteNetlinkMessage::NewLink(message) => decode::link(&message, names).ok().map(Event::NewLink),
        RouteNetlinkMessage::DelLink(message) => decode::link(&message, names).ok().map(Event::DelLink),
        RouteNetlinkMessage::NewAddress(message) => decode::address(&message, names).map(Event::NewAddress),
        RouteNetlinkMessage::DelAddress(message) => decode::address(&message, names).map(Event::DelAddress),
        RouteNetlinkMessage::NewRoute(message) => decode::route(&message, names).map(Event::NewRoute),
        RouteNetlinkMessage::DelRoute(message) => decode::route(&message, names).map(Event::DelRoute),
        RouteNetlinkMessage::NewNeighbour(message) if message.header.family == AddressFamily::Bridge => {
            decode::fdb(&message, names).map(Event::NewFdb)
        }
        RouteNetlinkMessage::DelNeighbour(message) if message.header.family == AddressFamily::Bridge => {
            decode::fdb(&message, names).map(Event::DelFdb)
        }
        RouteNetlinkMessage::NewNeighbour(message) => decode::neighbour_event(&message, names).map(Event::NewNeighbour),
        RouteNetlinkMessage::DelNeighbour(message) => decode::neighbour_event(&message, names).map(Event::DelNeighbour),
        _ => None,
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
