//! The prompt on a real terminal.

use anyhow::Context;
use rexpect::session::{PtySession, spawn_command};
use tests::{knetsim, run, unique_name};

/// How long an expected text may take, in milliseconds.
const TIMEOUT: u64 = 60_000;
/// When the test ends, how long SIGTERM is tried before SIGKILL, in milliseconds.
const KILL_AFTER_MS: u64 = 5_000;

struct Terminal {
    session: PtySession,
    name: String,
}

impl Terminal {
    fn boot() -> anyhow::Result<Self> {
        let name = unique_name("pty");
        let home = tempfile::tempdir()?;
        let mut command = knetsim(&["up", "--name", &name])?;
        command.env("HOME", home.path()).env("TERM", "xterm");
        let mut session = spawn_command(command, Some(TIMEOUT))?;
        session.process_mut().set_kill_timeout(Some(KILL_AFTER_MS));
        session.exp_string("knetsim> ")?;
        Ok(Self { session, name })
    }

    fn pids(&self) -> anyhow::Result<Vec<String>> {
        let output = run(&mut knetsim(&["status", "--json", "--name", &self.name])?)?.ok()?;
        let status: serde_json::Value = serde_json::from_str(&output.stdout)?;
        let daemons = status["daemons"].as_array().context("no daemons")?;
        Ok(daemons.iter().map(|daemon| format!("{} {} {}", daemon["node"], daemon["daemon"], daemon["pid"])).collect())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The session ends its process when it is dropped, right after this.
        let _ = std::fs::remove_dir_all(tests::directory_of(&self.name));
    }
}

#[test]
fn ctrl_c_ends_the_command_in_the_foreground_and_nothing_else() -> anyhow::Result<()> {
    let mut terminal = Terminal::boot()?;
    let before = terminal.pids()?;
    assert!(before.len() > 15, "{before:?}");
    for line in ["C0w1 ping C0w2", "C0e1 ping 10.0.0.3", "py C0w1.exec_container(\"c1\", \"ping 100.64.10.1\")"] {
        terminal.session.send_line(line)?;
        terminal.session.exp_string("icmp_seq=2")?;
        terminal.session.send_control('c')?;
        terminal.session.exp_string("ping statistics")?;
        terminal.session.exp_string("knetsim> ")?;
    }
    assert_eq!(terminal.pids()?, before, "every daemon runs with the pid it had");

    // At an empty prompt Ctrl-C throws the line away.
    terminal.session.send("C0w1 reb")?;
    terminal.session.send_control('c')?;
    terminal.session.exp_string("knetsim> ")?;
    terminal.session.send_line("sh echo still here")?;
    terminal.session.exp_string("\nstill here")?;
    terminal.session.exp_string("knetsim> ")?;
    terminal.session.send_line("exit")?;
    terminal.session.exp_eof()?;
    Ok(())
}

#[test]
fn a_shell_of_a_node_has_the_terminal() -> anyhow::Result<()> {
    let mut terminal = Terminal::boot()?;
    terminal.session.send_line("C0w1 bash --norc")?;
    terminal.session.exp_string("bash-")?;
    // Only a shell that is in the foreground can read what is typed.
    terminal.session.send_line("hostname -I; echo in the shell of $((6 * 7))")?;
    terminal.session.exp_string("in the shell of 42")?;
    terminal.session.send_line("exit")?;
    terminal.session.exp_string("knetsim> ")?;
    terminal.session.send_line("nodes")?;
    terminal.session.exp_string("available nodes are")?;
    Ok(())
}

#[test]
fn a_daemons_death_is_told_above_the_prompt() -> anyhow::Result<()> {
    let mut terminal = Terminal::boot()?;
    let pids = terminal.pids()?;
    let victim = pids.iter().find(|line| line.contains("C1w2") && line.contains("flannel")).context("no flannel")?;
    let pid = victim.rsplit(' ').next().context("no pid")?;
    run(&mut knetsim(&["exec", "--name", &terminal.name, "C1w2", "kill", "-9", pid])?)?.ok()?;
    terminal.session.exp_string("C1w2 flannel")?;
    terminal.session.exp_string("was killed by SIGKILL")?;
    terminal.session.send_line("sh echo still here")?;
    terminal.session.exp_string("still here")?;
    Ok(())
}
