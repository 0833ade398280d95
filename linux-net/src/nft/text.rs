//! The ruleset as text for `nft -f`.
//!
//! Each operation is one line, which a student can type after `nft`. `nft list ruleset` prints the same things, grouped
//! by table, and leaves out what it can infer.

mod expr;

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{
    Batch, Chain, ChainKind, CmpOp, Data, Element, Expr, Family, Hook, HookPoint, MapData, MasqueradeFlags, NatTarget,
    Op, Policy, Reject, Rule, Set, Spec, Statement, Table, Type, UpdateKind, Value, Verdict,
};

impl Display for Batch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(f, "add table {table}"),
            Self::DelTable(table) => write!(f, "delete table {table}"),
            Self::AddChain(chain) => write!(f, "add {chain}"),
            Self::FlushChain { table, chain } => write!(f, "flush chain {table} {chain}"),
            Self::DelChain { table, chain } => write!(f, "delete chain {table} {chain}"),
            Self::AddRule(rule) => write!(f, "add {rule}"),
            Self::InsertRule(rule) => write!(f, "insert {rule}"),
            Self::DelRule { table, chain, handle } => write!(f, "delete rule {table} {chain} handle {handle}"),
            Self::AddSet(set) => write!(f, "add {set}"),
            Self::FlushSet { table, set } => write!(f, "flush set {table} {set}"),
            Self::DelSet { table, set } => write!(f, "delete set {table} {set}"),
            Self::AddElements { set, elements } => {
                write!(f, "add element {} {} {{ {} }}", set.table, set.name, Joined(elements, ", "))
            }
            Self::CreateElements { set, elements } => {
                write!(f, "create element {} {} {{ {} }}", set.table, set.name, Joined(elements, ", "))
            }
            Self::DelElements { set, elements } => {
                // A map's element is deleted by its key, whatever it stands for.
                let keys: Vec<_> = elements.iter().map(|element| Key(&element.key)).collect();
                write!(f, "delete element {} {} {{ {} }}", set.table, set.name, Joined(&keys, ", "))
            }
        }
    }
}

impl Op {
    /// Returns the operation as text in which only the first of many elements stand, for messages.
    pub(super) fn summary(&self) -> String {
        const SHOWN: usize = 3;
        let shorten = |verb, set: &Set, elements: &[Element]| {
            let first = Joined(&elements[..SHOWN.min(elements.len())], ", ").to_string();
            let more = elements.len().saturating_sub(SHOWN);
            let rest = if more > 0 { format!(", … {more} more") } else { String::new() };
            format!("{verb} element {} {} {{ {first}{rest} }}", set.table, set.name)
        };
        match self {
            Self::AddElements { set, elements } => shorten("add", set, elements),
            Self::CreateElements { set, elements } => shorten("create", set, elements),
            Self::DelElements { set, elements } => shorten("delete", set, elements),
            other => other.to_string(),
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.word(), self.name)
    }
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} {}", self.table, self.name)?;
        self.hook.as_ref().map_or(Ok(()), |hook| write!(f, " {{ {hook} }}"))
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let at = match self.at {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
            HookPoint::Ingress => "ingress",
        };
        write!(f, "type {} hook {at}", self.kind.word())?;
        if let Some(device) = &self.device {
            write!(f, " device \"{device}\"")?;
        }
        write!(f, " priority {};", self.priority.0)?;
        match self.policy {
            None => Ok(()),
            Some(Policy::Accept) => f.write_str(" policy accept;"),
            Some(Policy::Drop) => f.write_str(" policy drop;"),
        }
    }
}

impl ChainKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.data.is_some() { "map" } else { "set" };
        write!(f, "{kind} {} {} {{ {}", self.table, self.name, self.key)?;
        match &self.data {
            None => {}
            Some(MapData::Verdict) => f.write_str(" : verdict")?,
            Some(MapData::Value(Spec::Type(types))) => write!(f, " : {}", Joined(types, " . "))?,
            Some(MapData::Value(Spec::Typeof(exprs))) => write!(f, " : {}", Joined(exprs, " . "))?,
        }
        f.write_str(";")?;
        let flags: Vec<_> =
            [(self.dynamic, "dynamic"), (self.interval, "interval"), (self.timeout.is_some(), "timeout")]
                .into_iter()
                .filter_map(|(on, word)| on.then_some(word))
                .collect();
        if !flags.is_empty() {
            write!(f, " flags {};", flags.join(","))?;
        }
        if let Some(timeout) = self.timeout {
            write!(f, " timeout {};", Time(timeout))?;
        }
        if let Some(size) = self.size {
            write!(f, " size {size};")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment \"{comment}\";")?;
        }
        f.write_str(" }")
    }
}

impl Display for Spec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(types) => write!(f, "type {}", Joined(types, " . ")),
            Self::Typeof(exprs) => write!(f, "typeof {}", Joined(exprs, " . ")),
        }
    }
}

impl Display for Type {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::EtherAddr => "ether_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::Ifname => "ifname",
            Self::Integer => "integer",
            Self::CtState => "ct_state",
            Self::CtStatus => "ct_status",
            Self::FibAddrtype => "fib_addrtype",
        })
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Key(&self.key))?;
        if let Some(timeout) = self.timeout {
            write!(f, " timeout {}", Time(timeout))?;
        }
        if let Some(expires) = self.expires {
            write!(f, " expires {}", Time(expires))?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment \"{comment}\"")?;
        }
        match &self.data {
            None => Ok(()),
            Some(Data::Value(values)) => write!(f, " : {}", Key(values)),
            Some(Data::Verdict(verdict)) => write!(f, " : {verdict}"),
        }
    }
}

struct Key<'a>(&'a [Value]);

impl Display for Key<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Joined(self.0, " . "))
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} {}", self.table, self.chain)?;
        for statement in &self.statements {
            write!(f, " {}", StatementIn(self.table.family, statement))?;
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

/// A statement in a table of some family, on which the words for ICMP depend.
struct StatementIn<'a>(Family, &'a Statement);

impl Display for StatementIn<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(family, statement) = self;
        match statement {
            // Of bits, `!=` compares all, `!` asks whether none of those on the right is set.
            Statement::Match { left, op: CmpOp::Ne, right: right @ (Value::CtState(_) | Value::CtStatus(_)) } => {
                write!(f, "{left} ! {right}")
            }
            Statement::Match { left, op, right } => write!(f, "{left}{}{right}", op.word()),
            Statement::InSet { key, set, negate } => {
                write!(f, "{key} {}@{set}", if *negate { "!= " } else { "" })
            }
            Statement::Vmap { key, map } => write!(f, "{key} vmap @{map}"),
            Statement::SetMeta { key, value } => write!(f, "meta {} set {value}", key.word()),
            Statement::SetCt { key, value } => write!(f, "ct {} set {value}", key.word()),
            Statement::Dnat { family, to } => write!(f, "dnat {} to {to}", family.word()),
            Statement::Snat { family, to } => write!(f, "snat {} to {to}", family.word()),
            Statement::Masquerade(flags) => write!(f, "masquerade{flags}"),
            Statement::Reject(reject) => f.write_str(reject.words(*family)),
            Statement::Counter => f.write_str("counter"),
            Statement::Update { kind, set, key, data, timeout } => {
                let verb = match kind {
                    UpdateKind::Add => "add",
                    UpdateKind::Update => "update",
                    UpdateKind::Delete => "delete",
                };
                write!(f, "{verb} @{set} {{ {key}")?;
                if let Some(timeout) = timeout {
                    write!(f, " timeout {}", Time(*timeout))?;
                }
                match data {
                    Some(data) => write!(f, " : {data} }}"),
                    None => f.write_str(" }"),
                }
            }
            Statement::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl CmpOp {
    fn word(self) -> &'static str {
        match self {
            Self::Eq => " ",
            Self::Ne => " != ",
            Self::Lt => " < ",
            Self::Le => " <= ",
            Self::Gt => " > ",
            Self::Ge => " >= ",
        }
    }
}

impl Display for NatTarget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressAndPort(Expr::Concat(parts)) => match parts.as_slice() {
                [Expr::Const(address @ Value::Ipv6(_)), port] => write!(f, "[{address}]:{port}"),
                [address, port] => write!(f, "{address}:{port}"),
                _ => write!(f, "{}", Joined(parts, " . ")),
            },
            Self::Address(expr) | Self::AddressAndPort(expr) => write!(f, "{expr}"),
        }
    }
}

impl Display for MasqueradeFlags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let words: Vec<_> =
            [(self.random, "random"), (self.fully_random, "fully-random"), (self.persistent, "persistent")]
                .into_iter()
                .filter_map(|(on, word)| on.then_some(word))
                .collect();
        if words.is_empty() { Ok(()) } else { write!(f, " {}", words.join(",")) }
    }
}

impl Reject {
    fn words(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::TcpReset, _) => "reject with tcp reset",
            (Self::PortUnreachable, Family::Ip | Family::Ip6) => "reject",
            (Self::PortUnreachable, Family::Inet | Family::Bridge | Family::Netdev) => {
                "reject with icmpx port-unreachable"
            }
            (Self::HostUnreachable, Family::Ip) => "reject with icmp host-unreachable",
            (Self::HostUnreachable, Family::Ip6) => "reject with icmpv6 addr-unreachable",
            (Self::HostUnreachable, Family::Inet | Family::Bridge | Family::Netdev) => {
                "reject with icmpx host-unreachable"
            }
            (Self::AdminProhibited, Family::Ip) => "reject with icmp admin-prohibited",
            (Self::AdminProhibited, Family::Ip6) => "reject with icmpv6 admin-prohibited",
            (Self::AdminProhibited, Family::Inet | Family::Bridge | Family::Netdev) => {
                "reject with icmpx admin-prohibited"
            }
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// A time as `nft` reads it.
struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_millis()) {
            (seconds, 0) => write!(f, "{seconds}s"),
            (0, millis) => write!(f, "{millis}ms"),
            (seconds, millis) => write!(f, "{seconds}s{millis}ms"),
        }
    }
}

struct Joined<'a, T>(&'a [T], &'static str);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(items, separator) = self;
        for (position, item) in items.iter().enumerate() {
            let between = if position == 0 { "" } else { separator };
            write!(f, "{between}{item}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Ct, Field};

    #[test]
    fn operations_print_as_the_lines_that_nft_reads() {
        let table = Table::new(Family::Ip, "kproxy");
        let fronts = Set::map(
            &table,
            "front",
            Spec::types([Type::Ipv4Addr, Type::InetProto, Type::InetService]),
            Spec::types([Type::Mark]),
        );
        let key = [Value::Ipv4([172, 30, 0, 1].into()), Value::Protocol(6), Value::Port(80)];
        let element = Element::map(key, [Value::Mark(0x0030_0001)]);
        let is_new = Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW | Ct::STATE_RELATED));
        let mut rule =
            Rule::new(&table, "post", [is_new, Statement::not_in_set(Field::IpSaddr, "pods"), Statement::drop()]);
        rule.comment = Some("outside".into());
        for (op, line) in [
            (
                Op::AddSet(fronts.clone()),
                "add map ip kproxy front { type ipv4_addr . inet_proto . inet_service : mark; }",
            ),
            (
                Op::AddElements { set: fronts.clone(), elements: vec![element.clone()] },
                "add element ip kproxy front { 172.30.0.1 . tcp . 80 : 0x00300001 }",
            ),
            (
                Op::DelElements { set: fronts, elements: vec![element] },
                "delete element ip kproxy front { 172.30.0.1 . tcp . 80 }",
            ),
            (
                Op::AddRule(rule),
                "add rule ip kproxy post ct state related,new ip saddr != @pods drop comment \"outside\"",
            ),
            (Op::DelRule { table, chain: "post".into(), handle: 7 }, "delete rule ip kproxy post handle 7"),
        ] {
            assert_eq!(op.to_string(), line);
        }
    }
}
