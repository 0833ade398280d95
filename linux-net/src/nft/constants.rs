//! The kernel's numbers for what rules refer to.
//!
//! Source: Linux `include/uapi/linux/netfilter/nf_tables.h`.

use super::{ChainKind, Ct, Family, FibAddress, FibResult, Field, HookPoint, Meta, UpdateKind};

pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_GETRULE: u16 = 7;
pub(super) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFT_MSG_NEWSET: u16 = 9;
pub(super) const NFT_MSG_GETSET: u16 = 10;
pub(super) const NFT_MSG_DELSET: u16 = 11;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
pub(super) const NFT_MSG_GETSETELEM: u16 = 13;
pub(super) const NFT_MSG_DELSETELEM: u16 = 14;
pub(super) const NFT_MSG_GETGEN: u16 = 16;

pub(super) const NFT_SET_INTERVAL: u32 = 0x4;
pub(super) const NFT_SET_MAP: u32 = 0x8;
pub(super) const NFT_SET_TIMEOUT: u32 = 0x10;
pub(super) const NFT_SET_EVAL: u32 = 0x20;
pub(super) const NFT_SET_CONCAT: u32 = 0x80;
pub(super) const NFT_SET_ELEM_INTERVAL_END: u32 = 0x1;

/// The type of the values of a verdict map.
pub(super) const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// The register that holds a verdict.
pub(super) const NFT_REG_VERDICT: u32 = 0;
/// The first register of four bytes; there are sixteen.
pub(super) const NFT_REG32_00: u32 = 8;
pub(super) const NFT_LOOKUP_F_INV: u32 = 1;
pub(super) const NFT_BYTEORDER_HTON: u32 = 1;

// Verdicts: the positive ones of all of netfilter, the negative ones of nftables.
pub(super) const NF_DROP: i32 = 0;
pub(super) const NF_ACCEPT: i32 = 1;
pub(super) const NFT_CONTINUE: i32 = -1;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;
pub(super) const NFT_RETURN: i32 = -5;

pub(super) const NF_NAT_RANGE_PROTO_RANDOM: u32 = 1 << 2;
pub(super) const NF_NAT_RANGE_PERSISTENT: u32 = 1 << 3;
pub(super) const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// `NFPROTO_*`
pub(super) fn family_number(family: Family) -> u16 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Netdev => 5,
        Family::Bridge => 7,
        Family::Ip6 => 10,
    }
}

pub(super) fn family_of(number: u32) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Netdev, Family::Bridge, Family::Ip6]
        .into_iter()
        .find(|family| u32::from(family_number(*family)) == number)
}

/// `NF_INET_*`; `NF_NETDEV_INGRESS` in family netdev, `NF_INET_INGRESS` in family inet.
pub(super) fn hook_number(family: Family, at: HookPoint) -> u32 {
    match at {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
        HookPoint::Ingress if family == Family::Netdev => 0,
        HookPoint::Ingress => 5,
    }
}

pub(super) fn hook_of(family: Family, number: u32) -> Option<HookPoint> {
    [
        HookPoint::Prerouting,
        HookPoint::Input,
        HookPoint::Forward,
        HookPoint::Output,
        HookPoint::Postrouting,
        HookPoint::Ingress,
    ]
    .into_iter()
    .filter(|at| (*at == HookPoint::Ingress) == (family == Family::Netdev || number == 5))
    .find(|at| hook_number(family, *at) == number)
}

pub(super) fn chain_kind_of(name: &str) -> Option<ChainKind> {
    [ChainKind::Filter, ChainKind::Nat, ChainKind::Route].into_iter().find(|kind| kind.word() == name)
}

/// `NFT_META_*`
pub(super) fn meta_key(key: Meta) -> u32 {
    match key {
        Meta::Mark => 3,
        Meta::Iifname => 6,
        Meta::Oifname => 7,
        Meta::Nfproto => 15,
        Meta::L4proto => 16,
        Meta::Nftrace => 12,
    }
}

/// `NFT_CT_*`
pub(super) fn ct_key(key: Ct) -> u32 {
    match key {
        Ct::State => 0,
        Ct::Direction => 1,
        Ct::Status => 2,
        Ct::Mark => 3,
    }
}

/// `NFT_FIB_RESULT_*`
pub(super) fn fib_result(result: FibResult) -> u32 {
    match result {
        FibResult::Oifname => 2,
        FibResult::Type => 3,
    }
}

/// `NFTA_FIB_F_*`
pub(super) fn fib_flags(address: FibAddress) -> u32 {
    match address {
        FibAddress::Saddr => 1,
        FibAddress::Daddr => 2,
    }
}

/// `NFT_DYNSET_OP_*`
pub(super) fn dynset_op(kind: UpdateKind) -> u32 {
    match kind {
        UpdateKind::Add => 0,
        UpdateKind::Update => 1,
        UpdateKind::Delete => 2,
    }
}

/// Returns the header (`NFT_PAYLOAD_*_HEADER`), the offset in it and the length of a field, in bytes.
pub(super) fn payload_place(field: Field) -> (u32, u32, u32) {
    const LINK: u32 = 0;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match field {
        Field::EtherDaddr => (LINK, 0, 6),
        Field::EtherSaddr => (LINK, 6, 6),
        Field::IpProtocol => (NETWORK, 9, 1),
        Field::IpChecksum => (NETWORK, 10, 2),
        Field::IpSaddr => (NETWORK, 12, 4),
        Field::IpDaddr => (NETWORK, 16, 4),
        Field::Ip6Saddr => (NETWORK, 8, 16),
        Field::Ip6Daddr => (NETWORK, 24, 16),
        Field::ThSport | Field::TcpSport | Field::UdpSport => (TRANSPORT, 0, 2),
        Field::ThDport | Field::TcpDport | Field::UdpDport => (TRANSPORT, 2, 2),
    }
}
