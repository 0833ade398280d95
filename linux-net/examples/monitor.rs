//! Hears what happens to links and addresses, as `ip monitor` does.
//!
//! ```text
//! target/debug/examples/monitor
//! ```

use std::io::Write as _;

use linux_net::{
    IfName, Netlink, Op,
    netlink::{Event, Group, Monitor},
};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let br0: IfName = "br0".parse()?;
    let mut monitor = Monitor::open(&[Group::Links, Group::Addresses])?;
    let ops = [
        Op::AddBridge { name: br0.clone() },
        Op::AddAddress { dev: br0.clone(), address: "10.0.0.1/24".parse()? },
        Op::DelLink { name: br0 },
    ];
    for result in Netlink::open()?.apply_all(&ops) {
        result?;
    }
    loop {
        for event in monitor.recv()? {
            match event {
                Event::NewLink(link) => writeln!(out, "new or changed: {}", link.name)?,
                Event::NewAddress(address) => writeln!(out, "new: {} on {}", address.address, address.dev)?,
                Event::DelAddress(address) => writeln!(out, "gone: {} on {}", address.address, address.dev)?,
                Event::DelLink(link) => {
                    writeln!(out, "gone: {}", link.name)?;
                    return Ok(());
                }
                other => writeln!(out, "{other:?}")?,
            }
        }
    }
}
