//! The netlink socket to nftables.

use std::{borrow::Cow, io};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nftnl_sys as sys;
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    Batch, Chain, Element, Set, Table,
    constants::{
        NFT_MSG_GETCHAIN, NFT_MSG_GETGEN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE,
        family_number,
    },
    decode::{self, malformed},
    encode::{Encoded, RangedSets, encode, tables_to_ask_about},
    ffi::{ChainObject, Header, RuleObject, Scratch, SetObject, TableObject, c_string},
    message::{Meaning, RawMessage, messages},
};
use crate::{
    error::{Error, Result},
    netns::NetNs,
};

/// Larger than any datagram of the kernel: it fills at most 32 KiB (`NLMSG_GOODSIZE` of a dump).
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// What a datagram takes of a socket's buffer beside its bytes.
const SEND_OVERHEAD_BYTES: usize = 4096;

/// How often a dump is begun again when the ruleset changes under it.
const DUMP_ATTEMPTS: usize = 10;

const NFTA_GEN_ID: u16 = 1;

/// One `NETLINK_NETFILTER` socket; it belongs to the namespace it was opened in, wherever its thread goes later.
pub struct Nft {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

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
    /// The chain that it jumps or goes to, if it does so without a map.
    pub target: Option<String>,
    /// The constants that it compares with, in order, as the kernel has them: an address, a port, an interface's name.
    pub constants: Vec<Vec<u8>>,
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
    /// Whether its keys are ranges in several dimensions at once.
    pub is_ranged_concatenation: bool,
}

impl Nft {
    /// Opens a socket in the namespace this thread is in.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket, or has no nftables.
    pub fn open() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            // An answer repeats the request otherwise, which may be 64 KiB of elements.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error| Error::system("open an nftables socket", error))?;
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

    /// Commits a batch: all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the first change that the kernel did not take, as `nft` text.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut asked = RangedSets::new();
        for table in tables_to_ask_about(batch) {
            let sets = self.sets(&table)?.into_iter();
            asked.extend(sets.map(|set| ((table.clone(), set.name), set.is_ranged_concatenation)));
        }
        let encoded = encode(batch, asked)?;
        self.make_room(encoded.bytes.len());
        self.send(&encoded.bytes).map_err(|source| Error::System {
            action: format!("send a batch of {} bytes to nftables", encoded.bytes.len()),
            hint: match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
                Errno::EMSGSIZE => {
                    "; a socket here holds less: raise sysctl net.core.wmem_max on the host, or run as root"
                }
                _ => "",
            },
            source,
        })?;
        self.outcome(batch, &encoded)
    }

    /// Lists the tables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        let mut request = TableObject::new();
        let messages = self.dump(NFT_MSG_GETTABLE, 0, |header, scratch, out| request.write(header, scratch, out))?;
        let mut tables: Vec<_> = messages.iter().filter_map(|message| decode::table(message)).collect();
        tables.sort();
        Ok(tables)
    }

    /// Lists the chains of a table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainInfo>> {
        let mut request = ChainObject::new();
        request.set_str(sys::NFTNL_CHAIN_TABLE, &c_string(&table.name)?);
        let family = family_number(table.family);
        let messages =
            self.dump(NFT_MSG_GETCHAIN, family, |header, scratch, out| request.write(header, scratch, out))?;
        Ok(of_table(table, messages.iter().filter_map(|message| decode::chain(message))))
    }

    /// Lists the rules of a table, in the order of their chains.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>> {
        self.rules_of(table, None)
    }

    /// Lists the rules of one chain: a table that others fill may have tens of thousands in other chains.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn rules_of_chain(&mut self, table: &Table, chain: &str) -> Result<Vec<RuleInfo>> {
        self.rules_of(table, Some(chain))
    }

    fn rules_of(&mut self, table: &Table, chain: Option<&str>) -> Result<Vec<RuleInfo>> {
        let mut request = RuleObject::new();
        request.set_str(sys::NFTNL_RULE_TABLE, &c_string(&table.name)?);
        if let Some(chain) = chain {
            request.set_str(sys::NFTNL_RULE_CHAIN, &c_string(chain)?);
        }
        let family = family_number(table.family);
        let messages =
            self.dump(NFT_MSG_GETRULE, family, |header, scratch, out| request.write(header, scratch, out))?;
        Ok(of_table(table, messages.iter().filter_map(|message| decode::rule(message))))
    }

    /// Lists the sets and maps of a table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetInfo>> {
        let mut request = SetObject::new();
        request.set_str(sys::NFTNL_SET_TABLE, &c_string(&table.name)?);
        let family = family_number(table.family);
        let write = |header, scratch: &mut Scratch, out: &mut Vec<u8>| request.write(header, scratch, out);
        match self.dump(NFT_MSG_GETSET, family, write) {
            Ok(messages) => Ok(of_table(table, messages.iter().filter_map(|message| decode::set(message)))),
            // Unlike for chains and rules, the kernel says so when there is no such table.
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reads the elements of a set or map; `set` says how to decode them.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is no such set.
    pub fn elements(&mut self, set: &Set) -> Result<Vec<Element>> {
        let mut request = SetObject::new();
        request
            .set_str(sys::NFTNL_SET_TABLE, &c_string(&set.table.name)?)
            .set_str(sys::NFTNL_SET_NAME, &c_string(&set.name)?);
        let family = family_number(set.table.family);
        let write = |header, scratch: &mut Scratch, out: &mut Vec<u8>| {
            request.write_elements(header, scratch, out);
        };
        let messages = self.dump(NFT_MSG_GETSETELEM, family, write)?;
        decode::elements(set, &messages)
    }

    /// Returns the number of the ruleset's generation, which every commit of anybody raises: when it is the one that our own last commit
    /// left, nobody has changed anything.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn generation(&mut self) -> Result<u32> {
        let mut request = TableObject::new();
        let read = |message: &RawMessage<'_>| {
            let number = message.attribute(NFTA_GEN_ID).and_then(|value| value.first_chunk());
            number.map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(|| malformed("the generation has no number"))
        };
        self.get(NFT_MSG_GETGEN, 0, |header, scratch, out| request.write(header, scratch, out), read)
    }

    /// Makes the socket's buffer hold a datagram of so many bytes.
    fn make_room(&self, bytes: usize) {
        let wanted = bytes + SEND_OVERHEAD_BYTES;
        if setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_err() {
            // In a user namespace the limit net.core.wmem_max holds; if that is too small, the send says so.
            let _ = setsockopt(&self.socket, sockopt::SndBuf, &wanted);
        }
    }

    /// Reads what the kernel says to a batch: a success for the last change, or an error for every change that it did not take.
    ///
    /// The kernel has carried out the batch when the send returns; all answers are in the socket then.
    fn outcome(&mut self, batch: &Batch, encoded: &Encoded) -> Result<()> {
        let mut first: Option<(u32, Errno)> = None;
        let mut committed = false;
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // More errors than fit: the first are the ones to tell.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => continue,
                Err(error) => return Err(Error::system("hear the answer of nftables", error)),
            }
            for message in messages(&self.received) {
                let message = message?;
                match message.meaning() {
                    Meaning::Refused(errno) => {
                        let earliest = first.is_none_or(|(sequence, _)| message.sequence < sequence);
                        first = if earliest { Some((message.sequence, errno)) } else { first };
                    }
                    Meaning::Done => committed |= message.sequence == encoded.last,
                    Meaning::Object | Meaning::End => {}
                }
            }
        }
        match first {
            Some((sequence, errno)) => {
                let command = match encoded.op_of(sequence) {
                    Some(position) => format!("nft {}", batch.0[position].summary()),
                    None => "nft -f".to_owned(),
                };
                Err(Error::Refused { command, errno, hint: hint(errno) })
            }
            None if committed => Ok(()),
            None => Err(malformed("the kernel has not answered to a batch")),
        }
    }

    /// Sends one request that `write` makes and returns what `read` finds in the one message that answers it.
    fn get<T>(
        &mut self,
        kind: u16,
        family: u16,
        write: impl FnOnce(Header, &mut Scratch, &mut Vec<u8>),
        read: impl FnOnce(&RawMessage<'_>) -> Result<T>,
    ) -> Result<T> {
        let sequence = self.request(kind, family, 0, write)?;
        loop {
            self.receive()?;
            for message in messages(&self.received) {
                let message = message?;
                match message.meaning() {
                    _ if message.sequence != sequence => {}
                    Meaning::Refused(errno) => return Err(refused(kind, errno)),
                    Meaning::Object => return read(&message),
                    Meaning::Done | Meaning::End => {}
                }
            }
        }
    }

    /// Sends one request that `write` makes and returns all messages of the answer.
    ///
    /// A ruleset that changes while it is read marks the answer (`NLM_F_DUMP_INTR`): things may be missing, so we ask again.
    fn dump(
        &mut self,
        kind: u16,
        family: u16,
        mut write: impl FnMut(Header, &mut Scratch, &mut Vec<u8>),
    ) -> Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.request(kind, family, NLM_F_DUMP, &mut write)?;
            if let Some(found) = self.dumped(kind, sequence)? {
                return Ok(found);
            }
        }
        Err(Error::system("read nftables: the ruleset changes too fast", Errno::EINTR))
    }

    fn dumped(&mut self, kind: u16, sequence: u32) -> Result<Option<Vec<Vec<u8>>>> {
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive()?;
            for message in messages(&self.received) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.is_interrupted();
                match message.meaning() {
                    Meaning::Object => found.push(message.whole.to_vec()),
                    Meaning::End => return Ok((!interrupted).then_some(found)),
                    Meaning::Refused(errno) => return Err(refused(kind, errno)),
                    Meaning::Done => {}
                }
            }
        }
    }

    fn request(
        &mut self,
        kind: u16,
        family: u16,
        flags: u16,
        write: impl FnOnce(Header, &mut Scratch, &mut Vec<u8>),
    ) -> Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header { kind, family, flags: NLM_F_REQUEST | flags, sequence: self.sequence };
        let mut datagram = Vec::new();
        write(header, &mut Scratch::new(), &mut datagram);
        self.send(&datagram).map_err(|error| Error::system("send to nftables", error))?;
        Ok(self.sequence)
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0).map(drop)
    }

    fn receive(&mut self) -> Result<()> {
        self.received.clear();
        loop {
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("receive from nftables", error)),
            }
        }
    }
}

fn of_table<T>(table: &Table, found: impl Iterator<Item = (Table, T)>) -> Vec<T> {
    found.filter(|(of, _)| of == table).map(|(_, thing)| thing).collect()
}

fn refused(kind: u16, errno: Errno) -> Error {
    let command = match kind {
        NFT_MSG_GETTABLE => "nft list tables",
        NFT_MSG_GETCHAIN => "nft list chains",
        NFT_MSG_GETSET => "nft list sets",
        NFT_MSG_GETSETELEM => "nft list set",
        _ => "nft list ruleset",
    };
    Error::Refused { command: command.to_owned(), errno, hint: hint(errno) }
}

fn hint(errno: Errno) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        Errno::EPERM => "; it takes root, or a user namespace (unshare -Urnm)",
        Errno::EOPNOTSUPP => "; this kernel cannot do that: an expression or a kind of chain is not built in",
        _ => "",
    })
}
