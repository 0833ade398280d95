//! The table `kproxy`: its fixed chains, maps and sets, and how an entry is written as an element of one of them.
//!
//! This is the layout that the essay at the top of the crate walks through. Whatever the number of Services, the chains are the
//! same few, plus one per [`Class`]: `numgen … mod N` wants its N as a literal, so all Services with N endpoints share a chain.

use ipnet::Ipv4Net;
use linux_net::nft::{
    Chain, ChainKind, CmpOp, Ct, Element, Expr, Family, Field, Hook, HookPoint, MasqueradeFlags, Meta, NatTarget,
    NumgenMode, Op, Priority, Reject, Rule, Set, Spec, Statement, Table, Type, Value, Verdict,
};

use crate::entry::Entry;
use crate::tag::{CLASS_MASK, Class, KEEP_MASK};

/// The name of our table, in family `ip`.
pub const TABLE_NAME: &str = "kproxy";
/// TCP's number in the IP header.
const TCP: u8 = 6;
/// Slots are declared by example: a number as `numgen` gives it.
const ANY_SLOT: Expr = Expr::Numgen { mode: NumgenMode::Random, modulus: 65536, offset: 0 };

/// Everything that the table needs to know beside the Services.
#[derive(Debug, Clone)]
pub struct Layout {
    table: Table,
    /// The one bit of the packet mark that means "masquerade on the way out".
    masquerade_mark: u32,
    /// Where pods live, without overlaps; if empty, nobody counts as a stranger.
    pods: Vec<Ipv4Net>,
    sets: Sets,
}

#[derive(Debug, Clone)]
struct Sets {
    front: Set,
    any: Set,
    class: Set,
    eps: Set,
    anyeps: Set,
    pods: Set,
    vips: Set,
    hairpin: Set,
}

impl Layout {
    /// The layout for pods in `pod_cidrs`, with bit `masquerade_bit` (0 to 31) of the packet mark for our use.
    #[must_use]
    pub fn new(pod_cidrs: &[Ipv4Net], masquerade_bit: u8) -> Self {
        let table = Table::new(Family::Ip, TABLE_NAME);
        let sets = Sets::new(&table);
        Self {
            table,
            masquerade_mark: 1 << u32::from(masquerade_bit),
            pods: Ipv4Net::aggregate(&pod_cidrs.to_vec()),
            sets,
        }
    }

    /// Our table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where pods live.
    #[must_use]
    pub fn pods(&self) -> &[Ipv4Net] {
        &self.pods
    }

    /// All sets and maps.
    #[must_use]
    pub fn sets(&self) -> [&Set; 8] {
        let Sets { front, any, class, eps, anyeps, pods, vips, hairpin } = &self.sets;
        [front, any, class, eps, anyeps, pods, vips, hairpin]
    }

    /// Deletes the table if it is there. Adding it first makes the deletion valid either way.
    #[must_use]
    pub fn delete(&self) -> [Op; 2] {
        [Op::AddTable(self.table.clone()), Op::DelTable(self.table.clone())]
    }

    /// Creates the table with all that does not depend on Services.
    #[must_use]
    pub fn create(&self) -> Vec<Op> {
        let mut ops = vec![Op::AddTable(self.table.clone())];
        ops.extend(self.sets().map(|set| Op::AddSet(set.clone())));
        if !self.pods.is_empty() {
            let elements = self.pods.iter().map(|net| Element::key([Value::Ipv4Net(*net)])).collect();
            ops.push(Op::AddElements { set: self.sets.pods.clone(), elements });
        }
        // All chains stand before the first rule, which may jump to any of them.
        ops.extend([
            self.hooked("pre", HookPoint::Prerouting, Priority::DSTNAT),
            self.hooked("out", HookPoint::Output, Priority::DSTNAT),
            self.hooked("post", HookPoint::Postrouting, Priority::SRCNAT),
        ]);
        ops.extend(["services", "dispatch", "refuse"].map(|name| Op::AddChain(Chain::regular(&self.table, name))));
        ops.extend(self.fixed_rules().into_iter().map(|(chain, rule)| self.rule(chain, rule)));
        ops
    }

    fn fixed_rules(&self) -> Vec<(&'static str, Vec<Statement>)> {
        let front_key = Expr::Concat(vec![Field::IpDaddr.into(), Meta::L4proto.into(), Field::ThDport.into()]);
        let hairpin_key = Expr::Concat(vec![Field::IpSaddr.into(), Field::IpDaddr.into()]);
        let masquerade = Statement::Masquerade(MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() });
        let packet_mark = || Expr::from(Meta::Mark);
        let mut rules = vec![
            ("pre", vec![Statement::jump("services")]),
            ("out", vec![Statement::jump("services")]),
            // A key that is not in the map ends the rule, and the next one has its turn.
            ("services", vec![set_tag(front_key.map("front")), Statement::goto("dispatch")]),
            ("services", vec![set_tag(Expr::from(Field::IpDaddr).map("any")), Statement::goto("dispatch")]),
            ("services", vec![Statement::in_set(Field::IpDaddr, "vips"), Statement::goto("refuse")]),
            ("dispatch", vec![Statement::Vmap { key: Expr::from(Ct::Mark).and(CLASS_MASK), map: "class".to_owned() }]),
            (
                "refuse",
                vec![Statement::equal(Meta::L4proto, Value::Protocol(TCP)), Statement::Reject(Reject::TcpReset)],
            ),
            ("refuse", vec![Statement::Reject(Reject::PortUnreachable)]),
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
                    masquerade.clone(),
                ],
            ),
            (
                "post",
                vec![
                    Statement::equal(Ct::Status, Value::CtStatus(Ct::STATUS_DNAT)),
                    Statement::in_set(hairpin_key, "hairpin"),
                    masquerade,
                ],
            ),
        ];
        if !self.pods.is_empty() {
            let stranger = vec![
                Statement::not_in_set(Field::IpSaddr, "pods"),
                Statement::SetMeta { key: Meta::Mark, value: packet_mark().or(self.masquerade_mark) },
            ];
            let dispatch = rules.iter().position(|(chain, _)| *chain == "dispatch").unwrap_or(rules.len());
            rules.insert(dispatch, ("dispatch", stranger));
        }
        rules
    }

    /// Creates the chain of a class; nothing for the two that need none of their own.
    #[must_use]
    pub fn create_class(&self, class: Class) -> Vec<Op> {
        let Some(name) = class_chain(class) else { return Vec::new() };
        let slot = |slots: u8| Expr::Numgen { mode: NumgenMode::Random, modulus: u32::from(slots), offset: 0 };
        let to = match class {
            Class::Drop | Class::Refuse => return Vec::new(),
            Class::Ports(slots) => {
                let key = Expr::Concat(vec![Ct::Mark.into(), Meta::L4proto.into(), slot(slots)]);
                NatTarget::AddressAndPort(key.map("eps"))
            }
            Class::Any(slots) => NatTarget::Address(Expr::Concat(vec![Ct::Mark.into(), slot(slots)]).map("anyeps")),
        };
        let clear = set_tag(Expr::from(Ct::Mark).and(KEEP_MASK));
        vec![
            Op::AddChain(Chain::regular(&self.table, &name)),
            self.rule(&name, vec![clear, Statement::Dnat { family: Family::Ip, to }]),
            // A slot that is missing must not let the packet out with the VIP still on it.
            self.rule(&name, vec![Statement::drop()]),
        ]
    }

    /// Deletes the chain of a class.
    #[must_use]
    pub fn delete_class(&self, class: Class) -> Vec<Op> {
        let Some(chain) = class_chain(class) else { return Vec::new() };
        let table = self.table.clone();
        vec![Op::FlushChain { table: table.clone(), chain: chain.clone() }, Op::DelChain { table, chain }]
    }

    /// The set or map that an entry stands in.
    #[must_use]
    pub fn set_of(&self, entry: &Entry) -> &Set {
        match entry {
            Entry::Front { .. } => &self.sets.front,
            Entry::Any { .. } => &self.sets.any,
            Entry::Class(_) => &self.sets.class,
            Entry::Endpoint { .. } => &self.sets.eps,
            Entry::AnyEndpoint { .. } => &self.sets.anyeps,
            Entry::Vip(_) => &self.sets.vips,
            Entry::Hairpin(_) => &self.sets.hairpin,
        }
    }

    fn hooked(&self, name: &str, at: HookPoint, priority: Priority) -> Op {
        Op::AddChain(Chain::base(
            &self.table,
            name,
            Hook { kind: ChainKind::Nat, at, priority, policy: None, device: None },
        ))
    }

    fn rule(&self, chain: &str, statements: Vec<Statement>) -> Op {
        Op::AddRule(Rule::new(&self.table, chain, statements))
    }
}

impl Sets {
    fn new(table: &Table) -> Self {
        let tag = || Spec::types([Type::Mark]);
        let slot_of = |keys: &[Expr]| Spec::type_of([keys, &[ANY_SLOT]].concat());
        let addresses = || Spec::types([Type::Ipv4Addr]);
        Self {
            front: Set::map(table, "front", Spec::types([Type::Ipv4Addr, Type::InetProto, Type::InetService]), tag()),
            any: Set::map(table, "any", addresses(), tag()),
            class: Set::verdict_map(table, "class", tag()),
            eps: Set::map(
                table,
                "eps",
                slot_of(&[Ct::Mark.into(), Meta::L4proto.into()]),
                Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
            ),
            anyeps: Set::map(table, "anyeps", slot_of(&[Ct::Mark.into()]), Spec::type_of([Field::IpDaddr.into()])),
            pods: Set::new(table, "pods", addresses()).interval(),
            vips: Set::new(table, "vips", addresses()),
            hairpin: Set::new(table, "hairpin", Spec::types([Type::Ipv4Addr, Type::Ipv4Addr])),
        }
    }
}

/// An entry as it is written in its set or map: one element, or two for a class that has both forms.
#[must_use]
pub fn elements(entry: &Entry) -> Vec<Element> {
    let mark = |tag: u32| [Value::Mark(tag)];
    match *entry {
        Entry::Front { address, protocol, port, tag } => {
            let key = [Value::Ipv4(address), Value::Protocol(protocol.number()), Value::Port(port.get())];
            vec![Element::map(key, mark(tag.mark()))]
        }
        Entry::Any { address, tag } => vec![Element::map([Value::Ipv4(address)], mark(tag.mark()))],
        Entry::Class(class) => {
            let verdict = || match class {
                Class::Drop => Verdict::Drop,
                Class::Refuse => Verdict::Goto("refuse".to_owned()),
                Class::Ports(_) | Class::Any(_) => Verdict::Goto(class_chain(class).unwrap_or_default()),
            };
            class.marks().into_iter().map(|bits| Element::verdict(mark(bits), verdict())).collect()
        }
        Entry::Endpoint { id, protocol, slot, target } => {
            let key = [Value::Mark(id.mark()), Value::Protocol(protocol.number()), Value::Integer(u32::from(slot))];
            vec![Element::map(key, [Value::Ipv4(*target.ip()), Value::Port(target.port())])]
        }
        Entry::AnyEndpoint { id, slot, target } => {
            vec![Element::map([Value::Mark(id.mark()), Value::Integer(u32::from(slot))], [Value::Ipv4(target)])]
        }
        Entry::Vip(address) => vec![Element::key([Value::Ipv4(address)])],
        Entry::Hairpin(address) => vec![Element::key([Value::Ipv4(address), Value::Ipv4(address)])],
    }
}

/// The chain that a class has to itself.
fn class_chain(class: Class) -> Option<String> {
    match class {
        Class::Drop | Class::Refuse => None,
        Class::Ports(slots) => Some(format!("lb-{slots}")),
        Class::Any(slots) => Some(format!("any-{slots}")),
    }
}

fn set_tag(value: Expr) -> Statement {
    Statement::SetCt { key: Ct::Mark, value }
}
