//! Expressions and constants as text.

use std::fmt::{self, Display, Formatter};

use super::{
    super::{Ct, Expr, FibAddress, FibResult, Field, Meta, NumgenMode, Value},
    Joined,
};

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
    pub(super) fn word(self) -> &'static str {
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
    pub(super) fn word(self) -> &'static str {
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
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::IfNamePrefix(prefix) => write!(f, "\"{prefix}*\""),
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
            Self::Integer(number) | Self::FibType(number) => write!(f, "{number}"),
        }
    }
}

/// Writes the names of bits; one without a name makes it a number.
fn write_bits(f: &mut Formatter<'_>, bits: u32, names: &[(u32, &str)]) -> fmt::Result {
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !known != 0 {
        return write!(f, "{bits:#x}");
    }
    let words: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    f.write_str(&words.join(","))
}
