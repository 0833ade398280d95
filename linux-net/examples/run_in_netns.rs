//! Runs a program inside a namespace, as `ip netns exec` does, in a session of its own, so that Ctrl-C does not reach it.
//!
//! ```text
//! target/debug/examples/run_in_netns
//! ```

use std::{io::Write as _, process::Command};

use linux_net::{NetNs, Netlink, Op, process::CommandNamespaceExt};

fn main() -> anyhow::Result<()> {
    linux_net::sandbox::isolate()?;
    let mut out = std::io::stdout();
    let pod = NetNs::create("pod")?;
    Netlink::open_in(&pod)?.apply(&Op::AddBridge { name: "br0".parse()? })?;
    writeln!(out, "ip netns exec pod setsid ls /sys/class/net")?;
    let output = Command::new("ls").arg("/sys/class/net").in_netns(&pod).new_session().die_with_parent().output()?;
    out.write_all(&output.stdout)?;
    Ok(())
}
