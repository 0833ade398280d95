//! The rules of a table, as the essay at the top of the crate lists them, chain by chain.

use std::time::Duration;

use linux_net::ip::Family;
use linux_net::nft::{
    CmpOp, Ct, Expr, FibAddress, FibResult, Field, MasqueradeFlags, Meta, NatTarget, NumgenMode, Reject, Statement,
    UpdateKind, Value,
};

use super::{Layout, Words, class_chain_name, learn_chain_name};
use crate::config::LocalClients;
use crate::service::{Balance, Protocol};
use crate::tag::{CLASS_MASK, EXTERNAL_BIT, KEEP_MASK, LOCAL_BIT, MASQUERADE_BIT, SLOTS_MASK, STICKY_BIT, Spread};

/// The number 0 as a slot: text has no other way to write a constant in a key with others.
const FIRST_SLOT: Expr = Expr::Numgen { mode: NumgenMode::Incremental, modulus: 1, offset: 0 };
/// `RTN_LOCAL` of `linux/rtnetlink.h`: an address of the machine itself.
const RTN_LOCAL: u32 = 2;

impl Layout {
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
