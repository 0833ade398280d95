//! The tag: what the table says about a connection, in the 32 bits of its conntrack mark.
//!
//! ```text
//!  31  30  29  28 27           20 19 18 17 16                            0
//! +---+---+---+---+---------------+--+----+------------------------------+
//! | e | m | l | s |     slots     | a| b  |            number            |
//! +---+---+---+---+---------------+--+----+------------------------------+
//!                                 |<----------------- id ---------------->|
//! ```
//!
//! - *id* says whose connection it is. It stays in the mark for the life of the flow, so `conntrack -L` shows it, and so does *s*, by
//!   which the clients of a sticky Service are remembered; every other bit is cleared once it has done its work.
//! - *b* says how to choose among endpoints: 0 at random, 1 in turn, 2 by the client's address, 3 by the original's `jhash`. *a* marks VIPs
//!   that take all protocols. Both are part of the id.
//! - *slots* says over how many endpoints to spread: 1 to 239 are these numbers, 240 to 254 stand for larger ones ([`Widths`](crate::slots::Widths)); 0 is "drop",
//!   255 is "refuse".
//! - *s*: sticky, session affinity. *l*: policy Local; pods and the worker itself get another tag. *m*: masquerade, whoever it comes from.
//!   *e*: it was sent to an address for the outside, so that a stranger is no reason to masquerade.

use std::collections::BTreeSet;
use std::fmt;

use crate::service::{Balance, Protocol, ServiceName};
use crate::slots::Slots;
use linux_net::ip::Family;

/// The bits of the tag that choose a chain.
pub const CLASS_MASK: u32 = 0x1ffe_0000;
/// The bits of the tag that say over how many endpoints to spread.
pub const SLOTS_MASK: u32 = 0x0ff0_0000;
/// The bits of the tag that stay in the mark of a connection: the id, and the sticky bit.
pub const KEEP_MASK: u32 = 0x100f_ffff;
/// The bit of sticky Services.
pub const STICKY_BIT: u32 = 1 << 28;
/// The bit of tags that pods and the worker itself exchange for another.
pub const LOCAL_BIT: u32 = 1 << 29;
/// The bit of connections that are masqueraded in any case.
pub const MASQUERADE_BIT: u32 = 1 << 30;
/// The bit of connections to an address for the outside.
pub const EXTERNAL_BIT: u32 = 1 << 31;
/// The bit of an id that says "all protocols".
const ANY_BIT: u32 = 1 << 19;
/// Where *b* begins.
const BALANCE_SHIFT: u32 = 17;
/// How many ids there are of each kind.
const NUMBERS: u32 = 1 << BALANCE_SHIFT;
/// Where *slots* begins.
const SLOTS_SHIFT: u32 = 20;
const REFUSE_SLOTS: u32 = 0xff;

/// What of a Service has endpoints of its own in the table, and therefore an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Whose addresses it is about.
    pub family: Family,
    /// How endpoints are chosen.
    pub balance: Balance,
    /// What of the Service.
    pub part: Part,
}

/// A part of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A port, seen with some policy.
    Port {
        /// Its name.
        name: Box<str>,
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// Which of its endpoints.
        view: View,
    },
    /// Whatever else is sent to the address of a Service for all protocols.
    Any,
}

/// Which endpoints of a port, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// Those of the whole cluster.
    Cluster,
    /// Those of this worker.
    Local,
    /// Those of the whole cluster, for clients in the ranges of a load balancer.
    RangedCluster,
    /// Those of this worker, for clients in the ranges of a load balancer.
    RangedLocal,
}

/// An id: 20 bits. Prints as nftables prints a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// No candidate here, but elsewhere: silence.
    Drop,
    /// No endpoint at all: a reset, or an ICMP error.
    Refuse,
    /// It takes a chain that chooses an endpoint.
    Spread(Spread),
}

/// A way to choose an endpoint; all Services that agree in it share a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spread {
    /// Among how many.
    pub slots: Slots,
    /// How.
    pub balance: Balance,
    /// Whether a client is sent where it was sent before.
    pub is_sticky: bool,
    /// Whether ports are kept as they are, as for VIPs that take all protocols.
    pub keeps_ports: bool,
}

/// The whole tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(u32);

/// Hands out ids: the same name gets the same id on every worker and after every restart, as far as possible.
///
/// The id is a hash of the name, so no worker needs to remember or to agree; where two names of one cluster hash alike, the later one takes
/// the next free number, which then may differ between workers. An id that was handed out stays until it is given back.
#[derive(Debug, Default, Clone)]
pub struct Ids {
    taken: BTreeSet<Id>,
}

impl Subject {
    fn kind_bits(&self) -> u32 {
        let any = match self.part {
            Part::Port { .. } => 0,
            Part::Any => ANY_BIT,
        };
        any | self.balance.number() << BALANCE_SHIFT
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Part::Port { name, protocol, view } => write!(f, "{name}/{protocol} {view:?} {}", self.family),
            Part::Any => write!(f, "all {}", self.family),
        }
    }
}

impl Id {
    /// The id as a mark.
    #[must_use]
    pub fn mark(self) -> u32 {
        self.0
    }

    /// The mark that connections of a sticky Service keep.
    #[must_use]
    pub fn sticky_mark(self) -> u32 {
        self.0 | STICKY_BIT
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl Class {
    fn slots(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Refuse => REFUSE_SLOTS,
            Self::Spread(spread) => spread.slots.code().into(),
        }
    }

    /// The key under which connections that are dropped or refused stand in `map vacant`; `None` for the others.
    #[must_use]
    pub fn vacant_mark(self) -> Option<u32> {
        match self {
            Self::Drop | Self::Refuse => Some(self.slots() << SLOTS_SHIFT),
            Self::Spread(_) => None,
        }
    }
}

impl Spread {
    /// The key under which the chain stands in `map class`: a tag of which all but [`CLASS_MASK`] is cleared.
    #[must_use]
    pub fn mark(self) -> u32 {
        let sticky = if self.is_sticky { STICKY_BIT } else { 0 };
        let any = if self.keeps_ports { ANY_BIT } else { 0 };
        u32::from(self.slots.code()) << SLOTS_SHIFT | sticky | any | self.balance.number() << BALANCE_SHIFT
    }
}

impl Tag {
    /// The tag of connections that belong to `id` and go the way of `class`.
    #[must_use]
    pub fn new(id: Id, class: Class) -> Self {
        let sticky = match class {
            Class::Spread(Spread { is_sticky: true, .. }) => STICKY_BIT,
            Class::Spread(_) | Class::Drop | Class::Refuse => 0,
        };
        Self(id.0 | class.slots() << SLOTS_SHIFT | sticky)
    }

    /// The same with more bits set.
    #[must_use]
    pub fn with(self, bits: u32) -> Self {
        Self(self.0 | bits)
    }

    /// The tag as a mark.
    #[must_use]
    pub fn mark(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl Ids {
    /// Takes an id for a part of a Service; `None` when all of its kind are taken.
    pub fn take(&mut self, service: &ServiceName, subject: &Subject) -> Option<Id> {
        let first = hash(&format!("{service}:{subject}"));
        let kind = subject.kind_bits();
        // Id 0 is left out: a mark of 0 means "nobody's".
        let candidates = (0..NUMBERS).map(|step| Id(((first + step) % NUMBERS) | kind)).filter(|id| id.0 != 0);
        let id = candidates.into_iter().find(|id| !self.taken.contains(id))?;
        self.taken.insert(id);
        Some(id)
    }

    /// Gives an id back.
    pub fn release(&mut self, id: Id) {
        self.taken.remove(&id);
    }
}

/// FNV-1a, folded into the range of numbers. Any hash would do that never changes between releases.
fn hash(text: &str) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    (hash >> BALANCE_SHIFT ^ hash) % NUMBERS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Widths;

    fn name(text: &str) -> ServiceName {
        ServiceName::new("shop", text)
    }

    fn port(balance: Balance) -> Subject {
        let part = Part::Port { name: "http".into(), protocol: Protocol::Tcp, view: View::Cluster };
        Subject { family: Family::V4, balance, part }
    }

    #[test]
    fn the_parts_of_a_tag_do_not_overlap() {
        let mut ids = Ids::default();
        for balance in Balance::ALL {
            for (subject, keeps_ports) in [(port(balance), false), (Subject { part: Part::Any, ..port(balance) }, true)]
            {
                let id = ids.take(&name("web"), &subject).unwrap();
                let mut widths = Widths::default();
                let widest = (0..15).map(|n| widths.borrow(300 + n).unwrap()).last().unwrap();
                assert_eq!(widest.code(), 254);
                for (slots, is_sticky) in [(Slots::narrow(1).unwrap(), false), (widest, true)] {
                    let spread = Spread { slots, balance, is_sticky, keeps_ports };
                    let mark =
                        Tag::new(id, Class::Spread(spread)).with(EXTERNAL_BIT | MASQUERADE_BIT | LOCAL_BIT).mark();
                    assert_eq!(mark & CLASS_MASK, spread.mark(), "{spread:?}");
                    assert_eq!(mark & KEEP_MASK, if is_sticky { id.sticky_mark() } else { id.mark() });
                }
                for class in [Class::Drop, Class::Refuse] {
                    assert_eq!(Some(Tag::new(id, class).mark() & SLOTS_MASK), class.vacant_mark());
                }
            }
        }
    }

    #[test]
    fn the_same_name_gets_the_same_id_whatever_came_before() {
        let (mut one, mut two) = (Ids::default(), Ids::default());
        one.take(&name("first"), &port(Balance::Random));
        assert_eq!(one.take(&name("web"), &port(Balance::Random)), two.take(&name("web"), &port(Balance::Random)));
    }

    #[test]
    fn ids_are_unique_and_come_back_when_released() {
        let mut ids = Ids::default();
        let given: BTreeSet<Id> =
            (0..20_000).map(|n| ids.take(&name(&format!("s{n}")), &port(Balance::Random)).unwrap()).collect();
        assert_eq!(given.len(), 20_000);
        for id in given {
            ids.release(id);
        }
        assert!(ids.taken.is_empty());
    }
}
