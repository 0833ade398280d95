//! Process 1 of a lab: prepares the sandbox, boots, runs the prompt, and takes everything down with it.

use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use anyhow::Context;
use nix::sys::{
    prctl::set_pdeathsig,
    signal::{SigSet, SigmaskHow, Signal, pthread_sigmask},
};

use super::up::{INIT_VARIABLE, InitOptions, Mode, state_directory};
use crate::{
    announce::Announcer,
    boot::{self, Boot},
    control,
    lab::Lab,
    process::Processes,
    progress::Progress,
    prompt, sandbox,
    supervisor::Supervisor,
};

/// The exit status of a lab that was ended by SIGTERM or by `knetsim down`, as a shell would report it.
const ENDED_BY_SIGNAL: i32 = 128 + Signal::SIGTERM as i32;

/// Runs a lab from its boot to its end.
///
/// # Errors
///
/// When the boot fails; the lab is gone then.
pub fn run() -> anyhow::Result<ExitCode> {
    let options = std::env::var(INIT_VARIABLE).context("`knetsim init` is started by `knetsim up` only")?;
    let options: InitOptions = serde_json::from_str(&options).context("read what `knetsim up` said")?;

    // To be blocked before the first thread is made, for all of them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None)?;

    let mut progress = Progress::new();
    progress.step("sandbox", || {
        sandbox::prepare(&options.directory)?;
        Ok(format!("namespaces of its own, files in {}", options.directory.display()))
    })?;
    let path = sandbox::path_variable()?;
    let lab = match &options.lab {
        Some(file) => Lab::load(file)?,
        None => Lab::default_lab(),
    };
    copy_configuration(&options, &lab)?;

    let announcer = Announcer::default();
    let processes = Processes::start(path)?;
    let told = announcer.clone();
    let supervisor = Supervisor::start(processes.clone(), Arc::new(move |text| told.say(text)))?;

    let (end, ended) = mpsc::channel::<i32>();
    let at_prompt = Arc::new(AtomicBool::new(false));
    end_on_signal(signals, end.clone(), Arc::clone(&at_prompt))?;
    let ending = supervisor.clone();
    std::thread::Builder::new().name("end".to_owned()).spawn(move || {
        if let Ok(code) = ended.recv() {
            ending.stop_all();
            // With process 1 the kernel ends whatever is left, and the namespaces with it.
            std::process::exit(code);
        }
    })?;

    let boot = Boot {
        name: options.name.clone(),
        lab,
        impls: options.impls.clone(),
        processes,
        supervisor: supervisor.clone(),
        progress: &mut progress,
    };
    let booted = boot::boot(boot).and_then(|world| {
        if options.checks {
            boot::run_checks(&world, &mut progress)?;
        }
        if options.mode == Mode::Wait {
            // Whoever boots a detached lab waits for the control socket and leaves.
            set_pdeathsig(None)?;
        }
        let down = end.clone();
        control::serve(state_directory(), Arc::clone(&world), move || {
            let _ = down.send(0); // the lab ends already when nobody listens
        })?;
        progress.done(&format!("lab {} is up", world.name));
        Ok(world)
    });
    let code = booted.and_then(|world| match &options.mode {
        Mode::Prompt => {
            at_prompt.store(std::io::stdin().is_terminal(), Ordering::Relaxed);
            prompt::run(&world, &history_file(&options), &announcer)
        }
        Mode::Lines(lines) => prompt::run_lines(&world, lines.iter().cloned().map(Ok)),
        Mode::Wait => loop {
            std::thread::park(); // the thread "end" ends the process
        },
    });
    supervisor.stop_all();
    let code = code?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Leaves what the lab was made from in its directory, where the original kept it too.
fn copy_configuration(options: &InitOptions, lab: &Lab) -> anyhow::Result<()> {
    let directory = state_directory().join("conf");
    let text = match &options.lab {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
        None => include_str!("../../../conf/lab.toml").to_owned(),
    };
    crate::component::write_file(&directory.join("lab.toml"), &text)?;
    crate::component::write_file(&directory.join("flannel-network-config.json"), &lab.pods.flannel_config)
}

/// The prompt's history lies in the user's home, not in the lab, so that the next lab has it too.
fn history_file(options: &InitOptions) -> std::path::PathBuf {
    match std::env::var_os("HOME") {
        Some(home) => std::path::Path::new(&home).join(".knetsim_history"),
        None => options.directory.join("history"),
    }
}

/// Ends the lab when a signal comes. At the prompt of a terminal Ctrl-C is none: it throws the line away.
fn end_on_signal(signals: SigSet, end: mpsc::Sender<i32>, at_prompt: Arc<AtomicBool>) -> std::io::Result<()> {
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let code = loop {
            match signals.wait() {
                Ok(Signal::SIGINT) if at_prompt.load(Ordering::Relaxed) => {}
                Ok(signal) => break 128 + signal as i32,
                Err(_) => break ENDED_BY_SIGNAL,
            }
        };
        // The main thread may have ended meanwhile; then there is nothing left to do.
        let _ = end.send(code);
    })?;
    Ok(())
}
