//! From a batch to the bytes of one netlink datagram.
//!
//! ```text
//! | BATCH_BEGIN | NEWTABLE | NEWSET | NEWSETELEM, up to 64 KiB | … | NEWRULE | … | BATCH_END |
//! ```
//!
//! The kernel makes the changes of all messages between begin and end together, or none of them. Each message bears a number, by
//! which an answer finds the operation that it is about.

mod elements;

use std::{collections::BTreeMap, time::Duration};

use elements::SetEncoding;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nftnl_sys as sys;

use super::{
    Batch, Chain, Element, Expr, Family, Hook, MapData, Op, Policy, Rule, Set, Statement, Table,
    compile::{Sets, compile},
    constants::{
        NF_ACCEPT, NF_DROP, NFT_DATA_VERDICT, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM,
        NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE,
        NFT_SET_CONCAT, NFT_SET_EVAL, NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_TIMEOUT, family_number, hook_number,
    },
    ffi::{ChainObject, Header, RuleObject, Scratch, SetObject, TableObject, c_string},
    userdata,
};
use crate::error::{Error, Result};

/// A batch on its way to the kernel.
pub(super) struct Encoded {
    /// The whole datagram.
    pub(super) bytes: Vec<u8>,
    /// For each operation, the number of the first message that is not its own any more.
    ends: Vec<u32>,
    /// The number of the last message before the end of the batch, which asks for an acknowledgement.
    pub(super) last: u32,
}

impl Encoded {
    /// Returns the position of the operation that the message with that number is of; `None` for the batch's begin and end.
    pub(super) fn op_of(&self, sequence: u32) -> Option<usize> {
        let position = self.ends.partition_point(|end| *end <= sequence);
        (sequence != FIRST_SEQUENCE && position < self.ends.len()).then_some(position)
    }
}

/// The number of the message that opens a batch.
const FIRST_SEQUENCE: u32 = 1;

/// For each table and set, whether its keys are compared as big-endian bytes.
pub(super) type RangedSets = BTreeMap<(Table, String), bool>;

/// Returns the sets that rules of the batch name and that the batch does not make: those to ask the kernel about.
pub(super) fn tables_to_ask_about(batch: &Batch) -> Vec<Table> {
    let declared = declared_sets(batch);
    let mut tables: Vec<_> = batch
        .0
        .iter()
        .filter_map(|op| match op {
            Op::AddRule(rule) | Op::InsertRule(rule) => Some(rule),
            _ => None,
        })
        .filter(|rule| sets_of(rule).any(|set| !declared.contains_key(&(rule.table.clone(), set.to_owned()))))
        .map(|rule| rule.table.clone())
        .collect();
    tables.sort();
    tables.dedup();
    tables
}

fn sets_of(rule: &Rule) -> impl Iterator<Item = &str> {
    rule.statements.iter().filter_map(|statement| match statement {
        // Only a concatenation may have another order in the set than in the registers.
        Statement::InSet { key: Expr::Concat(_), set, .. } | Statement::Update { key: Expr::Concat(_), set, .. } => {
            Some(set.as_str())
        }
        Statement::Vmap { key: Expr::Concat(_), map } => Some(map.as_str()),
        Statement::SetMeta { value: Expr::Map { key, map }, .. }
        | Statement::SetCt { value: Expr::Map { key, map }, .. }
            if matches!(**key, Expr::Concat(_)) =>
        {
            Some(map.as_str())
        }
        _ => None,
    })
}

fn declared_sets(batch: &Batch) -> RangedSets {
    batch
        .0
        .iter()
        .filter_map(|op| match op {
            Op::AddSet(set)
            | Op::AddElements { set, .. }
            | Op::CreateElements { set, .. }
            | Op::DelElements { set, .. } => Some(set),
            _ => None,
        })
        .map(|set| ((set.table.clone(), set.name.clone()), set.is_ranged_concatenation().unwrap_or(false)))
        .collect()
}

struct SetsOfTable<'a> {
    table: &'a Table,
    sets: &'a RangedSets,
}

impl Sets for SetsOfTable<'_> {
    fn is_ranged_concatenation(&self, name: &str) -> bool {
        self.sets.get(&(self.table.clone(), name.to_owned())).copied().unwrap_or(false)
    }
}

/// Encodes a batch. `asked` is what the kernel said about sets that the batch does not declare.
pub(super) fn encode(batch: &Batch, asked: RangedSets) -> Result<Encoded> {
    let mut sets = asked;
    sets.extend(declared_sets(batch));
    let mut encoder = Encoder { scratch: Scratch::new(), out: Vec::new(), sequence: FIRST_SEQUENCE, set_id: 0, sets };
    encoder.scratch.batch_begin(encoder.sequence, &mut encoder.out);
    encoder.sequence += 1;
    let mut ends = Vec::with_capacity(batch.0.len());
    let mut last_message = 0;
    for op in &batch.0 {
        last_message = encoder.op(op)?;
        ends.push(encoder.sequence);
    }
    // The last change of a batch is acknowledged when all of it is: that is how we know that the kernel has read it.
    let flags = &mut encoder.out[last_message + FLAGS_OFFSET..][..2];
    let acknowledged = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
    flags.copy_from_slice(&acknowledged.to_ne_bytes());
    let last = encoder.sequence - 1;
    encoder.scratch.batch_end(encoder.sequence, &mut encoder.out);
    Ok(Encoded { bytes: encoder.out, ends, last })
}

/// Where the flags stand in a netlink header.
const FLAGS_OFFSET: usize = 6;

struct Encoder {
    scratch: Scratch,
    out: Vec<u8>,
    sequence: u32,
    set_id: u32,
    sets: RangedSets,
}

impl Encoder {
    /// Appends the messages of one operation and returns where the last of them starts.
    fn op(&mut self, op: &Op) -> Result<usize> {
        let start = self.out.len();
        match op {
            Op::AddTable(table) => self.table(NFT_MSG_NEWTABLE, NLM_F_CREATE, table)?,
            Op::DelTable(table) => self.table(NFT_MSG_DELTABLE, 0, table)?,
            Op::AddChain(chain) => self.add_chain(chain)?,
            Op::DelChain { table, chain } => {
                let header = self.header(NFT_MSG_DELCHAIN, 0, table);
                let mut object = ChainObject::new();
                object
                    .set_str(sys::NFTNL_CHAIN_TABLE, &c_string(&table.name)?)
                    .set_str(sys::NFTNL_CHAIN_NAME, &c_string(chain)?);
                object.write(header, &mut self.scratch, &mut self.out);
            }
            // Rules are deleted by what is said of them; of these, all that are in the chain.
            Op::FlushChain { table, chain } => self.del_rule(table, chain, None)?,
            Op::DelRule { table, chain, handle } => self.del_rule(table, chain, Some(*handle))?,
            Op::AddRule(rule) => self.rule(NLM_F_CREATE | NLM_F_APPEND, rule)?,
            Op::InsertRule(rule) => self.rule(NLM_F_CREATE, rule)?,
            Op::AddSet(set) => self.add_set(set)?,
            Op::DelSet { table, set } => {
                let header = self.header(NFT_MSG_DELSET, 0, table);
                set_named(table, set)?.write(header, &mut self.scratch, &mut self.out);
            }
            Op::FlushSet { table, set } => {
                let header = self.header(NFT_MSG_DELSETELEM, 0, table);
                set_named(table, set)?.write_elements(header, &mut self.scratch, &mut self.out);
            }
            Op::AddElements { set, elements } => return self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements),
            Op::CreateElements { set, elements } => {
                return self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, set, elements);
            }
            Op::DelElements { set, elements } => return self.elements(NFT_MSG_DELSETELEM, 0, set, elements),
        }
        Ok(start)
    }

    fn header(&mut self, kind: u16, flags: u16, table: &Table) -> Header {
        let header = Header { kind, family: family_number(table.family), flags, sequence: self.sequence };
        self.sequence += 1;
        header
    }

    fn table(&mut self, kind: u16, flags: u16, table: &Table) -> Result<()> {
        let header = self.header(kind, flags, table);
        let mut object = TableObject::new();
        object.set_str(sys::NFTNL_TABLE_NAME, &c_string(&table.name)?);
        object.write(header, &mut self.scratch, &mut self.out);
        Ok(())
    }

    fn add_chain(&mut self, chain: &Chain) -> Result<()> {
        let header = self.header(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain.table);
        let mut object = ChainObject::new();
        object
            .set_str(sys::NFTNL_CHAIN_TABLE, &c_string(&chain.table.name)?)
            .set_str(sys::NFTNL_CHAIN_NAME, &c_string(&chain.name)?);
        if let Some(hook) = &chain.hook {
            add_hook(&mut object, chain.table.family, hook)?;
        }
        object.write(header, &mut self.scratch, &mut self.out);
        Ok(())
    }

    fn rule(&mut self, flags: u16, rule: &Rule) -> Result<()> {
        let sets = SetsOfTable { table: &rule.table, sets: &self.sets };
        let mut object = compile(rule, &sets)?;
        let header = self.header(NFT_MSG_NEWRULE, flags, &rule.table);
        object.write(header, &mut self.scratch, &mut self.out);
        Ok(())
    }

    fn del_rule(&mut self, table: &Table, chain: &str, handle: Option<u64>) -> Result<()> {
        let header = self.header(NFT_MSG_DELRULE, 0, table);
        let mut object = RuleObject::new();
        object
            .set_str(sys::NFTNL_RULE_TABLE, &c_string(&table.name)?)
            .set_str(sys::NFTNL_RULE_CHAIN, &c_string(chain)?);
        if let Some(handle) = handle {
            object.set_u64(sys::NFTNL_RULE_HANDLE, handle);
        }
        object.write(header, &mut self.scratch, &mut self.out);
        Ok(())
    }

    fn add_set(&mut self, set: &Set) -> Result<()> {
        let header = self.header(NFT_MSG_NEWSET, NLM_F_CREATE, &set.table);
        // The kernel wants a number by which the batch could refer to the set; ours refer by name.
        self.set_id += 1;
        let (key_type, key_bytes) = set.key.id_and_bytes()?;
        let mut object = set_named(&set.table, &set.name)?;
        object
            .set_u32(sys::NFTNL_SET_FAMILY, family_number(set.table.family).into())
            .set_u32(sys::NFTNL_SET_ID, self.set_id)
            .set_u32(sys::NFTNL_SET_FLAGS, set_flags(set)?)
            .set_u32(sys::NFTNL_SET_KEY_TYPE, key_type)
            .set_u32(sys::NFTNL_SET_KEY_LEN, short(key_bytes))
            .set_data(sys::NFTNL_SET_USERDATA, &userdata::of_set(set)?);
        match &set.data {
            None => {}
            Some(MapData::Verdict) => {
                object.set_u32(sys::NFTNL_SET_DATA_TYPE, NFT_DATA_VERDICT).set_u32(sys::NFTNL_SET_DATA_LEN, 16);
            }
            Some(MapData::Value(data)) => {
                let (data_type, data_bytes) = data.id_and_bytes()?;
                object.set_u32(sys::NFTNL_SET_DATA_TYPE, data_type).set_u32(sys::NFTNL_SET_DATA_LEN, short(data_bytes));
            }
        }
        if let Some(timeout) = set.timeout {
            object.set_u64(sys::NFTNL_SET_TIMEOUT, millis(timeout));
        }
        if let Some(size) = set.size {
            object.set_u32(sys::NFTNL_SET_DESC_SIZE, size);
        }
        if set.is_ranged_concatenation()? {
            let lengths: Result<Vec<u8>> = set
                .key
                .components()?
                .into_iter()
                .map(|component| Ok(u8::try_from(component.bytes()).expect("a type has at most 16 bytes")))
                .collect();
            object.set_data(sys::NFTNL_SET_DESC_CONCAT, &lengths?);
        }
        object.write(header, &mut self.scratch, &mut self.out);
        Ok(())
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &Set, elements: &[Element]) -> Result<usize> {
        if elements.is_empty() {
            // To the kernel, to delete no elements by name is to delete all.
            let reason = "it names no elements; leave it out, or flush the set";
            return Err(Error::Invalid { what: "change", value: format!("of set {}", set.name), reason });
        }
        let deletes = kind == NFT_MSG_DELSETELEM;
        let encoding = SetEncoding::of(set)?;
        let mut object = set_named(&set.table, &set.name)?;
        for element in elements {
            encoding.add(&mut object, element, deletes)?;
        }
        let header = self.header(kind, flags, &set.table);
        let start = self.out.len();
        self.sequence = object.write_elements(header, &mut self.scratch, &mut self.out);
        Ok(last_message_from(&self.out, start))
    }
}

/// Returns where the last of the messages that start at `start` starts.
fn last_message_from(out: &[u8], mut start: usize) -> usize {
    loop {
        let length = u32::from_ne_bytes([out[start], out[start + 1], out[start + 2], out[start + 3]]) as usize;
        let next = start + length.next_multiple_of(4);
        if next >= out.len() {
            return start;
        }
        start = next;
    }
}

fn add_hook(object: &mut ChainObject, family: Family, hook: &Hook) -> Result<()> {
    object
        .set_str(sys::NFTNL_CHAIN_TYPE, &c_string(hook.kind.word())?)
        .set_u32(sys::NFTNL_CHAIN_HOOKNUM, hook_number(family, hook.at))
        .set_u32(sys::NFTNL_CHAIN_PRIO, hook.priority.0.cast_unsigned());
    if let Some(policy) = hook.policy {
        let verdict = match policy {
            Policy::Accept => NF_ACCEPT,
            Policy::Drop => NF_DROP,
        };
        object.set_u32(sys::NFTNL_CHAIN_POLICY, verdict.cast_unsigned());
    }
    if let Some(device) = &hook.device {
        object.set_str(sys::NFTNL_CHAIN_DEV, &c_string(device.as_str())?);
    }
    Ok(())
}

fn set_named(table: &Table, name: &str) -> Result<SetObject> {
    let mut object = SetObject::new();
    object.set_str(sys::NFTNL_SET_TABLE, &c_string(&table.name)?).set_str(sys::NFTNL_SET_NAME, &c_string(name)?);
    Ok(object)
}

fn set_flags(set: &Set) -> Result<u32> {
    let flags = [
        (set.interval, NFT_SET_INTERVAL),
        (set.data.is_some(), NFT_SET_MAP),
        (set.timeout.is_some(), NFT_SET_TIMEOUT),
        (set.dynamic, NFT_SET_EVAL),
        (set.is_ranged_concatenation()?, NFT_SET_CONCAT),
    ];
    Ok(flags.into_iter().filter_map(|(on, bit)| on.then_some(bit)).sum())
}

fn short(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a key has at most 64 bytes")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Spec, Type, Value};

    #[test]
    fn an_answer_finds_its_operation() {
        let table = Table::new(Family::Ip, "t");
        let set = Set::new(&table, "s", Spec::types([Type::Mark]));
        let elements: Vec<_> = (0..10_000).map(|mark| Element::key([Value::Mark(mark)])).collect();
        let batch = Batch(vec![
            Op::AddTable(table.clone()),
            Op::AddSet(set.clone()),
            Op::AddElements { set: set.clone(), elements },
            Op::DelSet { table, set: "s".into() },
        ]);
        let encoded = encode(&batch, RangedSets::new()).unwrap();
        assert_eq!(encoded.op_of(1), None, "the begin of the batch");
        assert_eq!(
            (encoded.op_of(2), encoded.op_of(3), encoded.op_of(4), encoded.op_of(5)),
            (Some(0), Some(1), Some(2), Some(2))
        );
        assert_eq!(encoded.op_of(encoded.last), Some(3));
        assert_eq!(encoded.op_of(encoded.last + 1), None, "the end of the batch");
    }
}
