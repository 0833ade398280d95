//! rtnetlink: links, addresses, routes, neighbours and forwarding entries.
//!
//! A change is an [`Op`]; [`Netlink::apply`] carries it out, and what stands in the kernel reads back in the same types.

mod decode;
mod display;
mod encode;
mod index;
mod monitor;
mod observed;
mod op;
mod socket;
mod traffic;

pub use monitor::{Event, Group, Monitor};
pub use observed::{Address, Link, LinkKind};
pub use op::{
    FdbEntry, FdbOwner, Ifb, Macvlan, MacvlanMode, Neighbour, NeighbourState, Op, Route, RouteKind, RouteScope, Veth,
    VethPeer, Vlans, Vxlan,
};
pub use traffic::{Qdisc, TokenBucket};

use std::{collections::BTreeMap, net::IpAddr};

use std::os::fd::AsFd as _;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAttribute, RouteMessage},
    tc::TcMessage,
};
use nix::errno::Errno;

use self::{decode::Names, encode::Index, socket::Socket};
use crate::{
    error::{Error, Result},
    name::IfName,
    netns::NetNs,
};

/// How many operations are under way before their acknowledgements are read: few enough that the answers, which repeat the
/// requests, fit into the socket's receive buffer.
const OPS_AT_ONCE: usize = 64;

/// A `NETLINK_ROUTE` socket. It belongs to the namespace it was opened in for as long as it lives, wherever its thread goes.
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a socket in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(&[])? })
    }

    /// Opens a socket in `ns`.
    ///
    /// # Errors
    ///
    /// When this thread may not enter `ns`, or the kernel gives no socket.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Carries out one operation.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], with the operation as the command a student would type.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        self.apply_all(std::slice::from_ref(op)).pop().unwrap_or(Ok(()))
    }

    /// Carries out operations in their order, many in one system call. Returns a result for each; one that fails does not
    /// stop the next.
    pub fn apply_all(&mut self, ops: &[Op]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(ops.len());
        let mut indexes = BTreeMap::new();
        let mut batch: Vec<(u32, &Op)> = Vec::new();
        let mut buffer = Vec::new();
        for op in ops {
            // A link that an earlier operation of the batch makes has a number only once that one is carried out.
            let resolved = match self.resolve(op, &mut indexes) {
                Err(error) if error.is_not_found() && !batch.is_empty() => {
                    self.flush(&mut batch, &mut buffer, &mut results);
                    self.resolve(op, &mut indexes)
                }
                other => other,
            };
            if let Err(error) = resolved {
                self.flush(&mut batch, &mut buffer, &mut results);
                results.push(Err(error));
                continue;
            }
            let (message, flags) = encode::message(op, &|name: &IfName| indexes.get(name).copied().unwrap_or(0));
            batch.push((self.socket.append(&mut buffer, message, flags), op));
            if op.moves_indexes() || batch.len() >= OPS_AT_ONCE {
                self.flush(&mut batch, &mut buffer, &mut results);
            }
            if op.moves_indexes() {
                indexes.clear();
            }
        }
        self.flush(&mut batch, &mut buffer, &mut results);
        results
    }

    /// Sends what is gathered and reads an acknowledgement for each operation of it.
    fn flush(&mut self, batch: &mut Vec<(u32, &Op)>, buffer: &mut Vec<u8>, results: &mut Vec<Result<()>>) {
        if batch.is_empty() {
            return;
        }
        let numbers: Vec<u32> = batch.iter().map(|(number, _)| *number).collect();
        match self.socket.exchange(buffer, &numbers) {
            Ok(answers) => {
                let each = batch.iter().zip(answers);
                results.extend(each.map(|((_, op), refusal)| {
                    refusal.map_or(Ok(()), |refusal| Err(refused(op, refusal.errno, refusal.text)))
                }));
            }
            // The socket itself failed: what became of the operations is unknown.
            Err(error) => {
                let errno = error.errno().unwrap_or(Errno::EIO);
                results.extend(batch.iter().map(|(_, op)| Err(refused(op, errno, None))));
            }
        }
        batch.clear();
        buffer.clear();
    }

    /// Looks up the numbers of the links that an operation names and that the kernel wants as numbers.
    fn resolve(&self, op: &Op, indexes: &mut BTreeMap<IfName, Index>) -> Result<()> {
        for name in op.links_by_index() {
            if indexes.contains_key(name) {
                continue;
            }
            let index = self.index_if_there(name)?;
            let index = index.ok_or_else(|| refused(op, Errno::ENODEV, Some(format!("there is no link {name}"))))?;
            indexes.insert(name.clone(), index);
        }
        Ok(())
    }

    /// All links of the namespace, by their number.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let messages = self.link_messages()?;
        let names = Names::of(&messages);
        messages.iter().map(|message| decode::link(message, &names)).collect()
    }

    /// The link of this name; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn link(&mut self, name: &IfName) -> Result<Option<Link>> {
        let mut request = without_statistics();
        request.attributes.push(LinkAttribute::IfName(name.to_string()));
        let Some(message) = self.link_message(request)? else { return Ok(None) };
        // A link that points at others bears their numbers; their names are asked for only then.
        let mut others = Names::default();
        for number in decode::referred(&message) {
            let name = index::name_of(self.socket.as_fd(), number).map_err(|errno| listing("ip link show", errno))?;
            others.extend(name.map(|name| Names::one(number, &name)).unwrap_or_default());
        }
        decode::link(&message, &others).map(Some)
    }

    fn link_message(&mut self, request: LinkMessage) -> Result<Option<LinkMessage>> {
        match self.socket.request(&RouteNetlinkMessage::GetLink(request), 0) {
            Ok(answer) => Ok(answer.into_iter().find_map(new_link)),
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(listing("ip link show", errno)),
        }
    }

    /// Whether there is a link of this name; cheaper than [`Netlink::link`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn has_link(&self, name: &IfName) -> Result<bool> {
        self.index_if_there(name).map(|index| index.is_some())
    }

    /// All addresses of the namespace, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let names = self.names()?;
        self.addresses_by(&names)
    }

    /// The addresses of one link, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// When there is no such link, the kernel refuses, or what it says cannot be read.
    pub fn addresses_of(&mut self, dev: &IfName) -> Result<Vec<Address>> {
        let names = Names::one(self.index(dev)?, dev);
        self.addresses_by(&names)
    }

    /// The addresses of the links that have a name here.
    fn addresses_by(&mut self, names: &Names) -> Result<Vec<Address>> {
        let messages = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), "ip addr show")?;
        let mut addresses: Vec<Address> = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) => decode::address(message, names),
                _ => None,
            })
            .collect();
        addresses.sort();
        Ok(addresses)
    }

    /// All routes of all tables but `local`, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let names = self.names()?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for message in self.dump(&RouteNetlinkMessage::GetRoute(request), "ip route show table all")? {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    routes.extend(decode::route(&message, &names));
                }
            }
        }
        routes.sort();
        Ok(routes)
    }

    /// The route that a packet to `address` would take (`ip route get ADDRESS`): its link, its next router if there is one, and the source
    /// address it would get. Of an address of this machine's own the kind is [`RouteKind::Local`]. `None` when there is no way.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason, or what it says cannot be read.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>> {
        let mut request = RouteMessage::default();
        let (family, bits) = if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        request.header.address_family = family;
        request.header.destination_prefix_length = bits;
        request.attributes.push(RouteAttribute::Destination(address.into()));
        let answer = match self.socket.request(&RouteNetlinkMessage::GetRoute(request), 0) {
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => return Ok(None),
            other => other.map_err(|errno| listing(&format!("ip route get {address}"), errno))?,
        };
        let names = self.names()?;
        Ok(answer.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => decode::route(message, &names),
            _ => None,
        }))
    }

    /// The neighbour entries of a link that have a hardware address.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn neighbours(&mut self, dev: &IfName) -> Result<Vec<Neighbour>> {
        let names = self.names()?;
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for message in self.dump(&RouteNetlinkMessage::GetNeighbour(request), "ip neigh show")? {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    neighbours.extend(decode::neighbour(&message, &names).filter(|neighbour| neighbour.dev == *dev));
                }
            }
        }
        neighbours.sort();
        Ok(neighbours)
    }

    /// The forwarding entries of a link.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or what it says cannot be read.
    pub fn fdb(&mut self, dev: &IfName) -> Result<Vec<FdbEntry>> {
        let names = self.names()?;
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        let messages = self.dump(&RouteNetlinkMessage::GetNeighbour(request), "bridge fdb show")?;
        let mut entries: Vec<FdbEntry> = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => decode::fdb(message, &names),
                _ => None,
            })
            .filter(|entry| entry.dev == *dev)
            .collect();
        entries.sort();
        Ok(entries)
    }

    /// The queueing disciplines of a link that are not the kernel's own choice.
    ///
    /// # Errors
    ///
    /// When there is no such link, the kernel refuses, or what it says cannot be read.
    pub fn qdiscs(&mut self, dev: &IfName) -> Result<Vec<Qdisc>> {
        let index = self.index(dev)?;
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed()));
        let messages = self.dump(&request, &format!("tc qdisc show dev {dev}"))?;
        let qdiscs = messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message) => traffic::qdisc(message, index),
            _ => None,
        });
        Ok(qdiscs.filter(|qdisc| !matches!(qdisc, Qdisc::Other(kind) if kind == "noqueue")).collect())
    }

    /// The links through which what a link receives is sent instead.
    ///
    /// # Errors
    ///
    /// When there is no such link, the kernel refuses, or what it says cannot be read.
    pub fn redirects(&mut self, dev: &IfName) -> Result<Vec<IfName>> {
        let request = RouteNetlinkMessage::GetTrafficFilter(traffic::redirect_request(self.index(dev)?));
        let messages = self.dump(&request, &format!("tc filter show dev {dev} parent ffff:"))?;
        let indexes: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewTrafficFilter(message) => traffic::redirect(message),
                _ => None,
            })
            .collect();
        let names = self.names()?;
        Ok(indexes.into_iter().filter_map(|index| names.get(index)).collect())
    }

    /// The VLANs of a port of a bridge, each one alone; none when the kernel's bridge knows nothing of VLANs.
    ///
    /// # Errors
    ///
    /// When there is no such link, the kernel refuses, or what it says cannot be read.
    pub fn vlans(&mut self, dev: &IfName) -> Result<Vec<Vlans>> {
        let index = self.index(dev)?;
        let mut request = LinkMessage::default();
        request.header.interface_family = AddressFamily::Bridge;
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let messages = self.dump(&RouteNetlinkMessage::GetLink(request), &format!("bridge vlan show dev {dev}"))?;
        let of_dev = messages.into_iter().filter_map(new_link).filter(|message| message.header.index == index);
        Ok(of_dev.flat_map(|message| decode::vlans(&message, dev)).collect())
    }

    fn index(&self, dev: &IfName) -> Result<Index> {
        self.index_if_there(dev)?.ok_or_else(|| listing(&format!("ip link show {dev}"), Errno::ENODEV))
    }

    fn index_if_there(&self, dev: &IfName) -> Result<Option<Index>> {
        index::of_name(self.socket.as_fd(), dev).map_err(|errno| listing(&format!("ip link show {dev}"), errno))
    }

    fn names(&mut self) -> Result<Names> {
        Ok(Names::of(&self.link_messages()?))
    }

    fn link_messages(&mut self) -> Result<Vec<LinkMessage>> {
        let request = RouteNetlinkMessage::GetLink(without_statistics());
        Ok(self.dump(&request, "ip link show")?.into_iter().filter_map(new_link).collect())
    }

    fn dump(&mut self, request: &RouteNetlinkMessage, command: &str) -> Result<Vec<RouteNetlinkMessage>> {
        self.socket.request(request, NLM_F_DUMP).map_err(|errno| listing(command, errno))
    }
}

/// A question about links. What went through them is not counted together for it.
fn without_statistics() -> LinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

fn new_link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    if let RouteNetlinkMessage::NewLink(message) = message { Some(message) } else { None }
}

fn listing(command: &str, errno: Errno) -> Error {
    Error::Refused { command: command.to_owned(), errno, hint: "".into() }
}

/// The error for an operation that the kernel did not carry out, with its own words, or what we know of the reason.
fn refused(op: &Op, errno: Errno, text: Option<String>) -> Error {
    let known = match (op, errno) {
        (Op::AddVxlan(_), Errno::EOPNOTSUPP) => "; this kernel has no VXLAN (module vxlan)",
        (Op::AddMacvlan(_), Errno::EOPNOTSUPP) => "; this kernel has no macvlan (module macvlan)",
        (Op::AddVeth(_), Errno::EOPNOTSUPP) => "; this kernel has no veth (module veth)",
        (Op::AddIfb(_), Errno::EOPNOTSUPP) => "; this kernel has no intermediate functional blocks (module ifb)",
        (Op::SetVlanFiltering { .. } | Op::AddVlans(_) | Op::DelVlans(_), Errno::EOPNOTSUPP) => {
            "; this kernel's bridge knows nothing of VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"
        }
        (Op::AddQdisc { .. }, Errno::ENOENT | Errno::EOPNOTSUPP) => {
            "; this kernel lacks that queueing discipline (modules sch_tbf, sch_ingress)"
        }
        (Op::AddRedirect { .. }, Errno::ENOENT | Errno::EOPNOTSUPP) => {
            "; this kernel lacks the filter or its action (modules cls_u32, act_mirred)"
        }
        (Op::AddBridge { .. }, Errno::EOPNOTSUPP) => "; this kernel has no bridge (module bridge)",
        (_, Errno::EPERM) => "; it needs CAP_NET_ADMIN in this network namespace",
        _ => "",
    };
    let hint = match text {
        Some(text) if known.is_empty() => format!("; {text}").into(),
        _ => known.into(),
    };
    Error::Refused { command: op.to_string(), errno, hint }
}
