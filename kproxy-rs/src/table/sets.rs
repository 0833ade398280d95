//! The sets and maps of a table: what their keys and values are, and what they are for.

use std::time::Duration;

use linux_net::nft::{Ct, Expr, Field, Meta, NumgenMode, Set, Spec, Table, Type};

use super::Words;

/// Slots are declared by example: a number as `numgen` gives it.
const ANY_SLOT: Expr = Expr::Numgen { mode: NumgenMode::Random, modulus: 65536, offset: 0 };
/// How many sticky clients are remembered in a family; the kernel forgets none before its time, and learns no more when it is full.
const MAX_CLIENTS: u32 = 65_536;
/// The least room in the maps that grow with the Services, in elements. The kernel takes 16 bytes for each.
const LEAST_CAPACITY: u32 = 1024;
/// How long a client is remembered unless the rule that learns it says otherwise, as all of ours do.
const DEFAULT_AFFINITY: Duration = Duration::from_hours(3);

/// All of them; the essay at the top of the crate tells of each.
#[derive(Debug, Clone)]
pub(super) struct Sets {
    pub(super) front: Set,
    pub(super) nodeports: Set,
    pub(super) anyview: Set,
    pub(super) any: Set,
    pub(super) vacant: Set,
    pub(super) class: Set,
    pub(super) eps: Set,
    pub(super) anyeps: Set,
    pub(super) aff: Set,
    pub(super) sticky: Set,
    pub(super) ranged: Set,
    pub(super) ranges: Set,
    pub(super) pods: Set,
    pub(super) nodeips: Set,
    pub(super) vips: Set,
    pub(super) hairpin: Set,
}

impl Sets {
    pub(super) fn new(table: &Table, words: &Words) -> Self {
        let address = words.address;
        let tag = || Spec::types([Type::Mark]);
        let slot_of = |keys: &[Expr]| Spec::type_of([keys, &[ANY_SLOT]].concat());
        let endpoint = || Spec::type_of([words.destination.into(), Field::ThDport.into()]);
        let client = Spec::type_of([words.source.into(), Ct::Mark.into(), Meta::L4proto.into()]);
        Self {
            front: Set::map(table, "front", Spec::types([address, Type::InetProto, Type::InetService]), tag())
                .with_comment("address . protocol . port of a Service: its tag"),
            nodeports: Set::map(table, "nodeports", Spec::types([Type::InetProto, Type::InetService]), tag())
                .with_comment("port of this worker: the tag of its Service"),
            anyview: Set::map(table, "anyview", tag(), tag())
                .with_comment("tag of policy Local: what pods and this worker get"),
            any: Set::map(table, "any", Spec::types([address]), tag()).with_comment("VIPs that answer every protocol"),
            vacant: Set::verdict_map(table, "vacant", tag()).with_comment("nobody there: drop or refuse"),
            class: Set::verdict_map(table, "class", tag()).with_comment("how to choose among so many endpoints"),
            eps: Set::map(table, "eps", slot_of(&[Ct::Mark.into(), Meta::L4proto.into()]), endpoint())
                .with_comment("id . protocol . slot: the endpoint"),
            anyeps: Set::map(table, "anyeps", slot_of(&[Ct::Mark.into()]), Spec::type_of([words.destination.into()]))
                .with_comment("id . slot: the endpoint of a VIP for all protocols"),
            aff: Set::map(table, "aff", client, endpoint())
                .dynamic(MAX_CLIENTS, Some(DEFAULT_AFFINITY))
                .with_comment("clients that are sent where they were sent before"),
            sticky: Set::verdict_map(table, "sticky", tag())
                .with_comment("for how long the clients of an id are remembered"),
            ranged: Set::new(table, "ranged", tag()).with_comment("tags that are for some clients only"),
            ranges: Set::new(table, "ranges", Spec::types([Type::Mark, address]))
                .interval()
                .with_comment("tag . who may use it"),
            pods: Set::new(table, "pods", Spec::types([address]))
                .interval()
                .with_comment("where pods live: not masqueraded"),
            nodeips: Set::new(table, "nodeips", Spec::types([address]))
                .interval()
                .with_comment("addresses of this worker that have NodePorts"),
            vips: Set::new(table, "vips", Spec::types([address]))
                .with_comment("live ClusterIPs: other ports are refused"),
            hairpin: Set::new(table, "hairpin", Spec::types([address, address]))
                .with_comment("pods here that may be sent to themselves"),
        }
    }
}

/// Room for so many elements and half as many again; a power of two, as the kernel rounds up anyway.
pub(super) fn capacity(count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX / 4);
    (count.saturating_add(count / 2)).max(LEAST_CAPACITY).next_power_of_two()
}
