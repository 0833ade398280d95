//! Connections that outlive what they were decided by.
//!
//! The table is asked for the first packet of a connection only; where the rest goes stands in conntrack, and in the map of sticky clients.
//! For TCP that is as it should be. A UDP client that keeps sending from one port, as a resolver does, would keep an endpoint that has gone
//! for as long as it sends; and one that began before its Service had endpoints would keep none. So these are deleted:
//!
//! | connection | when |
//! |---|---|
//! | translated to an endpoint | the endpoint has gone from the front that it was sent to |
//! | not translated at all | the front is new, or had no endpoints |
//! | remembered client | its endpoint has gone from the Service |
//!
//! Source: Kubernetes `pkg/proxy/conntrack/cleanup.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use linux_net::conntrack::{self, Filter};

use crate::entry::{Entry, Target};
use crate::few::{FewMap, FewSet};
use crate::service::Protocol;
use crate::tag::Id;

const UDP: u8 = Protocol::Udp.number();

/// Where UDP clients send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UdpFront {
    /// The address; `None` for the worker's own.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: NonZeroU16,
}

/// A client's memory of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// Of which Service port.
    pub id: Id,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The endpoint.
    pub target: Target,
}

/// Connections that changes contradict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// Those in conntrack.
    pub contradicted: BTreeSet<Filter>,
    /// Those of sticky clients.
    pub forgotten: BTreeSet<Memory>,
}

impl UdpFront {
    /// Connections to this front that were translated to `target`.
    fn translated(self, target: Target) -> Filter {
        Filter { reply_source: Some(target.address), reply_port: Some(target.port.get()), ..self.any() }
    }

    /// Connections to this front that were not translated: they are answered from where they were sent to.
    fn untranslated(self) -> Filter {
        Filter { reply_source: self.address, reply_port: Some(self.port.get()), ..self.any() }
    }

    fn any(self) -> Filter {
        Filter {
            protocol: Some(UDP),
            original_destination: self.address,
            original_port: Some(self.port.get()),
            ..Filter::default()
        }
    }
}

impl Flows {
    /// Says whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contradicted.is_empty() && self.forgotten.is_empty()
    }

    /// Takes in how the UDP fronts of a Service have changed.
    pub(crate) fn changed(
        &mut self,
        former: &FewMap<UdpFront, FewSet<Target>>,
        wanted: &FewMap<UdpFront, FewSet<Target>>,
    ) {
        for (front, targets) in former.iter() {
            let kept = wanted.get(front);
            let gone = targets.iter().filter(|target| kept.is_none_or(|kept| !kept.contains(target)));
            self.contradicted.extend(gone.map(|target| front.translated(*target)));
        }
        for (front, targets) in wanted.iter() {
            let had_none = former.get(front).is_none_or(FewSet::is_empty);
            self.contradicted.extend((had_none && !targets.is_empty()).then(|| front.untranslated()));
        }
    }

    /// Takes in which endpoints of sticky ports have gone.
    pub(crate) fn forget(&mut self, former: &[Entry], wanted: &[Entry]) {
        let sticky = |entries: &[Entry]| {
            entries
                .iter()
                .filter_map(|entry| if let Entry::Sticky { id, .. } = entry { Some(*id) } else { None })
                .collect()
        };
        let ids: BTreeSet<Id> = sticky(former);
        if ids.is_empty() {
            return;
        }
        let memories = |entries: &[Entry]| -> BTreeSet<Memory> {
            let memories = entries.iter().filter_map(|entry| match *entry {
                Entry::Endpoint { id, protocol, target, .. } => Some(Memory { id, protocol, target }),
                _ => None,
            });
            memories.collect()
        };
        let (before, after) = (memories(former), memories(wanted));
        self.forgotten.extend(before.difference(&after).filter(|memory| ids.contains(&memory.id)));
    }
}

/// Finds the connections that contradict the fronts as they are: what changed while nobody watched.
///
/// Of one that was sent to a port that the worker itself has, and was not translated, nobody can say whose address it was sent to: perhaps
/// another machine's, so it stays.
pub fn contradictions<'a>(
    fronts: impl Iterator<Item = (&'a UdpFront, &'a FewSet<Target>)>,
    entries: &[conntrack::Entry],
) -> BTreeSet<Filter> {
    let fronts: BTreeMap<UdpFront, &FewSet<Target>> = fronts.map(|(front, targets)| (*front, targets)).collect();
    let contradicted = entries.iter().filter(|entry| entry.protocol == UDP).filter_map(|entry| {
        let port = NonZeroU16::new(entry.original.destination_port)?;
        let target = Target { address: entry.reply.source, port: NonZeroU16::new(entry.reply.source_port)? };
        let at = |address| fronts.get_key_value(&UdpFront { address, port });
        let is_translated = target != Target { address: entry.original.destination, port };
        let (front, targets) = at(Some(entry.original.destination)).or_else(|| at(None).filter(|_| is_translated))?;
        (!targets.contains(&target)).then(|| front.translated(target))
    });
    contradicted.collect()
}
