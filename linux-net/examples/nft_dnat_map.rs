//! A service: one address in front of two pods. Each new connection draws a number, and a map turns it into a pod.
//!
//! ```text
//! target/debug/examples/nft_dnat_map
//! ```

use std::io::Write as _;

use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, HookPoint, NatTarget, Nft, NumgenMode, Op, Priority,
    Rule, Set, Spec, Statement, Table, Value,
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let table = Table::new(Family::Ip, "example");
    let draw = |modulus| Expr::Numgen { mode: NumgenMode::Random, modulus, offset: 0 };
    // A number has no type of its own in nft: the map takes it from an expression.
    let pods = Set::map(
        &table,
        "pods",
        Spec::type_of([draw(65536)]),
        Spec::type_of([Field::IpDaddr.into(), Field::ThDport.into()]),
    );
    let pod = |number, address: &str| -> anyhow::Result<Element> {
        Ok(Element::map([Value::Integer(number)], [Value::Ipv4(address.parse()?), Value::Port(8080)]))
    };
    let hook = Hook {
        kind: ChainKind::Nat,
        at: HookPoint::Prerouting,
        priority: Priority::DSTNAT,
        policy: None,
        device: None,
    };
    let batch = Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddSet(pods.clone()),
        Op::AddElements { set: pods.clone(), elements: vec![pod(0, "11.10.0.2")?, pod(1, "11.10.0.3")?] },
        Op::AddChain(Chain::base(&table, "services", hook)),
        Op::AddRule(Rule::new(
            &table,
            "services",
            [
                Statement::equal(Field::IpDaddr, Value::Ipv4("100.64.10.1".parse()?)),
                Statement::equal(Field::TcpDport, Value::Port(80)),
                Statement::Dnat { family: Family::Ip, to: NatTarget::AddressAndPort(draw(2).map("pods")) },
            ],
        )),
    ]);
    write!(out, "{batch}")?;
    batch.commit()?;
    for element in Nft::open()?.elements(&pods)? {
        writeln!(out, "read back: {element}")?;
    }
    Ok(())
}
