//! Turns a namespace into a router, and shows that the setting is the namespace's own.
//!
//! ```text
//! target/debug/examples/sysctl
//! ```

use std::io::Write as _;

use linux_net::{NetNs, sysctl};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let router = NetNs::create("router")?;
    // The file shows the namespace of the thread that opens it.
    router.run(|| sysctl::set("net.ipv4.ip_forward", "1"))??;
    writeln!(out, "ip netns exec router sysctl -w net.ipv4.ip_forward=1")?;
    writeln!(out, "there: {}", router.run(|| sysctl::get("net.ipv4.ip_forward"))??)?;
    writeln!(out, "here:  {}", sysctl::get("net.ipv4.ip_forward")?)?;
    Ok(())
}
