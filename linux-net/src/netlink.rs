//! rtnetlink: links, addresses, routes, neighbours and forwarding entries.

mod monitor;
mod observed;
mod op;

pub use monitor::{Event, Group, Monitor};
pub use observed::{Address, Link, LinkKind, LinkStatistics};
pub use op::{
    FdbEntry, FdbOwner, Macvlan, MacvlanMode, Neighbour, NeighbourState, Op, Route, RouteKind, RouteScope, Veth,
    VethPeer, Vxlan,
};

use crate::{error::Result, name::IfName, netns::NetNs};

/// One `NETLINK_ROUTE` socket; it belongs to the namespace it was opened in, wherever its thread goes later.
pub struct Netlink {}

impl Netlink {
    /// Opens a socket in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
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

    /// Carries out one operation and waits for the kernel's answer.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`](crate::Error::Refused), which names the operation as its command.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        let _ = op;
        todo!()
    }

    /// Carries out many operations in order and returns one result for each; a failure does not stop the rest.
    ///
    /// The requests are pipelined: about a hundred travel in one `sendmsg` before their answers are read.
    pub fn apply_all(&mut self, ops: &[Op]) -> Vec<Result<()>> {
        let _ = ops;
        todo!()
    }

    /// Reads all links.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        todo!()
    }

    /// Reads the link called `name`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason than that the link does not exist.
    pub fn link(&mut self, name: &IfName) -> Result<Option<Link>> {
        let _ = name;
        todo!()
    }

    /// Reads all addresses, IPv4 and IPv6, of all links.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        todo!()
    }

    /// Reads all routes, IPv4 and IPv6, of all tables (look at [`Route::table`]).
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        todo!()
    }

    /// Reads the neighbour entries (ARP and NDP) of `dev` that have a hardware address.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn neighbours(&mut self, dev: &IfName) -> Result<Vec<Neighbour>> {
        let _ = dev;
        todo!()
    }

    /// Reads the forwarding entries of `dev`.
    ///
    /// # Errors
    ///
    /// When there is no such link.
    pub fn fdb(&mut self, dev: &IfName) -> Result<Vec<FdbEntry>> {
        let _ = dev;
        todo!()
    }
}
