//! Makes one end of an overlay and tells it of one peer, as flannel does: which router, which MAC address, which machine.
//!
//! ```text
//! target/debug/examples/vxlan
//! ```

use std::io::Write as _;

use linux_net::{
    IfName, MacAddr, Netlink, Op, Vni,
    netlink::{FdbEntry, Neighbour, Route, Veth, Vxlan},
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let (underlay, overlay): (IfName, IfName) = ("C0w1-eth0".parse()?, "flannel.100".parse()?);
    let vtep: MacAddr = "02:00:00:00:00:02".parse()?;
    let router = "11.10.16.0".parse()?;
    let mut vxlan = Vxlan::new(overlay.clone(), Vni::new(100)?);
    vxlan.dev = Some(underlay.clone());
    vxlan.local = Some("10.0.0.3".parse()?);
    vxlan.mtu_bytes = Some(1450); // 1500 less the 50 bytes around each frame

    let ops = [
        Op::AddVeth(Veth::new(underlay.clone(), "switch".parse()?, None)),
        Op::AddAddress { dev: underlay.clone(), address: "10.0.0.3/8".parse()? },
        Op::SetUp { dev: underlay },
        Op::AddVxlan(vxlan),
        Op::AddAddress { dev: overlay.clone(), address: "11.10.0.0/32".parse()? },
        Op::SetUp { dev: overlay.clone() },
        // The peer's subnet is behind its router, which is said to be on the link although no address says so; …
        Op::AddRoute(Route::to("11.10.16.0/20".parse()?).via(router).dev(overlay.clone()).onlink()),
        // … the router has this MAC address; …
        Op::ReplaceNeighbour(Neighbour::permanent(overlay.clone(), router, vtep)),
        // … and frames for it go in UDP packets to this machine.
        Op::AppendFdb(FdbEntry::permanent(overlay.clone(), vtep, "10.0.0.4".parse()?)),
    ];
    let mut netlink = Netlink::open()?;
    for op in &ops {
        writeln!(out, "{op}")?;
        netlink.apply(op)?;
    }

    writeln!(out, "{:?}", netlink.fdb(&overlay)?)?;
    writeln!(out, "{:?}", netlink.neighbours(&overlay)?)?;
    Ok(())
}
