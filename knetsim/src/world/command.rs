//! Commands in the lab: in the foreground of the terminal, or left running in a container.

use std::{
    os::fd::AsFd as _,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::Context;
use linux_net::{NetNs, process::CommandNamespaceExt as _};

use super::World;
use crate::{
    component,
    supervisor::{DaemonId, DaemonSpec},
    terminal::Terminal,
};

impl World {
    /// Starts a command in a container and leaves it running; returns its log.
    ///
    /// # Errors
    ///
    /// When the container is unknown or the command cannot be started.
    pub fn exec_container_async(
        &self,
        worker: &str,
        container: &str,
        command: &str,
    ) -> anyhow::Result<std::path::PathBuf> {
        // `exec` so that the process that is watched and stopped is the command and not its shell.
        let arguments = vec!["-c".to_owned(), format!("exec {command}")];
        Ok(self.start_in_container(worker, container, "/bin/sh".into(), arguments, false)?.1)
    }

    /// Starts a program in a container; returns the daemon it has become, and its log.
    pub(super) fn start_in_container(
        &self,
        worker: &str,
        container: &str,
        program: PathBuf,
        arguments: Vec<String>,
        restart: bool,
    ) -> anyhow::Result<(DaemonId, PathBuf)> {
        let netns = self.netns(worker, Some(container))?;
        let number = {
            let mut state = self.state();
            state.commands += 1;
            state.commands
        };
        let daemon = format!("{container}-{number}");
        let log = component::node_directory(worker).join(format!("{daemon}.log"));
        let id = DaemonId::new(worker, &daemon);
        let environment = Vec::new();
        self.supervisor.run(DaemonSpec {
            id: id.clone(),
            program,
            arguments,
            environment,
            netns,
            log: log.clone(),
            restart,
        })?;
        Ok((id, log))
    }

    /// Runs a command in a namespace, on the terminal if there is one, and waits for its end.
    ///
    /// # Errors
    ///
    /// When the shell cannot be started.
    pub fn run_foreground(&self, netns: &NetNs, command: &str) -> anyhow::Result<ExitStatus> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).in_netns(netns);
        self.foreground(&mut shell)
    }

    /// Runs a program in the foreground: Ctrl-C is for it alone.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn foreground(&self, command: &mut Command) -> anyhow::Result<ExitStatus> {
        let terminal = Terminal::of_stdin();
        command.own_process_group();
        match &terminal {
            Some(terminal) => command.foreground_of(terminal.as_fd()),
            // The rest of a script on standard input is not for its commands.
            None => command.stdin(Stdio::null()),
        };
        let status = self.processes.run(command).with_context(|| format!("run {}", command.get_program().display()));
        if let Some(terminal) = terminal {
            terminal.take_foreground()?;
        }
        status
    }
}
