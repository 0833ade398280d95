//! Gives a link an address, adds routes of several kinds, and reads them back.
//!
//! ```text
//! target/debug/examples/route
//! ```

use std::io::Write as _;

use linux_net::{
    IfName, Netlink, Op,
    netlink::{Route, RouteKind, Veth},
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let eth0: IfName = "eth0".parse()?;
    let mut netlink = Netlink::open()?;
    netlink.apply(&Op::AddVeth(Veth::new(eth0.clone(), "peer".parse()?, None)))?;
    netlink.apply(&Op::SetUp { dev: eth0.clone() })?;

    let mut nowhere = Route::to("11.0.0.0/8".parse()?);
    nowhere.kind = RouteKind::Blackhole;
    for op in [
        Op::AddAddress { dev: eth0.clone(), address: "10.0.0.2/24".parse()? },
        Op::AddRoute(Route::to("0.0.0.0/0".parse()?).via("10.0.0.1".parse()?).dev(eth0)),
        Op::AddRoute(nowhere),
    ] {
        writeln!(out, "{op}")?;
        netlink.apply(&op)?;
    }
    for route in netlink.routes()?.into_iter().filter(|route| route.dst.addr().is_ipv4()) {
        writeln!(out, "{:?} to {} via {:?}, by protocol {}", route.kind, route.dst, route.via, route.protocol)?;
    }

    // What the kernel refuses says why, in its own words.
    let astray = Op::AddRoute(Route::to("10.5.0.0/16".parse()?).via("10.6.0.1".parse()?));
    if let Err(error) = netlink.apply(&astray) {
        writeln!(out, "{error}")?;
    }
    Ok(())
}
