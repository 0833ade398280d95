//! The plan: which entries the tables must have, given Services and their endpoints.
//!
//! The [`Planner`] keeps the desired ruleset as a whole, but thinks about one Service at a time: its entries depend on
//! itself and its slices alone. What several Services share (a class, an endpoint that hairpins) is counted, and is
//! there while anyone holds it. What only one can have (an address with a port) goes to the first that claims it, in the order of names.
//! So a change among ten thousand Services costs what that one Service costs.
//!
//! No socket, no clock, no file: objects in, a [`Change`] out.

mod draft;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use tracing::warn;

use self::draft::{Draft, fronts_of};
use crate::claims::Claims;
use crate::diff::Change;
use crate::endpoint::Slice;
use crate::entry::{Entry, Target};
use crate::few::{FewMap, FewSet};
use crate::flow::{Flows, UdpFront};
use crate::node::Node;
use crate::objects::Objects;
use crate::service::{Protocol, Service, ServiceName};
use crate::slots::{Slots, Widths};
use crate::tag::{Id, Ids, Subject};
use linux_net::ip::Family;

/// Turns Services and endpoints into the entries of the tables, and remembers what is desired.
#[derive(Debug)]
pub struct Planner {
    node: Node,
    ids: Ids,
    widths: Widths,
    /// In boxes, as a tree keeps room for twice as many values as it has.
    holdings: BTreeMap<ServiceName, Box<Holding>>,
    /// How many Services hold an entry that several can hold; never 0.
    shared: BTreeMap<Entry, u32>,
    entry_count: usize,
    /// Who wants a front; the first has it.
    claims: Claims<Front>,
    /// Services that got or lost a front because of another.
    affected: BTreeSet<ServiceName>,
    health_checks: BTreeMap<ServiceName, HealthCheck>,
    /// How many Services have endpoints, but none on this worker, where a policy wants one.
    without_local: BTreeMap<Side, usize>,
    /// Entries that came (`true`) or went since the last change was taken; `None` until the first is taken.
    touched: Option<BTreeMap<Entry, bool>>,
    /// Connections that the changes since then contradict.
    flows: Flows,
}

/// What one Service has.
#[derive(Debug, Default)]
struct Holding {
    ids: FewMap<Subject, Id>,
    /// What may be borrowed.
    widths: Vec<Slots>,
    /// Sorted, without duplicates.
    entries: Vec<Entry>,
    fronts: Box<[Front]>,
    without_local: BTreeSet<Side>,
    udp: FewMap<UdpFront, FewSet<Target>>,
}

/// For whom a traffic policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `internalTrafficPolicy`
    Internal,
    /// `externalTrafficPolicy`
    External,
}

/// What a load balancer asks a worker about a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port that it asks on.
    pub port: NonZeroU16,
    /// How many of the worker's own endpoints take connections.
    pub local_endpoints: usize,
}

/// Where clients send to: what only one Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Front {
    place: Place,
    protocol: Protocol,
    port: NonZeroU16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Address(IpAddr),
    /// The worker's own addresses.
    Worker(Family),
}

impl Planner {
    /// A planner for a worker, which knows no Service.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            node,
            ids: Ids::default(),
            widths: Widths::default(),
            holdings: BTreeMap::new(),
            shared: BTreeMap::new(),
            entry_count: 0,
            claims: Claims::default(),
            affected: BTreeSet::new(),
            health_checks: BTreeMap::new(),
            without_local: BTreeMap::new(),
            touched: None,
            flows: Flows::default(),
        }
    }

    /// This worker.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Takes in that this worker is in another zone; all Services must be planned anew then.
    pub fn set_zone(&mut self, zone: Option<String>) {
        self.node.zone = zone;
        self.affected.extend(self.holdings.keys().cloned());
    }

    /// Plans all Services anew that have changed, and those that got or lost something by that. Returns how many.
    pub fn update_changed(&mut self, objects: &mut Objects) -> usize {
        let mut count = 0;
        let mut names = objects.take_dirty();
        names.append(&mut self.take_affected());
        while !names.is_empty() {
            count += names.len();
            for name in &names {
                self.update(name, objects.service(name), objects.slices(name));
            }
            names = self.take_affected();
        }
        count
    }

    /// Plans one Service anew: after it, or one of its slices, has changed. `None` when there is no such Service any more.
    pub fn update<'a>(
        &mut self,
        name: &ServiceName,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a Slice>,
    ) {
        let mut former = self.holdings.remove(name).unwrap_or_default();
        let mut holding = Holding { fronts: service.map(fronts_of).unwrap_or_default(), ..Holding::default() };
        self.affected.extend(self.claims.change(name, &former.fronts, &holding.fronts));
        self.health_checks.remove(name);
        if let Some(service) = service {
            Draft { planner: self, name, service, former: &mut former, holding: &mut holding }
                .plan(&slices.collect::<Vec<_>>());
        }
        for (_, id) in former.ids {
            self.ids.release(id);
        }
        for slots in former.widths {
            self.widths.give_back(slots);
        }
        holding.entries.sort_unstable();
        holding.entries.dedup();
        holding.entries.shrink_to_fit();
        self.replace_entries(&former.entries, &holding.entries);
        for side in former.without_local {
            self.without_local.entry(side).and_modify(|count| *count -= 1);
        }
        for side in &holding.without_local {
            *self.without_local.entry(*side).or_default() += 1;
        }
        self.flows.changed(&former.udp, &holding.udp);
        self.flows.forget(&former.entries, &holding.entries);
        if service.is_some() {
            self.holdings.insert(name.clone(), Box::new(holding));
        }
    }

    /// Takes the names of Services that got or lost something because of another: they must be planned anew.
    fn take_affected(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.affected)
    }

    /// Takes what has to change in the kernel since this was called last; the first time it is nothing, since all of it is new.
    pub fn take_change(&mut self) -> Change {
        let mut change = Change::default();
        let touched = self.touched.replace(BTreeMap::new()).unwrap_or_default();
        for (entry, came) in touched {
            if came { change.added.push(entry) } else { change.removed.push(entry) }
        }
        change
    }

    /// Takes the connections that the changes since the last call contradict.
    pub fn take_flows(&mut self) -> Flows {
        std::mem::take(&mut self.flows)
    }

    /// All UDP fronts, each with its endpoints: what connections must agree with.
    pub fn udp_fronts(&self) -> impl Iterator<Item = (&UdpFront, &FewSet<Target>)> {
        self.holdings.values().flat_map(|holding| holding.udp.iter())
    }

    /// What load balancers ask about, by Service.
    pub fn health_checks(&self) -> impl Iterator<Item = (&ServiceName, HealthCheck)> {
        self.health_checks.iter().map(|(name, check)| (name, *check))
    }

    /// How many Services have endpoints, but none on this worker, where the policy of that side wants one.
    #[must_use]
    pub fn without_local(&self, side: Side) -> usize {
        self.without_local.get(&side).copied().unwrap_or_default()
    }

    /// All entries that the tables must have.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> + Clone {
        let own = self.holdings.values().flat_map(|holding| holding.entries.iter().filter(|entry| !entry.is_shared()));
        own.chain(self.shared.keys())
    }

    /// How many entries that is.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.entry_count
    }

    /// Says whether the Service has the front, rather than somebody before it in the order of names.
    fn has_front(&self, name: &ServiceName, place: Place, protocol: Protocol, port: NonZeroU16) -> bool {
        let holder = self.claims.holder(Front { place, protocol, port });
        let is_ours = holder == Some(name);
        if !is_ours {
            let holder = holder.map(ToString::to_string);
            warn!(service = %name, ?place, %protocol, port, holder, "another Service is served there; this one is not");
        }
        is_ours
    }

    /// Both lists are sorted.
    fn replace_entries(&mut self, former: &[Entry], wanted: &[Entry]) {
        for entry in wanted.iter().filter(|entry| former.binary_search(entry).is_err()) {
            if !entry.is_shared() || self.is_first_holder(*entry) {
                self.entry_count += 1;
                self.touch(*entry, true);
            }
        }
        for entry in former.iter().filter(|entry| wanted.binary_search(entry).is_err()) {
            if !entry.is_shared() || self.was_last_holder(*entry) {
                self.entry_count -= 1;
                self.touch(*entry, false);
            }
        }
    }

    /// Counts one more holder of a shared entry.
    fn is_first_holder(&mut self, entry: Entry) -> bool {
        let holders = self.shared.entry(entry).or_default();
        *holders += 1;
        *holders == 1
    }

    /// Counts one holder less.
    fn was_last_holder(&mut self, entry: Entry) -> bool {
        match self.shared.get_mut(&entry) {
            Some(holders) if *holders > 1 => {
                *holders -= 1;
                false
            }
            _ => self.shared.remove(&entry).is_some(),
        }
    }

    /// An entry came or went. One that does both is as it was.
    fn touch(&mut self, entry: Entry, came: bool) {
        if let Some(touched) = &mut self.touched
            && touched.remove(&entry).is_none()
        {
            touched.insert(entry, came);
        }
    }
}

#[cfg(test)]
mod tests;
