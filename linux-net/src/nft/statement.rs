//! Statements: what a rule does, one after the other, until one does not match or is a verdict.

use std::time::Duration;

use super::{Ct, Expr, Family, Meta, Value};

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Statement {
    /// Goes on when the comparison holds: `ip daddr != 127.0.0.0/8`.
    Match {
        /// What is compared.
        left: Expr,
        /// How.
        op: CmpOp,
        /// With what.
        right: Value,
    },
    /// Goes on when `key` is in the set: `ip daddr @vips`, or, with `negate`, when it is not: `ip saddr != @pods`.
    InSet {
        /// What is looked for.
        key: Expr,
        /// The set's name, in the rule's table.
        set: String,
        /// Whether it must not be there.
        negate: bool,
    },
    /// Does what a verdict map says of `key`; goes on when it says nothing: `ct mark vmap @class`.
    Vmap {
        /// What is looked for.
        key: Expr,
        /// The map's name, in the rule's table.
        map: String,
    },
    /// Sets something about the packet: `meta mark set …`.
    SetMeta {
        /// What is set.
        key: Meta,
        /// To what.
        value: Expr,
    },
    /// Sets something about the connection: `ct mark set …`.
    SetCt {
        /// What is set.
        key: Ct,
        /// To what.
        value: Expr,
    },
    /// Rewrites the destination of the connection: `dnat ip to …`.
    Dnat {
        /// [`Family::Ip`] or [`Family::Ip6`].
        family: Family,
        /// The new destination.
        to: NatTarget,
    },
    /// Rewrites the source of the connection: `snat ip to …`.
    Snat {
        /// [`Family::Ip`] or [`Family::Ip6`].
        family: Family,
        /// The new source.
        to: NatTarget,
    },
    /// Rewrites the source of the connection to an address of the interface it leaves by.
    Masquerade(MasqueradeFlags),
    /// Drops the packet and tells the sender.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
    /// Writes an element into a dynamic set or map: `update @aff { ip saddr : ip daddr }`.
    Update {
        /// Whether an element that is there gets a new life.
        kind: UpdateKind,
        /// The set's name, in the rule's table.
        set: String,
        /// The element's key.
        key: Expr,
        /// What it stands for, in a map.
        data: Option<Expr>,
        /// How long it lives; as long as the set says when `None`.
        timeout: Option<Duration>,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

impl Statement {
    /// `left == right`, which `nft` writes without an operator.
    #[must_use]
    pub fn equal(left: impl Into<Expr>, right: Value) -> Self {
        Self::Match { left: left.into(), op: CmpOp::Eq, right }
    }

    /// `left != right`
    #[must_use]
    pub fn differs(left: impl Into<Expr>, right: Value) -> Self {
        Self::Match { left: left.into(), op: CmpOp::Ne, right }
    }

    /// `key @set`
    #[must_use]
    pub fn in_set(key: impl Into<Expr>, set: impl Into<String>) -> Self {
        Self::InSet { key: key.into(), set: set.into(), negate: false }
    }

    /// `key != @set`
    #[must_use]
    pub fn not_in_set(key: impl Into<Expr>, set: impl Into<String>) -> Self {
        Self::InSet { key: key.into(), set: set.into(), negate: true }
    }

    /// `jump chain`
    #[must_use]
    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Jump(chain.into()))
    }

    /// `goto chain`
    #[must_use]
    pub fn goto(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Goto(chain.into()))
    }

    /// `accept`
    #[must_use]
    pub fn accept() -> Self {
        Self::Verdict(Verdict::Accept)
    }

    /// `drop`
    #[must_use]
    pub fn drop() -> Self {
        Self::Verdict(Verdict::Drop)
    }

    /// `return`
    #[must_use]
    pub fn ret() -> Self {
        Self::Verdict(Verdict::Return)
    }
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CmpOp {
    /// Equal; for [`Value::CtState`] and [`Value::CtStatus`]: one of the bits is set.
    Eq,
    /// Not equal; for bits: none of them is set.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// What an address is rewritten to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatTarget {
    /// An address; the port stays.
    Address(Expr),
    /// An address and a port: a map whose values are `ipv4_addr . inet_service`, or a [`Expr::Concat`] of two constants.
    AddressAndPort(Expr),
}

/// How `masquerade` picks the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasqueradeFlags {
    /// `random`: by a hash of the addresses.
    pub random: bool,
    /// `fully-random`: by a random number, which avoids clashes between parallel connections.
    pub fully_random: bool,
    /// `persistent`: the same address for all connections of a client.
    pub persistent: bool,
}

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// A TCP RST; the rule must match TCP before.
    TcpReset,
    /// ICMP "port unreachable", what plain `reject` means.
    PortUnreachable,
    /// ICMP "host unreachable".
    HostUnreachable,
    /// ICMP "administratively prohibited".
    AdminProhibited,
}

/// What `update`, `add` and `delete` in a rule do to a dynamic set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpdateKind {
    /// Adds the element when it is not there.
    Add,
    /// Adds the element, or starts its timeout again.
    Update,
    /// Deletes the element.
    Delete,
}

/// Where a packet goes next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It leaves this hook's chain and goes on.
    Accept,
    /// It vanishes.
    Drop,
    /// It goes on with the next rule.
    Continue,
    /// It goes on after the jump that led here; at a base chain, to the policy.
    Return,
    /// It goes through a chain and comes back.
    Jump(String),
    /// It goes through a chain and does not come back.
    Goto(String),
}
