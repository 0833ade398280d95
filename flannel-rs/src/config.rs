//! The command line and the environment: flanneld's, so that the one agent can stand in for the other.
//!
//! flanneld is written in Go, whose flags take one dash or two (`-iface eth0`, `--iface=eth0`) and whose booleans take a value only
//! after `=`. [`normalise`] turns such a line into what `clap` expects. Each flag `--some-name` is also read from the variable
//! `FLANNELD_SOME_NAME`; the command line wins.
//!
//! Source: flannel `main.go`, `init` and `main`.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};
use regex::Regex;

use crate::error::ConfigError;
use crate::interface::Wishes;
use crate::log::{ModuleLevel, SourceLine};
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
#[command(name = "flannel-rs", disable_version_flag = true, args_override_self = true, about = ABOUT, long_about = ABOUT)]
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
    /// Certificate authority that etcd's certificate must be signed by (PEM); with https:// endpoints. Default: the system's.
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate by which etcd knows us (PEM).
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Private key of that certificate (PEM).
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// User name for etcd.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// Password for etcd; give it in `FLANNELD_ETCD_PASSWORD`, because a command line is seen by every process.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub etcd_password: Option<String>,
    /// Interface towards the other workers, by name or address; may be repeated, the first that is there is taken. Default: that of the
    /// default route.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// The same by a regular expression, tried on addresses first and then on names; may be repeated. Comes after --iface.
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    pub iface_regex: Vec<Regex>,
    /// The interface by which a packet to this address would leave, as `ip route get` says. Comes after --iface-regex.
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP")]
    pub iface_can_reach: Option<IpAddr>,
    /// Address that other workers send to, where it differs from the interface's own. Default: the interface's address.
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6, in a dual-stack cluster.
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IP")]
    pub public_ipv6: Option<Ipv6Addr>,
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
    /// Drop packets to addresses of our own subnet that no pod has, where they would leave by the default route.
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub ip_blackhole_route: bool,
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
    /// The same for single modules: MODULE=LEVEL, separated by commas, e.g. `watch=4,keeper=2`.
    #[arg(long, env = "FLANNELD_VMODULE", value_name = "MODULE=LEVEL,…", value_delimiter = ',')]
    pub vmodule: Vec<ModuleLevel>,
    /// Log a backtrace with whatever is logged at this line of the source, e.g. `run.rs:120`.
    #[arg(
        long = "log_backtrace_at",
        env = "FLANNELD_LOG_BACKTRACE_AT",
        value_name = "FILE:LINE",
        default_value = ":0"
    )]
    pub log_backtrace_at: SourceLine,
    /// Print the version to standard error and end.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "BOOL",
          action = ArgAction::Set)]
    pub version: bool,
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

impl Args {
    /// Reads a line that [`normalise`] made, and the variables of the environment for what is not on it.
    ///
    /// A variable that is set to nothing counts as absent, as in flanneld: `FLANNELD_PUBLIC_IP=` is a common line in a service's
    /// environment file.
    ///
    /// # Errors
    ///
    /// clap's own, which print usage, help or the mistake.
    pub fn parse_line(
        line: Vec<OsString>,
        mut variable: impl FnMut(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let mut is_empty = |name: &OsStr| name.to_str().and_then(&mut variable).is_some_and(|value| value.is_empty());
        let has_empty_variable = |argument: &&Arg| argument.get_env().is_some_and(&mut is_empty);
        let ids: Vec<_> = command.get_arguments().filter(has_empty_variable).map(|arg| arg.get_id().clone()).collect();
        for id in ids {
            command = command.mut_arg(id, |argument| argument.env(None::<&str>));
        }
        Self::from_arg_matches(&command.try_get_matches_from(line)?)
    }
}

/// The command line, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where etcd is, and who we are there.
    pub etcd: EtcdConfig,
    /// Which interface leads to the others, and which addresses to announce.
    pub interface: Wishes,
    /// The file for the CNI plugin.
    pub subnet_file: PathBuf,
    /// The lease is renewed at the latest so long before it ends.
    pub renew_margin: Duration,
    /// What to do to packets beside forwarding them through the overlay.
    pub rules: RulesConfig,
    /// How often the kernel's state is compared with what it should be.
    pub resync: Duration,
    /// Whether packets to pods that are not there are dropped here.
    pub blackhole: bool,
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
    /// Who signs etcd's certificate, and who we are; `None` without encryption.
    pub tls: Option<TlsConfig>,
}

/// The files of an encrypted connection to etcd, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate authority of etcd's certificate; `None` for those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its private key, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
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
        let tls = tls_config(&args)?;
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
                tls,
            },
            interface: Wishes {
                names: args.iface,
                patterns: args.iface_regex,
                can_reach: args.iface_can_reach,
                public_ip: args.public_ip,
                public_ipv6: args.public_ipv6,
            },
            subnet_file: args.subnet_file,
            renew_margin,
            rules: RulesConfig {
                masquerade: args.ip_masq,
                fully_random: !args.ip_masq_fully_random_disable,
                forward: args.iptables_forward_rules,
            },
            resync: Duration::from_secs(args.iptables_resync),
            blackhole: args.ip_blackhole_route,
            health: (args.healthz_port != 0).then(|| SocketAddr::new(args.healthz_ip, args.healthz_port)),
            release_on_exit: args.release_on_exit,
        })
    }
}

/// Finds out from the endpoints whether the connection is encrypted, and checks that the files say the same.
///
/// flanneld takes a certificate authority only together with a certificate and a key of its own; alone it is ignored there, and etcd's
/// certificate is then refused.
fn tls_config(args: &Args) -> Result<Option<TlsConfig>, ConfigError> {
    let mut encrypted = 0;
    for endpoint in &args.etcd_endpoints {
        let is_encrypted =
            is_encrypted(endpoint).map_err(|problem| ConfigError::Endpoint { endpoint: endpoint.clone(), problem })?;
        encrypted += usize::from(is_encrypted);
    }
    let identity = match (args.etcd_certfile.clone(), args.etcd_keyfile.clone()) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(ConfigError::HalfIdentity),
    };
    let has_files = args.etcd_cafile.is_some() || identity.is_some();
    match encrypted {
        0 if has_files => Err(ConfigError::FilesWithoutTls),
        0 => Ok(None),
        all if all == args.etcd_endpoints.len() => Ok(Some(TlsConfig { ca: args.etcd_cafile.clone(), identity })),
        _ => Err(ConfigError::MixedEndpoints),
    }
}

/// Says whether an endpoint asks for TLS, or what is wrong with it.
fn is_encrypted(endpoint: &str) -> Result<bool, &'static str> {
    let (authority, is_encrypted) = match (endpoint.strip_prefix("http://"), endpoint.strip_prefix("https://")) {
        (Some(authority), _) => (authority, false),
        (None, Some(authority)) => (authority, true),
        (None, None) => return Err("has no scheme; use http://HOST:PORT or https://HOST:PORT"),
    };
    match authority.trim_end_matches('/').rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(is_encrypted),
        _ => Err("has no host and port; use http://HOST:PORT, e.g. http://127.0.0.1:2379"),
    }
}

#[cfg(test)]
mod tests;
