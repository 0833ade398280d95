//! The CNI side of a worker: its configuration list, and the calls that attach and detach a container.

use std::{
    ffi::OsString,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use linux_net::{NetNs, process::CommandNamespaceExt as _};
use serde_json::{Value, json};

use super::{node_directory, program, write_file};
use crate::{
    impls::{self, Impl},
    lab::Node,
    process::{Processes, describe},
};

/// Where our plugins are linked in the sandbox.
pub const PLUGINS: &str = "/run/knetsim/cni";

/// The programs of one choice: which `cnitool` is called, and where it looks for plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugins {
    cnitool: PathBuf,
    path: OsString,
    /// What differs from the choice, in a sentence, because a real program is not packaged.
    pub remark: Option<String>,
}

/// Links our plugins, which also stand in for real ones that are not packaged.
///
/// # Errors
///
/// When the program is missing or cannot make its links.
pub fn install(processes: &Processes) -> anyhow::Result<()> {
    let ours = program("cni-plugin")?;
    let (status, _, errors) = processes.output(Command::new(&ours).args(["install", PLUGINS]))?;
    if !status.success() {
        bail!("{} install {PLUGINS} {}: {}", ours.display(), describe(status), errors.trim());
    }
    Ok(())
}

/// Finds the programs of a choice.
///
/// # Errors
///
/// When a directory of plugins has a `:` in its name.
pub fn plugins(choice: Impl) -> anyhow::Result<Plugins> {
    let our_tool = Path::new(PLUGINS).join("cnitool");
    match choice {
        Impl::Rust | Impl::Nft => Ok(Plugins { cnitool: our_tool, path: PLUGINS.into(), remark: None }),
        Impl::Real => {
            let mut missing = Vec::new();
            if impls::find_plugin("flannel").is_none() {
                missing.push("flannel");
            }
            let cnitool = impls::find_real("cnitool").unwrap_or_else(|| {
                missing.push("cnitool");
                our_tool
            });
            // The real plugins come first, so that ours stand in only for what is missing.
            let mut directories = impls::plugin_directories();
            directories.push(PathBuf::from(PLUGINS));
            let path = std::env::join_paths(&directories).context("a plugin directory has a ':' in its name")?;
            let remark = (!missing.is_empty()).then(|| {
                format!(
                    "not installed of the real programs: {}; ours calls the real plugins (`make real`)",
                    missing.join(" and ")
                )
            });
            Ok(Plugins { cnitool, path, remark })
        }
    }
}

/// Writes the worker's configuration list. The list bears the worker's name, and so do the files that plugins keep.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write_conflist(worker: &Node) -> anyhow::Result<()> {
    let directory = node_directory(&worker.name);
    let list = json!({
        "cniVersion": "1.0.0",
        "name": worker.name,
        "plugins": [{
            "type": "flannel",
            "subnetFile": super::flannel::subnet_file(worker),
            "dataDir": directory.join("flannel"),
            // Hairpin lets a container reach itself through its own service.
            "delegate": { "isDefaultGateway": true, "hairpinMode": true },
        }],
    });
    write_file(&directory.join("10-flannel.conflist"), &format!("{list:#}\n"))
}

impl Plugins {
    /// Attaches a namespace to the worker's pod network; returns the container's address.
    ///
    /// # Errors
    ///
    /// When the runtime or a plugin fails, with what it said.
    pub fn add(&self, processes: &Processes, worker: &Node, netns: &str) -> anyhow::Result<Ipv4Addr> {
        let output = self.call(processes, "add", worker, netns)?;
        address_of(&output).with_context(|| format!("cnitool add {} printed {output:?}", worker.name))
    }

    /// Detaches it again. What is gone already is no error.
    ///
    /// # Errors
    ///
    /// When the runtime or a plugin fails, with what it said.
    pub fn del(&self, processes: &Processes, worker: &Node, netns: &str) -> anyhow::Result<()> {
        self.call(processes, "del", worker, netns).map(drop)
    }

    fn call(&self, processes: &Processes, verb: &str, worker: &Node, netns: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.cnitool);
        command
            .args([verb, &worker.name, &format!("/run/netns/{netns}")])
            .env("CNI_PATH", &self.path)
            .env("NETCONFPATH", node_directory(&worker.name))
            .env("CNI_IFNAME", "eth0")
            .in_netns(&NetNs::open(&worker.name)?);
        let (status, output, errors) = processes.output(&mut command)?;
        if !status.success() {
            bail!("cnitool {verb} {} {netns} {}: {} {}", worker.name, describe(status), errors.trim(), output.trim());
        }
        Ok(output)
    }
}

/// The first address of a CNI result, of version 0.1 (`ip4`) or later (`ips`).
fn address_of(result: &str) -> anyhow::Result<Ipv4Addr> {
    let result: Value = serde_json::from_str(result)?;
    let address =
        result["ips"][0]["address"].as_str().or(result["ip4"]["ip"].as_str()).context("there is no address")?;
    let network: ipnet::Ipv4Net = address.parse()?;
    Ok(network.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_results_of_all_versions() {
        let new = r#"{"cniVersion":"1.0.0","ips":[{"address":"11.10.0.2/20","gateway":"11.10.0.1"}]}"#;
        let old = r#"{"cniVersion":"0.1.0","ip4":{"ip":"11.10.0.3/20"}}"#;
        assert_eq!(address_of(new).unwrap(), Ipv4Addr::new(11, 10, 0, 2));
        assert_eq!(address_of(old).unwrap(), Ipv4Addr::new(11, 10, 0, 3));
        assert!(address_of("{}").is_err());
    }
}
