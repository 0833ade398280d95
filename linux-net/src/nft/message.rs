//! The answers of netfilter (nftables, connection tracking), cut into messages.

use nix::errno::Errno;

use crate::error::{Error, Result};

const HEADER_BYTES: usize = 16; // struct nlmsghdr
const NFGEN_BYTES: usize = 4; // struct nfgenmsg
const NLA_TYPE_MASK: u16 = 0x3fff; // without the flags for "contains attributes" and "big-endian"
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// One message of a datagram.
pub(crate) struct RawMessage<'a> {
    kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    pub(crate) whole: &'a [u8],
}

/// What a message is for the one who asked.
pub(crate) enum Meaning {
    /// What was asked for, or a part of it.
    Object,
    /// The end of a dump.
    End,
    /// A change was made.
    Done,
    /// It was not.
    Refused(Errno),
}

impl RawMessage<'_> {
    /// Says whether the ruleset changed while the answer was made (`NLM_F_DUMP_INTR`).
    pub(crate) fn is_interrupted(&self) -> bool {
        const NLM_F_DUMP_INTR: u16 = 0x10;
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// Finds the value of an attribute by its kind.
    pub(crate) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.whole.get(HEADER_BYTES + NFGEN_BYTES..)?, kind)
    }

    /// Says what the message is for the one who asked.
    pub(crate) fn meaning(&self) -> Meaning {
        if self.kind == NLMSG_DONE {
            return Meaning::End;
        }
        if self.kind != NLMSG_ERROR {
            return Meaning::Object;
        }
        let code = self
            .whole
            .get(HEADER_BYTES..)
            .and_then(|body| body.first_chunk())
            .map_or(0, |code| i32::from_ne_bytes(*code));
        if code == 0 { Meaning::Done } else { Meaning::Refused(Errno::from_raw(-code)) }
    }
}

/// Cuts a datagram into its messages.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<RawMessage<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_BYTES>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length < HEADER_BYTES || length > rest.len() {
            rest = &[];
            return Some(Err(malformed()));
        }
        let message = RawMessage {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            whole: &rest[..length],
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok(message))
    })
}

/// Finds an attribute by its kind.
pub(crate) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn malformed() -> Error {
    Error::Malformed { what: "a netfilter message", reason: "its length is wrong".to_owned() }
}
