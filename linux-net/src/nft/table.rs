//! Tables, chains, rules, sets and maps.

use std::time::Duration;

use super::{Expr, Statement};
use crate::{ip, name::IfName};

/// A table: a name for chains, sets and maps that belong together, in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
}

impl Table {
    /// Names a table.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6.
    Inet,
    /// Frames that cross a bridge.
    Bridge,
    /// All frames of one device.
    Netdev,
}

impl From<ip::Family> for Family {
    fn from(family: ip::Family) -> Self {
        match family {
            ip::Family::V4 => Self::Ip,
            ip::Family::V6 => Self::Ip6,
        }
    }
}

/// A list of rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// The table it is in.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Where the kernel calls it; `None` when only rules jump to it.
    pub hook: Option<Hook>,
}

impl Chain {
    /// A chain that rules jump to.
    #[must_use]
    pub fn regular(table: &Table, name: impl Into<String>) -> Self {
        Self { table: table.clone(), name: name.into(), hook: None }
    }

    /// A chain that the kernel calls.
    #[must_use]
    pub fn base(table: &Table, name: impl Into<String>, hook: Hook) -> Self {
        Self { table: table.clone(), name: name.into(), hook: Some(hook) }
    }
}

/// Where and when the kernel calls a base chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hook {
    /// What its rules are for.
    pub kind: ChainKind,
    /// The place in the kernel.
    pub at: HookPoint,
    /// The lower goes first.
    pub priority: Priority,
    /// What happens to a packet that comes to its end; accept when `None`.
    pub policy: Option<Policy>,
    /// The device, in family netdev.
    pub device: Option<IfName>,
}

/// What the rules of a base chain are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Accept, drop, mark.
    Filter,
    /// Address translation: sees the first packet of each connection only.
    Nat,
    /// Marks that change the route of packets made here.
    Route,
}

/// A place in the kernel where packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// As they come in, before routing.
    Prerouting,
    /// For this machine.
    Input,
    /// For another machine.
    Forward,
    /// Made here, after routing.
    Output,
    /// As they leave.
    Postrouting,
    /// As they come from the device (family netdev).
    Ingress,
}

/// The order among chains of one hook; the lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub i32);

impl Priority {
    /// `raw`, before connection tracking.
    pub const RAW: Self = Self(-300);
    /// `mangle`
    pub const MANGLE: Self = Self(-150);
    /// `dstnat`
    pub const DSTNAT: Self = Self(-100);
    /// `filter`
    pub const FILTER: Self = Self(0);
    /// `security`
    pub const SECURITY: Self = Self(50);
    /// `srcnat`
    pub const SRCNAT: Self = Self(100);
}

/// What happens to a packet that comes to the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It vanishes.
    Drop,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The table it is in.
    pub table: Table,
    /// The chain it is in.
    pub chain: String,
    /// What it does, in order.
    pub statements: Vec<Statement>,
    /// A remark that the kernel keeps, at most 128 bytes.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    #[must_use]
    pub fn new(table: &Table, chain: impl Into<String>, statements: impl Into<Vec<Statement>>) -> Self {
        Self { table: table.clone(), chain: chain.into(), statements: statements.into(), comment: None }
    }
}

/// A set, or, with [`Set::data`], a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// The table it is in.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// What its keys are.
    pub key: Spec,
    /// What its values are, when it is a map.
    pub data: Option<MapData>,
    /// Whether keys may be networks and ranges (`flags interval`).
    pub interval: bool,
    /// Whether rules may write elements (`flags dynamic`).
    pub dynamic: bool,
    /// How long elements live (`timeout`); `None`: for ever, unless they say otherwise themselves.
    pub timeout: Option<Duration>,
    /// How many elements fit (`size`); needed when `dynamic`. Of one that is not dynamic, the kernel makes a hash table of that size at once,
    /// which need not grow with the elements.
    pub size: Option<u32>,
    /// A remark for whoever reads the ruleset.
    pub comment: Option<String>,
}

impl Set {
    /// A set of keys.
    #[must_use]
    pub fn new(table: &Table, name: impl Into<String>, key: Spec) -> Self {
        Self {
            table: table.clone(),
            name: name.into(),
            key,
            data: None,
            interval: false,
            dynamic: false,
            timeout: None,
            size: None,
            comment: None,
        }
    }

    /// A map from keys to values.
    #[must_use]
    pub fn map(table: &Table, name: impl Into<String>, key: Spec, data: Spec) -> Self {
        Self { data: Some(MapData::Value(data)), ..Self::new(table, name, key) }
    }

    /// A map from keys to verdicts.
    #[must_use]
    pub fn verdict_map(table: &Table, name: impl Into<String>, key: Spec) -> Self {
        Self { data: Some(MapData::Verdict), ..Self::new(table, name, key) }
    }

    /// Lets keys be networks and ranges.
    #[must_use]
    pub fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    /// The same set with a remark, which `nft list` shows.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Lets it have at most `size` elements.
    #[must_use]
    pub fn sized(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    /// Lets rules write at most `size` elements, which live for `timeout`.
    #[must_use]
    pub fn dynamic(mut self, size: u32, timeout: Option<Duration>) -> Self {
        self.dynamic = true;
        self.size = Some(size);
        self.timeout = timeout;
        self
    }
}

/// What the keys or values of a set are: types, or expressions whose types they have. Several stand for a concatenation.
///
/// `integer` has no fixed size, so `nft` takes it by example only: `typeof numgen random mod 8`. Where keys are [`Spec::Typeof`], values must be too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spec {
    /// `type ipv4_addr . inet_service`
    Type(Vec<Type>),
    /// `typeof ip daddr . th dport`
    Typeof(Vec<Expr>),
}

impl Spec {
    /// One type or a concatenation.
    #[must_use]
    pub fn types(types: impl Into<Vec<Type>>) -> Self {
        Self::Type(types.into())
    }

    /// The types of expressions.
    #[must_use]
    pub fn type_of(exprs: impl Into<Vec<Expr>>) -> Self {
        Self::Typeof(exprs.into())
    }
}

/// What the values of a map are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapData {
    /// Values.
    Value(Spec),
    /// Verdicts.
    Verdict,
}

/// A type of `nft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `ether_addr`, 6 bytes.
    EtherAddr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `mark`, 4 bytes in the machine's own order.
    Mark,
    /// `ifname`, 16 bytes, filled with zeros.
    Ifname,
    /// `integer` of 4 bytes in the machine's own order, as numgen and jhash give it; declared by `typeof` only.
    Integer,
    /// `ct_state`, 4 bytes.
    CtState,
    /// `ct_status`, 4 bytes.
    CtStatus,
    /// `fib_addrtype`, 4 bytes.
    FibAddrtype,
}

impl Type {
    /// `ipv4_addr` or `ipv6_addr`.
    #[must_use]
    pub const fn address(family: ip::Family) -> Self {
        match family {
            ip::Family::V4 => Self::Ipv4Addr,
            ip::Family::V6 => Self::Ipv6Addr,
        }
    }
}
