//! Types as the kernel sees them: so many bytes, in one of two orders.
//!
//! What comes from the packet is big-endian; what the kernel makes itself (marks, states, numbers) is in the machine's own order.
//! In a concatenation every component is padded to a register of four bytes:
//!
//! ```text
//!   ipv4_addr . inet_proto . inet_service
//! | ac 1e 00 01 | 06 00 00 00 | 00 50 00 00 |      172.30.0.1 . tcp . 80
//! ```
//!
//! Source: nftables `include/datatype.h` (`enum datatypes`, `TYPE_BITS`), `src/netlink.c`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{Expr, Set, Spec, Type, Value};
use crate::{
    error::{Error, Result},
    name::{IfName, MacAddr},
};

/// The size of a register, to which components of a concatenation are padded.
pub(super) const REGISTER_BYTES: usize = 4; // NFT_REG32_SIZE

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The network's.
    Big,
    /// The machine's own.
    Host,
}

impl Type {
    /// Returns the number by which `nft` knows the type again; a concatenation has 6 bits for each component.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::CtState => 26,
            Self::CtStatus => 28,
            Self::FibAddrtype => 38,
            Self::Ifname => 41,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::Integer | Self::CtState | Self::CtStatus | Self::FibAddrtype => 4,
            Self::EtherAddr => 6,
            Self::Ipv6Addr | Self::Ifname => 16,
        }
    }

    pub(super) fn order(self) -> Order {
        match self {
            Self::Ipv4Addr | Self::Ipv6Addr | Self::EtherAddr | Self::InetProto | Self::InetService => Order::Big,
            // A name is not a number; `nft` files it under "host".
            Self::Mark | Self::Integer | Self::CtState | Self::CtStatus | Self::FibAddrtype | Self::Ifname => {
                Order::Host
            }
        }
    }

    pub(super) fn registers(self) -> usize {
        self.bytes().div_ceil(REGISTER_BYTES)
    }
}

impl Spec {
    /// Returns the type of each component.
    pub(super) fn components(&self) -> Result<Vec<Type>> {
        match self {
            Self::Type(types) => Ok(types.clone()),
            Self::Typeof(exprs) => exprs.iter().map(Expr::declared_type).collect(),
        }
    }

    /// Returns the number and the length in bytes of the whole.
    pub(super) fn id_and_bytes(&self) -> Result<(u32, usize)> {
        let components = self.components()?;
        if let [single] = components[..] {
            return Ok((single.id(), single.bytes()));
        }
        let id = components.iter().fold(0, |id, component| id << TYPE_BITS | component.id());
        Ok((id, components.iter().map(|component| component.registers() * REGISTER_BYTES).sum()))
    }
}

const TYPE_BITS: u32 = 6;

impl Set {
    /// Says whether keys are ranges in several dimensions at once. The kernel compares those byte by byte, so that all of their
    /// components are big-endian, marks too.
    pub(super) fn is_ranged_concatenation(&self) -> Result<bool> {
        Ok(self.interval && self.key.components()?.len() > 1)
    }
}

/// Appends the bytes of one constant; `order` is that of numbers which have none of their own.
pub(super) fn append(value: &Value, order: Order, out: &mut Vec<u8>) {
    match value {
        Value::Ipv4(address) => out.extend(address.octets()),
        Value::Ipv6(address) => out.extend(address.octets()),
        Value::Ipv4Net(net) => out.extend(net.network().octets()),
        Value::Ipv6Net(net) => out.extend(net.network().octets()),
        Value::Protocol(number) => out.push(*number),
        Value::Port(port) | Value::PortRange(port, _) => out.extend(port.to_be_bytes()),
        Value::Mark(number)
        | Value::Integer(number)
        | Value::CtState(number)
        | Value::CtStatus(number)
        | Value::FibType(number) => match order {
            Order::Big => out.extend(number.to_be_bytes()),
            Order::Host => out.extend(number.to_ne_bytes()),
        },
        Value::IfName(name) => out.extend(interface_name(name)),
        // Compared over its own length, it agrees with every name that begins so.
        Value::IfNamePrefix(prefix) => out.extend(prefix.as_str().as_bytes()),
        Value::Mac(mac) => out.extend(mac.octets()),
    }
}

/// Returns the greatest value of a constant that stands for many; for one that stands for itself, that.
pub(super) fn last(value: &Value) -> Value {
    match value {
        Value::Ipv4Net(net) => Value::Ipv4(net.broadcast()),
        Value::Ipv6Net(net) => Value::Ipv6(net.broadcast()),
        Value::PortRange(_, last) => Value::Port(*last),
        other => other.clone(),
    }
}

fn interface_name(name: &IfName) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    bytes
}

/// Pads what was appended since `start` to whole registers.
pub(super) fn pad(start: usize, out: &mut Vec<u8>) {
    out.resize(start + (out.len() - start).next_multiple_of(REGISTER_BYTES), 0);
}

/// Says whether a constant can be a component of that type.
pub(super) fn fits(value: &Value, component: Type) -> bool {
    match value {
        Value::Ipv4(_) | Value::Ipv4Net(_) => component == Type::Ipv4Addr,
        Value::Ipv6(_) | Value::Ipv6Net(_) => component == Type::Ipv6Addr,
        Value::Protocol(_) => component == Type::InetProto,
        Value::Port(_) | Value::PortRange(..) => component == Type::InetService,
        Value::Mark(_) => component == Type::Mark,
        Value::Integer(_) => component == Type::Integer,
        Value::IfName(_) | Value::IfNamePrefix(_) => component == Type::Ifname,
        Value::Mac(_) => component == Type::EtherAddr,
        Value::CtState(_) => component == Type::CtState,
        Value::CtStatus(_) => component == Type::CtStatus,
        Value::FibType(_) => component == Type::FibAddrtype,
    }
}

/// Appends a key or a value of several components, each checked against its type.
pub(super) fn append_all(values: &[Value], components: &[Type], ranged: bool, out: &mut Vec<u8>) -> Result<()> {
    let mismatch = |reason| Error::Invalid { what: "element", value: format!("{values:?}"), reason };
    if values.len() != components.len() {
        return Err(mismatch("it has another number of components than the set was declared with"));
    }
    for (value, component) in values.iter().zip(components) {
        if !fits(value, *component) {
            return Err(mismatch("a component has another type than the set was declared with"));
        }
        let start = out.len();
        append(value, if ranged { Order::Big } else { component.order() }, out);
        if components.len() > 1 {
            pad(start, out);
        }
    }
    Ok(())
}

/// Reads the constants of a key or a value back.
pub(super) fn read_all(bytes: &[u8], components: &[Type], ranged: bool) -> Option<Vec<Value>> {
    let mut rest = bytes;
    let mut values = Vec::with_capacity(components.len());
    for component in components {
        let value = rest.get(..component.bytes())?;
        values.push(read(value, *component, if ranged { Order::Big } else { component.order() })?);
        let taken = if components.len() > 1 { component.registers() * REGISTER_BYTES } else { component.bytes() };
        rest = rest.get(taken..).unwrap_or_default();
    }
    Some(values)
}

fn read(bytes: &[u8], component: Type, order: Order) -> Option<Value> {
    let number = || {
        let bytes = bytes.try_into().ok()?;
        Some(if order == Order::Big { u32::from_be_bytes(bytes) } else { u32::from_ne_bytes(bytes) })
    };
    Some(match component {
        Type::Ipv4Addr => Value::Ipv4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        Type::Ipv6Addr => Value::Ipv6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        Type::EtherAddr => Value::Mac(MacAddr(bytes.try_into().ok()?)),
        Type::InetProto => Value::Protocol(*bytes.first()?),
        Type::InetService => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        Type::Mark => Value::Mark(number()?),
        Type::Integer => Value::Integer(number()?),
        Type::CtState => Value::CtState(number()?),
        Type::CtStatus => Value::CtStatus(number()?),
        Type::FibAddrtype => Value::FibType(number()?),
        Type::Ifname => {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            Value::IfName(IfName::new(String::from_utf8_lossy(&bytes[..end])).ok()?)
        }
    })
}

/// Returns the constant that stands for everything from `first` to `last`; `None` when there is no such constant.
pub(super) fn join(first: &Value, last: &Value) -> Option<Value> {
    if first == last {
        return Some(first.clone());
    }
    match (first, last) {
        (Value::Ipv4(first), Value::Ipv4(last)) => {
            let prefix_len = (first.to_bits() ^ last.to_bits()).leading_zeros();
            let net = Ipv4Net::new(*first, u8::try_from(prefix_len).ok()?).ok()?;
            (net.network() == *first && net.broadcast() == *last).then_some(Value::Ipv4Net(net))
        }
        (Value::Ipv6(first), Value::Ipv6(last)) => {
            let prefix_len = (first.to_bits() ^ last.to_bits()).leading_zeros();
            let net = Ipv6Net::new(*first, u8::try_from(prefix_len).ok()?).ok()?;
            (net.network() == *first && net.broadcast() == *last).then_some(Value::Ipv6Net(net))
        }
        (Value::Port(first), Value::Port(last)) => Some(Value::PortRange(*first, *last)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concatenation_is_padded_component_by_component() {
        let key = [Value::Ipv4(Ipv4Addr::new(172, 30, 0, 1)), Value::Protocol(6), Value::Port(80)];
        let types = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
        let mut bytes = Vec::new();
        append_all(&key, &types, false, &mut bytes).unwrap();
        assert_eq!(bytes, [172, 30, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(read_all(&bytes, &types, false).unwrap(), key);
        assert_eq!(Spec::types(types).id_and_bytes().unwrap(), (0x730d, 12), "as nft numbers it");
    }

    #[test]
    fn a_mark_has_the_machines_order_but_in_a_ranged_concatenation() {
        let key = [Value::Mark(0xb010_0003), Value::Ipv4(Ipv4Addr::new(192, 168, 77, 0))];
        let types = [Type::Mark, Type::Ipv4Addr];
        for ranged in [false, true] {
            let mut bytes = Vec::new();
            append_all(&key, &types, ranged, &mut bytes).unwrap();
            let mark = if ranged { 0xb010_0003_u32.to_be_bytes() } else { 0xb010_0003_u32.to_ne_bytes() };
            assert_eq!(bytes[..4], mark);
            assert_eq!(read_all(&bytes, &types, ranged).unwrap(), key);
        }
    }

    #[test]
    fn an_element_of_other_types_than_the_set_is_refused() {
        let types = [Type::Ipv4Addr, Type::InetService];
        let address = Value::Ipv4(Ipv4Addr::LOCALHOST);
        for wrong in [vec![address.clone()], vec![address.clone(), Value::Protocol(6)]] {
            let error = append_all(&wrong, &types, false, &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("declared with"), "{error}");
        }
    }

    #[test]
    fn a_range_that_is_a_network_reads_back_as_one() {
        let ip = |a, b, c, d| Value::Ipv4(Ipv4Addr::new(a, b, c, d));
        assert_eq!(join(&ip(10, 0, 0, 0), &ip(10, 255, 255, 255)), Some(Value::Ipv4Net("10.0.0.0/8".parse().unwrap())));
        assert_eq!(join(&ip(10, 0, 0, 0), &ip(10, 0, 0, 2)), None);
        assert_eq!(join(&Value::Port(80), &Value::Port(89)), Some(Value::PortRange(80, 89)));
    }
}
