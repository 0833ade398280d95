//! The ruleset as text for `nft -f`.
//!
//! Each operation is one line, which a student can type after `nft`. `nft list ruleset` prints the same things, grouped
//! by table, and leaves out what it can infer.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{
    Batch, Chain, ChainKind, CmpOp, Ct, Data, Element, Expr, Family, FibAddress, FibResult, Field, Hook, HookPoint,
    MapData, MasqueradeFlags, Meta, NatTarget, NumgenMode, Op, Policy, Reject, Rule, Set, Spec, Statement, Table, Type,
    UpdateKind, Value, Verdict,
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
            Self::DelRule { table, chain, handle } => write!(f, "delete rule {table} {chain} handle {handle}"),
            Self::AddSet(set) => write!(f, "add {set}"),
            Self::FlushSet { table, set } => write!(f, "flush set {table} {set}"),
            Self::DelSet { table, set } => write!(f, "delete set {table} {set}"),
            Self::AddElements { set, elements } => {
                write!(f, "add element {} {} {{ {} }}", set.table, set.name, Joined(elements, ", "))
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

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(address) => write!(f, "{address}"),
            Self::Ipv4Net(net) => write!(f, "{net}"),
            Self::Ipv6(address) => write!(f, "{address}"),
            Self::Ipv6Net(net) => write!(f, "{net}"),
            Self::Protocol(1) => f.write_str("icmp"),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(58) => f.write_str("ipv6-icmp"),
            Self::Protocol(132) => f.write_str("sctp"),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::PortRange(first, last) => write!(f, "{first}-{last}"),
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::CtState(bits) => write_bits(
                f,
                *bits,
                &[
                    (Ct::STATE_INVALID, "invalid"),
                    (Ct::STATE_ESTABLISHED, "established"),
                    (Ct::STATE_RELATED, "related"),
                    (Ct::STATE_NEW, "new"),
                    (Ct::STATE_UNTRACKED, "untracked"),
                ],
            ),
            Self::CtStatus(bits) => write_bits(
                f,
                *bits,
                &[
                    (Ct::STATUS_SEEN_REPLY, "seen-reply"),
                    (Ct::STATUS_ASSURED, "assured"),
                    (Ct::STATUS_CONFIRMED, "confirmed"),
                    (Ct::STATUS_SNAT, "snat"),
                    (Ct::STATUS_DNAT, "dnat"),
                ],
            ),
            Self::FibType(1) => f.write_str("unicast"),
            Self::FibType(2) => f.write_str("local"),
            Self::FibType(3) => f.write_str("broadcast"),
            Self::FibType(5) => f.write_str("multicast"),
            Self::FibType(6) => f.write_str("blackhole"),
            Self::FibType(number) => write!(f, "{number}"),
        }
    }
}

/// Writes the names of bits; one without a name makes it a number.
fn write_bits(f: &mut Formatter<'_>, bits: u32, names: &[(u32, &str)]) -> fmt::Result {
    let named = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !named != 0 {
        return write!(f, "{bits:#x}");
    }
    let words: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    f.write_str(&words.join(","))
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

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload(field) => f.write_str(field.words()),
            Self::Meta(key @ (Meta::Iifname | Meta::Oifname)) => f.write_str(key.word()),
            Self::Meta(key) => write!(f, "meta {}", key.word()),
            Self::Ct(key) => write!(f, "ct {}", key.word()),
            Self::Fib { address, result } => {
                let address = match address {
                    FibAddress::Saddr => "saddr",
                    FibAddress::Daddr => "daddr",
                };
                let result = match result {
                    FibResult::Type => "type",
                    FibResult::Oifname => "oifname",
                };
                write!(f, "fib {address} {result}")
            }
            Self::Numgen { mode, modulus, offset } => {
                let mode = match mode {
                    NumgenMode::Random => "random",
                    NumgenMode::Incremental => "inc",
                };
                write!(f, "numgen {mode} mod {modulus}{}", Offset(*offset))
            }
            Self::Jhash { of, modulus, seed, offset } => {
                write!(f, "jhash {of} mod {modulus}")?;
                if let Some(seed) = seed {
                    write!(f, " seed {seed:#x}")?;
                }
                write!(f, "{}", Offset(*offset))
            }
            Self::Symhash { modulus, offset } => write!(f, "symhash mod {modulus}{}", Offset(*offset)),
            Self::Concat(parts) => write!(f, "{}", Joined(parts, " . ")),
            Self::Map { key, map } => write!(f, "{key} map @{map}"),
            Self::And(of, mask) => write!(f, "{of} & {mask:#010x}"),
            Self::Or(of, bits) => write!(f, "{of} | {bits:#010x}"),
            Self::Xor(of, bits) => write!(f, "{of} ^ {bits:#010x}"),
            Self::Const(value) => write!(f, "{value}"),
        }
    }
}

impl Field {
    fn words(self) -> &'static str {
        match self {
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::IpProtocol => "ip protocol",
            Self::IpChecksum => "ip checksum",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::ThSport => "th sport",
            Self::ThDport => "th dport",
            Self::TcpSport => "tcp sport",
            Self::TcpDport => "tcp dport",
            Self::UdpSport => "udp sport",
            Self::UdpDport => "udp dport",
            Self::EtherSaddr => "ether saddr",
            Self::EtherDaddr => "ether daddr",
        }
    }
}

impl Meta {
    fn word(self) -> &'static str {
        match self {
            Self::L4proto => "l4proto",
            Self::Nfproto => "nfproto",
            Self::Mark => "mark",
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::Nftrace => "nftrace",
        }
    }
}

impl Ct {
    fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Status => "status",
            Self::Mark => "mark",
            Self::Direction => "direction",
        }
    }
}

struct Offset(u32);

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " offset {}", self.0) }
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
