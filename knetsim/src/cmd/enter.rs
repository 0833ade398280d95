//! `knetsim exec` and `knetsim shell`: a second terminal enters a running lab through the namespaces of its process 1. No
//! daemon takes part in it.

use std::{
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context, anyhow, bail};
use linux_net::{NetNs, process::CommandNamespaceExt as _, sandbox as namespaces};
use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask},
    unistd::Pid,
};

use crate::{
    cli::{ExecArgs, ShellArgs},
    control::{self, Request},
    labdir::LabDir,
    process::shell_code,
    prompt::line::did_you_mean,
    sandbox,
    status::Status,
};

/// Where a command shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The network namespace.
    netns: String,
    /// What a shell's prompt shows.
    label: String,
}

/// Runs a command in a lab.
///
/// # Errors
///
/// When no such lab runs, the place is unknown, or the command cannot be started.
pub fn exec(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&args.lab.name)?;
    let record = directory.record()?;
    let (place, command) = place(&status(&directory)?, &args.words)?;
    let Some((program, arguments)) = command.split_first() else {
        bail!("what shall run on {}? write `knetsim exec {0} -- COMMAND`", place.label);
    };
    let mut command = enter(record.pid, &place)?;
    command.args([program]).args(arguments);
    wait(&mut command)
}

/// Opens a shell in a lab.
///
/// # Errors
///
/// As [`exec`].
pub fn shell(args: &ShellArgs) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&args.lab.name)?;
    let record = directory.record()?;
    let (place, rest) = place(&status(&directory)?, &args.words)?;
    if !rest.is_empty() {
        bail!("a shell takes no command; `knetsim exec` runs one");
    }
    let mut command = enter(record.pid, &place)?;
    command.args(["bash", "--norc"]).env("PS1", format!("{}> ", place.label));
    wait(&mut command)
}

fn status(directory: &LabDir) -> anyhow::Result<Status> {
    Ok(serde_json::from_str(&control::ask(directory.path(), Request::Status)?)?)
}

/// Reads `C0w1`, `C0w1.c1`, `0 w1` or `0 w1 c1`; what is left of the words is the command.
fn place<'a>(status: &Status, words: &'a [String]) -> anyhow::Result<(Place, &'a [String])> {
    let (first, rest) = words.split_first().context("a node is missing, like C0w1")?;
    let short_form = first.len() <= 3 && status.nodes.iter().all(|node| node.name != *first);
    let (node, container, rest) = match (short_form, rest.split_first()) {
        (true, Some((short, rest))) => {
            let node = format!("C{}{short}", first.trim_start_matches('C'));
            let container = rest.first().filter(|word| find_container(status, &node, word).is_some());
            let rest = if container.is_some() { &rest[1..] } else { rest };
            (node, container.cloned(), rest)
        }
        _ => match first.split_once('.') {
            Some((node, container)) => (node.to_owned(), Some(container.to_owned()), rest),
            None => (first.clone(), None, rest),
        },
    };
    if !status.nodes.iter().any(|known| known.name == node) {
        bail!("there is no node {node:?}{}", did_you_mean(&node, status.nodes.iter().map(|node| node.name.clone())));
    }
    let rest = if rest.first().is_some_and(|word| word == "--") { &rest[1..] } else { rest };
    let Some(container) = container else {
        return Ok((Place { netns: node.clone(), label: node }, rest));
    };
    let netns = find_container(status, &node, &container).ok_or_else(|| {
        let known = status.containers.iter().filter(|known| known.worker == node).map(|known| known.name.clone());
        anyhow!("{node} has no container {container:?}{}", did_you_mean(&container, known))
    })?;
    Ok((Place { netns, label: format!("{node}.{container}") }, rest))
}

fn find_container(status: &Status, node: &str, name: &str) -> Option<String> {
    let found = status.containers.iter().find(|container| container.worker == node && container.name == name);
    found.map(|container| container.netns.clone())
}

/// Moves this process into the lab through its process 1; it stays in the directory in which it is, if the lab has that too, else it
/// is in /.
pub(super) fn enter_lab(pid: i32) -> anyhow::Result<()> {
    let here = std::env::current_dir();
    namespaces::enter(Pid::from_raw(pid)).with_context(|| format!("enter the lab through its process {pid}"))?;
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here); // the lab may not have it
    }
    Ok(())
}

/// Moves this process into the lab and gives a command that starts in the place. Its own arguments are program and
/// arguments of what shall run.
fn enter(pid: i32, place: &Place) -> anyhow::Result<Command> {
    enter_lab(pid)?;
    let path = sandbox::path_variable()?;
    let env = std::env::split_paths(&path).map(|directory| directory.join("env")).find(|env| env.exists());
    // env(1) looks the program up on the lab's PATH, not on the PATH of this terminal.
    let mut command = Command::new(env.unwrap_or_else(|| PathBuf::from("/usr/bin/env")));
    command.env("PATH", path).in_netns(&NetNs::open(&place.netns)?);
    if !super::up::maps_all_users() {
        command.answer_setid_calls();
    }
    Ok(command)
}

fn wait(command: &mut Command) -> anyhow::Result<ExitCode> {
    // Ctrl-C is for the command; this process lives on to give its exit status.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGQUIT);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;
    let status = command.unblock_signals().status().context("start the command")?;
    Ok(exit_code(status))
}

/// The exit status of a command as that of this process.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(shell_code(status)).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::status::{ContainerStatus, NodeStatus};

    fn example() -> Status {
        Status {
            lab: "test".to_owned(),
            healthy: true,
            nodes: vec![NodeStatus {
                name: "C0w1".to_owned(),
                address: Ipv4Addr::new(10, 0, 0, 3),
                impls: std::collections::BTreeMap::new(),
            }],
            containers: vec![ContainerStatus {
                cluster: "C0".to_owned(),
                name: "c1".to_owned(),
                worker: "C0w1".to_owned(),
                netns: "k0_c1".to_owned(),
                address: None,
            }],
            services: Vec::new(),
            daemons: Vec::new(),
        }
    }

    fn read(words: &[&str]) -> Result<(String, Vec<String>), String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        place(&example(), &words).map(|(place, rest)| (place.netns, rest.to_vec())).map_err(|error| error.to_string())
    }

    #[test]
    fn both_ways_to_name_a_place_lead_there() {
        let ls = vec!["ls".to_owned(), "-l".to_owned()];
        assert_eq!(read(&["C0w1", "ls", "-l"]), Ok(("C0w1".to_owned(), ls.clone())));
        assert_eq!(read(&["C0w1.c1", "--", "ls", "-l"]), Ok(("k0_c1".to_owned(), ls.clone())));
        assert_eq!(read(&["0", "w1", "c1", "ls", "-l"]), Ok(("k0_c1".to_owned(), ls.clone())));
        assert_eq!(read(&["0", "w1", "--", "ls", "-l"]), Ok(("C0w1".to_owned(), ls)));
        assert_eq!(read(&["C0", "w1"]), Ok(("C0w1".to_owned(), Vec::new())));
    }

    #[test]
    fn wrong_places_are_answered_with_the_nearest_right_one() {
        assert!(read(&["C0w2"]).unwrap_err().contains("did you mean C0w1?"));
        assert!(read(&["C0w1.c2"]).unwrap_err().contains("did you mean c1?"));
        assert!(read(&["0", "w7"]).unwrap_err().contains("no node \"C0w7\""));
    }
}
