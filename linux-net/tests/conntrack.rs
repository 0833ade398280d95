//! Entries of connection tracking: listed as conntrack(8) lists them, and deleted one by one.

use std::net::UdpSocket;

use anyhow::Result;
use linux_net::{
    IfName, Netlink, Op,
    conntrack::{self, Conntrack, Filter},
    nft::{Batch, Chain, ChainKind, Ct, Family, Hook, HookPoint, Op as NftOp, Priority, Rule, Statement, Table, Value},
    testing::enter_sandbox,
};

/// Makes the kernel track connections here: it does so where a rule asks for their state.
fn track() -> Result<()> {
    Netlink::open()?.apply(&Op::SetUp { dev: IfName::loopback() })?;
    let mut batch = Batch::new();
    for family in [Family::Ip, Family::Ip6] {
        let table = Table::new(family, "track");
        let at = HookPoint::Output;
        let hook = Hook { kind: ChainKind::Filter, at, priority: Priority::FILTER, policy: None, device: None };
        batch.push(NftOp::AddTable(table.clone()));
        batch.push(NftOp::AddChain(Chain::base(&table, "out", hook)));
        let asks = Statement::equal(Ct::State, Value::CtState(Ct::STATE_NEW));
        batch.push(NftOp::AddRule(Rule::new(&table, "out", [asks, Statement::Counter])));
    }
    Ok(batch.commit()?)
}

/// Sends one datagram to each port.
fn send(from: &str, to: &str, ports: impl IntoIterator<Item = u16>) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0))?;
    for port in ports {
        socket.send_to(b"x", (to, port))?;
    }
    Ok(socket)
}

#[test]
fn only_what_a_filter_describes_is_deleted() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    track()?;
    let _client = send("127.0.0.1", "127.0.0.1", [5001, 5002])?;
    let _client6 = send("::1", "::1", [5001])?;
    let mut conntrack = Conntrack::open()?;
    let to_first = Filter { protocol: Some(17), original_port: Some(5001), ..Filter::default() };
    let count = |conntrack: &mut Conntrack, filter: &Filter| -> Result<usize> {
        Ok(conntrack.entries()?.iter().filter(|entry| filter.matches(entry)).count())
    };
    assert_eq!(count(&mut conntrack, &to_first)?, 2, "one of each family");
    let of_address = Filter { reply_source: Some("127.0.0.1".parse()?), ..to_first.clone() };
    assert_eq!(conntrack.delete(std::slice::from_ref(&of_address))?, 1);
    assert_eq!(conntrack.delete(&[of_address])?, 0, "it has gone");
    assert_eq!(count(&mut conntrack, &to_first)?, 1, "the IPv6 one is there");
    let other = Filter { original_port: Some(5002), ..Filter::default() };
    assert_eq!(count(&mut conntrack, &other)?, 1);
    assert_eq!(conntrack::delete(&[])?, 0, "no filter is not every connection");
    assert_eq!(conntrack::delete(&[to_first, other])?, 2);
    Ok(())
}

#[test]
fn many_entries_go_at_once() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    track()?;
    let _client = send("127.0.0.1", "127.0.0.1", 6000..6750)?;
    let to_all = Filter { protocol: Some(17), original_destination: Some("127.0.0.1".parse()?), ..Filter::default() };
    // Each datagram that nobody takes is answered by ICMP, which belongs to the same entry.
    assert_eq!(conntrack::delete(&[to_all])?, 750);
    Ok(())
}
