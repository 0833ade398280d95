//! A map that packets fill: each client is remembered for three hours, with the pod it was given.
//!
//! ```text
//! target/debug/examples/nft_sticky
//! ```

use std::{io::Write as _, time::Duration};

use linux_net::nft::{
    Batch, Chain, ChainKind, Ct, Element, Family, Field, Hook, HookPoint, Nft, Op, Priority, Rule, Set, Spec,
    Statement, Table, Type, UpdateKind, Value,
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let table = Table::new(Family::Ip, "example");
    let address = || Spec::types([Type::Ipv4Addr]);
    let clients = Set::map(&table, "clients", address(), address()).dynamic(65536, Some(Duration::from_hours(3)));
    let hook = Hook {
        kind: ChainKind::Filter,
        at: HookPoint::Postrouting,
        priority: Priority(90),
        policy: None,
        device: None,
    };
    let batch = Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddSet(clients.clone()),
        Op::AddChain(Chain::base(&table, "learn", hook)),
        Op::AddRule(Rule::new(
            &table,
            "learn",
            [
                Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW)),
                Statement::Update {
                    kind: UpdateKind::Update,
                    set: "clients".into(),
                    key: Field::IpSaddr.into(),
                    data: Some(Field::IpDaddr.into()),
                    timeout: None,
                },
            ],
        )),
        // An element can be put in from outside, too.
        Op::AddElements {
            set: clients.clone(),
            elements: vec![Element::map([Value::Ipv4("11.10.0.9".parse()?)], [Value::Ipv4("11.10.0.2".parse()?)])],
        },
    ]);
    write!(out, "{batch}")?;
    batch.commit()?;
    for element in Nft::open()?.elements(&clients)? {
        writeln!(out, "read back: {element}")?;
    }
    Ok(())
}
