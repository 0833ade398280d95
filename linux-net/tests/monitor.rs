//! What a [`Monitor`] hears.

use anyhow::Result;
use linux_net::{
    IfName, MacAddr, Netlink, Op, Vni,
    netlink::{Event, FdbEntry, Group, Monitor, Neighbour, Route, RouteScope, Veth, Vxlan},
    testing::enter_sandbox,
};

#[test]
fn a_monitor_hears_of_links_addresses_routes_and_neighbours() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let mut monitor = Monitor::open(&[Group::Links, Group::Addresses, Group::Routes, Group::Neighbours])?;
    assert_eq!(monitor.try_recv()?, None, "nothing has happened yet");
    let (a, vx): (IfName, IfName) = ("a".parse()?, "vx".parse()?);
    let mac: MacAddr = "02:00:00:00:00:01".parse()?;
    let neighbour = Neighbour::permanent(a.clone(), "10.0.0.2".parse()?, mac);
    let mut route = Route::to("10.9.0.0/16".parse()?).via("10.0.0.2".parse()?).dev(a.clone());
    route.scope = Some(RouteScope::Global);
    let entry = FdbEntry::permanent(vx.clone(), mac, "10.0.0.3".parse()?);
    let mut netlink = Netlink::open()?;
    for result in netlink.apply_all(&[
        Op::AddVeth(Veth::new(a.clone(), "b".parse()?, None)),
        Op::SetUp { dev: a.clone() },
        Op::AddAddress { dev: a.clone(), address: "10.0.0.1/24".parse()? },
        Op::ReplaceNeighbour(neighbour.clone()),
        Op::AddVxlan(Vxlan::new(vx, Vni::new(1)?)),
        Op::AppendFdb(entry.clone()),
        Op::AddRoute(route.clone()),
        Op::DelRoute(route.clone()),
        Op::DelLink { name: a.clone() },
    ]) {
        result?;
    }
    let mut heard = Vec::new();
    while !heard.iter().any(|event| matches!(event, Event::DelLink(link) if link.name == a)) {
        heard.extend(monitor.recv()?);
    }
    for wanted in
        [Event::NewNeighbour(neighbour), Event::NewFdb(entry), Event::NewRoute(route.clone()), Event::DelRoute(route)]
    {
        assert!(heard.contains(&wanted), "{wanted:?} is not in {heard:#?}");
    }
    let is_new = |event: &Event| matches!(event, Event::NewLink(link) if link.name == a && link.up);
    assert!(heard.iter().any(is_new));
    let has_address = |event: &Event| matches!(event, Event::NewAddress(address) if address.dev == a);
    assert!(heard.iter().any(has_address));
    Ok(())
}
