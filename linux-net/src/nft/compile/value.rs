//! What an expression's value is like: how long, in which order, made of which fields.

use super::super::{
    Ct, Expr, FibResult, Field, Meta, Value,
    bytes::{Order, REGISTER_BYTES},
    constants::payload_place,
};

impl Expr {
    /// Returns the length of the value; `None` when only the place where it is used tells.
    pub(super) fn bytes(&self) -> Option<usize> {
        match self {
            Self::Payload(field) => Some(payload_place(*field).2 as usize),
            Self::Meta(Meta::L4proto | Meta::Nfproto | Meta::Nftrace) | Self::Ct(Ct::Direction) => Some(1),
            Self::Meta(Meta::Iifname | Meta::Oifname) | Self::Fib { result: FibResult::Oifname, .. } => Some(16),
            Self::Meta(Meta::Mark)
            | Self::Ct(Ct::State | Ct::Status | Ct::Mark)
            | Self::Fib { result: FibResult::Type, .. }
            | Self::Numgen { .. }
            | Self::Jhash { .. }
            | Self::Symhash { .. } => Some(4),
            Self::Concat(parts) => parts.iter().map(|part| Some(part.bytes()?.next_multiple_of(REGISTER_BYTES))).sum(),
            Self::And(of, _) | Self::Or(of, _) | Self::Xor(of, _) => of.bytes(),
            Self::Const(value) => constant_bytes(value),
            Self::Map { .. } => None,
        }
    }

    pub(super) fn order(&self) -> Order {
        match self {
            Self::Payload(_) => Order::Big,
            Self::And(of, _) | Self::Or(of, _) | Self::Xor(of, _) => of.order(),
            Self::Meta(_)
            | Self::Ct(_)
            | Self::Fib { .. }
            | Self::Numgen { .. }
            | Self::Jhash { .. }
            | Self::Symhash { .. }
            | Self::Concat(_)
            | Self::Map { .. }
            | Self::Const(_) => Order::Host,
        }
    }

    pub(super) fn is_simple(&self) -> bool {
        !matches!(self, Self::Map { .. } | Self::And(..) | Self::Or(..) | Self::Xor(..) | Self::Concat(_))
    }

    /// Collects the fields of the packet that the value depends on.
    pub(super) fn fields(&self, out: &mut Vec<Field>) {
        match self {
            Self::Payload(field) => out.push(*field),
            Self::Concat(parts) => parts.iter().for_each(|part| part.fields(out)),
            Self::Map { key, .. } => key.fields(out),
            Self::Jhash { of, .. } | Self::And(of, _) | Self::Or(of, _) | Self::Xor(of, _) => of.fields(out),
            Self::Meta(_)
            | Self::Ct(_)
            | Self::Fib { .. }
            | Self::Numgen { .. }
            | Self::Symhash { .. }
            | Self::Const(_) => {}
        }
    }
}

fn constant_bytes(value: &Value) -> Option<usize> {
    match value {
        Value::Ipv6(_) | Value::Ipv6Net(_) | Value::IfName(_) | Value::IfNamePrefix(_) => Some(16),
        Value::Protocol(_) => Some(1),
        Value::Port(_) | Value::PortRange(..) => Some(2),
        Value::Mac(_) => Some(6),
        Value::Ipv4(_)
        | Value::Ipv4Net(_)
        | Value::Mark(_)
        | Value::CtState(_)
        | Value::CtStatus(_)
        | Value::FibType(_) => Some(4),
        Value::Integer(_) => None,
    }
}
