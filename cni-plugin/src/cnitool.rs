//! `cnitool`: attaches a network namespace to a network by hand, as a runtime would.
//!
//! It takes the place of the Go program of that name: the same verbs, environment, container id and output.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde_json::{Map, Value};
use sha2::{Digest, Sha512};

use crate::env::{ContainerId, parse_args, parse_ifname};
use crate::error::{Code, Error, Result};
use crate::runtime::cache::{Cache, DEFAULT_CACHE_DIR};
use crate::runtime::conflist::Conflist;
use crate::runtime::{Attachment, Runtime};

/// Attaches network namespaces to CNI networks, as a container runtime would.
///
/// NETWORK is the "name" in a file of the configuration directory; NETNS is the path of a network namespace, for
/// example /run/netns/c1 or /proc/1234/ns/net.
#[derive(Debug, Parser)]
#[command(name = "cnitool", after_help = ENVIRONMENT_HELP)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const ENVIRONMENT_HELP: &str = "\
Environment:
  NETCONFPATH  directory of *.conflist, *.conf and *.json files [default: /etc/cni/net.d]
  CNI_PATH     directories of the plugins, separated by colons
  CNI_IFNAME   the interface to make [default: eth0]
  CNI_ARGS     K=V;K2=V2, handed to the plugins
  CAP_ARGS     a JSON object; a plugin gets the keys it has the capability for, as runtimeConfig

Example:
  ip netns add c1
  NETCONFPATH=/tmp/knetsim/C0w1 CNI_PATH=/opt/cni/bin cnitool add C0w1 /run/netns/c1";

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach the namespace; prints the result.
    Add(Target),
    /// Say (by the exit status) whether the attachment is still what `add` made.
    Check(Target),
    /// Detach the namespace; there may be nothing to detach.
    Del(Target),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The name of the network.
    network: String,
    /// The path of the network namespace.
    netns: PathBuf,
}

/// Carries out one verb, with `lookup` as the environment and `stdout` for the result.
///
/// # Errors
///
/// Whatever the configuration or a plugin complains of.
pub fn run(arguments: &Arguments, lookup: impl Fn(&str) -> Option<String>, stdout: &mut impl Write) -> Result<()> {
    let get =
        |name: &str, default: &str| lookup(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.into());
    let (Verb::Add(target) | Verb::Check(target) | Verb::Del(target)) = &arguments.verb;
    let list = Conflist::load(Path::new(&get("NETCONFPATH", "/etc/cni/net.d")), &target.network)?;
    let netns = std::path::absolute(&target.netns).map_err(|source| Error::io("resolve", &target.netns, &source))?;
    let attachment = Attachment {
        container_id: container_id(&netns)?,
        ifname: parse_ifname(&get("CNI_IFNAME", "eth0"))?,
        netns: Some(netns),
        args: parse_args(&get("CNI_ARGS", ""))?.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        capability_args: capability_args(&get("CAP_ARGS", "{}"))?,
    };
    let runtime = Runtime {
        path: std::env::split_paths(&get("CNI_PATH", "")).filter(|path| !path.as_os_str().is_empty()).collect(),
        cache: Cache::new(Path::new(DEFAULT_CACHE_DIR)),
    };
    match arguments.verb {
        Verb::Add(_) => {
            let result = runtime.add(&list, &attachment)?.print(list.version)?;
            stdout
                .write_all(result.as_bytes())
                .map_err(|source| Error::new(Code::Io, format!("cannot write the result: {source}")))
        }
        Verb::Check(_) => runtime.check(&list, &attachment),
        Verb::Del(_) => runtime.del(&list, &attachment),
    }
}

/// A namespace has no container id, so one is made of its path: `cnitool-` and ten bytes of its SHA-512, as upstream.
fn container_id(netns: &Path) -> Result<ContainerId> {
    use std::os::unix::ffi::OsStrExt;
    let hash = Sha512::digest(netns.as_os_str().as_bytes());
    let number = hash[..10].iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    ContainerId::new(&format!("cnitool-{number:020x}"))
}

fn capability_args(text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|source| Error::decode("CAP_ARGS", &source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_id_is_upstreams() {
        // printf %s /run/netns/c1 | sha512sum | cut -c1-20
        assert_eq!(container_id(Path::new("/run/netns/c1")).unwrap().as_str(), "cnitool-20b4ff582526573bbe7d");
    }

    #[test]
    fn capabilities_that_are_no_object_are_refused() {
        assert_eq!(capability_args("[]").unwrap_err().code, Code::Decode);
    }
}
