//! The command line, in kube-proxy's words where it has them.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
use ipnet::{IpNet, Ipv4Net};

use crate::table::Layout;

/// Programs this worker's nftables so that the ClusterIPs of Services lead to their endpoints.
///
/// Watches Services (PREFIX/services/specs) and EndpointSlices (PREFIX/endpointslices) in etcd, as JSON, and keeps one table, `ip
/// kproxy`, in the network namespace it is started in: look at it with `nft list table ip kproxy`. Ends on SIGTERM or SIGINT and leaves the
/// table, so that traffic goes on without it; `kproxy-rs cleanup` deletes the table.
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
    /// Deletes the table of this network namespace and ends. Connections that exist go on.
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

    /// The table's layout. IPv6 networks are for a table that is not there yet.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(&self.pod_cidrs(), self.masquerade_bit)
    }

    /// The IPv4 networks where pods live.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<Ipv4Net> {
        self.cluster_cidr
            .iter()
            .filter_map(|net| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None })
            .collect()
    }
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
        assert_eq!(config.pod_cidrs(), ["11.0.0.0/8".parse().unwrap(), "12.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.masquerade_bit, 14);
    }

    #[test]
    fn impossible_values_are_refused() {
        for words in
            [["--masquerade-bit", "32"], ["--cluster-cidr", "11.0.0.0/33"], ["--healthz-bind-address", "10256"]]
        {
            assert!(parse(&words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn cleanup_is_a_command_of_its_own() {
        assert!(matches!(parse(&["cleanup"]).unwrap().command, Some(Command::Cleanup)));
        assert!(parse(&["--masquerade-bit", "3", "cleanup"]).is_err());
    }
}
