//! `cnitool`: attaches a network namespace to a network by hand, as a runtime would.
//!
//! It takes the place of the Go program of that name: the same verbs, environment, container id and output.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::conf;
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
    /// Free everything of the network but what is to be kept: attachments, and what a crash left of them.
    Gc(Collection),
    /// Say (by the exit status) whether an `add` could be served now.
    Status(Network),
    /// Say whether every plugin of the network is there and speaks its version; prints what a runtime may ask of them.
    Validate(Network),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The name of the network.
    network: String,
    /// The path of the network namespace.
    netns: PathBuf,
    /// The interface [default: `CNI_IFNAME`, or eth0].
    #[arg(short, long)]
    ifname: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Network {
    /// The name of the network.
    network: String,
    /// Not used; the Go program asks for it.
    netns: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Collection {
    #[command(flatten)]
    network: Network,
    /// A network namespace whose attachments stay; may be given several times.
    #[arg(long, value_name = "NETNS")]
    keep: Vec<PathBuf>,
}

/// Carries out one verb, with `lookup` as the environment and `stdout` for the result.
///
/// # Errors
///
/// Whatever the configuration or a plugin complains of.
pub fn run(arguments: &Arguments, lookup: impl Fn(&str) -> Option<String>, stdout: &mut impl Write) -> Result<()> {
    let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let conf_dir = PathBuf::from(get("NETCONFPATH").unwrap_or_else(|| "/etc/cni/net.d".to_owned()));
    let load = |network: &str| Conflist::load(&conf_dir, network);
    let path = get("CNI_PATH").unwrap_or_default();
    let runtime = Runtime {
        path: std::env::split_paths(&path).filter(|path| !path.as_os_str().is_empty()).collect(),
        cache: Cache::new(Path::new(DEFAULT_CACHE_DIR)),
    };
    match &arguments.verb {
        Verb::Add(target) => {
            let list = load(&target.network)?;
            let result = runtime.add(&list, &target.attachment(get)?)?;
            print(stdout, &result.print(list.version)?)
        }
        Verb::Check(target) => runtime.check(&load(&target.network)?, &target.attachment(get)?),
        Verb::Del(target) => runtime.del(&load(&target.network)?, &target.attachment(get)?),
        Verb::Gc(collection) => {
            let list = load(&collection.network.network)?;
            runtime.gc(&list, &kept(&runtime.cache, &list, &collection.keep, get)?)
        }
        Verb::Status(network) => runtime.status(&load(&network.network)?),
        Verb::Validate(network) => {
            let list = load(&network.network)?;
            let capabilities = runtime.validate(&list)?;
            let types: Vec<_> = list.plugins.iter().map(|plugin| plugin["type"].clone()).collect();
            let answer = json!({"cniVersion": list.version.as_str(), "plugins": types, "capabilities": capabilities});
            print(stdout, &format!("{answer}\n"))
        }
    }
}

impl Target {
    fn attachment(&self, get: impl Fn(&str) -> Option<String>) -> Result<Attachment> {
        let netns = absolute(&self.netns)?;
        let args = get("CNI_ARGS").unwrap_or_default();
        let ifname = self.ifname.clone().or_else(|| get("CNI_IFNAME"));
        Ok(Attachment {
            container_id: container_id(&netns)?,
            ifname: parse_ifname(ifname.as_deref().unwrap_or("eth0"))?,
            netns: Some(netns),
            args: parse_args(&args)?.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            capability_args: capability_args(&get("CAP_ARGS").unwrap_or_else(|| "{}".to_owned()))?,
        })
    }
}

/// The attachments of the namespaces that a `gc` keeps: those that are cached, and in any case the interface of the environment.
fn kept(
    cache: &Cache,
    list: &Conflist,
    keep: &[PathBuf],
    get: impl Fn(&str) -> Option<String>,
) -> Result<Vec<conf::Attachment>> {
    let cached = cache.attachments(&list.name)?;
    let ifname = get("CNI_IFNAME").unwrap_or_else(|| "eth0".to_owned());
    let mut kept = Vec::new();
    for netns in keep {
        let container_id = container_id(&absolute(netns)?)?;
        let of_container = cached.iter().filter(|attachment| attachment.container_id == container_id);
        kept.extend(of_container.map(Attachment::identity));
        kept.push(conf::Attachment { container_id: container_id.to_string(), ifname: ifname.clone() });
    }
    kept.sort();
    kept.dedup();
    Ok(kept)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::io("resolve", path, &source))
}

fn print(stdout: &mut impl Write, text: &str) -> Result<()> {
    let written = stdout.write_all(text.as_bytes());
    written.map_err(|source| Error::new(Code::Io, format!("cannot write the result: {source}")))
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
