//! A lab leaves nothing behind, disturbs nobody, and can be entered from a second terminal.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{Lab, eventually, knetsim, processes_in, run, unique_name};

/// How long the kernel may take to remove a killed lab.
const GONE_WITHIN: Duration = Duration::from_secs(10);

fn pid_namespace(lab: &Lab) -> anyhow::Result<PathBuf> {
    Ok(std::fs::read_link(format!("/proc/{}/ns/pid", lab.init_pid()?))?)
}

/// What of a lab can be seen on the host: mounts and links that are not there before.
fn traces() -> anyhow::Result<(String, Vec<String>)> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut links: Vec<String> = std::fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    links.sort();
    Ok((mounts, links))
}

fn killed_with(pid: impl Fn(&Lab) -> anyhow::Result<i32>) -> anyhow::Result<()> {
    let before = traces()?;
    let lab = Lab::boot("kill", &[])?;
    let namespace = pid_namespace(&lab)?;
    assert!(processes_in(&namespace).len() > 15, "a lab has many processes");
    kill(Pid::from_raw(pid(&lab)?), Signal::SIGKILL)?;
    eventually("the end of every process", GONE_WITHIN, || processes_in(&namespace).is_empty())?;
    assert_eq!(traces()?, before);
    Ok(())
}

#[test]
fn a_killed_supervisor_takes_the_whole_lab_with_it() -> anyhow::Result<()> {
    killed_with(Lab::init_pid)
}

#[test]
fn a_killed_terminal_process_takes_the_whole_lab_with_it() -> anyhow::Result<()> {
    killed_with(|lab| Ok(i32::try_from(lab.terminal_pid())?))
}

#[test]
fn exit_leaves_nothing_but_the_logs() -> anyhow::Result<()> {
    let before = traces()?;
    let lab = Lab::boot("exit", &[])?;
    let namespace = pid_namespace(&lab)?;
    assert!(lab.exit()?.success());
    eventually("the end of every process", GONE_WITHIN, || processes_in(&namespace).is_empty())?;
    assert_eq!(traces()?, before);
    Ok(())
}

#[test]
fn two_labs_with_the_same_addresses_are_both_healthy() -> anyhow::Result<()> {
    let mut one = Lab::boot("one", &[])?;
    let mut two = Lab::boot("two", &[])?;
    for lab in [&mut one, &mut two] {
        assert_eq!(lab.status()?["healthy"], true);
        let reply = lab.type_line("C0e1 curl -s 10.0.0.3:8001/svc1")?;
        assert!(reply.starts_with("S1-W"), "{reply}");
    }
    // What happens in one does not show in the other.
    one.type_line("py C0w1.create_container(\"only-here\")")?;
    assert!(one.type_line("sh ip netns list")?.contains("k0_only-here"));
    assert!(!two.type_line("sh ip netns list")?.contains("k0_only-here"));
    Ok(())
}

#[test]
fn a_second_lab_of_the_same_name_is_refused_and_the_first_lives_on() -> anyhow::Result<()> {
    let lab = Lab::boot("twice", &[])?;
    let second = run(&mut knetsim(&["up", "--name", lab.name(), "-c", "nodes"])?)?;
    assert!(!second.status.success());
    assert!(second.stderr.contains("runs already"), "{second}");
    assert_eq!(lab.status()?["healthy"], true);
    Ok(())
}

#[test]
fn a_second_terminal_enters_nodes_and_containers() -> anyhow::Result<()> {
    let mut lab = Lab::boot("enter", &[])?;
    let name = lab.name().to_owned();
    let exec = |words: &[&str]| run(knetsim(&["exec", "--name", &name])?.args(words));
    exec(&["C0w1", "--", "ip", "-4", "addr", "show", "C0w1-eth0"])?.ok()?.says("10.0.0.3/8")?;
    exec(&["C0w1.c1", "--", "ping", "-c1", "100.64.10.1"])?.ok()?.says("1 received")?;
    exec(&["0", "w1", "c1", "ip", "route"])?.ok()?.says("default via 11.")?;
    exec(&["0", "w1", "hostname", "-I"])?.ok()?.says("10.0.0.3")?;
    // The exit status is the command's.
    assert_eq!(exec(&["C0w1", "sh", "-c", "exit 7"])?.status.code(), Some(7));
    let wrong = exec(&["C0w9", "true"])?;
    assert!(!wrong.status.success() && wrong.stderr.contains("did you mean C0w"), "{wrong}");
    let wrong = exec(&["C0w1.c7", "true"])?;
    assert!(!wrong.status.success() && wrong.stderr.contains("no container"), "{wrong}");
    // A container made at the prompt can be entered at once.
    lab.type_line("py C0w2.create_container(\"fresh\")")?;
    exec(&["C0w2.fresh", "--", "hostname", "-I"])?.ok()?.says("11.")?;

    run(&mut knetsim(&["logs", "--name", &name, "C0w1", "flannel"])?)?.ok()?;
    let wrong = run(&mut knetsim(&["logs", "--name", &name, "C0w1", "none"])?)?;
    assert!(wrong.stderr.contains("it has"), "{wrong}");
    Ok(())
}

#[test]
fn a_detached_lab_that_is_still_booting_ends_with_whoever_boots_it() -> anyhow::Result<()> {
    let name = unique_name("cut");
    let directory = tests::directory_of(&name);
    let mut up = knetsim(&["up", "--detach", "--name", &name])?.stderr(std::process::Stdio::null()).spawn()?;
    let record = || std::fs::read_to_string(directory.join("lab.json")).unwrap_or_default();
    let recorded = eventually("the record of the lab", GONE_WITHIN, || record().contains("pid"));
    up.kill()?;
    up.wait()?;
    recorded?;
    let record: serde_json::Value = serde_json::from_str(&record())?;
    let process = PathBuf::from(format!("/proc/{}", record["pid"]));
    let gone = eventually("the end of process 1", GONE_WITHIN, || !process.exists());
    std::fs::remove_dir_all(&directory)?;
    gone
}

#[test]
fn a_detached_lab_runs_until_down() -> anyhow::Result<()> {
    let name = unique_name("detach");
    run(&mut knetsim(&["up", "--detach", "--name", &name])?)?.ok()?;
    let result = (|| {
        run(&mut knetsim(&["status", "--name", &name])?)?.ok()?.says("every daemon runs")?;
        run(&mut knetsim(&["exec", "--name", &name, "C0e1", "curl", "-s", "10.0.0.3:8001/svc2"])?)?
            .ok()?
            .says("S2-W")?;
        anyhow::Ok(())
    })();
    let down = run(&mut knetsim(&["down", "--name", &name])?)?.ok();
    let status = run(&mut knetsim(&["status", "--name", &name])?)?;
    std::fs::remove_dir_all(tests::directory_of(&name)).context("remove the lab's directory")?;
    result?;
    down?;
    assert!(!status.status.success() && status.stderr.contains("no lab named"), "{status}");
    Ok(())
}
