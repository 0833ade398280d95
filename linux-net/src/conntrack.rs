//! Connection tracking: the kernel's list of connections, from which entries can be deleted.
//!
//! Address translation is decided on the first packet of a connection; what was decided stands in the connection's entry, and all later
//! packets follow it. For UDP a "connection" is whatever comes from one port to another port within some time of silence. So a client
//! that keeps sending keeps its old entry alive, also when the rules have changed meanwhile: packets go to an endpoint that has gone, or
//! are not translated at all. Whoever changes such rules deletes the entries that they contradict.
//!
//! An entry holds two tuples, the first packet's and that of the answers that are expected. Where the destination was translated, the
//! answers come from elsewhere than the first packet went to:
//!
//! ```text
//! udp src=192.0.2.2 dst=192.0.2.1 sport=4000 dport=53    src=10.22.0.2 dst=192.0.2.2 sport=5353 dport=4000
//!     └──────── original: client → host port 53          └──────── reply: pod, port 5353 → client
//! ```
//!
//! Source: Linux `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use crate::{
    error::{Error, Result},
    netns::NetNs,
    nft::message::{Meaning, attribute, messages},
};

/// Which entries: those that agree with everything that is said. It prints as the `conntrack` command that deletes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// The transport protocol: 6 tcp, 17 udp, 132 sctp.
    pub protocol: Option<u8>,
    /// Where the first packet went: a service's address, an address of this machine.
    pub original_destination: Option<IpAddr>,
    /// The port that it went to.
    pub original_port: Option<u16>,
    /// Where the answers come from: the endpoint, when the destination was translated.
    pub reply_source: Option<IpAddr>,
    /// The port that they come from.
    pub reply_port: Option<u16>,
}

/// A tracked connection, as far as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The transport protocol: 6 tcp, 17 udp, 132 sctp.
    pub protocol: u8,
    /// As the first packet went.
    pub original: Tuple,
    /// As the answers are expected.
    pub reply: Tuple,
    /// What the kernel names it by in a deletion: the original tuple, the zone and the number, as attributes.
    name: Vec<u8>,
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Where packets come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// The port that they come from; 0 for a protocol without ports.
    pub source_port: u16,
    /// The port that they go to.
    pub destination_port: u16,
}

impl Filter {
    /// Says whether an entry agrees with everything that the filter says.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        fn agrees<T: PartialEq + Copy>(wanted: Option<T>, found: T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        agrees(self.protocol, entry.protocol)
            && agrees(self.original_destination, entry.original.destination)
            && agrees(self.original_port, entry.original.destination_port)
            && agrees(self.reply_source, entry.reply.source)
            && agrees(self.reply_port, entry.reply.source_port)
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("conntrack -D")?;
        if let Some(protocol) = self.protocol {
            match protocol {
                6 => f.write_str(" -p tcp")?,
                17 => f.write_str(" -p udp")?,
                132 => f.write_str(" -p sctp")?,
                other => write!(f, " -p {other}")?,
            }
        }
        if let Some(address) = self.original_destination {
            write!(f, " --orig-dst {address}")?;
        }
        if let Some(port) = self.original_port {
            write!(f, " --orig-port-dst {port}")?;
        }
        if let Some(address) = self.reply_source {
            write!(f, " --reply-src {address}")?;
        }
        if let Some(port) = self.reply_port {
            write!(f, " --reply-port-src {port}")?;
        }
        Ok(())
    }
}

/// One socket to connection tracking; it belongs to the namespace it was opened in.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

/// Larger than any datagram of the kernel: it fills at most 32 KiB (`NLMSG_GOODSIZE` of a dump).
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// How many deletions are under way at a time: their answers must fit into the socket's buffer.
const DELETIONS_AT_A_TIME: usize = 100;

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const NLA_F_NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const HEADER_BYTES: usize = 16 + 4; // struct nlmsghdr, struct nfgenmsg

impl Conntrack {
    /// Opens a socket in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error| Error::system("open a conntrack socket", error))?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_BUFFER_BYTES) })
    }

    /// Opens a socket in `ns`.
    ///
    /// # Errors
    ///
    /// When this thread may not enter `ns`, or the kernel gives no socket.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Lists the connections of both families (`conntrack -L`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses: one without `nf_conntrack_netlink` does.
    pub fn entries(&mut self) -> Result<Vec<Entry>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request =
            message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, self.sequence, libc::AF_UNSPEC, &[] as &[u8]);
        self.send(&request)?;
        let mut entries = Vec::new();
        loop {
            self.receive()?;
            for message in messages(&self.received) {
                let message = message?;
                match message.meaning() {
                    _ if message.sequence != self.sequence => {}
                    Meaning::Object => entries.extend(message.whole.get(HEADER_BYTES..).and_then(entry)),
                    Meaning::End => return Ok(entries),
                    Meaning::Refused(errno) => return Err(refused("conntrack -L".to_owned(), errno)),
                    Meaning::Done => {}
                }
            }
        }
    }

    /// Deletes the connections that one of the filters describes, and returns how many there were. No filter, no deletion.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. A connection that ended meanwhile is no error.
    pub fn delete(&mut self, filters: &[Filter]) -> Result<usize> {
        if filters.is_empty() {
            return Ok(0);
        }
        let mut doomed = self.entries()?;
        doomed.retain(|entry| filters.iter().any(|filter| filter.matches(entry)));
        let mut deleted = 0;
        for some in doomed.chunks(DELETIONS_AT_A_TIME) {
            let first = self.sequence.wrapping_add(1);
            let mut requests = Vec::new();
            for entry in some {
                self.sequence = self.sequence.wrapping_add(1);
                let family = if entry.original.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                let flags = NLM_F_REQUEST | NLM_F_ACK;
                requests.extend(message(IPCTNL_MSG_CT_DELETE, flags, self.sequence, family, &entry.name));
            }
            self.send(&requests)?;
            deleted += self.acknowledged(first, some.len(), filters)?;
        }
        Ok(deleted)
    }

    /// Reads the answers to the `count` deletions from number `first` on; returns how many were made.
    fn acknowledged(&mut self, first: u32, count: usize, filters: &[Filter]) -> Result<usize> {
        let (mut answered, mut deleted) = (0, 0);
        let mut failed = None;
        while answered < count {
            self.receive()?;
            for message in messages(&self.received) {
                let message = message?;
                if (message.sequence.wrapping_sub(first) as usize) >= count {
                    continue;
                }
                match message.meaning() {
                    Meaning::Done => (answered, deleted) = (answered + 1, deleted + 1),
                    Meaning::Refused(Errno::ENOENT) => answered += 1,
                    Meaning::Refused(errno) => (answered, failed) = (answered + 1, Some(errno)),
                    Meaning::Object | Meaning::End => {}
                }
            }
        }
        match failed {
            Some(errno) => Err(refused(filters.first().map(ToString::to_string).unwrap_or_default(), errno)),
            None => Ok(deleted),
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<()> {
        let sent = self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0);
        sent.map(drop).map_err(|error| Error::system("send to conntrack", error))
    }

    fn receive(&mut self) -> Result<()> {
        self.received.clear();
        loop {
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("receive from conntrack", error)),
            }
        }
    }
}

/// Deletes the connections that one of the filters describes, in the namespace this thread is in, as [`Conntrack::delete`].
///
/// # Errors
///
/// When the kernel refuses.
pub fn delete(filters: &[Filter]) -> Result<usize> {
    if filters.is_empty() { Ok(0) } else { Conntrack::open()?.delete(filters) }
}

fn refused(command: String, errno: Errno) -> Error {
    let hint = if errno == Errno::EPERM { "; it takes root, or a user namespace (unshare -Urnm)" } else { "" };
    Error::Refused { command, errno, hint: hint.into() }
}

/// Builds one message: header, family, attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: i32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + attributes.len()).expect("a name has some hundred bytes");
    let mut out = Vec::with_capacity(HEADER_BYTES + attributes.len());
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes()); // from whom: the kernel knows
    out.extend([u8::try_from(family).expect("families are small numbers"), 0, 0, 0]);
    out.extend(attributes);
    out
}

/// Reads the attributes of an entry; `None` when there is no address or no protocol in them.
fn entry(attributes: &[u8]) -> Option<Entry> {
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let (protocol, original_tuple) = tuple(original)?;
    let (_, reply) = tuple(attribute(attributes, CTA_TUPLE_REPLY)?)?;
    let mut name = Vec::new();
    append(CTA_TUPLE_ORIG | NLA_F_NESTED, original, &mut name);
    for kind in [CTA_ZONE, CTA_ID] {
        if let Some(value) = attribute(attributes, kind) {
            append(kind, value, &mut name);
        }
    }
    Some(Entry { protocol, original: original_tuple, reply, name })
}

fn tuple(attributes: &[u8]) -> Option<(u8, Tuple)> {
    let (addresses, protocol) = (attribute(attributes, CTA_TUPLE_IP)?, attribute(attributes, CTA_TUPLE_PROTO)?);
    let address = |v4, v6| {
        let v4 = attribute(addresses, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        v4.or_else(|| attribute(addresses, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from))
    };
    let port = |kind| {
        let bytes = attribute(protocol, kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    let tuple = Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        source_port: port(CTA_PROTO_SRC_PORT),
        destination_port: port(CTA_PROTO_DST_PORT),
    };
    Some((*attribute(protocol, CTA_PROTO_NUM)?.first()?, tuple))
}

fn append(kind: u16, value: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(4 + value.len()).expect("a tuple has less than 100 bytes");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_prints_as_the_command_that_a_student_types() {
        let filter = Filter {
            protocol: Some(17),
            original_port: Some(53),
            reply_source: Some([10, 22, 0, 2].into()),
            ..Filter::default()
        };
        assert_eq!(filter.to_string(), "conntrack -D -p udp --orig-port-dst 53 --reply-src 10.22.0.2");
    }
}
