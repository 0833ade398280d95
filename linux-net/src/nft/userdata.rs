//! What `nft` writes beside a set for its own use: the kernel keeps it, and `nft list` needs it.
//!
//! The kernel knows a key as so many bytes. In what order they are (without which marks list byte-swapped), and of which
//! expressions the types were taken, stands in the set's user data, as a list of attributes, each with one byte for its
//! kind and one for its length. Those with a `typeof` contain lists themselves:
//!
//! ```text
//! 00 04 <order of keys>  01 04 <order of values>  03 LL <typeof of keys>  04 LL <typeof of values>  06 04 <values are ranges>
//!                                                    └ 00 04 <kind of expression>  01 LL <its arguments>
//! ```
//!
//! Source: nftables `src/mnl.c` (`mnl_nft_set_add`), `src/payload.c`, `src/ct.c`, …; the numbers were read from sets that nft 1.0.6 had made.

use super::{
    Ct, Expr, FibAddress, FibResult, Field, MapData, Meta, NumgenMode, Set, Spec, Type,
    bytes::Order,
    constants::{ct_key, fib_flags, fib_result, meta_key},
};
use crate::error::{Error, Result};

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const DATA_INTERVAL: u8 = 6;
const SET_COMMENT: u8 = 7;
const TYPEOF_EXPR: u8 = 0;
const TYPEOF_DATA: u8 = 1;

// enum expr_types of nftables.
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CT: u32 = 12;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;
const EXPR_FIB: u32 = 26;

/// Returns the user data of a set.
pub(super) fn of_set(set: &Set) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    number(KEY_BYTE_ORDER, order_of(&set.key)?, &mut out);
    match &set.data {
        None => type_of(KEY_TYPEOF, &set.key, &mut out)?,
        Some(MapData::Verdict) => {
            number(DATA_BYTE_ORDER, 0, &mut out);
            type_of(KEY_TYPEOF, &set.key, &mut out)?;
            number(DATA_INTERVAL, 0, &mut out);
        }
        Some(MapData::Value(data)) => {
            number(DATA_BYTE_ORDER, order_of(data)?, &mut out);
            type_of(KEY_TYPEOF, &set.key, &mut out)?;
            if matches!(data, Spec::Typeof(_)) {
                type_of(DATA_TYPEOF, data, &mut out)?;
            }
            number(DATA_INTERVAL, 0, &mut out);
        }
    }
    if let Some(comment) = &set.comment {
        text(SET_COMMENT, comment, &mut out)?;
    }
    Ok(out)
}

/// Returns the user data of a rule or an element: its comment.
pub(super) fn of_comment(comment: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    text(0, comment, &mut out)?;
    Ok(out)
}

fn text(kind: u8, comment: &str, out: &mut Vec<u8>) -> Result<()> {
    if comment.len() > 127 {
        return Err(Error::Invalid {
            what: "comment",
            value: comment.to_owned(),
            reason: "it is longer than 127 bytes",
        });
    }
    attribute(kind, out, |out| {
        out.extend(comment.as_bytes());
        out.push(0);
    });
    Ok(())
}

/// Returns the comment in the user data of a rule or an element.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*data.first()?, usize::from(*data.get(1)?));
        let value = data.get(2..2 + length)?;
        if kind == 0 {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        data = &data[2 + length..];
    }
}

/// Returns the number of `enum byteorder`: 0 none, 1 the machine's own, 2 big-endian.
fn order_of(spec: &Spec) -> Result<u32> {
    let components = spec.components()?;
    let [single] = components[..] else { return Ok(0) };
    Ok(match (spec, single) {
        // `nft` takes a number of one byte to have no order, unless it comes from a place that has one.
        (Spec::Type(_), Type::InetProto) => 0,
        (Spec::Typeof(exprs), Type::InetProto) if exprs == &[Expr::Meta(Meta::L4proto)] => 1,
        _ => match single.order() {
            Order::Host => 1,
            Order::Big => 2,
        },
    })
}

fn type_of(kind: u8, spec: &Spec, out: &mut Vec<u8>) -> Result<()> {
    match spec {
        // A concatenation of types leaves the shell of one.
        Spec::Type(types) if types.len() > 1 => {
            attribute(kind, out, |out| {
                number(TYPEOF_EXPR, EXPR_CONCAT, out);
                attribute(TYPEOF_DATA, out, |_| {});
            });
            Ok(())
        }
        Spec::Type(_) => Ok(()),
        Spec::Typeof(exprs) => {
            if let [single] = exprs.as_slice() {
                return expression(kind, single, out);
            }
            let mut failed = Ok(());
            attribute(kind, out, |out| {
                number(TYPEOF_EXPR, EXPR_CONCAT, out);
                attribute(TYPEOF_DATA, out, |out| {
                    failed = (0..).zip(exprs).try_for_each(|(position, expr)| expression(position, expr, out));
                });
            });
            failed
        }
    }
}

fn expression(kind: u8, expr: &Expr, out: &mut Vec<u8>) -> Result<()> {
    let (number_of_expr, arguments): (u32, Vec<u32>) = match expr {
        Expr::Payload(field) => {
            let (protocol, place) = payload(*field);
            (EXPR_PAYLOAD, vec![protocol, place])
        }
        Expr::Meta(key) => (EXPR_META, vec![meta_key(*key)]),
        Expr::Ct(key) => (EXPR_CT, vec![ct_key(*key), u32::MAX]), // no direction
        Expr::Fib { address, result } => (EXPR_FIB, vec![fib_result(*result), fib_flags(*address)]),
        Expr::Numgen { mode, modulus, offset } => {
            let mode = match mode {
                NumgenMode::Incremental => 0,
                NumgenMode::Random => 1,
            };
            (EXPR_NUMGEN, vec![mode, *modulus, *offset])
        }
        other => return Err(other.not_a_declaration()),
    };
    attribute(kind, out, |out| {
        number(TYPEOF_EXPR, number_of_expr, out);
        attribute(TYPEOF_DATA, out, |out| {
            for (position, argument) in (0..).zip(arguments) {
                number(position, argument, out);
            }
        });
    });
    Ok(())
}

/// Returns the numbers of the protocol (`enum proto_desc_id`) and of the field in it.
fn payload(field: Field) -> (u32, u32) {
    const UDP: u32 = 6;
    const TCP: u32 = 8;
    const TH: u32 = 11;
    const IP: u32 = 12;
    const IP6: u32 = 13;
    const ETHER: u32 = 17;
    match field {
        Field::IpProtocol => (IP, 9),
        Field::IpChecksum => (IP, 10),
        Field::IpSaddr => (IP, 11),
        Field::IpDaddr => (IP, 12),
        Field::Ip6Saddr => (IP6, 8),
        Field::Ip6Daddr => (IP6, 9),
        Field::ThSport => (TH, 1),
        Field::ThDport => (TH, 2),
        Field::TcpSport => (TCP, 1),
        Field::TcpDport => (TCP, 2),
        Field::UdpSport => (UDP, 1),
        Field::UdpDport => (UDP, 2),
        Field::EtherDaddr => (ETHER, 1),
        Field::EtherSaddr => (ETHER, 2),
    }
}

fn number(kind: u8, value: u32, out: &mut Vec<u8>) {
    attribute(kind, out, |out| out.extend(value.to_ne_bytes()));
}

/// Appends an attribute whose value `fill` appends.
fn attribute(kind: u8, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend([kind, 0]);
    let start = out.len();
    fill(out);
    let length = out.len() - start;
    out[start - 1] = u8::try_from(length).expect("fifteen registers of keys are described in less than 256 bytes");
}

impl Expr {
    /// Returns the type that a set declared by `typeof` this expression has.
    pub(super) fn declared_type(&self) -> Result<Type> {
        Ok(match self {
            Self::Payload(field) => match field {
                Field::IpSaddr | Field::IpDaddr => Type::Ipv4Addr,
                Field::Ip6Saddr | Field::Ip6Daddr => Type::Ipv6Addr,
                Field::IpProtocol => Type::InetProto,
                Field::ThSport
                | Field::ThDport
                | Field::TcpSport
                | Field::TcpDport
                | Field::UdpSport
                | Field::UdpDport => Type::InetService,
                Field::EtherSaddr | Field::EtherDaddr => Type::EtherAddr,
                Field::IpChecksum => return Err(self.not_a_declaration()),
            },
            Self::Meta(Meta::L4proto) => Type::InetProto,
            Self::Meta(Meta::Mark) | Self::Ct(Ct::Mark) => Type::Mark,
            Self::Meta(Meta::Iifname | Meta::Oifname) => Type::Ifname,
            Self::Ct(Ct::State) => Type::CtState,
            Self::Ct(Ct::Status) => Type::CtStatus,
            Self::Fib { result: FibResult::Type, address: FibAddress::Saddr | FibAddress::Daddr } => Type::FibAddrtype,
            Self::Numgen { .. } => Type::Integer,
            _ => return Err(self.not_a_declaration()),
        })
    }

    /// nft 1.0.6 itself crashes when it lists a set that was declared by `typeof jhash`.
    pub(super) fn not_a_declaration(&self) -> Error {
        Error::Invalid {
            what: "expression",
            value: self.to_string(),
            reason: "nft lists no set that is declared by its type; for a hash, take typeof numgen random mod 65536",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Family, Table};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn user_data_is_what_nft_writes() {
        let table = Table::new(Family::Ip, "kproxy");
        let key = [Type::Ipv4Addr, Type::InetProto, Type::InetService];
        let front = Set::map(&table, "front", Spec::types(key), Spec::types([Type::Mark]));
        assert_eq!(hex(&of_set(&front).unwrap()), "000400000000010401000000030800040d0000000100060400000000");
        let random = Expr::Numgen { mode: NumgenMode::Random, modulus: 65536, offset: 0 };
        let eps = Set::map(
            &table,
            "eps",
            Spec::type_of([Ct::Mark.into(), Meta::L4proto.into(), random]),
            Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
        );
        assert_eq!(
            hex(&of_set(&eps).unwrap()),
            "000400000000010400000000034a00040d0000000142001400040c000000010c0004030000000104ffffffff\
             010e0004090000000106000410000000021a0004170000000112000401000000010400000100020400000000\
             043400040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c0004\
             0b000000010402000000060400000000"
        );
        let pods = Set::new(&table, "pods", Spec::types([Type::Ipv4Addr])).interval();
        assert_eq!(hex(&of_set(&pods).unwrap()), "000402000000");
    }

    #[test]
    fn a_comment_reads_as_it_was_written() {
        assert_eq!(comment(&of_comment("why it is here").unwrap()).as_deref(), Some("why it is here"));
        assert!(of_comment(&"x".repeat(128)).is_err());
    }
}
