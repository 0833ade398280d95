//! Calling another plugin: a delegate (bridge calls host-local, flannel calls bridge) or the next of a list.
//!
//! A plugin is a program found by its name in `CNI_PATH`. When the file found there is this very binary under another
//! name, the call is an ordinary function call in this process: an ADD through flannel, bridge and host-local then
//! costs one process instead of three. Whoever puts the Go plugin in that place gets the Go plugin.
//!
//! Source: CNI specification 1.1.0, section 4, "Plugin Delegation".

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use crate::conf::Conf;
use crate::env::{Command, Environment};
use crate::error::{Code, Error, Result};
use crate::plugin;
use crate::result::CniResult;
use crate::version::SpecVersion;

/// Calls the plugin `name` with the configuration `conf`, whole.
///
/// # Errors
///
/// Code 7 for a name that is a path, 103 when the program is not in `CNI_PATH` or dies; the plugin's own error as it is.
pub fn invoke(name: &str, command: Command, env: &Environment, conf: Map<String, Value>) -> Result<Option<CniResult>> {
    let program = locate(name, env)?;
    let conf = Conf::new(conf)?;
    if let Some(plugin) = plugin::find(name).filter(|_| is_this_binary(&program)) {
        return plugin::dispatch(plugin, command, env, &conf);
    }
    let answer = execute(name, &program, command, env, &conf)?;
    if command != Command::Add {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(&answer)
        .map_err(|source| Error::decode(&format!("result of plugin {name}"), &source))?;
    CniResult::from_value(&value, conf.version()?).map(Some)
}

/// As [`invoke`] for ADD, where an answer is the point.
///
/// # Errors
///
/// As [`invoke`].
pub fn invoke_add(name: &str, env: &Environment, conf: Map<String, Value>) -> Result<CniResult> {
    invoke(name, Command::Add, env, conf)?
        .ok_or_else(|| Error::new(Code::Plugin, format!("plugin {name} answered ADD without a result")))
}

/// The versions of the specification that the plugin `name` says it speaks.
///
/// # Errors
///
/// As [`invoke`], and code 6 when the answer to VERSION is no such answer.
pub fn versions(name: &str, env: &Environment) -> Result<Vec<String>> {
    let program = locate(name, env)?;
    if plugin::find(name).is_some() && is_this_binary(&program) {
        return Ok(SpecVersion::ALL.map(|version| version.as_str().to_owned()).into());
    }
    // VERSION needs no configuration; the oldest plugins want to read one all the same.
    let conf = Conf::parse(br#"{"name": "version", "cniVersion": "1.0.0"}"#)?;
    let answer = execute(name, &program, Command::Version, env, &conf)?;
    let answer: Value = serde_json::from_slice(&answer)
        .map_err(|source| Error::decode(&format!("answer of plugin {name} to VERSION"), &source))?;
    let versions = answer.get("supportedVersions").and_then(Value::as_array).into_iter().flatten();
    Ok(versions.filter_map(Value::as_str).map(str::to_owned).collect())
}

fn locate(name: &str, env: &Environment) -> Result<PathBuf> {
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(Error::config(format!("invalid plugin name: \"{name}\"")));
    }
    env.path.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let dirs: Vec<_> = env.path.iter().map(|dir| dir.display().to_string()).collect();
        Error::new(Code::Plugin, format!("failed to find plugin \"{name}\" in path [{}]", dirs.join(" ")))
            .with_details("`cni-plugin install DIR` puts the plugins of this binary into a directory of CNI_PATH")
    })
}

/// Whether `program`, links followed, is the file that runs in this process.
fn is_this_binary(program: &std::path::Path) -> bool {
    static OWN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let identity = |path: &std::path::Path| path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
    let own = OWN.get_or_init(|| identity(std::path::Path::new("/proc/self/exe")));
    own.is_some() && identity(program) == *own
}

/// Runs the program: the same environment but for the command, the configuration on its standard input.
fn execute(name: &str, program: &std::path::Path, command: Command, env: &Environment, conf: &Conf) -> Result<Vec<u8>> {
    let failed = |verb: &str, source: std::io::Error| {
        Error::new(Code::Plugin, format!("cannot {verb} plugin {}: {source}", program.display()))
    };
    let path = std::env::join_paths(&env.path).map_err(|source| Error::config(format!("CNI_PATH: {source}")))?;
    let mut child = Process::new(program)
        .env("CNI_COMMAND", command.as_str())
        .env("CNI_CONTAINERID", env.container_id.as_str())
        .env("CNI_NETNS", env.netns.as_deref().unwrap_or(std::path::Path::new("")))
        .env("CNI_IFNAME", env.ifname.as_ref().map(ToString::to_string).unwrap_or_default())
        .env("CNI_ARGS", &env.args)
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| failed("start", source))?;
    if let Some(mut stdin) = child.stdin.take() {
        let bytes = serde_json::to_vec(conf.object()).map_err(|source| Error::decode("network config", &source))?;
        // A plugin may answer without having read everything; its answer then says more than our broken pipe.
        let _ = stdin.write_all(&bytes);
    }
    let output = child.wait_with_output().map_err(|source| failed("wait for", source))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::from_json(&output.stdout).unwrap_or_else(|| {
        Error::new(Code::Plugin, format!("plugin {name} failed with {} and printed no error", output.status))
            .with_details(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }))
}
