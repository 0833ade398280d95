//! The command line and the environment: flanneld's, so that the one agent can stand in for the other.
//!
//! flanneld is written in Go, whose flags take one dash or two (`-iface eth0`, `--iface=eth0`) and whose booleans take a value only
//! after `=`. [`normalise`] turns such a line into what `clap` expects. Each flag `--some-name` is also read from the variable
//! `FLANNELD_SOME_NAME`; the command line wins.
//!
//! Source: flannel `main.go`, `init` and `main`.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};

use crate::error::ConfigError;
use crate::registry::LEASE_TTL;

/// The flags that concern flanneld's other way of keeping leases, as annotations of Kubernetes nodes.
const KUBE_MANAGER_FLAGS: [&str; 6] = [
    "kube-subnet-mgr",
    "kube-api-url",
    "kube-annotation-prefix",
    "kubeconfig-file",
    "net-config-path",
    "set-node-network-unavailable",
];

/// What `--help` says before the flags.
const ABOUT: &str = "An overlay agent for one worker: takes a subnet lease in etcd and connects the worker's pods with those of all others.

The agent reads the network configuration from PREFIX/config, claims a free subnet under PREFIX/subnets/, makes the device \
flannel.VNI and keeps, for every other worker found there, three static entries on it: a neighbour, an FDB entry and a route. \
When all stands it writes the subnet file, which the CNI plugin 'flannel' reads.

Flags are those of flanneld, with one dash or two; each is also read from the environment, --some-name from FLANNELD_SOME_NAME.";

/// The command line.
#[derive(Debug, Clone, Parser)]
#[command(name = "flannel-rs", disable_version_flag = true, about = ABOUT, long_about = ABOUT)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of flanneld's command line")]
pub struct Args {
    /// etcd endpoints, separated by commas.
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_delimiter = ',',
        value_name = "URL,…",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,
    /// The key prefix in etcd under which configuration and leases stand.
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", value_name = "PREFIX", default_value = "/coreos.com/network")]
    pub etcd_prefix: String,
    /// User name for etcd.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// Password for etcd; give it in `FLANNELD_ETCD_PASSWORD`, because a command line is seen by every process.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub etcd_password: Option<String>,
    /// Interface towards the other workers, by name or IPv4 address; may be repeated, the first that exists is taken. Default: that of the default route.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// Address that other workers send to, where it differs from the interface's own. Default: the interface's address.
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// File for the CNI plugin: subnet, MTU and whether we masquerade.
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Renew the subnet lease at the latest so many minutes before it ends (1–1439); we renew at a third of its life if that is earlier.
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", value_name = "MINUTES", default_value_t = 60)]
    pub subnet_lease_renew_margin: u64,
    /// Masquerade what leaves the pod network, except between pods.
    #[arg(long, env = "FLANNELD_IP_MASQ", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value_t = false, action = ArgAction::Set)]
    pub ip_masq: bool,
    /// Do not choose masqueraded source ports at random.
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to the pod network.
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = true, action = ArgAction::Set)]
    pub iptables_forward_rules: bool,
    /// Seconds between two comparisons of the kernel's state with what it should be. (In flanneld it concerns the iptables rules only.)
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub iptables_resync: u64,
    /// Address to serve /healthz, /readyz and /metrics on.
    #[arg(long, env = "FLANNELD_HEALTHZ_IP", value_name = "IP", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,
    /// Port to serve /healthz, /readyz and /metrics on; 0 turns them off.
    #[arg(long, env = "FLANNELD_HEALTHZ_PORT", value_name = "PORT", default_value_t = 0)]
    pub healthz_port: u16,
    /// Delete our lease from etcd at exit (not in flanneld, which lets it run out, so that a restarted worker finds its subnet again).
    #[arg(long, env = "FLANNELD_RELEASE_ON_EXIT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub release_on_exit: bool,
    /// How much to log: 0 visible changes, 2 decisions, 5 everything. `RUST_LOG`, where set, has the last word.
    #[arg(long = "v", env = "FLANNELD_V", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
    /// Print the version to standard error and end.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "BOOL",
          action = ArgAction::Set)]
    pub version: bool,
}

impl Args {
    /// The filter for the log that [`verbosity`](Self::verbosity) means.
    #[must_use]
    pub fn log_filter(&self) -> &'static str {
        match self.verbosity {
            0 | 1 => "info",
            2..=4 => "info,flannel_rs=debug",
            5.. => "debug,flannel_rs=trace",
        }
    }
}

/// Turns a command line as Go understands it into one as `clap` does: `-iface x` becomes `--iface x`.
///
/// # Errors
///
/// [`ConfigError::KubeManager`] for a flag or variable of the Kubernetes subnet manager: to ignore it would start an agent that does
/// something else than its user meant.
pub fn normalise(
    arguments: impl IntoIterator<Item = OsString>,
    mut variable: impl FnMut(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, ConfigError> {
    for flag in KUBE_MANAGER_FLAGS {
        let name = format!("FLANNELD_{}", flag.to_uppercase().replace('-', "_"));
        if variable(&name).is_some_and(|value| !value.is_empty() && value != "false") {
            return Err(ConfigError::KubeManager { given: name });
        }
    }
    let mut line = Vec::new();
    for argument in arguments {
        let Some(text) = argument.to_str() else {
            line.push(argument);
            continue;
        };
        let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        if text.starts_with('-')
            && KUBE_MANAGER_FLAGS.contains(&name)
            && text != format!("--{name}=false")
            && text != format!("-{name}=false")
        {
            return Err(ConfigError::KubeManager { given: text.to_owned() });
        }
        let one_dash = text.strip_prefix('-').filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
        match one_dash {
            Some(name) if name != "h" => line.push(format!("--{name}").into()),
            _ if text.starts_with("--") && KUBE_MANAGER_FLAGS.contains(&name) => {} // "=false": the default, said aloud.
            _ => line.push(argument),
        }
    }
    Ok(line)
}

/// The command line, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where etcd is, and who we are there.
    pub etcd: EtcdConfig,
    /// Wanted external interfaces, best first; empty means that of the default route.
    pub interfaces: Vec<String>,
    /// The address to announce, where it is not the interface's own.
    pub public_ip: Option<Ipv4Addr>,
    /// The file for the CNI plugin.
    pub subnet_file: PathBuf,
    /// The lease is renewed at the latest so long before it ends.
    pub renew_margin: Duration,
    /// What to do to packets beside forwarding them through the overlay.
    pub rules: RulesConfig,
    /// How often the kernel's state is compared with what it should be.
    pub resync: Duration,
    /// Where to serve health and metrics.
    pub health: Option<SocketAddr>,
    /// Whether the lease is given back at exit.
    pub release_on_exit: bool,
}

/// Where etcd is, and who we are there.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// Client URLs of its members.
    pub endpoints: Vec<String>,
    /// Everything of ours stands below; without a slash at the end.
    pub prefix: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
}

/// The firewall rules that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulesConfig {
    /// Masquerade what leaves the pod network.
    pub masquerade: bool,
    /// Choose masqueraded source ports at random, which avoids clashes between connections made at the same instant.
    pub fully_random: bool,
    /// Accept forwarded packets from and to the pod network.
    pub forward: bool,
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let minutes = args.subnet_lease_renew_margin;
        let renew_margin = Duration::from_secs(minutes.saturating_mul(60));
        if minutes == 0 || renew_margin >= LEASE_TTL {
            return Err(ConfigError::RenewMargin { minutes });
        }
        for endpoint in &args.etcd_endpoints {
            check_endpoint(endpoint)
                .map_err(|problem| ConfigError::Endpoint { endpoint: endpoint.clone(), problem })?;
        }
        let credentials = match (args.etcd_username, args.etcd_password) {
            (Some(name), Some(password)) => Some((name, password)),
            (None, None) => None,
            _ => return Err(ConfigError::HalfCredentials),
        };
        Ok(Self {
            etcd: EtcdConfig {
                endpoints: args.etcd_endpoints,
                prefix: format!("/{}", args.etcd_prefix.trim_matches('/')),
                credentials,
            },
            interfaces: args.iface,
            public_ip: args.public_ip,
            subnet_file: args.subnet_file,
            renew_margin,
            rules: RulesConfig {
                masquerade: args.ip_masq,
                fully_random: !args.ip_masq_fully_random_disable,
                forward: args.iptables_forward_rules,
            },
            resync: Duration::from_secs(args.iptables_resync),
            health: (args.healthz_port != 0).then(|| SocketAddr::new(args.healthz_ip, args.healthz_port)),
            release_on_exit: args.release_on_exit,
        })
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    let Some(authority) = endpoint.strip_prefix("http://") else {
        return Err(if endpoint.starts_with("https://") {
            "asks for TLS, which is not supported; use http://HOST:PORT"
        } else {
            "has no scheme; use http://HOST:PORT"
        });
    };
    match authority.trim_end_matches('/').rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err("has no host and port; use http://HOST:PORT, e.g. http://127.0.0.1:2379"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn line(arguments: &str) -> Result<Vec<OsString>, ConfigError> {
        normalise(arguments.split_whitespace().map(OsString::from), |_| None)
    }

    fn config(arguments: &str) -> Result<Config, ConfigError> {
        let line = line(&format!("flannel-rs {arguments}")).unwrap();
        Args::try_parse_from(line).unwrap().try_into()
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_teaches() {
        insta::assert_snapshot!(Args::command().term_width(100).render_long_help());
    }

    #[test]
    fn one_dash_or_two_with_a_blank_or_an_equals_sign() {
        for arguments in ["-iface eth1 -v 2", "--iface=eth1 --v=2", "-iface=eth1 -v=2", "--iface eth1 --v 2"] {
            let args = Args::try_parse_from(line(&format!("flannel-rs {arguments}")).unwrap()).unwrap();
            assert_eq!((args.iface, args.verbosity), (vec!["eth1".to_owned()], 2), "{arguments}");
        }
    }

    #[test]
    fn a_boolean_stands_alone_or_takes_its_value_after_an_equals_sign() {
        for (arguments, expected) in [
            ("", false),
            ("-ip-masq", true),
            ("--ip-masq=true", true),
            ("-ip-masq=false", false),
            ("-ip-masq -iface eth0", true),
        ] {
            assert_eq!(config(arguments).unwrap().rules.masquerade, expected, "{arguments}");
        }
        assert!(!config("-iptables-forward-rules=false").unwrap().rules.forward);
    }

    #[test]
    fn the_line_of_the_lab_is_understood() {
        let config = config(
            "--etcd-endpoints http://10.1.0.1:2379,http://10.1.0.2:2379 --iface C0w1-eth0 --subnet-file /x/flannel-subnet.env --ip-masq --healthz-port 8471",
        )
        .unwrap();
        assert_eq!(config.etcd.endpoints, ["http://10.1.0.1:2379", "http://10.1.0.2:2379"]);
        assert_eq!(config.etcd.prefix, "/coreos.com/network");
        assert_eq!(config.interfaces, ["C0w1-eth0"]);
        assert_eq!(config.health.unwrap().to_string(), "0.0.0.0:8471");
        assert_eq!(config.renew_margin, Duration::from_hours(1));
    }

    #[test]
    fn the_kubernetes_subnet_manager_is_refused_by_flag_and_by_variable() {
        for arguments in ["-kube-subnet-mgr", "--kube-subnet-mgr=true", "-kubeconfig-file /etc/x"] {
            assert!(matches!(line(arguments), Err(ConfigError::KubeManager { .. })), "{arguments}");
        }
        assert_eq!(line("x --kube-subnet-mgr=false").unwrap(), ["x"]);
        let from_environment = normalise([], |name| (name == "FLANNELD_KUBE_API_URL").then(|| "http://k".into()));
        assert!(from_environment.unwrap_err().to_string().contains("FLANNELD_KUBE_API_URL"));
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_with_the_remedy() {
        for (arguments, expected) in [
            ("-subnet-lease-renew-margin 0", "use 1 to 1439"),
            ("-subnet-lease-renew-margin 1440", "use 1 to 1439"),
            ("-etcd-endpoints https://10.1.0.1:2379", "asks for TLS"),
            ("-etcd-endpoints 10.1.0.1:2379", "has no scheme"),
            ("-etcd-endpoints http://10.1.0.1", "has no host and port"),
            ("-etcd-username root", "give both or neither"),
        ] {
            let error = config(arguments).unwrap_err().to_string();
            assert!(error.contains(expected), "{arguments}: {error}");
        }
    }
}
