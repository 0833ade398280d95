//! Traffic control: how fast a link sends, and which link a packet is sent through instead.
//!
//! A *queueing discipline* (qdisc) decides which packet of a link's queue goes next, and when. It shapes what a link **sends**; what it receives is
//! shaped by sending it through an *intermediate functional block* (ifb), a link that exists only to have a queue:
//!
//! ```text
//! to the pod    ──► veth: root qdisc, a token bucket ──► pod
//! from the pod  ──► veth: ingress qdisc ─ filter: all packets to ifb ──► ifb: root qdisc, a token bucket ──► on its way
//! ```
//!
//! Source: Linux `include/uapi/linux/pkt_sched.h`, `pkt_cls.h`, `net/sched/sch_tbf.c`; man 8 `tc-tbf`, `tc-mirred`.

use std::fmt;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Nla as _};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::encode::Index;

/// How a link queues what it sends, or takes what it receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qdisc {
    /// At the root, with the handle `1:`: sends no faster than tokens come.
    TokenBucket(TokenBucket),
    /// With the handle `ffff:`: a place for filters on what a link receives.
    Ingress,
    /// Another kind, by the kernel's name for it.
    Other(String),
}

/// A token bucket: tokens come at a steady rate, a packet takes one for each byte, and the bucket holds so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Tokens per second.
    pub rate_bytes: u64,
    /// How long it takes to fill the empty bucket, in the kernel's ticks of [`TokenBucket::TICK`]: the kernel does not keep its size.
    pub fill_ticks: u32,
    /// How many bytes may wait for tokens; what comes on top is dropped.
    pub queue_bytes: u32,
}

impl TokenBucket {
    /// The unit of time in which the kernel says how full a bucket is (`PSCHED_SHIFT` 6: 2⁶ ns).
    pub const TICK: Duration = Duration::from_nanos(64);

    /// Describes a bucket of `burst_bytes` with a queue in which a packet waits for `latency` at most.
    ///
    /// The time to fill it is cut to whole microseconds, as `tc` does.
    ///
    /// # Panics
    ///
    /// With a rate of 0, which would never send anything.
    #[must_use]
    pub fn new(rate_bytes: u64, burst_bytes: u32, latency: Duration) -> Self {
        let fill_us = u128::from(burst_bytes) * 1_000_000 / u128::from(rate_bytes);
        let ticks = fill_us.min(u128::from(u32::MAX)) * 1000 / Self::TICK.as_nanos();
        let waiting = u128::from(rate_bytes) * latency.as_micros() / 1_000_000;
        Self {
            rate_bytes,
            fill_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
            queue_bytes: u32::try_from(waiting + u128::from(burst_bytes)).unwrap_or(u32::MAX),
        }
    }

    /// How many tokens the bucket holds.
    #[must_use]
    pub fn burst_bytes(&self) -> u64 {
        let tokens = u128::from(self.fill_ticks) * Self::TICK.as_nanos() * u128::from(self.rate_bytes);
        u64::try_from(tokens.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
    }

    /// The attributes of `struct tc_tbf_qopt`:
    ///
    /// ```text
    /// | cell_log 1 | linklayer 1 | overhead 2 | cell_align 2 | mpu 2 | rate 4 |   struct tc_ratespec: the rate
    /// | the same for a peak rate, all 0: none                         12 |
    /// | limit 4 | buffer 4 | mtu 4 |
    /// ```
    fn to_options(&self) -> Vec<TcOption> {
        let rate = u32::try_from(self.rate_bytes).unwrap_or(u32::MAX);
        let mut parameters = vec![0; TBF_PARAMETERS_BYTES];
        parameters[RATE].copy_from_slice(&rate.to_ne_bytes());
        parameters[LIMIT].copy_from_slice(&self.queue_bytes.to_ne_bytes());
        parameters[BUFFER].copy_from_slice(&self.fill_ticks.to_ne_bytes());
        let mut options = vec![TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters))];
        if rate == u32::MAX {
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, self.rate_bytes.to_ne_bytes().to_vec())));
        }
        options
    }

    fn from_options(bytes: &[u8]) -> Option<Self> {
        let parameters = attribute(bytes, TCA_TBF_PARMS)?;
        let number = |range: std::ops::Range<usize>| parameters.get(range)?.try_into().ok().map(u32::from_ne_bytes);
        let wide = attribute(bytes, TCA_TBF_RATE64).and_then(|value| value.try_into().ok()).map(u64::from_ne_bytes);
        Some(Self {
            rate_bytes: wide.map_or_else(|| number(RATE).map(u64::from), Some)?,
            fill_ticks: number(BUFFER)?,
            queue_bytes: number(LIMIT)?,
        })
    }
}

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TBF_PARAMETERS_BYTES: usize = 36;
const RATE: std::ops::Range<usize> = 8..12;
const LIMIT: std::ops::Range<usize> = 24..28;
const BUFFER: std::ops::Range<usize> = 28..32;

/// The value of an attribute among others: length 2, type 2, value, padded to 4 bytes.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// `1:`, the handle of a token bucket.
const BUCKET: TcHandle = TcHandle { major: 1, minor: 0 };
/// `ffff:`, the handle of an ingress qdisc.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// The message about a qdisc of a link: to make it with all that it is, or to delete it.
pub(super) fn qdisc_message(index: Index, qdisc: &Qdisc) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    let (kind, parent, handle, options) = match qdisc {
        Qdisc::TokenBucket(bucket) => ("tbf", TcHandle::ROOT, BUCKET, bucket.to_options()),
        Qdisc::Ingress => ("ingress", TcHandle::INGRESS, INGRESS, Vec::new()),
        Qdisc::Other(kind) => (kind.as_str(), TcHandle::ROOT, TcHandle::UNSPEC, Vec::new()),
    };
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Options(options));
    }
    message
}

/// The message that makes a filter: whatever the link receives is sent through another one.
pub(super) fn redirect_message(index: Index, to: Index) -> TcMessage {
    const PRIORITY: u32 = 1;
    const ETH_P_ALL: u16 = 3;
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = INGRESS;
    message.header.info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    // One key whose mask is 0: it matches everything.
    let mut everything = TcU32Selector::default();
    everything.flags = TcU32SelectorFlags::Terminal;
    everything.nkeys = 1;
    everything.keys = vec![TcU32Key::default()];
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    message.attributes = vec![
        TcAttribute::Kind("u32".to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::ClassId(TcHandle { major: 1, minor: 1 })),
            TcOption::U32(TcFilterU32Option::Selector(everything)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}

/// The request for the filters on what a link receives.
pub(super) fn redirect_request(index: Index) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = INGRESS;
    message
}

/// Reads a qdisc; `None` when it is another link's.
pub(super) fn qdisc(message: &TcMessage, index: Index) -> Option<Qdisc> {
    if message.header.index != index.cast_signed() {
        return None;
    }
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    let bucket = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(nla) => TokenBucket::from_options(&value(nla)),
            _ => None,
        }),
        _ => None,
    });
    Some(match (kind, bucket) {
        ("tbf", Some(bucket)) => Qdisc::TokenBucket(bucket),
        ("ingress", _) => Qdisc::Ingress,
        (other, _) => Qdisc::Other(other.to_owned()),
    })
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value
}

/// Where a filter sends what the link receives; `None` for another kind of filter.
pub(super) fn redirect(message: &TcMessage) -> Option<Index> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let options = actions.iter().flat_map(|action| &action.attributes).filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}

impl fmt::Display for Qdisc {
    /// The words of `tc qdisc add dev DEV …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenBucket(bucket) => write!(
                f,
                "root handle 1: tbf rate {}bps burst {} limit {}",
                bucket.rate_bytes,
                bucket.burst_bytes(),
                bucket.queue_bytes
            ),
            Self::Ingress => f.write_str("handle ffff: ingress"),
            Self::Other(kind) => write!(f, "root {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_what_tc_makes_of_the_same_words() {
        // tc qdisc add dev eth0 root tbf rate 8mbit burst 100kB latency 25ms
        let bucket = TokenBucket::new(1_000_000, 100_000, Duration::from_millis(25));
        assert_eq!(bucket, TokenBucket { rate_bytes: 1_000_000, fill_ticks: 1_562_500, queue_bytes: 125_000 });
        assert_eq!(bucket.burst_bytes(), 100_000);
    }

    #[test]
    fn the_largest_numbers_do_not_wrap() {
        let bucket = TokenBucket::new(1, u32::MAX, Duration::from_secs(1));
        assert_eq!((bucket.fill_ticks, bucket.queue_bytes), (u32::MAX, u32::MAX));
        let fast = TokenBucket::new(u64::MAX / 8, 1, Duration::from_millis(25));
        assert_eq!((fast.fill_ticks, fast.queue_bytes), (0, u32::MAX));
    }
}
