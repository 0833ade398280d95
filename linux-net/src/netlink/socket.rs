//! The socket: numbered requests out, acknowledgements and answers in.
//!
//! ```text
//!  0                   4         6         8                  12                 16
//! +-------------------+---------+---------+------------------+------------------+---------
//! | length            | type    | flags   | sequence number  | port             | payload
//! +-------------------+---------+---------+------------------+------------------+---------
//! ```
//!
//! Several such messages may stand behind each other in one send and in one receive. With `NLM_F_ACK` each request is answered
//! by an `NLMSG_ERROR` whose number is 0 when all is well, and which bears the request's sequence number.
//!
//! Source: RFC 3549, section 2.3.2; man 7 `netlink`.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::error::{Error, Result};

/// Room for many answers: what does not fit is lost.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// The longest datagram. The kernel puts as much of a dump into one as the receiver has shown that it can take.
const DATAGRAM_BYTES: usize = 64 << 10;
/// How often a dump that changed while it was read is begun again.
const DUMP_TRIES: u32 = 10;

pub(super) struct Socket {
    kernel: netlink_sys::Socket,
    sequence: u32,
    /// What was received last.
    datagram: Vec<u8>,
}

impl Socket {
    /// Opens a socket in this thread's namespace that hears of the given multicast groups.
    pub(super) fn open(groups: &[u32]) -> Result<Self> {
        let failed = |error: std::io::Error| Error::system("open a netlink socket", error);
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // An acknowledgement then repeats the request's header only.
        socket.set_cap_ack(true).map_err(failed)?;
        // And the kernel adds to an error what it has to say about it.
        socket.set_ext_ack(true).map_err(failed)?;
        // A smaller buffer than asked for is none to fail about.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES);
        for group in groups {
            socket.add_membership(*group).map_err(failed)?;
        }
        Ok(Self { kernel: socket, sequence: 0, datagram: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// Adds a request to `buffer`; returns its sequence number.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = buffer.len();
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
        self.sequence
    }

    /// Sends the requests that were appended under these sequence numbers and reads their acknowledgements, in the same
    /// order: `None` is success.
    pub(super) fn exchange(&mut self, buffer: &[u8], sequence_numbers: &[u32]) -> Result<Vec<Option<Refusal>>> {
        self.send(buffer)?;
        let mut answers = BTreeMap::new();
        while answers.len() < sequence_numbers.len() {
            for message in self.receive()? {
                let number = message.header.sequence_number;
                if let NetlinkPayload::Error(error) = &message.payload
                    && sequence_numbers.contains(&number)
                {
                    answers.insert(
                        number,
                        error.code.map(|code| Refusal {
                            errno: Errno::from_raw(code.get().saturating_neg()),
                            text: text(&error.header),
                        }),
                    );
                }
            }
        }
        Ok(sequence_numbers.iter().map(|number| answers.remove(number).flatten()).collect())
    }

    /// Sends one request and returns all messages of its answer.
    pub(super) fn request(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> std::result::Result<Vec<RouteNetlinkMessage>, Errno> {
        let mut last = Errno::EINTR;
        for _ in 0..DUMP_TRIES {
            match self.request_once(message.clone(), flags) {
                Err(Errno::EINTR) => last = Errno::EINTR, // the table changed while it was read
                other => return other,
            }
        }
        Err(last)
    }

    fn request_once(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> std::result::Result<Vec<RouteNetlinkMessage>, Errno> {
        /// `NLM_F_DUMP_INTR`: the answer mixes two states of the table.
        const CHANGED: u16 = netlink_packet_core::NLM_F_DUMP_INTR;
        let errno = |error: &Error| error.errno().unwrap_or(Errno::EIO);
        let mut buffer = Vec::new();
        let number = self.append(&mut buffer, message, flags);
        self.send(&buffer).map_err(|error| errno(&error))?;
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answer = Vec::new();
        let mut changed = false;
        loop {
            for message in self.receive().map_err(|error| errno(&error))? {
                if message.header.sequence_number != number {
                    continue; // what is left of a request that failed half way
                }
                changed |= message.header.flags & CHANGED != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) if is_dump => answer.push(inner),
                    NetlinkPayload::InnerMessage(inner) => return Ok(vec![inner]),
                    NetlinkPayload::Done(_) if changed => return Err(Errno::EINTR),
                    NetlinkPayload::Done(_) => return Ok(answer),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answer),
                            Some(code) => Err(Errno::from_raw(code.get().saturating_neg())),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&self, buffer: &[u8]) -> Result<()> {
        self.kernel.send(buffer, 0).map_err(|error| Error::system("send to the kernel", error))?;
        Ok(())
    }

    /// Waits for the next datagram and reads its messages.
    pub(super) fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        loop {
            self.datagram.clear();
            match self.kernel.recv(&mut self.datagram, libc::MSG_TRUNC) {
                Ok(length) if length > self.datagram.len() => {
                    let reason = format!("it has {length} bytes, more than {DATAGRAM_BYTES}");
                    return Err(Error::Malformed { what: "a netlink datagram", reason });
                }
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {} // by a signal
                Err(error) => return Err(Error::system("receive from the kernel", error)),
            }
        }
        let mut messages = Vec::new();
        let mut rest = &self.datagram[..];
        while rest.len() >= NETLINK_HEADER_BYTES {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < NETLINK_HEADER_BYTES || length > rest.len() {
                return Err(Error::Malformed { what: "a netlink message", reason: format!("its length is {length}") });
            }
            // A message of a kind that the library does not know is none that was asked for.
            if let Ok(message) = NetlinkMessage::deserialize(&rest[..length]) {
                messages.push(message);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(messages)
    }

    pub(super) fn set_non_blocking(&self, on: bool) -> Result<()> {
        self.kernel.set_non_blocking(on).map_err(|error| Error::system("set up a netlink socket", error))
    }
}

/// What the kernel said to a request that it did not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// Its own words, where it has some.
    pub(super) text: Option<String>,
}

/// Finds the kernel's own words behind the header of the request that an error repeats:
///
/// ```text
/// | header of the request, 16 bytes | length | type | value, padded to 4 bytes | length | …
/// ```
fn text(repeated: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut attributes = repeated.get(NETLINK_HEADER_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(value).trim_end_matches(['\0', '.']).to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Length, type, flags, sequence number, port.
const NETLINK_HEADER_BYTES: usize = 16;

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.kernel.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}
