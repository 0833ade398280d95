//! Lays a cable from this namespace into another: the far end is born there, which saves the slow move.
//!
//! ```text
//! target/debug/examples/veth
//! ```

use std::io::Write as _;

use linux_net::{NetNs, Netlink, Op, netlink::Veth};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let pod = NetNs::create("pod")?;
    let (near, far) = ("veth0".parse()?, "eth0".parse()?);
    let mut here = Netlink::open()?;
    let mut there = Netlink::open_in(&pod)?;

    let op = Op::AddVeth(Veth::new(near, far, Some(&pod)));
    writeln!(out, "{op}")?;
    here.apply(&op)?;
    for (netlink, prefix, dev, address) in
        [(&mut here, "", "veth0", "10.0.0.1/24"), (&mut there, "ip netns exec pod ", "eth0", "10.0.0.2/24")]
    {
        for op in [Op::AddAddress { dev: dev.parse()?, address: address.parse()? }, Op::SetUp { dev: dev.parse()? }] {
            writeln!(out, "{prefix}{op}")?;
            netlink.apply(&op)?;
        }
    }

    let link = here.link(&"veth0".parse()?)?;
    writeln!(out, "veth0 has carrier, because both ends are up: {:?}", link.map(|link| link.carrier))?;
    Ok(())
}
