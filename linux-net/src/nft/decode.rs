//! From the kernel's messages to tables, chains, rules and elements.

use nftnl_sys as sys;

use super::{
    Chain, ChainInfo, Data, Element, Hook, MapData, Policy, Priority, RuleInfo, Set, SetInfo, Table, Value, Verdict,
    bytes,
    constants::{
        NF_ACCEPT, NF_DROP, NFT_CONTINUE, NFT_GOTO, NFT_JUMP, NFT_RETURN, NFT_SET_CONCAT, NFT_SET_ELEM_INTERVAL_END,
        NFT_SET_MAP, chain_kind_of, family_of, hook_of,
    },
    ffi::{ChainObject, ElementRef, RuleObject, SetObject, TableObject},
    userdata,
};
use crate::{
    error::{Error, Result},
    name::IfName,
};

pub(super) fn malformed(reason: &str) -> Error {
    Error::Malformed { what: "an nftables message", reason: reason.to_owned() }
}

pub(super) fn table(message: &[u8]) -> Option<Table> {
    let object = TableObject::parse(message)?;
    let family = family_of(object.get_u32(sys::NFTNL_TABLE_FAMILY)?)?;
    Some(Table { family, name: object.get_str(sys::NFTNL_TABLE_NAME)? })
}

pub(super) fn chain(message: &[u8]) -> Option<(Table, ChainInfo)> {
    let object = ChainObject::parse(message)?;
    let family = family_of(object.get_u32(sys::NFTNL_CHAIN_FAMILY)?)?;
    let table = Table { family, name: object.get_str(sys::NFTNL_CHAIN_TABLE)? };
    let hook = object.get_u32(sys::NFTNL_CHAIN_HOOKNUM).and_then(|number| {
        let policy = object.get_u32(sys::NFTNL_CHAIN_POLICY);
        Some(Hook {
            kind: chain_kind_of(&object.get_str(sys::NFTNL_CHAIN_TYPE)?)?,
            at: hook_of(family, number)?,
            priority: Priority(object.get_u32(sys::NFTNL_CHAIN_PRIO)?.cast_signed()),
            policy: policy.map(|verdict| if verdict == 0 { Policy::Drop } else { Policy::Accept }),
            device: object.get_str(sys::NFTNL_CHAIN_DEV).and_then(|name| IfName::new(name).ok()),
        })
    });
    let chain = Chain { table: table.clone(), name: object.get_str(sys::NFTNL_CHAIN_NAME)?, hook };
    let handle = object.get_u64(sys::NFTNL_CHAIN_HANDLE)?;
    let references = object.get_u32(sys::NFTNL_CHAIN_USE).unwrap_or(0);
    Some((table, ChainInfo { chain, handle, references }))
}

pub(super) fn rule(message: &[u8]) -> Option<(Table, RuleInfo)> {
    let object = RuleObject::parse(message)?;
    let family = family_of(object.get_u32(sys::NFTNL_RULE_FAMILY)?)?;
    let table = Table { family, name: object.get_str(sys::NFTNL_RULE_TABLE)? };
    let comment = object.get_data(sys::NFTNL_RULE_USERDATA).and_then(|data| userdata::comment(&data));
    let chain = object.get_str(sys::NFTNL_RULE_CHAIN)?;
    let handle = object.get_u64(sys::NFTNL_RULE_HANDLE)?;
    let (target, constants) = object.target_and_constants();
    Some((table, RuleInfo { chain, handle, comment, target, constants }))
}

pub(super) fn set(message: &[u8]) -> Option<(Table, SetInfo)> {
    let object = SetObject::parse(message)?;
    let family = family_of(object.get_u32(sys::NFTNL_SET_FAMILY)?)?;
    let table = Table { family, name: object.get_str(sys::NFTNL_SET_TABLE)? };
    let flags = object.get_u32(sys::NFTNL_SET_FLAGS).unwrap_or(0);
    let info = SetInfo {
        name: object.get_str(sys::NFTNL_SET_NAME)?,
        handle: object.get_u64(sys::NFTNL_SET_HANDLE)?,
        is_map: flags & NFT_SET_MAP != 0,
        is_ranged_concatenation: flags & NFT_SET_CONCAT != 0,
    };
    Some((table, info))
}

/// An element of a set, or, in a set of ranges in one dimension, the border of one.
struct Border {
    key: Vec<u8>,
    is_end: bool,
    element: Element,
}

/// Decodes the elements of all messages of a dump.
pub(super) fn elements(set: &Set, messages: &[Vec<u8>]) -> Result<Vec<Element>> {
    let key_types = set.key.components()?;
    let data_types = match &set.data {
        Some(MapData::Value(data)) => Some(data.components()?),
        Some(MapData::Verdict) | None => None,
    };
    let ranged = set.is_ranged_concatenation()?;
    let mut borders = Vec::new();
    let mut all_read = true;
    for message in messages {
        let each = |raw: &ElementRef| {
            let border = (|| {
                let key = raw.get_data(sys::NFTNL_SET_ELEM_KEY)?;
                let mut values = bytes::read_all(&key, &key_types, ranged)?;
                if let (true, Some(end)) = (ranged, raw.get_data(sys::NFTNL_SET_ELEM_KEY_END)) {
                    let last = bytes::read_all(&end, &key_types, ranged)?;
                    values = values
                        .iter()
                        .zip(&last)
                        .map(|(first, last)| bytes::join(first, last))
                        .collect::<Option<_>>()?;
                }
                let data = match (&data_types, raw.get_data(sys::NFTNL_SET_ELEM_DATA)) {
                    (Some(types), Some(data)) => Some(Data::Value(bytes::read_all(&data, types, false)?)),
                    _ => verdict(raw).map(Data::Verdict),
                };
                let time = |attribute: u32| raw.get_u64(attribute).map(std::time::Duration::from_millis);
                let timeout = time(sys::NFTNL_SET_ELEM_TIMEOUT);
                let expires = time(sys::NFTNL_SET_ELEM_EXPIRATION);
                let is_end = raw.get_u32(sys::NFTNL_SET_ELEM_FLAGS).unwrap_or(0) & NFT_SET_ELEM_INTERVAL_END != 0;
                let comment = raw.get_data(sys::NFTNL_SET_ELEM_USERDATA).and_then(|data| userdata::comment(&data));
                Some(Border { key, is_end, element: Element { key: values, data, timeout, expires, comment } })
            })();
            match border {
                Some(border) => borders.push(border),
                None => all_read = false,
            }
        };
        SetObject::parse_elements(message, each).ok_or_else(|| malformed("libnftnl does not read the elements"))?;
    }
    if !all_read {
        return Err(malformed("an element is not of the types that the set was described with"));
    }
    if set.interval && !ranged {
        return joined(borders).ok_or_else(|| malformed("a range is neither a network nor a range of ports"));
    }
    Ok(borders.into_iter().map(|border| border.element).collect())
}

/// Joins borders to ranges: each runs from its first value to the one before the next border.
fn joined(mut borders: Vec<Border>) -> Option<Vec<Element>> {
    // Where one range ends and the next begins, the end comes first.
    borders.sort_by(|a, b| (&a.key, !a.is_end).cmp(&(&b.key, !b.is_end)));
    let mut elements = Vec::new();
    let mut borders = borders.into_iter().peekable();
    while let Some(start) = borders.next() {
        if start.is_end {
            continue; // what `nft` puts before the first range
        }
        let first = start.element.key.first()?.clone();
        let last = match borders.peek() {
            Some(next) => predecessor(next.element.key.first()?)?,
            None => greatest(&first)?,
        };
        elements.push(Element { key: vec![bytes::join(&first, &last)?], ..start.element });
    }
    Some(elements)
}

fn predecessor(value: &Value) -> Option<Value> {
    match value {
        Value::Ipv4(address) => Some(Value::Ipv4(address.to_bits().checked_sub(1)?.into())),
        Value::Ipv6(address) => Some(Value::Ipv6(address.to_bits().checked_sub(1)?.into())),
        Value::Port(port) => Some(Value::Port(port.checked_sub(1)?)),
        Value::Protocol(number) => Some(Value::Protocol(number.checked_sub(1)?)),
        _ => None,
    }
}

fn greatest(value: &Value) -> Option<Value> {
    match value {
        Value::Ipv4(_) => Some(Value::Ipv4(u32::MAX.into())),
        Value::Ipv6(_) => Some(Value::Ipv6(u128::MAX.into())),
        Value::Port(_) => Some(Value::Port(u16::MAX)),
        Value::Protocol(_) => Some(Value::Protocol(u8::MAX)),
        _ => None,
    }
}

fn verdict(raw: &ElementRef) -> Option<Verdict> {
    let code = raw.get_u32(sys::NFTNL_SET_ELEM_VERDICT)?.cast_signed();
    let chain = || raw.get_str(sys::NFTNL_SET_ELEM_CHAIN);
    Some(match code {
        NF_ACCEPT => Verdict::Accept,
        NF_DROP => Verdict::Drop,
        NFT_CONTINUE => Verdict::Continue,
        NFT_RETURN => Verdict::Return,
        NFT_JUMP => Verdict::Jump(chain()?),
        NFT_GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}
