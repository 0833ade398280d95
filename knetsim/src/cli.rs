//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use ipnet::Ipv4Net;

use crate::{cmd::bench::What, impls::ImplArg, labdir::DEFAULT_NAME, objects::ObjectCommand};

/// A laboratory for learning, and measuring, how Kubernetes networking works.
///
/// `knetsim up` boots two clusters of three workers on this machine, as network namespaces on the real kernel, with a real
/// etcd per cluster, and gives a prompt. Everything is inside namespaces of its own and gone when the lab ends.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a lab, check it, and give the prompt
    Up(UpArgs),
    /// End a running lab
    Down(LabArgs),
    /// Show the daemons, containers and services of a running lab
    Status(StatusArgs),
    /// Say what this machine lacks for a lab, and how to get it
    Doctor,
    /// Run a command on a node or in a container: `knetsim exec C0w1.c1 -- ping -c3 11.10.0.2`, `knetsim exec 0 w1 c1 ls`
    Exec(ExecArgs),
    /// Open a shell on a node or in a container: `knetsim shell C0w1.c1`, `knetsim shell 0 w1 c1`
    Shell(ShellArgs),
    /// Print the logs of a node's daemons
    Logs(LogsArgs),
    /// Make, show, change and delete Kubernetes objects
    #[command(flatten)]
    Objects(ObjectCommand),
    /// Measure parts of the lab, beside the real programs where those are installed
    Bench(BenchArgs),
    /// Serve a text or a directory over HTTP, as the containers of the default lab do
    Serve(ServeArgs),
    /// The Kubernetes API of a cluster, and its controllers; started by the lab on the first etcd node
    #[command(name = "apiserver", hide = true)]
    ApiServer(ApiServerArgs),
    /// What runs as process 1 of a lab; started by `up`
    #[command(hide = true)]
    Init,
    /// One measurement of `bench boot`, inside a fresh sandbox
    #[command(hide = true)]
    BenchTopology(BenchTopologyArgs),
    /// The measurements of `bench flannel`, in namespaces of their own
    #[command(hide = true)]
    BenchFlannel(BenchInsideArgs),
    /// The measurements of `bench cni`, in namespaces of their own
    #[command(hide = true)]
    BenchCni(BenchInsideArgs),
    /// The measurements of `bench kproxy` with running programs, in namespaces of their own
    #[command(hide = true)]
    BenchKproxy(BenchKproxyArgs),
    /// One measurement of `bench kproxy`, of the way from objects to the kernel, in a namespace of its own
    #[command(hide = true)]
    BenchRuleset(BenchRulesetArgs),
}

/// Which lab.
#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    /// The lab's name
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
}

/// `knetsim up`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The lab's description; without it the default lab, which conf/lab.toml describes
    #[arg(long, value_name = "FILE")]
    pub lab: Option<PathBuf>,
    /// Who implements what: `rust`, `real`, or some of flannel=, cni=, ingress=, interconnect=rust|real, kproxy=rust|real|nft.
    /// A worker of the lab file with `impl = { flannel = "real" }` keeps to that; this decides for all others
    #[arg(long = "impl", value_name = "IMPL")]
    pub impls: Vec<ImplArg>,
    /// A name, to run several labs at once
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Leave the lab running in the background once it is checked
    #[arg(long, conflicts_with_all = ["commands", "script"])]
    pub detach: bool,
    /// Run a line of the prompt, then end; may be given several times
    #[arg(short = 'c', value_name = "LINE")]
    pub commands: Vec<String>,
    /// Run the lines of a file, then end
    #[arg(long, value_name = "FILE", conflicts_with = "commands")]
    pub script: Option<PathBuf>,
    /// Do not run the connectivity checks
    #[arg(long)]
    pub no_checks: bool,
}

/// `knetsim status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which lab
    #[command(flatten)]
    pub lab: LabArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `knetsim exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Which lab
    #[command(flatten)]
    pub lab: LabArgs,
    /// The place, then the command
    #[arg(
        help = "NODE[.CONTAINER], or CLUSTER NODE [CONTAINER]; then the command",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "PLACE… [--] COMMAND…"
    )]
    pub words: Vec<String>,
}

/// `knetsim shell`
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// Which lab
    #[command(flatten)]
    pub lab: LabArgs,
    /// The place
    #[arg(help = "NODE[.CONTAINER], or CLUSTER NODE [CONTAINER]", required = true, value_name = "PLACE…")]
    pub words: Vec<String>,
}

/// `knetsim logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Which lab; it need not run any more
    #[command(flatten)]
    pub lab: LabArgs,
    /// The node
    pub node: String,
    /// One daemon's log only: flannel, kproxy, etcd, …
    pub daemon: Option<String>,
    /// Go on printing what is written
    #[arg(short, long)]
    pub follow: bool,
}

/// `knetsim bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_values_t = [What::Boot, What::Flannel, What::Cni, What::Kproxy])]
    pub what: Vec<What>,
    /// How often each case is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// With how many Services `kproxy` is measured; some cases have a hundredth or a tenth of that, or three times as many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    pub services: u32,
    /// With how many of them kube-proxy is measured [default: a tenth]; its first sync of 10,000 takes minutes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub peer_services: Option<u32>,
    /// Also write the numbers to this directory, as JSON
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `knetsim bench-flannel`, `knetsim bench-cni`
#[derive(Debug, Args)]
pub struct BenchInsideArgs {
    /// How often each case is measured
    pub repeat: u32,
}

/// `knetsim bench-kproxy`
#[derive(Debug, Args)]
pub struct BenchKproxyArgs {
    /// How often each case is measured
    pub repeat: u32,
    /// How many Services are many
    pub services: u32,
    /// How many there are when kube-proxy is measured
    pub peer_services: u32,
}

/// `knetsim bench-ruleset`
#[derive(Debug, Args)]
pub struct BenchRulesetArgs {
    /// Number of Services
    pub services: u32,
}

/// `knetsim bench-topology`
#[derive(Debug, Args)]
pub struct BenchTopologyArgs {
    /// Number of nodes on one switch
    pub nodes: u32,
    /// Build with the `ip` program instead, for comparison
    #[arg(long)]
    pub ip: bool,
}

/// `knetsim apiserver`
#[derive(Debug, Args)]
pub struct ApiServerArgs {
    /// The cluster's etcd, as URLs joined by commas
    #[arg(long)]
    pub etcd_endpoints: String,
    /// Where to listen
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where service addresses come from
    #[arg(long)]
    pub service_cidr: Ipv4Net,
}

/// `knetsim serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The port, at all addresses
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Answer every request with this text
    #[arg(long, conflicts_with = "dir", required_unless_present = "dir")]
    pub text: Option<String>,
    /// Serve the files of a directory
    #[arg(long)]
    pub dir: Option<PathBuf>,
}
