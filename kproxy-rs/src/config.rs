//! The command line, in kube-proxy's words where it has them.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use linux_net::IfName;

use crate::diff::Layouts;
use crate::error::Error;
use crate::table::Layout;
use linux_net::ip::Family;

/// Programs this worker's nftables so that the ClusterIPs of Services lead to their endpoints.
///
/// Watches Services (PREFIX/services/specs), EndpointSlices (PREFIX/endpointslices) and this worker's Node (PREFIX/minions) in etcd, as
/// JSON, and keeps two tables, `ip kproxy` and `ip6 kproxy`, in the network namespace it is started in: look at them with `nft list table
/// ip kproxy`. Ends on SIGTERM or SIGINT and leaves the tables, so that traffic goes on without it; `kproxy-rs cleanup` deletes them.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub config: Config,
}

/// What can be done instead of running.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Deletes the tables of this network namespace and ends. Connections that exist go on.
    Cleanup,
}

/// How the proxy runs.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// The members of etcd, as URLs, separated by commas
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        env = "KPROXY_ETCD_ENDPOINTS",
        default_value = "http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,
    /// Where Kubernetes objects stand in etcd
    #[arg(long, value_name = "PREFIX", default_value = "/registry")]
    pub etcd_prefix: String,
    /// The name of this worker in the nodeName of endpoints [default: the hostname]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Where pods live, several separated by commas; whoever comes from elsewhere is masqueraded. Without it, nobody is
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// How pods are told from other clients, who are masqueraded
    #[arg(long, value_name = "MODE", value_enum, default_value_t = DetectLocal::ClusterCidr)]
    pub detect_local_mode: DetectLocal,
    /// With `BridgeInterface`: the bridge that this worker's pods are on
    #[arg(long, value_name = "NAME", required_if_eq("detect_local_mode", "BridgeInterface"))]
    pub pod_bridge_interface: Option<IfName>,
    /// With `InterfaceNamePrefix`: how the names of the interfaces of this worker's pods begin
    #[arg(long, value_name = "PREFIX", required_if_eq("detect_local_mode", "InterfaceNamePrefix"))]
    pub pod_interface_name_prefix: Option<IfName>,
    /// Networks of this worker's addresses that have node ports, separated by commas [default: all addresses but loopback]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<IpNet>,
    /// Where /healthz and /livez are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where /metrics is served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
    /// The bit of the packet mark that means "masquerade"; no other program of this worker may use it
    #[arg(long, value_name = "BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub masquerade_bit: u8,
}

impl Config {
    /// The name of this worker.
    #[must_use]
    pub fn node(&self) -> String {
        let hostname = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        self.hostname_override.clone().unwrap_or_else(hostname)
    }

    /// How pods are told from other clients.
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] when what the mode needs is missing.
    pub fn local_clients(&self) -> Result<LocalClients, Error> {
        let missing = |flag| Error::Configuration(format!("--detect-local-mode needs {flag}"));
        match self.detect_local_mode {
            DetectLocal::ClusterCidr => Ok(LocalClients::Networks(self.cluster_cidr.clone())),
            DetectLocal::BridgeInterface => {
                let name = self.pod_bridge_interface.clone().ok_or_else(|| missing("--pod-bridge-interface"))?;
                Ok(LocalClients::Interface(name))
            }
            DetectLocal::InterfaceNamePrefix => {
                let prefix = self.pod_interface_name_prefix.clone();
                Ok(LocalClients::InterfacePrefix(prefix.ok_or_else(|| missing("--pod-interface-name-prefix"))?))
            }
        }
    }

    /// The layouts of both tables.
    ///
    /// # Errors
    ///
    /// As [`Config::local_clients`].
    pub fn layouts(&self) -> Result<Layouts, Error> {
        let local = self.local_clients()?;
        let layout = |family| Layout::new(family, &local, &self.nodeport_addresses, self.masquerade_bit);
        Ok(Layouts { ipv4: layout(Family::V4), ipv6: layout(Family::V6) })
    }
}

/// The values of `--detect-local-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectLocal {
    /// By their addresses, which are in `--cluster-cidr`; without one nobody is masqueraded
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By the bridge that their packets come in by
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the interface that their packets come in by, which nobody else's name begins like
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// Who counts as a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalClients {
    /// Whoever has an address in these; if there are none, nobody can tell.
    Networks(Vec<IpNet>),
    /// Whoever comes in by this interface.
    Interface(IfName),
    /// Whoever comes in by an interface whose name begins so.
    InterfacePrefix(IfName),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from([&["kproxy-rs"], words].concat())
    }

    #[test]
    fn lists_take_commas_and_repetition() {
        let words = [
            "--etcd-endpoints",
            "http://10.1.0.1:2379,http://10.1.0.2:2379",
            "--cluster-cidr",
            "11.0.0.0/8",
            "--cluster-cidr=12.0.0.1/8",
        ];
        let config = parse(&words).unwrap().config;
        assert_eq!(config.etcd_endpoints.len(), 2);
        assert_eq!(config.cluster_cidr.len(), 2);
        assert_eq!(config.masquerade_bit, 14);
    }

    #[test]
    fn impossible_values_are_refused() {
        for words in [
            ["--masquerade-bit", "32"],
            ["--cluster-cidr", "11.0.0.0/33"],
            ["--healthz-bind-address", "10256"],
            ["--detect-local-mode", "BridgeInterface"],
            ["--detect-local-mode", "bridge"],
            ["--nodeport-addresses", "x"],
        ] {
            assert!(parse(&words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn cleanup_is_a_command_of_its_own() {
        assert!(matches!(parse(&["cleanup"]).unwrap().command, Some(Command::Cleanup)));
        assert!(parse(&["--masquerade-bit", "3", "cleanup"]).is_err());
    }
}
