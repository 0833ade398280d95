//! The work on one Service: from its ports and endpoints to entries.
//!
//! Each port is seen in several ways: from inside and from outside of the cluster, with all endpoints or with those of this worker, by everybody
//! or by clients of some ranges only. Each such [`View`] that is needed has an id, slots with its endpoints, and a tag that leads
//! there; each address and port that clients send to has the tag of its view.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::warn;

use super::{Front, HealthCheck, Holding, Place, Planner, Side};
use crate::endpoint::{Candidates, Choice, Slice, candidates_for_any, candidates_for_port};
use crate::entry::{Entry, Target};
use crate::flow::UdpFront;
use crate::service::{Protocol, Reach, Service, ServiceName, ServicePort, TrafficPolicy};
use crate::slots::{self, Slots};
use crate::tag::{Class, EXTERNAL_BIT, Id, LOCAL_BIT, MASQUERADE_BIT, Part, Spread, Subject, Tag, View};
use linux_net::ip::Family;

/// The work on one Service.
pub(super) struct Draft<'p> {
    pub(super) planner: &'p mut Planner,
    pub(super) name: &'p ServiceName,
    pub(super) service: &'p Service,
    pub(super) former: &'p mut Holding,
    pub(super) holding: &'p mut Holding,
}

impl Draft<'_> {
    /// Fills the holding with what the Service has, given its slices.
    pub(super) fn plan(&mut self, slices: &[&Slice]) {
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
        let wanted = slots::fill(targets);
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
pub(super) fn fronts_of(service: &Service) -> Box<[Front]> {
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
