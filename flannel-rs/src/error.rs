//! What can go wrong, from a flag that contradicts itself to an etcd that is away.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::lease::Subnet;

/// Ends the agent: what it cannot go on with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the environment.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No interface to send through.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// No subnet to be had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The kernel refused what the agent cannot do without.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: linux_net::Error,
    },
    /// The kernel refused part of a plan.
    #[error("{failed} of {total} changes of the kernel's state were refused, the first of them")]
    Incomplete {
        /// How many were refused.
        failed: usize,
        /// How many were planned.
        total: usize,
        /// The kernel's answer to the first of them.
        #[source]
        first: linux_net::Error,
    },
    /// The subnet file could not be written.
    #[error("cannot write the subnet file {}", path.display())]
    SubnetFile {
        /// Its path.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
    /// Two agents for one subnet file.
    #[error("another flannel-rs runs in this network namespace for the subnet file {}; stop it first", path.display())]
    RunsAlready {
        /// The subnet file of both.
        path: PathBuf,
    },
    /// The health port could not be opened.
    #[error("cannot listen on {address} for health checks; choose another --healthz-ip or --healthz-port")]
    Listen {
        /// The address tried.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something small, such as a signal handler.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

/// A command line or environment that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag of flanneld's other mode of operation.
    #[error(
        "{given} belongs to flanneld's Kubernetes subnet manager; flannel-rs keeps its leases in etcd only, so leave it out"
    )]
    KubeManager {
        /// The flag or variable, as the user wrote it.
        given: String,
    },
    /// The renewal margin is out of range.
    #[error("subnet-lease-renew-margin is {minutes} minutes; a lease lasts a day, so use 1 to 1439")]
    RenewMargin {
        /// What was given, in minutes.
        minutes: u64,
    },
    /// An endpoint that cannot be used.
    #[error("etcd endpoint {endpoint:?} {problem}")]
    Endpoint {
        /// The endpoint, as the user wrote it.
        endpoint: String,
        /// What is wrong, and what would be right.
        problem: &'static str,
    },
    /// Only one of certificate and key was given.
    #[error("etcd-certfile and etcd-keyfile belong together; give both or neither")]
    HalfIdentity,
    /// Files for TLS, and endpoints without.
    #[error(
        "etcd-cafile, etcd-certfile and etcd-keyfile are for encrypted connections, and the endpoints begin with http://; use https://"
    )]
    FilesWithoutTls,
    /// Some endpoints with TLS, some without.
    #[error("etcd-endpoints must begin all with https:// or all with http://")]
    MixedEndpoints,
    /// Only one of user name and password was given.
    #[error("etcd-username and etcd-password belong together; give both or neither")]
    HalfCredentials,
}

/// A network configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The document is not JSON at all.
    #[error("not JSON")]
    Json(#[source] serde_json::Error),
    /// A field has a value that is wrong or not supported.
    #[error("{field} is {value}: {advice}")]
    Field {
        /// The field, with its path.
        field: String,
        /// Its value, as JSON would print it.
        value: String,
        /// What is wrong with it, and what would be right.
        advice: String,
    },
}

/// A lease in etcd that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A key that names no subnet.
    #[error("{0:?} names no subnet; expected one such as 10.5.29.0-24, without address bits behind the length")]
    Key(String),
    /// A lease of a worker that is reached in another way.
    #[error("its backend is {theirs}, and this worker speaks {ours}")]
    ForeignBackend {
        /// The backend in the lease.
        theirs: String,
        /// That of this worker.
        ours: &'static str,
    },
    /// Backend data that does not say how to reach the worker.
    #[error("its {field} is {found}; expected {{\"VNI\":1,\"VtepMAC\":\"2e:36:a1:04:b5:c6\"}}")]
    BackendData {
        /// Which of the two fields.
        field: &'static str,
        /// What it says.
        found: String,
    },
}

/// No subnet is free.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "every subnet from {first} to {last} is taken; widen the network in the configuration or delete the lease of a worker that is gone"
)]
pub struct AllocateError {
    /// The first subnet of the range.
    pub first: IpNet,
    /// The last one.
    pub last: IpNet,
}

/// No interface to send through.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// None of what was asked for is there.
    #[error("no interface is called, has the address or is {wanted}; there are {present}")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// The interfaces that exist, with their addresses.
        present: String,
    },
    /// Nothing was asked for, and nothing can be guessed.
    #[error("there is no {family} default route to tell the external interface by; name one with --iface")]
    NoDefaultRoute {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The two families leave through two interfaces.
    #[error(
        "the IPv4 default route leads through {ipv4} and the IPv6 one through {ipv6}; name one interface with --iface"
    )]
    TwoDefaultRoutes {
        /// The interface of the IPv4 one.
        ipv4: String,
        /// The interface of the IPv6 one.
        ipv6: String,
    },
    /// The interface has no address that other workers could send to.
    #[error(
        "interface {name} has no {family} address other workers could reach; give it one or name another with --iface"
    )]
    NoAddress {
        /// The interface.
        name: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// With host-gw, others must be able to send to the interface itself.
    #[error(
        "--public-ip {public} is not {own}, the address of {name}; host-gw makes each worker the next router, so leave the option out"
    )]
    BehindTranslation {
        /// The interface.
        name: String,
        /// The address to be announced.
        public: String,
        /// The interface's own.
        own: String,
    },
}

/// A request to etcd that failed, or whose answer leaves nothing to do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// etcd answered with an error, or could not be reached.
    #[error("cannot {what}")]
    Etcd {
        /// What was tried.
        what: &'static str,
        /// The answer.
        #[source]
        source: etcd_client::Error,
    },
    /// A file of the encrypted connection could not be read.
    #[error("cannot read {} for --{flag}", path.display())]
    TlsFile {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
    /// A file that should hold a certificate authority's certificate.
    #[error("{} holds no certificate in PEM, which --etcd-cafile needs; it begins with -----BEGIN CERTIFICATE-----", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// etcd did not answer.
    #[error("etcd did not answer within {limit:?} when asked to {what}")]
    Timeout {
        /// What was tried.
        what: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// etcd ended a watch.
    #[error("etcd ended the watch on the subnets: {reason}")]
    WatchEnded {
        /// Why, in its words.
        reason: String,
    },
    /// The range is exhausted.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// Others were faster, again and again.
    #[error("lost the race for a subnet {attempts} times; are hundreds of workers starting at once?")]
    Contended {
        /// How often.
        attempts: u32,
    },
    /// Somebody else runs under our public IP.
    #[error(
        "another agent with the public IP {public_ip} is running and holds {subnet}; give one of the two another --public-ip, or stop it"
    )]
    Doubled {
        /// The address that both announce.
        public_ip: std::net::Ipv4Addr,
        /// The subnet that both would have.
        subnet: Subnet,
    },
    /// Our subnet was lost and is now somebody else's.
    #[error(
        "subnet {subnet} of this worker is now held by {holder} under {key}; delete that key, or restart this agent to take another subnet"
    )]
    Taken {
        /// Our subnet.
        subnet: Subnet,
        /// The key in the way.
        key: Subnet,
        /// Whose it is.
        holder: String,
    },
}

impl RegistryError {
    /// Says whether trying again later can help: etcd was away rather than of another opinion.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Etcd { .. } | Self::Timeout { .. } | Self::WatchEnded { .. } | Self::Contended { .. } => true,
            Self::Allocate(_)
            | Self::Taken { .. }
            | Self::TlsFile { .. }
            | Self::NoCertificate { .. }
            | Self::Doubled { .. } => false,
        }
    }
}

/// Prints an error with all its causes on one line, for the log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
