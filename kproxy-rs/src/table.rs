//! The table `kproxy` of a family: its chains with their rules (`rules`), its maps and sets (`sets`), and how an entry is written as an
//! element of one of them.
//!
//! This is the layout that the essay at the top of the crate walks through. Whatever the number of Services, the chains are the
//! same few, plus one per [`Spread`], since `numgen … mod N` wants its N as a literal, and one per time for which clients are remembered.

mod rules;
mod sets;

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net};
use linux_net::nft::{
    self, Chain, ChainKind, Element, Field, Hook, HookPoint, Op, Priority, Rule, Set, Statement, Table, Type, Value,
    Verdict,
};

use self::sets::{Sets, capacity};
use crate::config::LocalClients;
use crate::entry::Entry;
use crate::service::Balance;
use crate::tag::{Class, Spread};
use linux_net::ip::Family;

/// The name of our tables, in the families `ip` and `ip6`.
pub const TABLE_NAME: &str = "kproxy";
/// Behind translation of the destination and before that of the source: there a packet shows both the client and the endpoint.
const BEFORE_SRCNAT: Priority = Priority(90);

/// Everything that the table of a family needs to know beside the Services.
#[derive(Debug, Clone)]
pub struct Layout {
    family: Family,
    table: Table,
    /// The one bit of the packet mark that means "masquerade on the way out".
    masquerade_mark: u32,
    /// Who counts as a pod of this worker or of the cluster.
    local: LocalClients,
    /// The worker's addresses that have node ports; all but loopback when empty.
    node_port_networks: Vec<IpNet>,
    sets: Sets,
}

/// What of the rules depends on the family.
struct Words {
    family: nft::Family,
    address: Type,
    source: Field,
    destination: Field,
    loopback: Value,
}

impl Words {
    fn of(family: Family) -> Self {
        Self {
            family: family.into(),
            address: Type::address(family),
            source: Field::source(family),
            destination: Field::destination(family),
            loopback: match family {
                Family::V4 => Value::Ipv4Net(Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)),
                Family::V6 => Value::Ipv6(Ipv6Addr::LOCALHOST),
            },
        }
    }
}

impl Layout {
    /// The layout of the table of a family, with bit `masquerade_bit` (0 to 31) of the packet mark for our use.
    ///
    /// Of `node_port_networks` and of the networks in `local` those of the family count.
    #[must_use]
    pub fn new(family: Family, local: &LocalClients, node_port_networks: &[IpNet], masquerade_bit: u8) -> Self {
        let of_family = |networks: &[IpNet]| {
            let own = networks.iter().filter(|network| Family::of(network.addr()) == family);
            IpNet::aggregate(&own.map(IpNet::trunc).collect())
        };
        let local = match local {
            LocalClients::Networks(networks) => LocalClients::Networks(of_family(networks)),
            LocalClients::Interface(_) | LocalClients::InterfacePrefix(_) => local.clone(),
        };
        let words = Words::of(family);
        let table = Table::new(words.family, TABLE_NAME);
        let sets = Sets::new(&table, &words);
        let node_port_networks = of_family(node_port_networks);
        Self { family, table, masquerade_mark: 1 << u32::from(masquerade_bit), local, node_port_networks, sets }
    }

    /// Our table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Whose addresses it is about.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// All sets and maps that we fill. The one that the kernel fills itself is [`Layout::clients`].
    #[must_use]
    pub fn sets(&self) -> [&Set; 15] {
        let Sets {
            front,
            nodeports,
            anyview,
            any,
            vacant,
            class,
            eps,
            anyeps,
            aff: _,
            sticky,
            ranged,
            ranges,
            pods,
            nodeips,
            vips,
            hairpin,
        } = &self.sets;
        [
            front, nodeports, anyview, any, vacant, class, eps, anyeps, sticky, ranged, ranges, pods, nodeips, vips,
            hairpin,
        ]
    }

    /// The map of sticky clients, which the kernel fills.
    #[must_use]
    pub fn clients(&self) -> &Set {
        &self.sets.aff
    }

    /// The elements that do not depend on Services, by the name of their set.
    #[must_use]
    pub fn fixed_elements(&self) -> Vec<(&Set, Vec<Element>)> {
        let networks =
            |networks: &[IpNet]| networks.iter().map(|network| Element::key([Value::from(*network)])).collect();
        let verdicts = [(Class::Drop, Verdict::Drop), (Class::Refuse, Verdict::Goto("refuse".to_owned()))];
        let vacant = verdicts
            .into_iter()
            .filter_map(|(class, verdict)| Some(Element::verdict([Value::Mark(class.vacant_mark()?)], verdict)));
        let pods = match &self.local {
            LocalClients::Networks(pods) => networks(pods),
            LocalClients::Interface(_) | LocalClients::InterfacePrefix(_) => Vec::new(),
        };
        vec![
            (&self.sets.vacant, vacant.collect()),
            (&self.sets.pods, pods),
            (&self.sets.nodeips, networks(&self.node_port_networks)),
        ]
    }

    /// Deletes the table if it is there. Adding it first makes the deletion valid either way.
    #[must_use]
    pub fn delete(&self) -> [Op; 2] {
        [Op::AddTable(self.table.clone()), Op::DelTable(self.table.clone())]
    }

    /// Creates the table with all that does not depend on Services. `count` says how many elements a set is going to have.
    ///
    /// The sets that grow with the Services are declared with room for half as many again, because the kernel fills a hash table that has its
    /// size from the start twice as fast as one that grows. One that is full refuses ([`linux_net::Error::is_full`]); then the table is to
    /// be made anew.
    #[must_use]
    pub fn create(&self, count: impl Fn(&Set) -> usize) -> Vec<Op> {
        let mut ops = vec![Op::AddTable(self.table.clone())];
        let grows = [&self.sets.front, &self.sets.eps, &self.sets.vips];
        let sets = self.sets().into_iter().chain([self.clients()]);
        ops.extend(sets.map(|set| match grows.contains(&set) {
            true => Op::AddSet(set.clone().sized(capacity(count(set)))),
            false => Op::AddSet(set.clone()),
        }));
        // All chains stand before the first rule or element, which may jump to any of them.
        ops.extend([
            self.hooked("pre", ChainKind::Nat, HookPoint::Prerouting, Priority::DSTNAT),
            self.hooked("out", ChainKind::Nat, HookPoint::Output, Priority::DSTNAT),
            self.hooked("forward", ChainKind::Filter, HookPoint::Forward, Priority::FILTER),
            self.hooked("input", ChainKind::Filter, HookPoint::Input, Priority::FILTER),
            self.hooked("learn", ChainKind::Filter, HookPoint::Postrouting, BEFORE_SRCNAT),
            self.hooked("post", ChainKind::Nat, HookPoint::Postrouting, Priority::SRCNAT),
        ]);
        let regular = ["services", "dispatch", "local-policy", "refuse"];
        ops.extend(regular.map(|name| Op::AddChain(Chain::regular(&self.table, name))));
        let fixed = self.fixed_elements().into_iter().filter(|(_, elements)| !elements.is_empty());
        ops.extend(fixed.map(|(set, elements)| Op::AddElements { set: set.clone(), elements }));
        let mut rules = self.fixed_rules().into_iter().map(|(chain, rule)| Rule::new(&self.table, chain, rule));
        ops.extend(rules.next().map(|first| Op::AddRule(Rule { comment: Some(fingerprint_of(self)), ..first })));
        ops.extend(rules.map(Op::AddRule));
        ops
    }

    /// Creates the chain that comes with an entry, if one does.
    #[must_use]
    pub fn create_chain(&self, entry: &Entry) -> Vec<Op> {
        let Some((name, rules)) = self.chain_of(entry) else { return Vec::new() };
        let chain = Op::AddChain(Chain::regular(&self.table, &name));
        std::iter::once(chain).chain(rules.into_iter().map(|rule| self.rule(&name, rule))).collect()
    }

    /// Deletes the chain that comes with an entry, if one does.
    #[must_use]
    pub fn delete_chain(&self, entry: &Entry) -> Vec<Op> {
        let Some((chain, _)) = self.chain_of(entry) else { return Vec::new() };
        let table = self.table.clone();
        vec![Op::FlushChain { table: table.clone(), chain: chain.clone() }, Op::DelChain { table, chain }]
    }

    /// The chain that comes with an entry, if one does, and its rules.
    #[must_use]
    pub fn chain_of(&self, entry: &Entry) -> Option<(String, Vec<Vec<Statement>>)> {
        match entry {
            Entry::Class { spread, .. } => Some(self.class_chain(*spread)),
            Entry::Learn { seconds, .. } => Some(self.learn_chain(*seconds)),
            _ => None,
        }
    }

    /// The set or map that an entry stands in; none for a chain alone.
    #[must_use]
    pub fn set_of(&self, entry: &Entry) -> Option<&Set> {
        Some(match entry {
            Entry::Front { .. } => &self.sets.front,
            Entry::NodePort { .. } => &self.sets.nodeports,
            Entry::AnyView { .. } => &self.sets.anyview,
            Entry::Any { .. } => &self.sets.any,
            Entry::Class { .. } => &self.sets.class,
            Entry::Endpoint { .. } => &self.sets.eps,
            Entry::AnyEndpoint { .. } => &self.sets.anyeps,
            Entry::Sticky { .. } => &self.sets.sticky,
            Entry::Ranged { .. } => &self.sets.ranged,
            Entry::Range { .. } => &self.sets.ranges,
            Entry::Vip(_) => &self.sets.vips,
            Entry::Hairpin(_) => &self.sets.hairpin,
            Entry::Learn { .. } => return None,
        })
    }

    fn hooked(&self, name: &str, kind: ChainKind, at: HookPoint, priority: Priority) -> Op {
        Op::AddChain(Chain::base(&self.table, name, Hook { kind, at, priority, policy: None, device: None }))
    }

    fn rule(&self, chain: &str, statements: Vec<Statement>) -> Op {
        Op::AddRule(Rule::new(&self.table, chain, statements))
    }
}

/// What the first rule of a table says of all fixed ones, so that the next run knows whether they are its own: a hash of their text.
#[must_use]
pub fn fingerprint_of(layout: &Layout) -> String {
    let rules = layout.fixed_rules().into_iter().map(|(chain, rule)| Rule::new(&layout.table, chain, rule));
    let text: String = rules.map(|rule| format!("{}\n", Op::AddRule(rule))).collect();
    // FNV-1a in 64 bits: the same in every release, which the standard library's hashers do not promise.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("layout {hash:016x}")
}

/// An entry as it is written in its set or map; none for a chain alone.
#[must_use]
pub fn element(entry: &Entry) -> Option<Element> {
    let mark = |tag: u32| [Value::Mark(tag)];
    Some(match *entry {
        Entry::Front { address, protocol, port, tag } => {
            let key = [Value::from(address), Value::Protocol(protocol.number()), Value::Port(port.get())];
            Element::map(key, mark(tag.mark()))
        }
        Entry::NodePort { protocol, port, tag, .. } => {
            Element::map([Value::Protocol(protocol.number()), Value::Port(port.get())], mark(tag.mark()))
        }
        Entry::AnyView { local, cluster, .. } => Element::map(mark(local.mark()), mark(cluster.mark())),
        Entry::Any { address, tag } => Element::map([Value::from(address)], mark(tag.mark())),
        Entry::Class { spread, .. } => Element::verdict(mark(spread.mark()), Verdict::Jump(class_chain_name(spread))),
        Entry::Endpoint { id, is_sticky, protocol, slot, target } => {
            let kept = if is_sticky { id.sticky_mark() } else { id.mark() };
            let key = [Value::Mark(kept), Value::Protocol(protocol.number()), Value::Integer(u32::from(slot))];
            Element::map(key, [Value::from(target.address), Value::Port(target.port.get())])
        }
        Entry::AnyEndpoint { id, slot, address } => {
            Element::map([Value::Mark(id.mark()), Value::Integer(u32::from(slot))], [Value::from(address)])
        }
        Entry::Sticky { id, seconds, .. } => {
            Element::verdict(mark(id.sticky_mark()), Verdict::Jump(learn_chain_name(seconds)))
        }
        Entry::Ranged { tag, .. } => Element::key(mark(tag.mark())),
        Entry::Range { tag, network } => Element::key([Value::Mark(tag.mark()), Value::from(network)]),
        Entry::Vip(address) => Element::key([Value::from(address)]),
        Entry::Hairpin(address) => Element::key([Value::from(address), Value::from(address)]),
        Entry::Learn { .. } => return None,
    })
}

/// `lb-3`, and what is not usual about it: `any-` for VIPs that keep ports, how it chooses, `-sticky`.
fn class_chain_name(spread: Spread) -> String {
    let kind = if spread.keeps_ports { "any" } else { "lb" };
    let balance = match spread.balance {
        Balance::Random => String::new(),
        other => format!("-{}", other.name()),
    };
    let sticky = if spread.is_sticky { "-sticky" } else { "" };
    format!("{kind}-{}{balance}{sticky}", spread.slots)
}

fn learn_chain_name(seconds: u32) -> String {
    format!("learn-{seconds}")
}
