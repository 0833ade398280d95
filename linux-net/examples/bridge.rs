//! Makes a bridge with one port, as the CNI plugin `bridge` does for a pod: hairpin mode lets a pod reach itself through
//! a service.
//!
//! ```text
//! target/debug/examples/bridge
//! ```

use std::io::Write as _;

use linux_net::{IfName, Netlink, Op, netlink::Veth};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let (cni0, port): (IfName, IfName) = ("cni0".parse()?, "veth0".parse()?);
    let ops = [
        Op::AddBridge { name: cni0.clone() },
        Op::SetAlias { dev: cni0.clone(), alias: "the pods of C0w1".into() },
        Op::SetUp { dev: cni0.clone() },
        Op::AddVeth(Veth::new(port.clone(), "eth0".parse()?, None)),
        Op::SetMaster { dev: port.clone(), master: Some(cni0.clone()) },
        Op::SetHairpin { dev: port.clone(), on: true },
        Op::SetMtu { dev: port.clone(), mtu_bytes: 1450 },
        Op::SetUp { dev: port },
    ];
    let mut netlink = Netlink::open()?;
    // One round trip for all of them; each has a result of its own.
    for (op, result) in ops.iter().zip(netlink.apply_all(&ops)) {
        result?;
        writeln!(out, "{op}")?;
    }

    for link in netlink.links()? {
        writeln!(out, "{}: master={:?} hairpin={:?} alias={:?}", link.name, link.master, link.hairpin, link.alias)?;
    }
    netlink.apply(&Op::DelLink { name: cni0 })?;
    Ok(())
}
