//! Sends datagrams to two ports, lists what connection tracking remembers of them, and makes it forget one.
//!
//! ```text
//! target/debug/examples/conntrack
//! ```

use std::{io::Write as _, net::UdpSocket};

use linux_net::{
    IfName, Netlink, Op,
    conntrack::{Conntrack, Filter},
    nft::{self, Batch, Chain, ChainKind, Ct, Family, Hook, HookPoint, Priority, Rule, Statement, Table, Value},
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    Netlink::open()?.apply(&Op::SetUp { dev: IfName::loopback() })?;
    // The kernel tracks connections where a rule asks about them.
    let table = Table::new(Family::Ip, "track");
    let hook =
        Hook { kind: ChainKind::Filter, at: HookPoint::Output, priority: Priority::FILTER, policy: None, device: None };
    let asks = [Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW)), Statement::Counter];
    Batch(vec![
        nft::Op::AddTable(table.clone()),
        nft::Op::AddChain(Chain::base(&table, "out", hook)),
        nft::Op::AddRule(Rule::new(&table, "out", asks)),
    ])
    .commit()?;

    let client = UdpSocket::bind("127.0.0.1:4000")?;
    for port in [5001, 5002] {
        client.send_to(b"hello", ("127.0.0.1", port))?;
    }
    let mut conntrack = Conntrack::open()?;
    let filter = Filter { protocol: Some(17), original_port: Some(5001), ..Filter::default() };
    writeln!(out, "{} entries of UDP", conntrack.entries()?.iter().filter(|entry| entry.protocol == 17).count())?;
    writeln!(out, "{filter}")?;
    writeln!(out, "deleted: {}", conntrack.delete(&[filter])?)?;
    for entry in conntrack.entries()?.iter().filter(|entry| entry.protocol == 17) {
        writeln!(out, "left: to port {}", entry.original.destination_port)?;
    }
    Ok(())
}
