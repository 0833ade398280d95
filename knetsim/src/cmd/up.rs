//! `knetsim up`: checks what it can outside, makes the namespaces, starts process 1 of the lab in them, and waits for its end.
//!
//! ```text
//! knetsim up          (terminal; host's pid namespace; holds the lab's lock)
//!   └─ knetsim init   (process 1 of the lab; dies with its parent)
//!        ├─ etcd, flannel-rs, kproxy-rs, …   (each a session of its own)
//!        └─ what is typed at the prompt      (the terminal's foreground)
//! ```

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use flannel_rs::network::NetworkConfig;
use linux_net::{
    process::CommandNamespaceExt as _,
    sandbox::{self, Namespaces},
};
use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        termios::{SetArg, tcgetattr, tcsetattr},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, geteuid},
};
use serde::{Deserialize, Serialize};

use crate::{
    cli::UpArgs,
    component::STATE,
    control::{self, Request},
    impls::{self, Component, Impl, Impls},
    lab::Lab,
    labdir::LabDir,
    terminal::Terminal,
};

/// The variable through which process 1 is told what to do.
pub const INIT_VARIABLE: &str = "KNETSIM_INIT";
/// How often a detached boot is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What process 1 is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitOptions {
    /// The lab's name.
    pub name: String,
    /// The lab's directory on the host.
    pub directory: std::path::PathBuf,
    /// The lab file; the default lab when none.
    pub lab: Option<std::path::PathBuf>,
    /// Who implements what.
    pub impls: Impls,
    /// What happens once the lab is up.
    pub mode: Mode,
    /// Whether the connectivity checks run.
    pub checks: bool,
}

/// What happens once a lab is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The prompt, or the lines of standard input where that is no terminal.
    Prompt,
    /// These lines, then the end.
    Lines(Vec<String>),
    /// Nothing, until `knetsim down`.
    Wait,
}

/// Boots a lab and stays until it ends.
///
/// # Errors
///
/// When something is wrong with the arguments or with this machine, before anything is made; or when the boot fails.
pub fn run(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let impls = args.impls.iter().fold(Impls::default(), Impls::merge);
    let lab = args.lab.as_deref().map(Path::canonicalize).transpose().context("open the lab file")?;
    // Mistakes in the file, and programs that are missing, are told before anything is made.
    let described = match &lab {
        Some(path) => Lab::load(path)?,
        None => Lab::default_lab(),
    };
    check_programs(&described, &impls)?;
    check_network(&described, &impls)?;
    let mode = match (&args.script, args.detach) {
        (Some(script), _) => Mode::Lines(read_script(script)?),
        (None, true) => Mode::Wait,
        (None, false) if args.commands.is_empty() => Mode::Prompt,
        (None, false) => Mode::Lines(args.commands.clone()),
    };
    let directory = LabDir::new(&args.name)?;
    let lock = directory.claim()?;
    let options = InitOptions {
        name: args.name.clone(),
        directory: directory.path().to_owned(),
        lab,
        impls,
        mode,
        checks: !args.no_checks,
    };
    sandbox::unshare(Namespaces::lab(!geteuid().is_root()))?;
    if args.detach { detached(&options, &directory, lock) } else { attached(&options, &directory, &lock) }
}

fn check_programs(lab: &Lab, impls: &Impls) -> anyhow::Result<()> {
    let missing = impls::missing(&lab.choices(impls));
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing
        .iter()
        .map(|(needed_by, program)| {
            let of = needed_by.map(|(component, choice)| format!(" (of {component}={choice})")).unwrap_or_default();
            format!("  {}{of}: {}", program.name, program.how_to_get)
        })
        .collect();
    bail!("programs are missing:\n{}", lines.join("\n"))
}

/// An agent that cannot take the network configuration waits for a better one, and the lab would wait with it.
fn check_network(lab: &Lab, impls: &Impls) -> anyhow::Result<()> {
    // flanneld knows backends that flannel-rs does not.
    if lab.choices(impls).contains(&(Component::Flannel, Impl::Rust)) {
        NetworkConfig::parse(lab.pods.flannel_config.as_bytes())
            .context("flannel-rs does not take the lab's flannel-config")?;
    }
    Ok(())
}

fn read_script(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The command that becomes process 1 of the lab.
fn init_command(options: &InitOptions) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find the program of this process")?);
    command.arg("init").env(INIT_VARIABLE, serde_json::to_string(options)?).unblock_signals();
    if !maps_all_users() {
        command.answer_setid_calls();
    }
    Ok(command)
}

/// Whether this user namespace maps more than a few user ids, as the first one does (`user_namespaces(7)`, `uid_map`).
pub(super) fn maps_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 65_536)
}

fn attached(options: &InitOptions, directory: &LabDir, _lock: &File) -> anyhow::Result<ExitCode> {
    // Signals are waited for instead of taken, so that the lab gets the time to end when one comes.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;

    let mut command = init_command(options)?;
    command.die_with_parent().own_process_group();
    let terminal = Terminal::of_stdin();
    let settings = terminal.as_ref().and_then(|terminal| tcgetattr(terminal).ok());
    if let Some(terminal) = &terminal {
        command.foreground_of(terminal.as_fd());
    }
    let record = directory.create_record()?;
    let child = command.spawn().context("start process 1 of the lab")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    directory.write_record(&record, pid.as_raw())?;

    let code = loop {
        match signals.wait()? {
            Signal::SIGCHLD => match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                _ => {}
            },
            signal => drop(kill(pid, signal)), // it tears the lab down and ends
        }
    };
    if let Some(terminal) = terminal {
        // The prompt may have been ended in the middle of a line, with the terminal in raw mode.
        let _ = terminal.take_foreground();
        if let Some(settings) = settings {
            let _ = tcsetattr(&terminal, SetArg::TCSADRAIN, &settings);
        }
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Starts the lab in the background and shows its log until it is up.
fn detached(options: &InitOptions, directory: &LabDir, lock: File) -> anyhow::Result<ExitCode> {
    let log_path = directory.path().join("knetsim.log");
    let log = File::create(&log_path).with_context(|| format!("write {}", log_path.display()))?;
    let mut shown = File::open(&log_path)?;
    let mut command = init_command(options)?;
    // The lab keeps its lock for as long as process 1 holds its standard input, from which nothing is read.
    // Until the lab is up it ends with this process, however that ends; process 1 then cuts the tie itself.
    command
        .new_session()
        .die_with_parent()
        .stdin(Stdio::from(OwnedFd::from(lock)))
        .stdout(log.try_clone()?)
        .stderr(log);
    let record = directory.create_record()?;
    let mut child = command.spawn().context("start process 1 of the lab")?;
    directory.write_record(&record, child.id().cast_signed())?;
    loop {
        let ended = child.try_wait()?;
        let up = ended.is_none() && control::ask(directory.path(), Request::Status).is_ok();
        let mut text = Vec::new();
        shown.read_to_end(&mut text)?;
        std::io::stderr().write_all(&text)?;
        if let Some(status) = ended {
            bail!("the lab did not come up ({status}); its log is {}", log_path.display());
        }
        if up {
            let name = directory.name();
            writeln!(
                std::io::stderr(),
                "lab {name} runs; `knetsim exec`, `shell`, `status` reach it, `knetsim down` ends it"
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The lab's directory inside the sandbox.
#[must_use]
pub fn state_directory() -> &'static Path {
    Path::new(STATE)
}
