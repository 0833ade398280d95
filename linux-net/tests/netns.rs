//! Named namespaces, beside the `ip` program.

use std::{process::Command, thread};

use anyhow::{Result, ensure};
use linux_net::{NetNs, Netlink, Op, process::CommandNamespaceExt, testing::enter_sandbox};

fn sh(command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn ip_sees_our_namespaces_and_we_see_its() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    assert_eq!(NetNs::list()?, Vec::<String>::new());
    let ours = NetNs::create("ours")?;
    assert!(NetNs::create("ours").unwrap_err().is_exists());
    sh("ip netns add theirs")?;
    assert_eq!(NetNs::list()?, ["ours", "theirs"]);
    assert_eq!(sh("ip netns list | sort")?, "ours\ntheirs\n");
    // What one program does inside, the other sees.
    Netlink::open_in(&ours)?.apply(&Op::AddBridge { name: "br0".parse()? })?;
    assert!(sh("ip -n ours -br link")?.contains("br0"));
    sh("ip -n theirs link add br1 type bridge")?;
    assert!(Netlink::open_in(&NetNs::open("theirs")?)?.link(&"br1".parse()?)?.is_some());
    sh("ip netns del ours")?;
    NetNs::delete("theirs")?;
    assert!(NetNs::delete("theirs").unwrap_err().is_not_found());
    assert_eq!(NetNs::list()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_thread_comes_back_also_after_a_panic() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let home = NetNs::current()?;
    let away = NetNs::create("away")?;
    assert_ne!(home, away);
    assert_eq!(away.run(NetNs::current)??, away);
    assert_eq!(NetNs::current()?, home);
    let _ = std::panic::catch_unwind(|| away.run(|| panic!("on purpose")));
    assert_eq!(NetNs::current()?, home);
    assert_eq!(NetNs::open("away")?.id(), away.id());
    Ok(())
}

#[test]
fn many_threads_make_namespaces_at_once() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let make = |thread: usize| (0..10).try_for_each(|n| NetNs::create(&format!("n{thread}-{n}")).map(drop));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || make(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    assert_eq!(NetNs::list()?.len(), 40);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert_eq!(mounts.lines().filter(|line| line.contains(" /run/netns ")).count(), 1, "mounted on itself once");
    Ok(())
}

#[test]
fn a_child_starts_in_a_namespace_and_sees_its_devices_in_sys() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let ns = NetNs::create("ns")?;
    Netlink::open_in(&ns)?.apply(&Op::AddBridge { name: "br0".parse()? })?;
    let output = Command::new("ls").arg("/sys/class/net").in_netns(&ns).output()?;
    assert_eq!(String::from_utf8(output.stdout)?, "br0\nlo\n");
    Ok(())
}
