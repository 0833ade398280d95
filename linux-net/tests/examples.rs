//! The examples run, and show what they are about.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// Returns the program of an example, which cargo has built beside this test.
fn example(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().and_then(|deps| deps.parent()).context("a test is in target/PROFILE/deps")?;
    let program = directory.join("examples").join(name);
    ensure!(program.exists(), "{} is not built: cargo build -p linux-net --examples", program.display());
    Ok(program)
}

fn text(output: Output) -> Result<String> {
    let (out, error) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{}\n{out}\n{error}", output.status);
    Ok(out)
}

/// Runs an example as its head says.
fn run(name: &str) -> Result<String> {
    text(Command::new(example(name)?).output()?)
}

/// Checks that all lines are there, in this order.
fn assert_shows(shown: &str, lines: &[&str]) {
    let mut rest = shown.lines();
    for wanted in lines {
        assert!(rest.any(|line| line.starts_with(wanted)), "{wanted:?} is missing in:\n{shown}");
    }
}

#[test]
fn namespaces() -> Result<()> {
    assert_shows(&run("create_netns")?, &["ip netns add blue", "ip netns list", "1: lo up=true", "ip netns del blue"]);
    assert_shows(&run("run_in_netns")?, &["ip netns exec pod", "br0", "lo"]);
    assert_shows(&run("sysctl")?, &["ip netns exec router sysctl -w", "there: 1", "here:  0"]);
    Ok(())
}

#[test]
fn connections() -> Result<()> {
    let lines = ["2 entries of UDP", "conntrack -D -p udp --orig-port-dst 5001", "deleted: 1", "left: to port 5002"];
    assert_shows(&run("conntrack")?, &lines);
    Ok(())
}

#[test]
fn links() -> Result<()> {
    let shown = run("veth")?;
    assert_shows(&shown, &["ip link add veth0 type veth peer name eth0 netns pod"]);
    assert!(shown.contains("both ends are up: Some(true)"), "{shown}");
    assert_shows(&run("bridge")?, &["ip link add cni0 type bridge", "veth0: master=Some(cni0) hairpin=Some(true)"]);
    assert_shows(
        &run("vxlan")?,
        &["ip link add flannel.100 mtu 1450 type vxlan id 100", "bridge fdb append", "[FdbEntry"],
    );
    assert_shows(
        &run("route")?,
        &[
            "Unicast to 0.0.0.0/0 via Some(10.0.0.1)",
            "Blackhole to 11.0.0.0/8",
            "ip route add 10.5.0.0/16 via 10.6.0.1: ",
        ],
    );
    assert_shows(&run("monitor")?, &["new or changed: br0", "new: 10.0.0.1/24 on br0", "gone: br0"]);
    Ok(())
}

#[test]
fn rulesets() -> Result<()> {
    assert_shows(&run("nft_dnat_map")?, &["add rule ip example services", "read back: 0 : 11.10.0.2 . 8080"]);
    assert_shows(&run("nft_verdict_map")?, &["add map ip example services", "the kernel has it"]);
    assert_shows(&run("nft_masquerade")?, &["add set ip example pods", "chain outside has rule"]);
    assert_shows(&run("nft_sticky")?, &["add map ip example clients", "read back: 11.10.0.9"]);
    Ok(())
}

#[test]
fn a_sandbox_and_its_second_terminal() -> Result<()> {
    let shown = text(Command::new(example("sandbox")?).output()?)?;
    assert!(shown.contains("user 0, process 1, host lab, /run has 0 files"), "{shown}");

    let mut sandbox =
        Command::new(example("sandbox")?).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut first = String::new();
    let mut shown = BufReader::new(sandbox.stdout.take().context("it is piped")?);
    shown.read_line(&mut first)?;
    let pid = first.split(' ').rev().nth(1).context("it names its process 1")?;
    let program = "echo \"$(id -u) $(hostname) $(ls /run | wc -l) $(ls /sys/class/net)\"";
    let entered = text(Command::new(example("enter")?).args([pid, "sh", "-c", program]).output()?)?;
    drop(sandbox.stdin.take()); // cat ends
    sandbox.wait()?;
    assert!(entered.starts_with("0 lab 0 "), "{entered}");

    let gone = Command::new(example("enter")?).args([pid, "true"]).output()?;
    let error = String::from_utf8(gone.stderr)?;
    assert!(!gone.status.success() && error.contains(&format!("cannot open process {pid}")), "{error}");
    Ok(())
}
