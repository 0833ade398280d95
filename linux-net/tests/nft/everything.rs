//! Every statement, expression and value kind that the service proxy's ruleset has not.

use std::time::Duration;

use linux_net::nft::{
    Batch, Chain, ChainKind, CmpOp, Ct, Element, Expr, Family, FibAddress, FibResult, Field, Hook, HookPoint,
    MasqueradeFlags, Meta, NatTarget, NumgenMode, Op, Policy, Priority, Reject, Rule, Set, Spec, Statement, Table,
    Type, UpdateKind, Value, Verdict,
};

fn table() -> Table {
    Table::new(Family::Inet, "everything")
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("a test knows how to write {text}"))
}

fn ip(text: &str) -> Value {
    Value::Ipv4(parsed(text))
}

fn ip6(text: &str) -> Value {
    Value::Ipv6(parsed(text))
}

fn mac(text: &str) -> Value {
    Value::Mac(parsed(text))
}

fn device(text: &str) -> Value {
    Value::IfName(parsed(text))
}

/// Returns the whole batch.
pub(crate) fn batch() -> Batch {
    let sets = sets();
    let mut batch = Batch(vec![Op::AddTable(table()), Op::AddChain(Chain::regular(&table(), "side"))]);
    batch.extend(sets.iter().map(|(set, _)| Op::AddSet(set.clone())));
    batch.extend(sets.into_iter().map(|(set, elements)| Op::AddElements { set, elements }));
    for (name, kind, at) in [
        ("in", ChainKind::Filter, HookPoint::Input),
        ("pre", ChainKind::Nat, HookPoint::Prerouting),
        ("post", ChainKind::Nat, HookPoint::Postrouting),
        ("out", ChainKind::Route, HookPoint::Output),
    ] {
        let hook = Hook { kind, at, priority: Priority(7), policy: Some(Policy::Accept), device: None };
        batch.push(Op::AddChain(Chain::base(&table(), name, hook)));
    }
    batch.push(Op::AddRule(Rule::new(&table(), "side", [Statement::Verdict(Verdict::Continue)])));
    let mut commented = Rule::new(&table(), "in", [Statement::Counter, Statement::accept()]);
    commented.comment = Some("why it is here".into());
    batch.push(Op::AddRule(commented));
    let chains = [
        ("in", matches()),
        ("in", lookups()),
        ("in", numbers()),
        ("out", settings()),
        ("pre", dnats()),
        ("post", snats()),
    ];
    for (chain, rules) in chains {
        batch.extend(rules.into_iter().map(|statements| Op::AddRule(Rule::new(&table(), chain, statements))));
    }
    batch
}

fn sets() -> Vec<(Set, Vec<Element>)> {
    let set = |name: &str, key: &[Type]| Set::new(&table(), name, Spec::types(key));
    let ports = Spec::types([Type::InetService]);
    vec![
        (
            set("seen", &[Type::Ipv4Addr]).dynamic(100, Some(Duration::from_secs(90))),
            vec![Element { timeout: Some(Duration::from_secs(30)), ..Element::key([ip("10.0.0.9")]) }],
        ),
        (
            Set::map(&table(), "ranks", ports, Spec::types([Type::Mark])).interval().with_comment("of ports"),
            vec![
                Element::map([Value::PortRange(8000, 8009)], [Value::Mark(1)]),
                Element::map([Value::Port(80)], [Value::Mark(2)]),
            ],
        ),
        (set("names", &[Type::Ifname, Type::InetProto]), vec![Element::key([device("cni0"), Value::Protocol(17)])]),
        (
            set("six", &[Type::Ipv6Addr]).interval(),
            vec![Element::key([Value::Ipv6Net(parsed("fd00::/16"))]).with_comment("whose it is")],
        ),
        (
            Set::verdict_map(&table(), "macs", Spec::types([Type::EtherAddr])).with_comment("who is who"),
            vec![
                Element::verdict([mac("02:00:00:00:00:01")], Verdict::Accept),
                Element::verdict([mac("02:00:00:00:00:02")], Verdict::Jump("side".into())).with_comment("the second"),
            ],
        ),
        (
            set("boxes", &[Type::Ipv4Addr, Type::InetService]).interval(),
            vec![Element::key([Value::Ipv4Net(parsed("10.1.0.0/16")), Value::PortRange(1000, 2000)])],
        ),
        (
            set("kinds", &[Type::FibAddrtype, Type::CtState, Type::CtStatus]),
            vec![Element::key([Value::FibType(2), Value::CtState(Ct::STATE_NEW), Value::CtStatus(Ct::STATUS_ASSURED)])],
        ),
    ]
}

fn matches() -> Vec<Vec<Statement>> {
    let is = |left: Expr, right| Statement::equal(left, right);
    let broadcast = Expr::Fib { address: FibAddress::Saddr, result: FibResult::Type };
    vec![
        vec![is(Meta::Iifname.into(), device("lo")), Statement::accept()],
        vec![
            is(Ct::State.into(), Value::CtState(Ct::STATE_ESTABLISHED | Ct::STATE_RELATED)),
            Statement::Verdict(Verdict::Accept),
        ],
        vec![Statement::differs(Ct::State, Value::CtState(Ct::STATE_INVALID)), Statement::Counter],
        vec![is(Field::TcpDport.into(), Value::Port(22)), Statement::goto("side")],
        vec![is(Field::UdpSport.into(), Value::PortRange(67, 68)), Statement::drop()],
        vec![Statement::differs(Field::TcpDport, Value::PortRange(1, 1023)), Statement::Counter],
        vec![
            Statement::Match { left: Field::ThDport.into(), op: CmpOp::Ge, right: Value::Port(1024) },
            Statement::Counter,
        ],
        vec![is(Field::IpSaddr.into(), Value::Ipv4Net(parsed("10.1.2.0/23"))), Statement::drop()],
        vec![is(Field::Ip6Saddr.into(), Value::Ipv6Net(parsed("fd00::/61"))), Statement::drop()],
        vec![is(Field::Ip6Daddr.into(), ip6("fd00::1")), Statement::ret()],
        vec![is(broadcast, Value::FibType(3)), Statement::Reject(Reject::HostUnreachable)],
        vec![is(Ct::Direction.into(), Value::Integer(0)), Statement::Counter],
    ]
}

fn lookups() -> Vec<Vec<Statement>> {
    let device_and_protocol = Expr::Concat(vec![Meta::Iifname.into(), Meta::L4proto.into()]);
    let address_and_port = Expr::Concat(vec![Field::IpDaddr.into(), Field::TcpDport.into()]);
    vec![
        vec![Statement::in_set(Field::Ip6Saddr, "six"), Statement::Reject(Reject::AdminProhibited)],
        vec![Statement::in_set(device_and_protocol, "names"), Statement::Counter],
        vec![Statement::not_in_set(address_and_port, "boxes"), Statement::Reject(Reject::TcpReset)],
        vec![Statement::Vmap { key: Field::EtherSaddr.into(), map: "macs".into() }],
        vec![
            Statement::Update {
                kind: UpdateKind::Add,
                set: "seen".into(),
                key: Field::IpSaddr.into(),
                data: None,
                timeout: Some(Duration::from_secs(10)),
            },
            Statement::Reject(Reject::PortUnreachable),
        ],
    ]
}

fn numbers() -> Vec<Vec<Statement>> {
    let jhash = |of, seed, offset| Expr::Jhash { of: Box::new(of), modulus: 5, seed: Some(seed), offset };
    let flow = Expr::Concat(vec![Field::IpSaddr.into(), Field::TcpSport.into()]);
    [
        Expr::Symhash { modulus: 2, offset: 0 },
        Expr::Numgen { mode: NumgenMode::Incremental, modulus: 4, offset: 1 },
        jhash(Field::IpSaddr.into(), 0xbeef, 1),
        jhash(flow, 7, 0),
    ]
    .map(|number| vec![Statement::equal(number, Value::Integer(1)), Statement::Counter])
    .to_vec()
}

fn settings() -> Vec<Vec<Statement>> {
    vec![
        vec![Statement::SetMeta { key: Meta::Mark, value: Value::Mark(0x12).into() }],
        vec![Statement::SetMeta { key: Meta::Nftrace, value: Value::Integer(1).into() }],
        vec![Statement::SetMeta { key: Meta::Mark, value: Expr::from(Field::ThDport).map("ranks") }],
        vec![Statement::SetCt { key: Ct::Mark, value: Expr::Xor(Box::new(Meta::Mark.into()), 0xff) }],
    ]
}

fn dnats() -> Vec<Vec<Statement>> {
    let both =
        |address: Value, port| NatTarget::AddressAndPort(Expr::Concat(vec![address.into(), Value::Port(port).into()]));
    vec![
        vec![
            Statement::equal(Field::TcpDport, Value::Port(8080)),
            Statement::Dnat { family: Family::Ip, to: both(ip("10.0.0.1"), 80) },
        ],
        vec![
            Statement::equal(Field::UdpDport, Value::Port(53)),
            Statement::Dnat { family: Family::Ip6, to: both(ip6("fd00::1"), 5353) },
        ],
        vec![Statement::Dnat { family: Family::Ip, to: NatTarget::Address(ip("10.0.0.1").into()) }],
    ]
}

fn snats() -> Vec<Vec<Statement>> {
    let random = MasqueradeFlags { random: true, persistent: true, ..MasqueradeFlags::default() };
    vec![
        vec![Statement::Snat { family: Family::Ip, to: NatTarget::Address(ip("192.0.2.1").into()) }],
        vec![Statement::equal(Meta::Oifname, device("eth0")), Statement::Masquerade(MasqueradeFlags::default())],
        vec![Statement::Masquerade(random)],
    ]
}
