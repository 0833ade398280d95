//! One lookup instead of many rules: a map from destination and port to what happens.
//!
//! ```text
//! target/debug/examples/nft_verdict_map
//! ```

use std::io::Write as _;

use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, HookPoint, Op, Priority, Reject, Rule, Set, Spec,
    Statement, Table, Type, Value, Verdict,
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let table = Table::new(Family::Ip, "example");
    let services = Set::verdict_map(&table, "services", Spec::types([Type::Ipv4Addr, Type::InetService]));
    let service = |address: &str, port, verdict| -> anyhow::Result<Element> {
        Ok(Element::verdict([Value::Ipv4(address.parse()?), Value::Port(port)], verdict))
    };
    let hook =
        Hook { kind: ChainKind::Filter, at: HookPoint::Input, priority: Priority::FILTER, policy: None, device: None };
    let batch = Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddChain(Chain::base(&table, "input", hook)),
        Op::AddChain(Chain::regular(&table, "refuse")),
        Op::AddSet(services.clone()),
        Op::AddElements {
            set: services,
            elements: vec![
                service("10.0.0.1", 80, Verdict::Accept)?,
                service("10.0.0.1", 81, Verdict::Goto("refuse".into()))?,
            ],
        },
        Op::AddRule(Rule::new(
            &table,
            "input",
            [Statement::Vmap {
                key: Expr::Concat(vec![Field::IpDaddr.into(), Field::ThDport.into()]),
                map: "services".into(),
            }],
        )),
        Op::AddRule(Rule::new(&table, "refuse", [Statement::Counter, Statement::Reject(Reject::PortUnreachable)])),
    ]);
    write!(out, "{batch}")?;
    batch.commit()?;
    writeln!(out, "the kernel has it: see `nft list ruleset`")?;
    Ok(())
}
