//! The ruleset of `service-proxy.nft`, in our data model.

use std::time::Duration;

use linux_net::nft::{
    Batch, Chain, ChainKind, Ct, Element, Expr, Family, FibAddress, FibResult, Field, Hook, HookPoint, MasqueradeFlags,
    Meta, NatTarget, NumgenMode, Op, Priority, Reject, Rule, Set, Spec, Statement, Table, Type, UpdateKind, Value,
    Verdict,
};

/// Returns the table.
pub(crate) fn table() -> Table {
    Table::new(Family::Ip, "kproxy")
}

fn concat(parts: impl IntoIterator<Item = Expr>) -> Expr {
    Expr::Concat(parts.into_iter().collect())
}

fn random(modulus: u32) -> Expr {
    Expr::Numgen { mode: NumgenMode::Random, modulus, offset: 0 }
}

fn ip(text: &str) -> Value {
    Value::Ipv4(text.parse().expect("a test knows its addresses"))
}

const TCP: Value = Value::Protocol(6);

/// Returns the map of endpoints, whose types are taken from expressions.
pub(crate) fn eps() -> Set {
    Set::map(
        &table(),
        "eps",
        Spec::type_of([Ct::Mark.into(), Meta::L4proto.into(), random(65536)]),
        Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
    )
}

/// Returns the endpoint with number `index` of the service `tag`.
pub(crate) fn endpoint(tag: u32, index: u32, address: &str) -> Element {
    Element::map([Value::Mark(tag), TCP, Value::Integer(index)], [ip(address), Value::Port(8080)])
}

/// Returns the map of sticky clients, which a rule fills.
pub(crate) fn aff() -> Set {
    Set::map(
        &table(),
        "aff",
        Spec::type_of([Field::IpSaddr.into(), Ct::Mark.into(), Meta::L4proto.into()]),
        Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
    )
    .dynamic(65536, Some(Duration::from_hours(3)))
}

/// Returns every set with its elements.
pub(crate) fn sets() -> Vec<(Set, Vec<Element>)> {
    let table = table();
    let front_key = Spec::types([Type::Ipv4Addr, Type::InetProto, Type::InetService]);
    let mark = || Spec::types([Type::Mark]);
    let front = |address: &str, tag| Element::map([ip(address), TCP, Value::Port(80)], [Value::Mark(tag)]);
    let class = |tag, chain: &str| Element::verdict([Value::Mark(tag)], Verdict::Goto(chain.to_owned()));
    vec![
        (
            Set::map(&table, "front", front_key, mark()),
            vec![front("172.30.0.1", 0x0030_0001), front("172.30.0.2", 0x1030_0002), front("203.0.113.7", 0xb010_0003)],
        ),
        (
            Set::map(&table, "nodeports", Spec::types([Type::InetProto, Type::InetService]), mark()),
            vec![Element::map([TCP, Value::Port(30080)], [Value::Mark(0xc030_0001)])],
        ),
        (
            Set::map(&table, "anyview", mark(), mark()),
            vec![Element::map([Value::Mark(0xb010_0003)], [Value::Mark(0x9030_0002)])],
        ),
        (
            Set::verdict_map(&table, "class", mark()),
            vec![
                Element::verdict([Value::Mark(0)], Verdict::Drop),
                class(0x0030_0000, "lb-3"),
                class(0x1030_0000, "lb-3s"),
                class(0x1010_0000, "lb-1s"),
                class(0x0ff0_0000, "refuse"),
            ],
        ),
        (
            eps(),
            vec![
                endpoint(0x0000_0001, 0, "10.0.0.1"),
                endpoint(0x0000_0001, 1, "10.0.0.2"),
                endpoint(0x0000_0001, 2, "10.0.0.3"),
                endpoint(0x1000_0002, 0, "10.0.0.1"),
                endpoint(0x1000_0002, 1, "10.0.0.2"),
                endpoint(0x1000_0002, 2, "10.0.0.3"),
                endpoint(0x1000_0003, 0, "10.0.0.2"),
            ],
        ),
        (aff(), Vec::new()),
        (
            Set::new(&table, "pods", Spec::types([Type::Ipv4Addr])).interval(),
            vec![Element::key([Value::Ipv4Net("10.0.0.0/8".parse().expect("a network"))])],
        ),
        (
            Set::new(&table, "vips", Spec::types([Type::Ipv4Addr])),
            vec![Element::key([ip("172.30.0.1")]), Element::key([ip("172.30.0.2")])],
        ),
        (
            Set::new(&table, "hairpin", Spec::types([Type::Ipv4Addr, Type::Ipv4Addr])),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| Element::key([ip(address), ip(address)])).to_vec(),
        ),
        (Set::new(&table, "ranged", mark()), vec![Element::key([Value::Mark(0xb010_0003)])]),
        (
            Set::new(&table, "ranges", Spec::types([Type::Mark, Type::Ipv4Addr])).interval(),
            vec![Element::key([
                Value::Mark(0xb010_0003),
                Value::Ipv4Net("192.168.77.0/24".parse().expect("a network")),
            ])],
        ),
    ]
}

fn hook(kind: ChainKind, at: HookPoint, priority: Priority) -> Hook {
    Hook { kind, at, priority, policy: None, device: None }
}

fn chains() -> Vec<Chain> {
    let table = table();
    let nat = |at, priority| hook(ChainKind::Nat, at, priority);
    let regular = |name: &str| Chain::regular(&table, name);
    vec![
        Chain::base(&table, "pre", nat(HookPoint::Prerouting, Priority::DSTNAT)),
        Chain::base(&table, "out", nat(HookPoint::Output, Priority::DSTNAT)),
        regular("services"),
        regular("dispatch"),
        regular("local-policy"),
        regular("lb-3"),
        regular("lb-1s"),
        regular("lb-3s"),
        regular("refuse"),
        Chain::base(&table, "learn", hook(ChainKind::Filter, HookPoint::Postrouting, Priority(90))),
        Chain::base(&table, "post", nat(HookPoint::Postrouting, Priority::SRCNAT)),
    ]
}

fn rules() -> Vec<Rule> {
    let rule = |chain: &str, statements: Vec<Statement>| Rule::new(&table(), chain, statements);
    let ct_mark = || Expr::from(Ct::Mark);
    let set_ct = |value| Statement::SetCt { key: Ct::Mark, value };
    let set_bit = || Statement::SetMeta { key: Meta::Mark, value: Expr::from(Meta::Mark).or(0x4000) };
    let has = |bit: u32| Statement::differs(ct_mark().and(bit), Value::Mark(0));
    let lacks = |bit: u32| Statement::equal(ct_mark().and(bit), Value::Mark(0));
    let is_local = |address| Statement::equal(Expr::Fib { address, result: FibResult::Type }, Value::FibType(2));
    let fully_random = || Statement::Masquerade(MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() });
    let sticky_key = || concat([Field::IpSaddr.into(), ct_mark(), Meta::L4proto.into()]);
    let to_sticky = || Statement::Dnat { family: Family::Ip, to: NatTarget::AddressAndPort(sticky_key().map("aff")) };
    let to_one_of = |count| Statement::Dnat {
        family: Family::Ip,
        to: NatTarget::AddressAndPort(concat([ct_mark(), Meta::L4proto.into(), random(count)]).map("eps")),
    };
    let strip = || set_ct(ct_mark().and(0x100f_ffff));
    vec![
        rule("pre", vec![Statement::jump("services")]),
        rule("out", vec![Statement::jump("services")]),
        rule(
            "services",
            vec![
                set_ct(concat([Field::IpDaddr.into(), Meta::L4proto.into(), Field::ThDport.into()]).map("front")),
                Statement::goto("dispatch"),
            ],
        ),
        rule(
            "services",
            vec![
                is_local(FibAddress::Daddr),
                Statement::differs(Field::IpDaddr, Value::Ipv4Net("127.0.0.0/8".parse().expect("a network"))),
                set_ct(concat([Meta::L4proto.into(), Field::ThDport.into()]).map("nodeports")),
                Statement::goto("dispatch"),
            ],
        ),
        rule("services", vec![Statement::in_set(Field::IpDaddr, "vips"), Statement::goto("refuse")]),
        rule(
            "dispatch",
            vec![
                Statement::in_set(Ct::Mark, "ranged"),
                Statement::not_in_set(concat([ct_mark(), Field::IpSaddr.into()]), "ranges"),
                Statement::drop(),
            ],
        ),
        rule("dispatch", vec![has(0x2000_0000), Statement::jump("local-policy")]),
        rule("dispatch", vec![lacks(0x8000_0000), Statement::not_in_set(Field::IpSaddr, "pods"), set_bit()]),
        rule("dispatch", vec![has(0x4000_0000), set_bit()]),
        rule("dispatch", vec![Statement::Vmap { key: ct_mark().and(0x1ff0_0000), map: "class".into() }]),
        rule(
            "local-policy",
            vec![is_local(FibAddress::Saddr), set_ct(ct_mark().map("anyview")), set_bit(), Statement::ret()],
        ),
        rule("local-policy", vec![Statement::in_set(Field::IpSaddr, "pods"), set_ct(ct_mark().map("anyview"))]),
        rule("lb-3", vec![strip(), to_one_of(3)]),
        rule("lb-3", vec![Statement::drop()]),
        rule("lb-1s", vec![strip(), to_sticky()]),
        rule("lb-1s", vec![to_one_of(1)]),
        rule("lb-1s", vec![Statement::drop()]),
        rule("lb-3s", vec![strip(), to_sticky()]),
        rule("lb-3s", vec![to_one_of(3)]),
        rule("lb-3s", vec![Statement::drop()]),
        rule("refuse", vec![Statement::equal(Meta::L4proto, TCP), Statement::Reject(Reject::TcpReset)]),
        rule("refuse", vec![Statement::Reject(Reject::PortUnreachable)]),
        rule(
            "learn",
            vec![
                Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW)),
                has(0x1000_0000),
                Statement::Update {
                    kind: UpdateKind::Update,
                    set: "aff".into(),
                    key: sticky_key(),
                    data: Some(concat([Field::IpDaddr.into(), Field::ThDport.into()])),
                    timeout: None,
                },
            ],
        ),
        rule("post", vec![Statement::differs(Expr::from(Meta::Mark).and(0x4000), Value::Mark(0)), fully_random()]),
        rule(
            "post",
            vec![
                Statement::equal(Ct::Status, Value::CtStatus(Ct::STATUS_DNAT)),
                Statement::in_set(concat([Field::IpSaddr.into(), Field::IpDaddr.into()]), "hairpin"),
                fully_random(),
            ],
        ),
    ]
}

/// Returns the batch that makes the whole table.
pub(crate) fn batch() -> Batch {
    let sets = sets();
    let mut batch = Batch::from_iter([Op::AddTable(table())]);
    batch.extend(sets.iter().map(|(set, _)| Op::AddSet(set.clone())));
    batch.extend(chains().into_iter().map(Op::AddChain));
    batch.extend(rules().into_iter().map(Op::AddRule));
    let with_elements = sets.into_iter().filter(|(_, elements)| !elements.is_empty());
    batch.extend(with_elements.map(|(set, elements)| Op::AddElements { set, elements }));
    batch
}
