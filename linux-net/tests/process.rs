//! What a child is before it begins, and what its parent can do about it.

use std::{
    fs,
    os::{fd::AsFd as _, unix::process::ExitStatusExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use linux_net::{
    process::{self, CommandNamespaceExt},
    sandbox::mount,
    testing::enter_sandbox,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, wait::WaitStatus},
    unistd::{Pid, getpgrp},
};

fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process numbers are small"))
}

/// Reads a field of `/proc/self/stat` as a child sees it: 4 is its process group, 5 its session, 7 the foreground group of its terminal.
fn field(command: &mut Command, number: usize) -> Result<(u32, i32)> {
    let child = command.args(["/proc/self/stat"]).stdin(Stdio::inherit()).stdout(Stdio::piped()).spawn()?;
    let pid = child.id();
    let stat = String::from_utf8(child.wait_with_output()?.stdout)?;
    // pid, (name), state, parent, group, session, terminal, foreground group
    let value = stat.split(' ').nth(number).context("the field is there")?.parse()?;
    Ok((pid, value))
}

#[test]
fn a_child_leads_its_session_or_its_group() -> Result<()> {
    let (pid, session) = field(Command::new("cat").new_session(), 5)?;
    assert_eq!(i32::try_from(pid)?, session);
    let (pid, group) = field(Command::new("cat").own_process_group(), 4)?;
    assert_eq!(i32::try_from(pid)?, group);
    Ok(())
}

#[test]
fn a_child_dies_with_the_thread_that_started_it() -> Result<()> {
    let starter = thread::spawn(|| Command::new("sleep").arg("60").die_with_parent().spawn());
    let mut child = starter.join().expect("it does not panic")?;
    assert_eq!(child.wait()?.signal(), Some(Signal::SIGKILL as i32));
    Ok(())
}

#[test]
fn programs_that_drop_privileges_run_where_only_one_user_is() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let drop_them = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1234", "--regid", "1234", "--clear-groups", "true"]).stderr(Stdio::null());
        command
    };
    ensure!(!drop_them().status()?.success(), "this test needs a namespace with one user only");
    assert!(drop_them().answer_setid_calls().status()?.success());
    let file = tempfile::NamedTempFile::new()?;
    assert!(Command::new("chown").arg("1234:1234").arg(file.path()).answer_setid_calls().status()?.success());
    Ok(())
}

#[test]
fn an_ended_child_can_be_seen_before_it_is_reaped() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    assert_eq!(process::peek_ended_child(true)?, None, "there is no child");
    let child = Command::new("sh").args(["-c", "exit 7"]).spawn()?;
    assert_eq!(process::peek_ended_child(true)?, Some(pid_of(&child)));
    assert_eq!(process::peek_ended_child(true)?, Some(pid_of(&child)), "it is still there");
    assert_eq!(process::reap(pid_of(&child))?, WaitStatus::Exited(pid_of(&child), 7));
    let child = Command::new("sleep").arg("60").own_process_group().spawn()?;
    assert_eq!(process::peek_ended_child(false)?, None, "none has ended");
    let pidfd = process::pidfd_open(pid_of(&child))?;
    process::kill_group(pid_of(&child), Signal::SIGTERM)?;
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16))?;
    assert_eq!(process::peek_ended_child(false)?, Some(pid_of(&child)), "the descriptor told when");
    process::reap(pid_of(&child))?;
    assert!(process::kill(pid_of(&child), Signal::SIGTERM).unwrap_err().is_not_found());
    assert!(process::pidfd_open(pid_of(&child)).unwrap_err().is_not_found());
    Ok(())
}

#[test]
fn a_child_takes_the_terminal_and_the_parent_takes_it_back() -> Result<()> {
    const INSIDE: &str = "LINUX_NET_TEST_TERMINAL";
    const NAME: &str = "a_child_takes_the_terminal_and_the_parent_takes_it_back";
    if std::env::var_os(INSIDE).is_none() {
        // script(1) gives a program a terminal of its own.
        let test = std::env::current_exe()?;
        let command = format!("{} --exact {NAME} --nocapture", test.display());
        let output = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env(INSIDE, "1")
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return Ok(());
    }
    let terminal = fs::File::open("/dev/tty")?;
    let (pid, foreground) = field(Command::new("cat").foreground_of(terminal.as_fd()), 7)?;
    assert_eq!(i32::try_from(pid)?, foreground);
    // Now in the background: without care, the kernel would stop this process here.
    process::set_foreground(terminal.as_fd(), getpgrp())?;
    assert_eq!(process::foreground(terminal.as_fd())?, getpgrp());
    Ok(())
}

#[test]
fn mounts_of_a_sandbox() -> Result<()> {
    if !enter_sandbox() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let at = |name: &str| -> Result<std::path::PathBuf> {
        let path = directory.path().join(name);
        fs::create_dir(&path)?;
        Ok(path)
    };
    let (memory, twin, lower, scratch) = (at("memory")?, at("twin")?, at("lower")?, at("scratch")?);
    mount::tmpfs(&memory)?;
    fs::write(memory.join("file"), "text")?;
    mount::bind(&memory, &twin)?;
    assert_eq!(fs::read_to_string(twin.join("file"))?, "text");
    mount::unmount(&twin)?;
    assert!(!twin.join("file").exists());
    mount::make_shared(&memory)?;

    fs::write(lower.join("hosts"), "old")?;
    mount::overlay(&lower, &scratch)?;
    fs::write(lower.join("hosts"), "new")?;
    fs::write(lower.join("more"), "")?;
    assert_eq!(fs::read_to_string(lower.join("hosts"))?, "new");
    mount::unmount(&lower)?;
    assert_eq!(fs::read_to_string(lower.join("hosts"))?, "old", "what is below has not changed");
    assert!(!lower.join("more").exists());

    let (proc, sys) = (at("proc")?, at("sys")?);
    mount::proc(&proc)?;
    assert!(proc.join("self/status").exists());
    mount::sysfs(&sys)?;
    assert_eq!(fs::read_dir(sys.join("class/net"))?.count(), 1, "lo only");

    let missing = mount::tmpfs(Path::new("/no/such/place")).unwrap_err();
    assert!(missing.is_not_found());
    assert_eq!(missing.to_string(), "cannot mount tmpfs on /no/such/place");
    assert!(mount::make_shared(&twin).unwrap_err().to_string().starts_with("cannot share "));
    Ok(())
}
