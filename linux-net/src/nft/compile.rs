//! From a rule to the kernel's expressions.
//!
//! The kernel runs a rule on sixteen registers of four bytes. `ct mark set ip daddr . th dport map @front` becomes
//!
//! ```text
//! payload load 4b @ network header + 16 => register 0      ip daddr
//! payload load 2b @ transport header + 2 => register 1     th dport
//! lookup register 0 (8 bytes) in set front => register 0   a miss ends the rule
//! ct set mark with register 0
//! ```
//!
//! Source: nftables `src/netlink_linearize.c`.

mod depend;
mod value;

use depend::Known;
use nftnl_sys as sys;

use super::{
    CmpOp, Expr, Family, MasqueradeFlags, Meta, NatTarget, NumgenMode, Reject, Rule, Statement, Value, Verdict,
    bytes::{self, Order, REGISTER_BYTES},
    constants::{
        NF_ACCEPT, NF_DROP, NF_NAT_RANGE_PERSISTENT, NF_NAT_RANGE_PROTO_RANDOM, NF_NAT_RANGE_PROTO_RANDOM_FULLY,
        NFT_BYTEORDER_HTON, NFT_CONTINUE, NFT_GOTO, NFT_JUMP, NFT_LOOKUP_F_INV, NFT_REG_VERDICT, NFT_REG32_00,
        NFT_RETURN, ct_key, dynset_op, family_number, fib_flags, fib_result, meta_key, payload_place,
    },
    ffi::{RuleObject, c_string},
    userdata,
};
use crate::error::{Error, Result};

/// What the sets that a rule names are like, as far as rules must know.
pub(super) trait Sets {
    /// Says whether the keys of a set are compared as big-endian bytes: ranges in several dimensions.
    fn is_ranged_concatenation(&self, name: &str) -> bool;
}

/// Returns the rule as libnftnl's object.
pub(super) fn compile(rule: &Rule, sets: &dyn Sets) -> Result<RuleObject> {
    let mut object = RuleObject::new();
    object
        .set_str(sys::NFTNL_RULE_TABLE, &c_string(&rule.table.name)?)
        .set_str(sys::NFTNL_RULE_CHAIN, &c_string(&rule.chain)?)
        .set_u32(sys::NFTNL_RULE_FAMILY, family_number(rule.table.family).into());
    if let Some(comment) = &rule.comment {
        object.set_data(sys::NFTNL_RULE_USERDATA, &userdata::of_comment(comment)?);
    }
    let mut compiler = Compiler { rule: object, family: rule.table.family, sets, known: Known::default() };
    for statement in &rule.statements {
        compiler.statement(statement)?;
    }
    Ok(compiler.rule)
}

struct Compiler<'a> {
    rule: RuleObject,
    family: Family,
    sets: &'a dyn Sets,
    known: Known,
}

/// A register, counted from 0.
type Register = u32;

const REGISTERS: usize = 16;

fn number(register: Register) -> u32 {
    NFT_REG32_00 + register
}

impl Compiler<'_> {
    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Match { left, op, right } => {
                self.depend_on(left)?;
                self.compare(left, *op, right)?;
                self.learn(left, *op, right);
            }
            Statement::InSet { key, set, negate } => {
                self.depend_on(key)?;
                self.key(key, 0, set)?;
                let mut lookup = self.rule.expr(c"lookup");
                lookup.u32(sys::NFTNL_EXPR_LOOKUP_SREG, number(0)).str(sys::NFTNL_EXPR_LOOKUP_SET, &c_string(set)?);
                if *negate {
                    lookup.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
                }
            }
            Statement::Vmap { key, map } => {
                self.depend_on(key)?;
                self.key(key, 0, map)?;
                self.look_up(0, map, NFT_REG_VERDICT)?;
            }
            Statement::SetMeta { key, value } => {
                self.depend_on(value)?;
                let width = if *key == Meta::Nftrace { 1 } else { 4 };
                self.load(value, 0, width)?;
                self.rule
                    .expr(c"meta")
                    .u32(sys::NFTNL_EXPR_META_KEY, meta_key(*key))
                    .u32(sys::NFTNL_EXPR_META_SREG, number(0));
            }
            Statement::SetCt { key, value } => {
                self.depend_on(value)?;
                self.load(value, 0, 4)?;
                self.rule.expr(c"ct").u32(sys::NFTNL_EXPR_CT_KEY, ct_key(*key)).u32(sys::NFTNL_EXPR_CT_SREG, number(0));
            }
            Statement::Dnat { family, to } => self.nat(1, *family, to)?,
            Statement::Snat { family, to } => self.nat(0, *family, to)?,
            Statement::Masquerade(flags) => {
                let bits = masquerade_bits(*flags);
                let mut masquerade = self.rule.expr(c"masq");
                if bits != 0 {
                    masquerade.u32(sys::NFTNL_EXPR_MASQ_FLAGS, bits);
                }
            }
            Statement::Reject(reject) => self.reject(*reject)?,
            Statement::Counter => {
                self.rule.expr(c"counter").u64(sys::NFTNL_EXPR_CTR_PACKETS, 0).u64(sys::NFTNL_EXPR_CTR_BYTES, 0);
            }
            Statement::Update { kind, set, key, data, timeout } => {
                self.depend_on(key)?;
                if let Some(data) = data {
                    self.depend_on(data)?;
                }
                let key_registers = self.key(key, 0, set)?;
                if let Some(data) = data {
                    self.load(data, key_registers, 4)?;
                }
                let mut update = self.rule.expr(c"dynset");
                update
                    .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, number(0))
                    .u32(sys::NFTNL_EXPR_DYNSET_OP, dynset_op(*kind))
                    .str(sys::NFTNL_EXPR_DYNSET_SET_NAME, &c_string(set)?);
                if data.is_some() {
                    update.u32(sys::NFTNL_EXPR_DYNSET_SREG_DATA, number(key_registers));
                }
                if let Some(timeout) = timeout {
                    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                    update.u64(sys::NFTNL_EXPR_DYNSET_TIMEOUT, millis);
                }
            }
            Statement::Verdict(verdict) => {
                let (code, chain) = verdict_code(verdict);
                let mut immediate = self.rule.expr(c"immediate");
                immediate
                    .u32(sys::NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT)
                    .u32(sys::NFTNL_EXPR_IMM_VERDICT, code.cast_unsigned());
                if let Some(chain) = chain {
                    immediate.str(sys::NFTNL_EXPR_IMM_CHAIN, &c_string(chain)?);
                }
            }
        }
        Ok(())
    }

    /// Loads the value of `expr` into the registers from `at` on and returns the first register after it. `width` is the number of bytes of
    /// a number that has none of its own.
    fn load(&mut self, expr: &Expr, at: Register, width: usize) -> Result<Register> {
        let bytes = expr.bytes().unwrap_or(width);
        let end = at + u32::try_from(bytes.div_ceil(REGISTER_BYTES)).expect("a value has few registers");
        if end as usize > REGISTERS {
            return Err(Error::Invalid {
                what: "expression",
                value: expr.to_string(),
                reason: "it needs more than the sixteen registers of the kernel",
            });
        }
        match expr {
            Expr::Payload(field) => {
                let (base, offset, length) = payload_place(*field);
                self.payload(base, offset, length, at);
            }
            Expr::Meta(key) => {
                self.rule
                    .expr(c"meta")
                    .u32(sys::NFTNL_EXPR_META_KEY, meta_key(*key))
                    .u32(sys::NFTNL_EXPR_META_DREG, number(at));
            }
            Expr::Ct(key) => {
                self.rule
                    .expr(c"ct")
                    .u32(sys::NFTNL_EXPR_CT_KEY, ct_key(*key))
                    .u32(sys::NFTNL_EXPR_CT_DREG, number(at));
            }
            Expr::Fib { address, result } => {
                self.rule
                    .expr(c"fib")
                    .u32(sys::NFTNL_EXPR_FIB_FLAGS, fib_flags(*address))
                    .u32(sys::NFTNL_EXPR_FIB_RESULT, fib_result(*result))
                    .u32(sys::NFTNL_EXPR_FIB_DREG, number(at));
            }
            Expr::Numgen { mode, modulus, offset } => {
                let mode = match mode {
                    NumgenMode::Incremental => 0,
                    NumgenMode::Random => 1,
                };
                self.rule
                    .expr(c"numgen")
                    .u32(sys::NFTNL_EXPR_NG_DREG, number(at))
                    .u32(sys::NFTNL_EXPR_NG_TYPE, mode)
                    .u32(sys::NFTNL_EXPR_NG_MODULUS, *modulus)
                    .u32(sys::NFTNL_EXPR_NG_OFFSET, *offset);
            }
            Expr::Jhash { of, modulus, seed, offset } => {
                let hashed = self.jhash(of, at)?;
                let mut hash = self.rule.expr(c"hash");
                hash.u32(sys::NFTNL_EXPR_HASH_TYPE, 0)
                    .u32(sys::NFTNL_EXPR_HASH_SREG, number(at))
                    .u32(sys::NFTNL_EXPR_HASH_DREG, number(at))
                    .u32(sys::NFTNL_EXPR_HASH_LEN, hashed)
                    .u32(sys::NFTNL_EXPR_HASH_MODULUS, *modulus)
                    .u32(sys::NFTNL_EXPR_HASH_OFFSET, *offset);
                if let Some(seed) = seed {
                    hash.u32(sys::NFTNL_EXPR_HASH_SEED, *seed);
                }
            }
            Expr::Symhash { modulus, offset } => {
                self.rule
                    .expr(c"hash")
                    .u32(sys::NFTNL_EXPR_HASH_TYPE, 1)
                    .u32(sys::NFTNL_EXPR_HASH_DREG, number(at))
                    .u32(sys::NFTNL_EXPR_HASH_MODULUS, *modulus)
                    .u32(sys::NFTNL_EXPR_HASH_OFFSET, *offset);
            }
            Expr::Concat(parts) => {
                let mut next = at;
                for part in parts {
                    if !part.is_simple() {
                        return Err(Error::Invalid {
                            what: "expression",
                            value: expr.to_string(),
                            reason: "nft can list neither maps nor bit operations inside a concatenation",
                        });
                    }
                    next = self.load(part, next, 4)?;
                }
            }
            Expr::Map { key, map } => {
                self.key(key, at, map)?;
                self.look_up(at, map, number(at))?;
            }
            Expr::And(of, mask) => self.bitwise(of, at, *mask, 0)?,
            // x | b  =  (x & !b) ^ b, the one operation that every kernel has.
            Expr::Or(of, bits) => self.bitwise(of, at, !bits, *bits)?,
            Expr::Xor(of, bits) => self.bitwise(of, at, u32::MAX, *bits)?,
            Expr::Const(value) => self.constant(value, at, width),
        }
        Ok(end)
    }

    fn constant(&mut self, value: &Value, at: Register, width: usize) {
        let mut data = Vec::new();
        bytes::append(value, Order::Host, &mut data);
        if matches!(value, Value::Integer(_)) && width == 1 {
            data = if cfg!(target_endian = "big") { data[3..].to_vec() } else { data[..1].to_vec() };
        }
        self.rule.expr(c"immediate").u32(sys::NFTNL_EXPR_IMM_DREG, number(at)).data(sys::NFTNL_EXPR_IMM_DATA, &data);
    }

    /// Loads what is hashed and returns its length in bytes. The padding between and after components is hashed too, as
    /// `nft` does it; it is always zero.
    fn jhash(&mut self, of: &Expr, at: Register) -> Result<u32> {
        let end = self.load(of, at, 4)?;
        Ok(match of {
            Expr::Concat(_) => (end - at) * 4,
            single => u32::try_from(single.bytes().unwrap_or(4)).expect("a value has few bytes"),
        })
    }

    /// Loads a key in the order in which the set has its keys.
    fn key(&mut self, key: &Expr, at: Register, set: &str) -> Result<Register> {
        let ranged = self.sets.is_ranged_concatenation(set);
        let Expr::Concat(parts) = key else { return self.load(key, at, 4) };
        if !ranged {
            return self.load(key, at, 4);
        }
        let mut next = at;
        for part in parts {
            let start = next;
            next = self.load(part, start, 4)?;
            if part.order() == Order::Host && part.bytes() == Some(REGISTER_BYTES) {
                self.rule
                    .expr(c"byteorder")
                    .u32(sys::NFTNL_EXPR_BYTEORDER_SREG, number(start))
                    .u32(sys::NFTNL_EXPR_BYTEORDER_DREG, number(start))
                    .u32(sys::NFTNL_EXPR_BYTEORDER_OP, NFT_BYTEORDER_HTON)
                    .u32(sys::NFTNL_EXPR_BYTEORDER_LEN, 4)
                    .u32(sys::NFTNL_EXPR_BYTEORDER_SIZE, 4);
            }
        }
        Ok(next)
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, at: Register) {
        self.rule
            .expr(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, number(at));
    }

    fn look_up(&mut self, at: Register, map: &str, destination: u32) -> Result<()> {
        self.rule
            .expr(c"lookup")
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, number(at))
            .u32(sys::NFTNL_EXPR_LOOKUP_DREG, destination)
            .str(sys::NFTNL_EXPR_LOOKUP_SET, &c_string(map)?);
        Ok(())
    }

    fn bitwise(&mut self, of: &Expr, at: Register, mask: u32, xor: u32) -> Result<()> {
        let bytes = of.bytes().unwrap_or(REGISTER_BYTES);
        if bytes != REGISTER_BYTES {
            return Err(Error::Invalid {
                what: "expression",
                value: of.to_string(),
                reason: "bit operations take values of four bytes",
            });
        }
        self.load(of, at, 4)?;
        let in_order = |number: u32| match of.order() {
            Order::Big => number.to_be_bytes(),
            Order::Host => number.to_ne_bytes(),
        };
        self.mask(at, &in_order(mask), &in_order(xor));
        Ok(())
    }

    fn mask(&mut self, at: Register, mask: &[u8], xor: &[u8]) {
        self.rule
            .expr(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, number(at))
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, number(at))
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, u32::try_from(mask.len()).expect("a mask is short"))
            .data(sys::NFTNL_EXPR_BITWISE_MASK, mask)
            .data(sys::NFTNL_EXPR_BITWISE_XOR, xor);
    }

    fn compare(&mut self, left: &Expr, op: CmpOp, right: &Value) -> Result<()> {
        let width = left.bytes().unwrap_or(REGISTER_BYTES);
        self.load(left, 0, 4)?;
        let mut data = Vec::new();
        bytes::append(right, left.order(), &mut data);
        if matches!(right, Value::Integer(_)) && width < data.len() {
            // The number is in the order of `left`: its low bytes are first or last.
            data = match left.order() {
                Order::Host if cfg!(target_endian = "little") => data[..width].to_vec(),
                Order::Host | Order::Big => data[data.len() - width..].to_vec(),
            };
        }
        if data.len() != width && !matches!(right, Value::IfNamePrefix(_)) {
            return Err(Error::Invalid {
                what: "comparison",
                value: format!("{left} with {right}"),
                reason: "the two sides have different lengths",
            });
        }
        match right {
            Value::CtState(_) | Value::CtStatus(_) => {
                // One bit in common is enough: what is left after the mask differs from nothing.
                self.mask(0, &data, &[0; 4]);
                let op = if op == CmpOp::Ne { CmpOp::Eq } else { CmpOp::Ne };
                self.cmp(op, &[0; 4]);
            }
            Value::Ipv4Net(net) => {
                self.mask(0, &net.netmask().octets(), &[0; 4]);
                self.cmp(op, &data);
            }
            Value::Ipv6Net(net) => {
                self.mask(0, &net.netmask().octets(), &[0; 16]);
                self.cmp(op, &data);
            }
            Value::PortRange(_, last) => {
                self.rule
                    .expr(c"range")
                    .u32(sys::NFTNL_EXPR_RANGE_SREG, number(0))
                    .u32(sys::NFTNL_EXPR_RANGE_OP, u32::from(op == CmpOp::Ne))
                    .data(sys::NFTNL_EXPR_RANGE_FROM_DATA, &data)
                    .data(sys::NFTNL_EXPR_RANGE_TO_DATA, &last.to_be_bytes());
            }
            _ => self.cmp(op, &data),
        }
        Ok(())
    }

    fn cmp(&mut self, op: CmpOp, data: &[u8]) {
        let op = match op {
            CmpOp::Eq => 0,
            CmpOp::Ne => 1,
            CmpOp::Lt => 2,
            CmpOp::Le => 3,
            CmpOp::Gt => 4,
            CmpOp::Ge => 5,
        };
        self.rule
            .expr(c"cmp")
            .u32(sys::NFTNL_EXPR_CMP_SREG, number(0))
            .u32(sys::NFTNL_EXPR_CMP_OP, op)
            .data(sys::NFTNL_EXPR_CMP_DATA, data);
    }

    fn nat(&mut self, kind: u32, family: Family, to: &NatTarget) -> Result<()> {
        let address_registers = match family {
            Family::Ip => 1,
            Family::Ip6 => 4,
            Family::Inet | Family::Bridge | Family::Netdev => {
                return Err(Error::Invalid {
                    what: "family of an address",
                    value: format!("{family:?}"),
                    reason: "addresses are translated to ip or ip6",
                });
            }
        };
        let (NatTarget::Address(expr) | NatTarget::AddressAndPort(expr)) = to;
        self.depend_on(expr)?;
        self.load(expr, 0, 4)?;
        let mut nat = self.rule.expr(c"nat");
        nat.u32(sys::NFTNL_EXPR_NAT_TYPE, kind)
            .u32(sys::NFTNL_EXPR_NAT_FAMILY, family_number(family).into())
            .u32(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, number(0));
        if matches!(to, NatTarget::AddressAndPort(_)) {
            nat.u32(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, number(address_registers));
        }
        Ok(())
    }

    fn reject(&mut self, reject: Reject) -> Result<()> {
        const ICMP_UNREACHABLE: u32 = 0;
        const TCP_RESET: u32 = 1;
        const ICMPX_UNREACHABLE: u32 = 2; // the kernel takes the ICMP of the packet's own family
        // The codes of ICMP, of ICMPv6, and the kernel's own for both.
        let (v4, v6, either) = match reject {
            Reject::TcpReset => (0, 0, 0),
            Reject::PortUnreachable => (3, 4, 1),
            Reject::HostUnreachable => (1, 3, 2),
            Reject::AdminProhibited => (13, 1, 3),
        };
        let (kind, code) = match self.family {
            _ if reject == Reject::TcpReset => {
                self.depend_on_transport(libc::IPPROTO_TCP)?;
                (TCP_RESET, 0)
            }
            Family::Ip => (ICMP_UNREACHABLE, v4),
            Family::Ip6 => (ICMP_UNREACHABLE, v6),
            Family::Inet | Family::Bridge | Family::Netdev => (ICMPX_UNREACHABLE, either),
        };
        self.rule.expr(c"reject").u32(sys::NFTNL_EXPR_REJECT_TYPE, kind).u8(sys::NFTNL_EXPR_REJECT_CODE, code);
        Ok(())
    }
}

pub(super) fn verdict_code(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Continue => (NFT_CONTINUE, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    }
}

fn masquerade_bits(flags: MasqueradeFlags) -> u32 {
    [
        (flags.random, NF_NAT_RANGE_PROTO_RANDOM),
        (flags.fully_random, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
        (flags.persistent, NF_NAT_RANGE_PERSISTENT),
    ]
    .into_iter()
    .filter_map(|(on, bit)| on.then_some(bit))
    .sum()
}
