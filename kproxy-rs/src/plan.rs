//! The plan: which entries the table must have, given Services and their endpoints.
//!
//! The [`Planner`] keeps the desired ruleset as a whole, but thinks about one Service at a time: its entries depend on
//! itself and its slices alone. What several Services share (a class, an endpoint that hairpins) is counted, and is
//! there while anyone holds it. So a change among ten thousand Services costs what that one Service costs.
//!
//! No socket, no clock, no file: objects in, a [`Change`] out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use tracing::warn;

use crate::diff::Change;
use crate::endpoint::{Choice, Slice, choose_for_any, choose_for_port};
use crate::entry::Entry;
use crate::service::{Reach, Service, ServiceName};
use crate::tag::{Class, Id, Ids, MAX_SLOTS, Subject, Tag};

/// Turns Services and endpoints into the entries of the table, and remembers what is desired.
#[derive(Debug)]
pub struct Planner {
    /// The name of this worker.
    node: String,
    ids: Ids,
    /// What each Service holds.
    holdings: BTreeMap<ServiceName, BTreeSet<Entry>>,
    /// How many Services hold an entry; never 0.
    holders: BTreeMap<Entry, u32>,
    /// Entries whose number of holders has changed since the last change was taken, and whether they were there then.
    touched: BTreeMap<Entry, bool>,
}

impl Planner {
    /// A planner for the worker called `node`, which knows no Service.
    #[must_use]
    pub fn new(node: impl Into<String>) -> Self {
        let mut planner = Self {
            node: node.into(),
            ids: Ids::default(),
            holdings: BTreeMap::new(),
            holders: BTreeMap::new(),
            touched: BTreeMap::new(),
        };
        // These two are part of the fixed table: they take no chain that could be missing.
        planner.hold(Entry::Class(Class::Drop));
        planner.hold(Entry::Class(Class::Refuse));
        planner
    }

    /// Plans one Service anew: after it, or one of its slices, has changed. `None` when there is no such Service any more.
    pub fn update<'a>(
        &mut self,
        name: &ServiceName,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a Slice> + Clone,
    ) {
        let mut subjects = BTreeSet::new();
        let wanted = service.map(|service| self.entries_of(name, service, slices, &mut subjects)).unwrap_or_default();
        self.ids.release(name, &subjects);
        let held = self.holdings.remove(name).unwrap_or_default();
        for entry in wanted.difference(&held) {
            self.hold(*entry);
        }
        for entry in held.difference(&wanted) {
            self.let_go(*entry);
        }
        if !wanted.is_empty() {
            self.holdings.insert(name.clone(), wanted);
        }
    }

    /// Takes what has to change in the kernel since this was called last.
    pub fn take_change(&mut self) -> Change {
        let mut change = Change::default();
        for (entry, was_there) in std::mem::take(&mut self.touched) {
            match (was_there, self.holders.contains_key(&entry)) {
                (true, false) => change.removed.push(entry),
                (false, true) => change.added.push(entry),
                (true, true) | (false, false) => {}
            }
        }
        change
    }

    /// All entries that the table must have.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.holders.keys()
    }

    /// How many entries that is.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.holders.len()
    }

    /// What one Service needs in the table.
    fn entries_of<'a>(
        &mut self,
        name: &ServiceName,
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        subjects: &mut BTreeSet<Subject>,
    ) -> BTreeSet<Entry> {
        let mut entries = BTreeSet::from([Entry::Vip(service.cluster_ip)]);
        let local = self.local_endpoints(slices.clone());
        for port in &service.ports {
            let choice = choose_for_port(slices.clone(), port, service.internal_policy, &self.node);
            if choice == Choice::Refuse && service.reach == Reach::AllProtocols {
                continue; // The slices know nothing of this port, so it is one of "all".
            }
            let subject = Subject::Port(name.clone(), format!("{}/{}", port.name, port.protocol));
            let Some(id) = self.assign(&subject, subjects) else { continue };
            let (targets, class) = spread(&subject, choice, Class::Ports);
            let tag = Tag::new(id, class);
            entries.insert(Entry::Front { address: service.cluster_ip, protocol: port.protocol, port: port.port, tag });
            entries.insert(Entry::Class(class));
            for (slot, target) in (0..).zip(targets) {
                entries.insert(Entry::Endpoint { id, protocol: port.protocol, slot, target });
                entries.extend(local.get(target.ip()).map(|address| Entry::Hairpin(*address)));
            }
        }
        if service.reach == Reach::AllProtocols {
            let subject = Subject::Any(name.clone());
            let Some(id) = self.assign(&subject, subjects) else { return entries };
            let choice = choose_for_any(slices, service.internal_policy, &self.node);
            let (targets, class) = spread(&subject, choice, Class::Any);
            entries.insert(Entry::Any { address: service.cluster_ip, tag: Tag::new(id, class) });
            entries.insert(Entry::Class(class));
            for (slot, target) in (0..).zip(targets) {
                entries.insert(Entry::AnyEndpoint { id, slot, target });
                entries.extend(local.get(&target).map(|address| Entry::Hairpin(*address)));
            }
        }
        entries
    }

    fn assign(&mut self, subject: &Subject, subjects: &mut BTreeSet<Subject>) -> Option<Id> {
        let id = self.ids.assign(subject);
        match id {
            Some(_) => _ = subjects.insert(subject.clone()),
            None => warn!(%subject, "all ids are taken; it is refused"),
        }
        id
    }

    /// The endpoints that may run on this worker: only a pod whose packets begin here can be sent to itself here.
    fn local_endpoints<'a>(&self, slices: impl Iterator<Item = &'a Slice>) -> BTreeSet<Ipv4Addr> {
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        // One that does not say where it runs may run here.
        endpoints
            .filter(|endpoint| endpoint.node.as_ref().is_none_or(|node| *node == self.node))
            .map(|e| e.address)
            .collect()
    }

    fn hold(&mut self, entry: Entry) {
        let holders = self.holders.entry(entry).or_insert(0);
        self.touched.entry(entry).or_insert(*holders > 0);
        *holders += 1;
    }

    fn let_go(&mut self, entry: Entry) {
        self.touched.entry(entry).or_insert(true);
        if let Some(holders) = self.holders.get_mut(&entry) {
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&entry);
            }
        }
    }
}

/// The endpoints in their slots, and the class that goes with them.
fn spread<T: Copy>(subject: &Subject, choice: Choice<T>, class: impl Fn(u8) -> Class) -> (Vec<T>, Class) {
    let targets: Vec<T> = match choice {
        Choice::Refuse => return (Vec::new(), Class::Refuse),
        Choice::Drop => return (Vec::new(), Class::Drop),
        Choice::Spread(targets) => targets.into_iter().collect(),
    };
    match u8::try_from(targets.len()).ok().filter(|slots| *slots <= MAX_SLOTS) {
        Some(slots) => (targets, class(slots)),
        None => {
            warn!(%subject, endpoints = targets.len(), used = MAX_SLOTS, "more endpoints than a tag can count; the last ones get no connections");
            (targets[..usize::from(MAX_SLOTS)].to_vec(), class(MAX_SLOTS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Condition, Endpoint, SlicePort};
    use crate::service::{Protocol, ServicePort, TrafficPolicy};
    use proptest::prelude::*;
    use std::num::NonZeroU16;

    fn name(n: u8) -> ServiceName {
        ServiceName::new("shop", format!("s{n}"))
    }

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).unwrap()
    }

    fn service(n: u8, reach: Reach) -> Service {
        Service {
            cluster_ip: Ipv4Addr::new(100, 64, 0, n),
            ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: port(80) }],
            reach,
            internal_policy: TrafficPolicy::Cluster,
        }
    }

    fn slice(n: u8, endpoints: &[u8]) -> Slice {
        let endpoint =
            |last: &u8| Endpoint { address: Ipv4Addr::new(11, 0, 0, *last), condition: Condition::Ready, node: None };
        Slice {
            service: name(n),
            endpoints: endpoints.iter().map(endpoint).collect(),
            ports: vec![SlicePort { name: String::new(), protocol: Protocol::Tcp, port: port(8080) }],
        }
    }

    /// What the kernel has after a change.
    fn apply(kernel: &mut BTreeSet<Entry>, change: &Change) {
        for entry in &change.removed {
            assert!(kernel.remove(entry), "{entry:?} was deleted and was not there");
        }
        for entry in &change.added {
            assert!(kernel.insert(*entry), "{entry:?} was added and was there");
        }
    }

    fn from_scratch(state: &BTreeMap<u8, (Reach, Vec<u8>)>) -> BTreeSet<Entry> {
        let mut planner = Planner::new("w1");
        for (n, (reach, endpoints)) in state {
            planner.update(&name(*n), Some(&service(*n, *reach)), [slice(*n, endpoints)].iter());
        }
        planner.entries().copied().collect()
    }

    #[test]
    fn what_services_share_stays_while_one_needs_it() {
        let mut planner = Planner::new("w1");
        for n in [1, 2] {
            planner.update(&name(n), Some(&service(n, Reach::ListedPorts)), [slice(n, &[7])].iter());
        }
        planner.take_change();
        planner.update(&name(1), None, [].iter());
        let shared = [Entry::Class(Class::Ports(1)), Entry::Hairpin(Ipv4Addr::new(11, 0, 0, 7))];
        let removed = planner.take_change().removed;
        assert!(shared.iter().all(|entry| !removed.contains(entry)), "{removed:?}");
        planner.update(&name(2), None, [].iter());
        let removed = planner.take_change().removed;
        assert!(shared.iter().all(|entry| removed.contains(entry)), "{removed:?}");
    }

    #[test]
    fn a_change_that_is_taken_back_changes_nothing() {
        let mut planner = Planner::new("w1");
        let web = service(1, Reach::ListedPorts);
        planner.update(&name(1), Some(&web), [slice(1, &[7])].iter());
        planner.take_change();
        planner.update(&name(1), Some(&web), [slice(1, &[7, 8])].iter());
        planner.update(&name(1), Some(&web), [slice(1, &[7])].iter());
        assert!(planner.take_change().is_empty());
    }

    #[test]
    fn a_listed_port_without_endpoints_is_one_of_all() {
        let mut planner = Planner::new("w1");
        let mut portless = slice(1, &[7]);
        portless.ports.clear();
        planner.update(&name(1), Some(&service(1, Reach::AllProtocols)), [portless].iter());
        assert!(planner.entries().all(|entry| !matches!(entry, Entry::Front { .. })));
        assert!(planner.entries().any(|entry| matches!(entry, Entry::Any { .. })));
    }

    #[test]
    fn endpoints_of_other_workers_never_hairpin() {
        let mut planner = Planner::new("w1");
        let mut spread = slice(1, &[7, 8, 9]);
        spread.endpoints[0].node = Some("w1".to_owned());
        spread.endpoints[1].node = Some("w2".to_owned());
        planner.update(&name(1), Some(&service(1, Reach::ListedPorts)), [spread].iter());
        let hairpins = planner
            .entries()
            .filter_map(|entry| if let Entry::Hairpin(address) = entry { Some(address.octets()[3]) } else { None });
        assert_eq!(hairpins.collect::<Vec<_>>(), [7, 9]);
    }

    #[test]
    fn endpoints_beyond_what_a_tag_can_count_are_left_out() {
        let mut planner = Planner::new("w1");
        let many: Vec<u8> = (0..=255).collect();
        planner.update(&name(1), Some(&service(1, Reach::ListedPorts)), [slice(1, &many)].iter());
        assert_eq!(planner.entries().filter(|entry| matches!(entry, Entry::Endpoint { .. })).count(), 254);
    }

    proptest! {
        /// Step by step or from scratch, the table is the same; and no step deletes what is not there or adds what is.
        #[test]
        fn many_small_changes_end_where_one_plan_begins(
            steps in prop::collection::vec((0u8..6, prop::option::of((any::<bool>(), prop::collection::vec(1u8..9, 0..5)))), 1..40),
            taken_every in 1usize..4,
        ) {
            let mut planner = Planner::new("w1");
            let (mut kernel, mut state) = (BTreeSet::new(), BTreeMap::new());
            for (step, (n, wanted)) in steps.into_iter().enumerate() {
                match wanted {
                    Some((all, endpoints)) => {
                        let reach = if all { Reach::AllProtocols } else { Reach::ListedPorts };
                        planner.update(&name(n), Some(&service(n, reach)), [slice(n, &endpoints)].iter());
                        state.insert(n, (reach, endpoints));
                    }
                    None => {
                        planner.update(&name(n), None, [].iter());
                        state.remove(&n);
                    }
                }
                if step % taken_every == 0 {
                    apply(&mut kernel, &planner.take_change());
                }
            }
            apply(&mut kernel, &planner.take_change());
            prop_assert_eq!(&kernel, &from_scratch(&state));
            let change = Change::between(&kernel, &BTreeSet::new());
            prop_assert_eq!(change.removed.len(), kernel.len());
        }
    }
}
