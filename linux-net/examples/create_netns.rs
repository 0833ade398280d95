//! Makes a network namespace that has a name, as `ip netns add blue` does, looks into it, and deletes it.
//!
//! ```text
//! target/debug/examples/create_netns
//! ```

use std::io::Write as _;

use linux_net::{IfName, NetNs, Netlink, Op};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let blue = NetNs::create("blue")?;
    writeln!(out, "ip netns add blue                # {blue:?}")?;
    writeln!(out, "ip netns list                    # {:?}", NetNs::list()?)?;

    // A socket belongs to the namespace it was opened in; this thread need not stay there.
    let mut netlink = Netlink::open_in(&blue)?;
    let op = Op::SetUp { dev: IfName::loopback() };
    netlink.apply(&op)?;
    writeln!(out, "ip netns exec blue {op}")?;
    for link in netlink.links()? {
        writeln!(out, "{}: {} up={} mtu={}", link.index, link.name, link.up, link.mtu_bytes)?;
    }

    NetNs::delete("blue")?;
    writeln!(out, "ip netns del blue                # {:?}", NetNs::list()?)?;
    Ok(())
}
