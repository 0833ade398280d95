//! The table `kproxy` of a family: its fixed chains, maps and sets, and how an entry is written as an element of one of them.
//!
//! This is the layout that the essay at the top of the crate walks through. Whatever the number of Services, the chains are the
//! same few, plus one per [`Spread`], since `numgen … mod N` wants its N as a literal, and one per time for which clients are remembered.

use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use linux_net::nft::{
    self, Chain, ChainKind, CmpOp, Ct, Element, Expr, FibAddress, FibResult, Field, Hook, HookPoint, MasqueradeFlags,
    Meta, NatTarget, NumgenMode, Op, Priority, Reject, Rule, Set, Spec, Statement, Table, Type, UpdateKind, Value,
    Verdict,
};

use crate::config::LocalClients;
use crate::entry::Entry;
use crate::service::{Balance, Protocol};
use crate::tag::{
    CLASS_MASK, Class, EXTERNAL_BIT, KEEP_MASK, LOCAL_BIT, MASQUERADE_BIT, SLOTS_MASK, STICKY_BIT, Spread,
};
use linux_net::ip::Family;

/// The name of our tables, in the families `ip` and `ip6`.
pub const TABLE_NAME: &str = "kproxy";
/// Slots are declared by example: a number as `numgen` gives it.
const ANY_SLOT: Expr = Expr::Numgen { mode: NumgenMode::Random, modulus: 65536, offset: 0 };
/// The number 0 as a slot: text has no other way to write a constant in a key with others.
const FIRST_SLOT: Expr = Expr::Numgen { mode: NumgenMode::Incremental, modulus: 1, offset: 0 };
/// How many sticky clients are remembered in a family; the kernel forgets none before its time, and learns no more when it is full.
const MAX_CLIENTS: u32 = 65_536;
/// The least room in the maps that grow with the Services, in elements. The kernel takes 16 bytes for each.
const LEAST_CAPACITY: u32 = 1024;
/// How long a client is remembered unless the rule that learns it says otherwise, as all of ours do.
const DEFAULT_AFFINITY: Duration = Duration::from_hours(3);
/// Behind translation of the destination and before that of the source: there a packet shows both the client and the endpoint.
const BEFORE_SRCNAT: Priority = Priority(90);
/// `RTN_LOCAL` of `linux/rtnetlink.h`: an address of the machine itself.
const RTN_LOCAL: u32 = 2;

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

#[derive(Debug, Clone)]
struct Sets {
    front: Set,
    nodeports: Set,
    anyview: Set,
    any: Set,
    vacant: Set,
    class: Set,
    eps: Set,
    anyeps: Set,
    aff: Set,
    sticky: Set,
    ranged: Set,
    ranges: Set,
    pods: Set,
    nodeips: Set,
    vips: Set,
    hairpin: Set,
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

    /// The rules that do not depend on Services, each with its chain.
    #[must_use]
    pub fn fixed_rules(&self) -> Vec<(&'static str, Vec<Statement>)> {
        let words = Words::of(self.family);
        let mut rules: Vec<(&'static str, Vec<Statement>)> =
            vec![("pre", vec![Statement::jump("services")]), ("out", vec![Statement::jump("services")])];
        rules.extend(self.service_rules(&words));
        rules.extend(self.dispatch_rules(&words));
        let is_tcp = || Statement::equal(Meta::L4proto, Value::Protocol(Protocol::Tcp.number()));
        let is_invalid = || Statement::equal(Ct::State, Value::CtState(Ct::STATE_INVALID));
        rules.extend([
            ("refuse", vec![is_tcp(), Statement::Reject(Reject::TcpReset)]),
            ("refuse", vec![Statement::Reject(Reject::PortUnreachable)]),
            // Out of its connection's window, so nobody translates it back. A client knows nobody of the endpoint's own address and would
            // answer with a reset, which would end the connection.
            ("forward", vec![is_tcp(), is_invalid(), Statement::drop()]),
            (
                "learn",
                vec![
                    Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW)),
                    mark_has(STICKY_BIT),
                    Statement::Vmap { key: Expr::from(Ct::Mark).and(KEEP_MASK), map: "sticky".to_owned() },
                ],
            ),
        ]);
        if let Some(is_pod) = self.is_pod(&words, false) {
            // The same, where the worker stands in for a client that it masquerades.
            rules.push(("input", vec![is_tcp(), is_invalid(), is_pod, Statement::drop()]));
        }
        rules.extend(self.post_rules(&words));
        rules
    }

    /// Whose connection it is: the first map that knows the destination says so. A key that is not in the map ends the rule, and the next
    /// one has its turn.
    fn service_rules(&self, words: &Words) -> Vec<(&'static str, Vec<Statement>)> {
        let front = Expr::Concat(vec![words.destination.into(), Meta::L4proto.into(), Field::ThDport.into()]);
        let node_port = Expr::Concat(vec![Meta::L4proto.into(), Field::ThDport.into()]);
        let is_own = if self.node_port_networks.is_empty() {
            Statement::differs(words.destination, words.loopback.clone())
        } else {
            Statement::in_set(words.destination, "nodeips")
        };
        vec![
            ("services", vec![set_tag(front.map("front")), Statement::goto("dispatch")]),
            (
                "services",
                vec![
                    is_local(FibAddress::Daddr),
                    is_own,
                    set_tag(node_port.map("nodeports")),
                    Statement::goto("dispatch"),
                ],
            ),
            ("services", vec![set_tag(Expr::from(words.destination).map("any")), Statement::goto("dispatch")]),
            ("services", vec![Statement::in_set(words.destination, "vips"), Statement::goto("refuse")]),
        ]
    }

    /// What becomes of it.
    fn dispatch_rules(&self, words: &Words) -> Vec<(&'static str, Vec<Statement>)> {
        let masquerade =
            || Statement::SetMeta { key: Meta::Mark, value: Expr::from(Meta::Mark).or(self.masquerade_mark) };
        let client = Expr::Concat(vec![Ct::Mark.into(), words.source.into()]);
        let mut rules = vec![
            (
                "dispatch",
                vec![Statement::in_set(Ct::Mark, "ranged"), Statement::not_in_set(client, "ranges"), Statement::drop()],
            ),
            ("dispatch", vec![mark_has(LOCAL_BIT), Statement::jump("local-policy")]),
        ];
        if let Some(is_stranger) = self.is_pod(words, true) {
            rules.push(("dispatch", vec![mark_lacks(EXTERNAL_BIT), is_stranger, masquerade()]));
        }
        let other_view = || set_tag(Expr::from(Ct::Mark).map("anyview"));
        rules.extend([
            ("dispatch", vec![mark_has(MASQUERADE_BIT), masquerade()]),
            ("dispatch", vec![Statement::Vmap { key: Expr::from(Ct::Mark).and(SLOTS_MASK), map: "vacant".to_owned() }]),
            ("dispatch", vec![Statement::Vmap { key: Expr::from(Ct::Mark).and(CLASS_MASK), map: "class".to_owned() }]),
            // Whatever is missing on the way here must not let the packet out with the VIP still on it: conntrack would remember it so.
            ("dispatch", vec![Statement::drop()]),
            ("local-policy", vec![is_local(FibAddress::Saddr), other_view(), masquerade(), Statement::ret()]),
        ]);
        if let Some(is_pod) = self.is_pod(words, false) {
            rules.push(("local-policy", vec![is_pod, other_view()]));
        }
        rules
    }

    fn post_rules(&self, words: &Words) -> Vec<(&'static str, Vec<Statement>)> {
        let hairpin_key = Expr::Concat(vec![words.source.into(), words.destination.into()]);
        let masquerade = || Statement::Masquerade(MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() });
        let packet_mark = || Expr::from(Meta::Mark);
        vec![
            (
                "post",
                vec![
                    Statement::Match {
                        left: packet_mark().and(self.masquerade_mark),
                        op: CmpOp::Ne,
                        right: Value::Mark(0),
                    },
                    // The mark survives encapsulation. Left in place, it would make the overlay's own packet be masqueraded too.
                    Statement::SetMeta { key: Meta::Mark, value: packet_mark().and(!self.masquerade_mark) },
                    masquerade(),
                ],
            ),
            (
                "post",
                vec![
                    Statement::equal(Ct::Status, Value::CtStatus(Ct::STATUS_DNAT)),
                    Statement::in_set(hairpin_key, "hairpin"),
                    masquerade(),
                ],
            ),
        ]
    }

    /// Matches packets of pods, or of everybody else; `None` when nobody can tell.
    fn is_pod(&self, words: &Words, negate: bool) -> Option<Statement> {
        let interface = |name: Value| match negate {
            false => Statement::equal(Meta::Iifname, name),
            true => Statement::differs(Meta::Iifname, name),
        };
        match &self.local {
            LocalClients::Networks(networks) if networks.is_empty() => None,
            LocalClients::Networks(_) if negate => Some(Statement::not_in_set(words.source, "pods")),
            LocalClients::Networks(_) => Some(Statement::in_set(words.source, "pods")),
            LocalClients::Interface(name) => Some(interface(Value::IfName(name.clone()))),
            LocalClients::InterfacePrefix(prefix) => Some(interface(Value::IfNamePrefix(prefix.clone()))),
        }
    }

    /// The chain of a class and its rules.
    #[must_use]
    pub fn class_chain(&self, spread: Spread) -> (String, Vec<Vec<Statement>>) {
        let words = Words::of(self.family);
        let keep = set_tag(Expr::from(Ct::Mark).and(KEEP_MASK));
        let dnat = |to| Statement::Dnat { family: words.family, to };
        let endpoint = |slot: Expr| {
            dnat(if spread.keeps_ports {
                NatTarget::Address(Expr::Concat(vec![Ct::Mark.into(), slot]).map("anyeps"))
            } else {
                NatTarget::AddressAndPort(Expr::Concat(vec![Ct::Mark.into(), Meta::L4proto.into(), slot]).map("eps"))
            })
        };
        let chosen = endpoint(self.slot(spread, &words));
        let mut rules = Vec::new();
        if spread.is_sticky {
            let client = Expr::Concat(vec![words.source.into(), Ct::Mark.into(), Meta::L4proto.into()]);
            rules.push(vec![keep, dnat(NatTarget::AddressAndPort(client.map("aff")))]);
            rules.push(vec![chosen]);
        } else {
            rules.push(vec![keep, chosen]);
        }
        // The slot may have gone while the packet was on its way here. The first one is there as long as there is any.
        rules.extend((spread.slots.count() > 1).then(|| vec![endpoint(FIRST_SLOT)]));
        (class_chain_name(spread), rules)
    }

    /// A number below that of the slots.
    fn slot(&self, spread: Spread, words: &Words) -> Expr {
        let modulus = u32::from(spread.slots.count());
        let numgen = |mode| Expr::Numgen { mode, modulus, offset: 0 };
        let jhash = |of: Expr| Expr::Jhash { of: Box::new(of), modulus, seed: Some(1), offset: 0 };
        match (spread.balance, self.family) {
            (Balance::Random, _) => numgen(NumgenMode::Random),
            (Balance::RoundRobin, _) => numgen(NumgenMode::Incremental),
            (Balance::SourceHash, _) => jhash(words.source.into()),
            (Balance::Jhash, Family::V4) => jhash(Field::IpChecksum.into()),
            (Balance::Jhash, Family::V6) => jhash(Expr::Concat(vec![
                words.source.into(),
                words.destination.into(),
                Field::ThSport.into(),
                Field::ThDport.into(),
            ])),
        }
    }

    /// The chain that remembers clients for so long, and its rules.
    #[must_use]
    pub fn learn_chain(&self, seconds: u32) -> (String, Vec<Vec<Statement>>) {
        let words = Words::of(self.family);
        let remember = Statement::Update {
            kind: UpdateKind::Update,
            set: "aff".to_owned(),
            key: Expr::Concat(vec![words.source.into(), Ct::Mark.into(), Meta::L4proto.into()]),
            data: Some(Expr::Concat(vec![words.destination.into(), Field::ThDport.into()])),
            timeout: Some(Duration::from_secs(seconds.into())),
        };
        (learn_chain_name(seconds), vec![vec![remember]])
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

impl Sets {
    fn new(table: &Table, words: &Words) -> Self {
        let address = words.address;
        let tag = || Spec::types([Type::Mark]);
        let slot_of = |keys: &[Expr]| Spec::type_of([keys, &[ANY_SLOT]].concat());
        let endpoint = || Spec::type_of([words.destination.into(), Field::ThDport.into()]);
        let client = Spec::type_of([words.source.into(), Ct::Mark.into(), Meta::L4proto.into()]);
        Self {
            front: Set::map(table, "front", Spec::types([address, Type::InetProto, Type::InetService]), tag())
                .with_comment("address . protocol . port of a Service: its tag"),
            nodeports: Set::map(table, "nodeports", Spec::types([Type::InetProto, Type::InetService]), tag())
                .with_comment("port of this worker: the tag of its Service"),
            anyview: Set::map(table, "anyview", tag(), tag())
                .with_comment("tag of policy Local: what pods and this worker get"),
            any: Set::map(table, "any", Spec::types([address]), tag()).with_comment("VIPs that answer every protocol"),
            vacant: Set::verdict_map(table, "vacant", tag()).with_comment("nobody there: drop or refuse"),
            class: Set::verdict_map(table, "class", tag()).with_comment("how to choose among so many endpoints"),
            eps: Set::map(table, "eps", slot_of(&[Ct::Mark.into(), Meta::L4proto.into()]), endpoint())
                .with_comment("id . protocol . slot: the endpoint"),
            anyeps: Set::map(table, "anyeps", slot_of(&[Ct::Mark.into()]), Spec::type_of([words.destination.into()]))
                .with_comment("id . slot: the endpoint of a VIP for all protocols"),
            aff: Set::map(table, "aff", client, endpoint())
                .dynamic(MAX_CLIENTS, Some(DEFAULT_AFFINITY))
                .with_comment("clients that are sent where they were sent before"),
            sticky: Set::verdict_map(table, "sticky", tag())
                .with_comment("for how long the clients of an id are remembered"),
            ranged: Set::new(table, "ranged", tag()).with_comment("tags that are for some clients only"),
            ranges: Set::new(table, "ranges", Spec::types([Type::Mark, address]))
                .interval()
                .with_comment("tag . who may use it"),
            pods: Set::new(table, "pods", Spec::types([address]))
                .interval()
                .with_comment("where pods live: not masqueraded"),
            nodeips: Set::new(table, "nodeips", Spec::types([address]))
                .interval()
                .with_comment("addresses of this worker that have NodePorts"),
            vips: Set::new(table, "vips", Spec::types([address]))
                .with_comment("live ClusterIPs: other ports are refused"),
            hairpin: Set::new(table, "hairpin", Spec::types([address, address]))
                .with_comment("pods here that may be sent to themselves"),
        }
    }
}

/// Room for so many elements and half as many again; a power of two, as the kernel rounds up anyway.
fn capacity(count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX / 4);
    (count.saturating_add(count / 2)).max(LEAST_CAPACITY).next_power_of_two()
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

fn set_tag(value: Expr) -> Statement {
    Statement::SetCt { key: Ct::Mark, value }
}

fn mark_has(bit: u32) -> Statement {
    Statement::Match { left: Expr::from(Ct::Mark).and(bit), op: CmpOp::Ne, right: Value::Mark(0) }
}

fn mark_lacks(bit: u32) -> Statement {
    Statement::equal(Expr::from(Ct::Mark).and(bit), Value::Mark(0))
}

/// `fib daddr type local`
fn is_local(address: FibAddress) -> Statement {
    Statement::equal(Expr::Fib { address, result: FibResult::Type }, Value::FibType(RTN_LOCAL))
}
