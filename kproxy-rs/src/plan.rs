//! The plan: which entries the tables must have, given Services and their endpoints.
//!
//! The [`Planner`] keeps the desired ruleset as a whole, but thinks about one Service at a time: its entries depend on
//! itself and its slices alone. What several Services share (a class, an endpoint that hairpins) is counted, and is
//! there while anyone holds it. What only one can have (an address with a port) goes to the first that claims it, in the order of names.
//! So a change among ten thousand Services costs what that one Service costs.
//!
//! No socket, no clock, no file: objects in, a [`Change`] out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use tracing::warn;

use crate::claims::Claims;
use crate::diff::Change;
use crate::endpoint::{Candidates, Choice, Slice, candidates_for_any, candidates_for_port};
use crate::entry::{Entry, Target};
use crate::few::{FewMap, FewSet};
use crate::flow::{Flows, UdpFront};
use crate::node::Node;
use crate::objects::Objects;
use crate::service::{Protocol, Reach, Service, ServiceName, ServicePort, TrafficPolicy};
use crate::slots::{MAX_NARROW, Slots, Widths};
use crate::tag::{Class, EXTERNAL_BIT, Id, Ids, LOCAL_BIT, MASQUERADE_BIT, Part, Spread, Subject, Tag, View};
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

/// The work on one Service.
struct Draft<'p> {
    planner: &'p mut Planner,
    name: &'p ServiceName,
    service: &'p Service,
    former: &'p mut Holding,
    holding: &'p mut Holding,
}

impl Draft<'_> {
    fn plan(&mut self, slices: &[&Slice]) {
        let service = self.service;
        for family in service.families() {
            let slices = slices.iter().copied().filter(move |slice| slice.family == family);
            let local = self.local_endpoints(slices.clone());
            for port in &service.ports {
                let candidates = candidates_for_port(slices.clone(), port, &self.planner.node);
                self.plan_port(family, port, &candidates, &local);
            }
            for address in of_family(&service.cluster_ips, family) {
                self.holding.entries.push(Entry::Vip(address));
            }
            if service.reach == Reach::AllProtocols {
                self.plan_all_protocols(family, &candidates_for_any(slices, &self.planner.node), &local);
            }
        }
    }

    fn plan_port(
        &mut self,
        family: Family,
        port: &ServicePort,
        candidates: &Candidates<'_, Target>,
        local: &BTreeSet<IpAddr>,
    ) {
        let service = self.service;
        let choose = |policy, planner: &Planner| candidates.choose(policy, &planner.node, &service.weights);
        let internal = choose(service.internal_policy, self.planner);
        if internal == Choice::Refuse && service.reach == Reach::AllProtocols {
            return; // The slices know nothing of this port, so it is one of "all".
        }
        self.holding.without_local.extend((internal == Choice::Drop).then_some(Side::Internal));
        let view = |policy, is_ranged| match (policy, is_ranged) {
            (TrafficPolicy::Cluster, false) => View::Cluster,
            (TrafficPolicy::Local, false) => View::Local,
            (TrafficPolicy::Cluster, true) => View::RangedCluster,
            (TrafficPolicy::Local, true) => View::RangedLocal,
        };
        if let Some(tag) = self.spread(family, port, view(service.internal_policy, false), &internal, local) {
            for address in of_family(&service.cluster_ips, family) {
                self.front(Place::Address(address), port, tag, &internal);
            }
        }
        let external_ips: Vec<IpAddr> = of_family(&service.external_ips, family).collect();
        let balancers: Vec<IpAddr> = of_family(&service.load_balancer_ips, family).collect();
        if external_ips.is_empty() && balancers.is_empty() && port.node_port.is_none() {
            return;
        }
        // Ranges of one family say nothing about clients of the other.
        let ranges = service.source_ranges.iter().copied().filter(|network| Family::of(network.addr()) == family);
        let ranges: Vec<IpNet> = ranges.collect();
        let policy = service.external_policy;
        let external = choose(policy, self.planner);
        self.holding.without_local.extend((external == Choice::Drop).then_some(Side::External));
        if let Some(tag) = self.spread(family, port, view(policy, false), &external, local) {
            let tag = self.external(family, port, tag, candidates, local);
            for address in external_ips {
                self.front(Place::Address(address), port, tag, &external);
            }
            if let Some(node_port) = port.node_port {
                let port = ServicePort { port: node_port, ..port.clone() };
                self.front(Place::Worker(family), &port, tag, &external);
            }
            if ranges.is_empty() {
                for address in &balancers {
                    self.front(Place::Address(*address), port, tag, &external);
                }
            }
        }
        if ranges.is_empty() || balancers.is_empty() {
            return;
        }
        // An id of its own, because the ranges hold for these addresses only.
        if let Some(tag) = self.spread(family, port, view(policy, true), &external, local) {
            let tag = self.external(family, port, tag, candidates, local);
            for address in balancers {
                self.front(Place::Address(address), port, tag, &external);
            }
            let entries = &mut self.holding.entries;
            entries.push(Entry::Ranged { family, tag });
            entries.extend(ranges.into_iter().map(|network| Entry::Range { tag, network }));
        }
    }

    /// Completes the tag of addresses for the outside.
    fn external(
        &mut self,
        family: Family,
        port: &ServicePort,
        tag: Tag,
        candidates: &Candidates<'_, Target>,
        local: &BTreeSet<IpAddr>,
    ) -> Tag {
        match self.service.external_policy {
            // Whoever comes: the answer must come back through this worker.
            TrafficPolicy::Cluster => tag.with(EXTERNAL_BIT | MASQUERADE_BIT),
            // The client's address is kept, and only endpoints here can answer it. Pods and the worker itself are served as inside.
            TrafficPolicy::Local => {
                let tag = tag.with(EXTERNAL_BIT | LOCAL_BIT);
                let all = candidates.choose(TrafficPolicy::Cluster, &self.planner.node, &self.service.weights);
                if let Some(cluster) = self.spread(family, port, View::Cluster, &all, local) {
                    let cluster = cluster.with(EXTERNAL_BIT);
                    self.holding.entries.push(Entry::AnyView { family, local: tag, cluster });
                }
                if let Some(port) = self.service.health_check_node_port {
                    let check = HealthCheck { port, local_endpoints: candidates.local_count() };
                    self.planner.health_checks.insert(self.name.clone(), check);
                }
                tag
            }
        }
    }

    fn plan_all_protocols(&mut self, family: Family, candidates: &Candidates<'_, IpAddr>, local: &BTreeSet<IpAddr>) {
        let service = self.service;
        let subject = Subject { family, balance: service.balance, part: Part::Any };
        let Some(id) = self.id(subject) else { return };
        let choice = candidates.choose(service.internal_policy, &self.planner.node, &service.weights);
        let (class, slots) = self.class(&choice, |slots| Spread {
            slots,
            balance: service.balance,
            is_sticky: false,
            keeps_ports: true,
        });
        let entries = &mut self.holding.entries;
        for address in of_family(&service.cluster_ips, family) {
            entries.push(Entry::Any { address, tag: Tag::new(id, class) });
        }
        for (slot, address) in (0..).zip(slots) {
            entries.push(Entry::AnyEndpoint { id, slot, address });
            entries.extend(local.contains(&address).then_some(Entry::Hairpin(address)));
        }
        if let Class::Spread(spread) = class {
            entries.push(Entry::Class { family, spread });
        }
    }

    /// Puts the endpoints of one view of a port into slots, and returns the tag that leads there. A view that was spread before is not
    /// spread again.
    fn spread(
        &mut self,
        family: Family,
        port: &ServicePort,
        view: View,
        choice: &Choice<Target>,
        local: &BTreeSet<IpAddr>,
    ) -> Option<Tag> {
        let service = self.service;
        let subject = Subject {
            family,
            balance: service.balance,
            part: Part::Port { name: port.name.clone(), protocol: port.protocol, view },
        };
        let is_new = !self.holding.ids.contains_key(&subject);
        let id = self.id(subject)?;
        let is_sticky = service.affinity.is_some();
        let (class, slots) =
            self.class(choice, |slots| Spread { slots, balance: service.balance, is_sticky, keeps_ports: false });
        let tag = Tag::new(id, class);
        if !is_new {
            return Some(tag);
        }
        let entries = &mut self.holding.entries;
        for (slot, target) in (0..).zip(slots) {
            entries.push(Entry::Endpoint { id, is_sticky, protocol: port.protocol, slot, target });
            entries.extend(local.contains(&target.address).then_some(Entry::Hairpin(target.address)));
        }
        if let Class::Spread(spread) = class {
            entries.push(Entry::Class { family, spread });
            if let Some(affinity) = service.affinity {
                let seconds = u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX);
                entries.extend([Entry::Sticky { family, id, seconds }, Entry::Learn { family, seconds }]);
            }
        }
        Some(tag)
    }

    /// The class of connections that are spread so, and the endpoints in their slots.
    fn class<T: Copy>(&mut self, choice: &Choice<T>, spread_over: impl FnOnce(Slots) -> Spread) -> (Class, Vec<T>) {
        let targets = match choice {
            Choice::Refuse => return (Class::Refuse, Vec::new()),
            Choice::Drop => return (Class::Drop, Vec::new()),
            Choice::Spread(targets) => targets,
        };
        let wanted = slots(targets);
        let borrowed = || self.planner.widths.borrow(u16::try_from(wanted.len()).unwrap_or(u16::MAX));
        let narrow = Slots::narrow(wanted.len());
        let count = narrow.or_else(borrowed).unwrap_or(Slots::WIDEST_NARROW);
        self.holding.widths.extend(narrow.is_none().then_some(count));
        let used = usize::from(count.count());
        if used < wanted.len() {
            let endpoints = wanted.len();
            warn!(service = %self.name, endpoints, used, "too many different numbers of endpoints in the cluster; the last ones of this Service get no connections");
        }
        // The number may be a larger one that another Service has: then the first endpoints have more slots.
        (Class::Spread(spread_over(count)), wanted.iter().copied().cycle().take(used).collect())
    }

    /// Makes a place where clients send to lead to a tag, if it is ours.
    fn front(&mut self, place: Place, port: &ServicePort, tag: Tag, choice: &Choice<Target>) {
        let (protocol, port) = (port.protocol, port.port);
        if !self.planner.has_front(self.name, place, protocol, port) {
            return;
        }
        self.holding.entries.push(match place {
            Place::Address(address) => Entry::Front { address, protocol, port, tag },
            Place::Worker(family) => Entry::NodePort { family, protocol, port, tag },
        });
        if protocol == Protocol::Udp {
            let address = match place {
                Place::Address(address) => Some(address),
                Place::Worker(_) => None,
            };
            let targets: &[_] = match choice {
                Choice::Spread(targets) => targets,
                Choice::Refuse | Choice::Drop => &[],
            };
            let known = self.holding.udp.get_or_default(UdpFront { address, port });
            known.extend(targets.iter().map(|(target, _)| *target));
        }
    }

    /// The id of a part of the Service: the one that it had, or a new one.
    fn id(&mut self, subject: Subject) -> Option<Id> {
        if let Some(id) = self.holding.ids.get(&subject) {
            return Some(*id);
        }
        let former = self.former.ids.remove(&subject);
        let Some(id) = former.or_else(|| self.planner.ids.take(self.name, &subject)) else {
            warn!(service = %self.name, %subject, "all ids are taken; it is not served");
            return None;
        };
        self.holding.ids.insert(subject, id);
        Some(id)
    }

    /// The endpoints that may run on this worker: only a pod whose packets begin here can be sent to itself here.
    fn local_endpoints<'a>(&self, slices: impl Iterator<Item = &'a Slice>) -> BTreeSet<IpAddr> {
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        // One that does not say where it runs may run here.
        let may_be_here =
            endpoints.filter(|endpoint| endpoint.node.as_deref().is_none_or(|node| node == self.planner.node.name));
        may_be_here.map(|endpoint| endpoint.address).collect()
    }
}

/// Where clients of a Service send to.
fn fronts_of(service: &Service) -> Box<[Front]> {
    let all = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
    let mut fronts = Vec::new();
    for port in &service.ports {
        let front = |place, port_number| Front { place, protocol: port.protocol, port: port_number };
        fronts.extend(all.iter().copied().flatten().map(|address| front(Place::Address(*address), port.port)));
        let families = service.families();
        fronts.extend(families.filter_map(|family| Some(front(Place::Worker(family), port.node_port?))));
    }
    fronts.sort_unstable();
    fronts.dedup();
    fronts.into()
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

/// The endpoints in their slots: each as often as its weight says, in the smallest numbers that do.
fn slots<T: Copy>(targets: &[(T, u8)]) -> Vec<T> {
    let divisor = targets.iter().map(|(_, weight)| *weight).fold(0, gcd).max(1);
    let wanted: usize = targets.iter().map(|(_, weight)| usize::from(weight / divisor)).sum();
    // Weights lose precision before they take more slots than a tag can say, but every endpoint has one.
    let scale = wanted.div_ceil(usize::from(MAX_NARROW)).max(1);
    let times = |weight: u8| match usize::from(weight / divisor) {
        0 => 0,
        times => (times / scale).max(1),
    };
    targets.iter().flat_map(|(target, weight)| std::iter::repeat_n(*target, times(*weight))).collect()
}

fn gcd(one: u8, other: u8) -> u8 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests;
