//! The tag: what the table says about a connection, in the 32 bits of its conntrack mark.
//!
//! ```text
//!  31  30  29  28 27           20 19 18                                 0
//! +---+---+---+---+---------------+--+-----------------------------------+
//! | e | m | l | s |     slots     | a|              number               |
//! +---+---+---+---+---------------+--+-----------------------------------+
//!                                 |<--------------- id ----------------->|
//! ```
//!
//! - *id* says whose connection it is. It stays in the mark for the life of the flow, so `conntrack -L` shows it; every
//!   other bit is cleared once it has done its work. Bit 19, *a*, is part of the id: set for the ids of VIPs that take
//!   all protocols.
//! - *slots* says over how many endpoints to spread: 1 to 254; 0 is "drop", 255 is "refuse".
//! - e (external), m (masquerade always), l (policy Local), s (sticky) are kept free for `NodePorts`, load balancers
//!   and session affinity, which the table does not have yet.
//!
//! *slots* and *a* together are the [`Class`]: what the one dispatch rule branches on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::service::ServiceName;

/// The bits of the tag that choose a chain.
pub const CLASS_MASK: u32 = 0x1ff8_0000;
/// The bits of the tag that stay in the mark of a connection: the id, and the sticky bit.
pub const KEEP_MASK: u32 = 0x100f_ffff;
/// The bit of an id that says "all protocols".
const ANY_BIT: u32 = 1 << 19;
/// How many ids there are of each kind.
const NUMBERS: u32 = 1 << 19;
/// Where *slots* begins.
const SLOTS_SHIFT: u32 = 20;
const REFUSE_SLOTS: u32 = 0xff;
/// The most endpoints that a port of a Service is spread over.
pub const MAX_SLOTS: u8 = 254;

/// What the proxy gives one id: a port of a Service, or a whole Service. Prints as `shop/web:http/tcp` or `shop/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A port, of the name and protocol that the string holds.
    Port(ServiceName, String),
    /// Whatever else is sent to the address of a Service for all protocols.
    Any(ServiceName),
}

/// An id: 20 bits. Prints as nftables prints a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

/// The chain that a connection takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// No candidate here, but elsewhere: silence.
    Drop,
    /// No endpoint at all: a reset, or an ICMP error.
    Refuse,
    /// Spread over so many endpoints; address and port are translated.
    Ports(u8),
    /// Spread over so many endpoints; the address is translated.
    Any(u8),
}

/// The whole tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(u32);

/// Hands out ids: the same name gets the same id on every worker and after every restart, as far as possible.
///
/// The id is a hash of the name, so no worker needs to remember or to agree; where two names of one cluster hash alike (one pair in
/// ten thousand Services is likely), the later one takes the next free number, which then may differ between workers. An id that was
/// handed out stays until its subject is gone.
#[derive(Debug, Default, Clone)]
pub struct Ids {
    by_subject: BTreeMap<Subject, Id>,
    taken: BTreeSet<Id>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(service, port) => write!(f, "{service}:{port}"),
            Self::Any(service) => service.fmt(f),
        }
    }
}

impl Id {
    /// The id as a mark.
    #[must_use]
    pub fn mark(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl Class {
    /// The class as the dispatch rule sees it: a tag of which all but [`CLASS_MASK`] is cleared.
    ///
    /// `is_any` is whether the id is one of a VIP for all protocols: classes without endpoints have both forms.
    fn bits(self, is_any: bool) -> u32 {
        let slots = match self {
            Self::Drop => 0,
            Self::Refuse => REFUSE_SLOTS,
            Self::Ports(slots) | Self::Any(slots) => u32::from(slots),
        };
        slots << SLOTS_SHIFT | if is_any { ANY_BIT } else { 0 }
    }

    /// The keys under which the class stands in the dispatch map.
    #[must_use]
    pub fn marks(self) -> Vec<u32> {
        match self {
            Self::Drop | Self::Refuse => vec![self.bits(false), self.bits(true)],
            Self::Ports(_) => vec![self.bits(false)],
            Self::Any(_) => vec![self.bits(true)],
        }
    }
}

impl Tag {
    /// The tag of connections that belong to `id` and take the chain of `class`.
    #[must_use]
    pub fn new(id: Id, class: Class) -> Self {
        Self(id.0 | class.bits(id.0 & ANY_BIT != 0))
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
    /// The id of `subject`; `None` when all half a million are taken.
    pub fn assign(&mut self, subject: &Subject) -> Option<Id> {
        if let Some(id) = self.by_subject.get(subject) {
            return Some(*id);
        }
        let kind = match subject {
            Subject::Port(..) => 0,
            Subject::Any(_) => ANY_BIT,
        };
        let first = hash(&subject.to_string());
        // Id 0 is left out: a mark of 0 means "nobody's".
        let candidates = (0..NUMBERS).map(|step| Id(((first + step) % NUMBERS) | kind)).filter(|id| id.0 != 0);
        let id = candidates.into_iter().find(|id| !self.taken.contains(id))?;
        self.taken.insert(id);
        self.by_subject.insert(subject.clone(), id);
        Some(id)
    }

    /// Gives back the ids of the subjects of `service` that are not in `kept`.
    pub fn release(&mut self, service: &ServiceName, kept: &BTreeSet<Subject>) {
        let first = Subject::Port(service.clone(), String::new());
        let of_ports = self.by_subject.range(first..).map(|(subject, _)| subject);
        let of_ports = of_ports.take_while(|subject| matches!(subject, Subject::Port(name, _) if name == service));
        let any = Subject::Any(service.clone());
        let gone: Vec<Subject> = of_ports.chain([&any]).filter(|subject| !kept.contains(*subject)).cloned().collect();
        for subject in gone {
            if let Some(id) = self.by_subject.remove(&subject) {
                self.taken.remove(&id);
            }
        }
    }
}

/// FNV-1a, folded into the range of numbers. Any hash would do that never changes between releases.
fn hash(text: &str) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    (hash >> 19 ^ hash) % NUMBERS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> Subject {
        Subject::Port(ServiceName::new("shop", name), "http/tcp".to_owned())
    }

    #[test]
    fn the_parts_of_a_tag_do_not_overlap() {
        let mut ids = Ids::default();
        let (web, vip) =
            (ids.assign(&port("web")).unwrap(), ids.assign(&Subject::Any(ServiceName::new("shop", "web"))).unwrap());
        for (id, class) in [(web, Class::Ports(254)), (vip, Class::Any(3)), (web, Class::Refuse), (vip, Class::Drop)] {
            let mark = Tag::new(id, class).mark();
            assert_eq!(mark & KEEP_MASK, id.mark());
            assert!(class.marks().contains(&(mark & CLASS_MASK)), "{class:?}");
        }
        assert_eq!(web.mark() & ANY_BIT, 0);
        assert_eq!(vip.mark() & ANY_BIT, ANY_BIT);
    }

    #[test]
    fn the_same_name_gets_the_same_id_whatever_came_before() {
        let (mut one, mut two) = (Ids::default(), Ids::default());
        one.assign(&port("first"));
        assert_eq!(one.assign(&port("web")), two.assign(&port("web")));
        assert_eq!(one.assign(&port("web")), one.assign(&port("web")));
    }

    #[test]
    fn ids_are_unique_and_come_back_when_released() {
        let mut ids = Ids::default();
        let subjects: Vec<Subject> = (0..20_000).map(|n| port(&format!("s{n}"))).collect();
        let given: BTreeSet<Id> = subjects.iter().map(|subject| ids.assign(subject).unwrap()).collect();
        assert_eq!(given.len(), subjects.len());
        for n in 0..20_000 {
            ids.release(&ServiceName::new("shop", format!("s{n}")), &BTreeSet::new());
        }
        assert!(ids.by_subject.is_empty() && ids.taken.is_empty());
    }
}
