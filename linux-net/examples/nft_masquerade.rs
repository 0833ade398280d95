//! Lets pods reach the outside under their node's address, but each other under their own: masquerades, and counts, what
//! leaves the pod network.
//!
//! ```text
//! target/debug/examples/nft_masquerade
//! ```

use std::io::Write as _;

use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, HookPoint, MasqueradeFlags, Nft, Op, Priority, Rule, Set,
    Spec, Statement, Table, Type, Value,
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let table = Table::new(Family::Ip, "example");
    let pods = Set::new(&table, "pods", Spec::types([Type::Ipv4Addr])).interval();
    let hook = Hook {
        kind: ChainKind::Nat,
        at: HookPoint::Postrouting,
        priority: Priority::SRCNAT,
        policy: None,
        device: None,
    };
    let flags = MasqueradeFlags { fully_random: true, ..MasqueradeFlags::default() };
    let mut rule = Rule::new(
        &table,
        "outside",
        [
            Statement::in_set(Field::IpSaddr, "pods"),
            Statement::not_in_set(Field::IpDaddr, "pods"),
            Statement::Counter,
            Statement::Masquerade(flags),
        ],
    );
    rule.comment = Some("pod to outside".into());
    let batch = Batch(vec![
        Op::AddTable(table.clone()),
        Op::AddSet(pods.clone()),
        Op::AddElements { set: pods, elements: vec![Element::key([Value::Ipv4Net("11.0.0.0/8".parse()?)])] },
        Op::AddChain(Chain::base(&table, "outside", hook)),
        Op::AddRule(rule),
    ]);
    write!(out, "{batch}")?;
    batch.commit()?;
    for rule in Nft::open()?.rules(&table)? {
        writeln!(out, "chain {} has rule {}: {:?}", rule.chain, rule.handle, rule.comment)?;
    }
    Ok(())
}
