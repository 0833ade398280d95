//! What every plugin is, and the frame that turns one into a program.
//!
//! ```text
//!   environment ──► Variables ─┐
//!                              ├──► dispatch ──► Plugin::add ──► result JSON on stdout, status 0
//!   stdin ────────► Conf ──────┘             └─► Error ────────► error JSON on stdout, status 1
//! ```

use std::io::{Read, Write};

use crate::bandwidth::Bandwidth;
use crate::bridge::Bridge;
use crate::conf::Conf;
use crate::env::{Command, Environment, Variables};
use crate::error::{Code, Error, Result};
use crate::firewall::Firewall;
use crate::flannel::Flannel;
use crate::host_local::HostLocal;
use crate::loopback::Loopback;
use crate::portmap::Portmap;
use crate::ptp::Ptp;
use crate::result::CniResult;
use crate::static_ipam::Static;
use crate::tuning::Tuning;
use crate::version::{SpecVersion, version_answer};

/// One CNI plugin. Each method serves one command; both arguments have been checked as far as the protocol goes.
pub trait Plugin: Sync {
    /// The name the plugin is called by, also its file name.
    fn name(&self) -> &'static str;

    /// ADD: attaches the container and says what was made.
    ///
    /// # Errors
    ///
    /// Anything that prevented it; what was half made is taken back first.
    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult>;

    /// DEL: detaches the container. Succeeds when there is nothing (left) to detach.
    ///
    /// # Errors
    ///
    /// Only what the runtime should try again.
    fn del(&self, env: &Environment, conf: &Conf) -> Result<()>;

    /// CHECK: compares what is there with `prevResult`.
    ///
    /// # Errors
    ///
    /// The first difference.
    fn check(&self, env: &Environment, conf: &Conf) -> Result<()>;

    /// GC: frees what belongs to none of [`Conf::valid_attachments`].
    ///
    /// # Errors
    ///
    /// What could not be freed.
    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()>;

    /// STATUS: whether an ADD could be served now.
    ///
    /// # Errors
    ///
    /// Code 50 with the reason when not.
    fn status(&self, env: &Environment, conf: &Conf) -> Result<()>;
}

/// The plugins of this binary; a further one is a further line here and a module.
static PLUGINS: &[&dyn Plugin] =
    &[&Flannel, &Bridge, &HostLocal, &Loopback, &Portmap, &Firewall, &Tuning, &Bandwidth, &Ptp, &Static];

/// The plugin of that name, if it is one of ours.
#[must_use]
pub fn find(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().copied().find(|plugin| plugin.name() == name)
}

/// The names of all plugins of this binary.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|plugin| plugin.name())
}

/// Serves one command, after asking whether the configuration's version has it.
///
/// # Errors
///
/// Code 1 for a command the version does not have; else whatever the plugin says.
pub fn dispatch(plugin: &dyn Plugin, command: Command, env: &Environment, conf: &Conf) -> Result<Option<CniResult>> {
    let version = conf.version()?;
    let oldest = match command {
        Command::Add | Command::Del | Command::Version => SpecVersion::V0_1_0,
        Command::Check => SpecVersion::V0_4_0,
        Command::Gc | Command::Status => SpecVersion::V1_1_0,
    };
    if version < oldest {
        return Err(Error::new(Code::IncompatibleVersion, format!("config version does not allow {command}"))
            .with_details(format!("cniVersion is {version}, {command} needs {oldest}")));
    }
    match command {
        Command::Add => plugin.add(env, conf).map(Some),
        Command::Del => plugin.del(env, conf).map(|()| None),
        Command::Check => plugin.check(env, conf).map(|()| None),
        Command::Gc => plugin.gc(env, conf).map(|()| None),
        Command::Status => plugin.status(env, conf).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// Runs a plugin as a program, with this process's environment and standard streams, and returns the exit code.
#[must_use]
pub fn run(plugin: &dyn Plugin) -> u8 {
    let answer = answer(
        plugin,
        |name| std::env::var(name).ok(),
        || {
            let mut stdin = Vec::with_capacity(4096);
            std::io::stdin().read_to_end(&mut stdin)?;
            Ok(stdin)
        },
    );
    // A runtime that closed the pipe wants no answer, and there is no other channel to complain on.
    let written = std::io::stdout().write_all(answer.text.as_bytes());
    (written.is_err() || !answer.is_success).into()
}

/// What a plugin prints, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What goes to standard output: a result, an error, or nothing.
    pub text: String,
    /// Whether the exit status is 0.
    pub is_success: bool,
}

/// Serves one call: `lookup` is the environment, `stdin` what the runtime sends, which is read only by a command that needs it.
pub fn answer(
    plugin: &dyn Plugin,
    lookup: impl Fn(&str) -> Option<String>,
    stdin: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Answer {
    match serve(plugin, lookup, stdin) {
        Ok(text) => Answer { text, is_success: true },
        Err(error) => Answer { text: error.to_json(), is_success: false },
    }
}

fn serve(
    plugin: &dyn Plugin,
    lookup: impl Fn(&str) -> Option<String>,
    stdin: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<String> {
    let Some(variables) = Variables::collect(lookup)? else {
        return about(plugin);
    };
    if variables.asks_for_the_version() {
        return Ok(version_answer());
    }
    let stdin = stdin().map_err(|source| Error::new(Code::Io, format!("error reading from stdin: {source}")))?;
    let conf = Conf::parse(&stdin)?;
    let (command, env) = variables.check()?;
    match dispatch(plugin, command, &env, &conf)? {
        Some(result) => result.print(conf.version()?),
        None => Ok(String::new()),
    }
}

/// What a person sees who runs a plugin by hand: on standard error, because standard output is the protocol's.
fn about(plugin: &dyn Plugin) -> Result<String> {
    let versions = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
    let text = format!(
        "CNI plugin {name}; a container runtime calls it with CNI_COMMAND=ADD|DEL|CHECK|GC|STATUS|VERSION\n\
         CNI protocol versions supported: {versions}\n",
        name = plugin.name()
    );
    std::io::stderr()
        .write_all(text.as_bytes())
        .map_err(|source| Error::new(Code::Io, format!("cannot write to standard error: {source}")))?;
    Ok(String::new())
}
