//! From nothing to the subnet file: the steps of a start, and what each waits for.
//!
//! | step | what can be in the way | then |
//! |---|---|---|
//! | be the only agent for the subnet file | another one | an error |
//! | read the configuration | etcd is away, the key is missing, its value is wrong | wait, and say so |
//! | find the interface | none fits | an error that lists what is there |
//! | make the devices | the kernel refuses | an error; nobody was promised anything yet |
//! | get a subnet | others are faster, etcd goes away; none is free | choose again, wait; an error |
//! | set the rules, program the peers | the kernel refuses | an error; a log line, and again with the next pass |
//! | write the subnet file, tell systemd | the file system refuses | an error |
//!
//! Source: flannel `main.go`, `main`.

use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::apply::{Basis, Kernel};
use crate::config::Config;
use crate::error::{Error, RegistryError, chain};
use crate::health::Health;
use crate::host_gw;
use crate::interface::ExternalInterface;
use crate::lease::{Attributes, PublicAddresses};
use crate::masquerade::{self, Rules};
use crate::network::{Backend, NetworkConfig};
use crate::notify;
use crate::overlay::{Overlay, Overlays, Transport};
use crate::peer::PeerTable;
use crate::registry::{Listing, Registry};
use crate::run::Agent;
use crate::subnet_env::{FormerSubnets, SubnetEnv};
use crate::vxlan::{Device, random_mac};
use crate::watch::SubnetEvent;
use linux_net::ip::{FAMILIES, Family};

/// How often etcd is asked while it is away, or has no configuration yet; as in flanneld.
const START_PAUSE: Duration = Duration::from_secs(1);
/// One line in the log for so many vain attempts.
const ATTEMPTS_PER_LOG_LINE: u32 = 30;

/// Makes this agent the only one in its network namespace that writes this subnet file, for as long as the returned socket lives.
///
/// A name in the abstract socket namespace belongs to the network namespace, cannot be left behind by a crash, and needs no directory.
/// Source: man 7 `unix`, "Abstract sockets".
pub(crate) fn claim_subnet_file(path: &Path) -> Result<UnixListener, Error> {
    /// A name has room for 107 bytes; the end of a path tells more than its beginning.
    const LONGEST: usize = 90;
    let path_bytes = path.as_os_str().as_bytes();
    let mut name = b"flannel-rs ".to_vec();
    name.extend(&path_bytes[path_bytes.len().saturating_sub(LONGEST)..]);
    let system = |source| Error::System { what: "claim the subnet file by an abstract socket", source };
    let address = SocketAddr::from_abstract_name(&name).map_err(system)?;
    UnixListener::bind_addr(&address).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::RunsAlready { path: path.to_owned() },
        _ => system(source),
    })
}

/// Goes through all steps up to the subnet file.
///
/// # Errors
///
/// [`Error`] for what cannot be waited out, see [`crate::run::run`].
pub(crate) async fn start(config: &Config, health: &Health) -> Result<Agent, Error> {
    let mut kernel = Kernel::open()?;
    let registry = until_etcd_answers("prepare connections", None, || Registry::connect(&config.etcd)).await?;
    let network = wait_for_network(&registry).await?;
    let interface = kernel.external_interface(&config.interface, network.ipv6.is_some())?;
    let public = interface.public;
    info!(interface = %interface.name, address = %interface.addresses.ipv4, public_ip = %public.ipv4, backend = network.backend.name(), "external interface");
    let mut listing = until_etcd_answers("list the subnets", registry.hint(), || registry.list()).await?;

    // The devices come before the lease, so that a worker whose kernel refuses them does not promise others to be reachable.
    let mut overlays = describe_overlays(&mut kernel, config, &interface, &network, &listing)?;
    kernel.reconcile(&overlays, None, Basis::Kernel, health)?;

    let attributes = announcement(&overlays, public);
    let former = FormerSubnets::read(&config.subnet_file);
    let own = loop {
        match registry.acquire(&network, &attributes, former, &mut listing).await {
            Ok(own) => break own,
            Err(error) if error.is_transient() => {
                warn!(error = %chain(&error), "no lease yet; trying again");
                sleep(START_PAUSE).await;
                listing = until_etcd_answers("list the subnets", registry.hint(), || registry.list()).await?;
            }
            Err(error) => return Err(error.into()),
        }
    };
    info!(subnet = %own.subnet, lease_id = own.lease_id(), "this worker's subnet");

    for family in FAMILIES {
        if let Some(overlay) = overlays.of_mut(family) {
            overlay.subnet = own.subnet.half(family);
        }
    }
    let rules = Rules::new(config.rules, &overlays);
    rules.as_ref().map(masquerade::install).transpose()?;
    let mut peers = PeerTable::new(own.subnet, public, &network.backend);
    // Our own key may be younger than the listing; the watch will show it.
    let _ = peers.handle_events(vec![SubnetEvent::Listed(listing.entries)]);
    let revision = listing.revision;
    let mut agent = Agent { kernel, registry, revision, own, overlays, peers, rules, health: health.clone() };
    agent.reconcile(Basis::Kernel);
    write_subnet_file(&agent, config, &network)?;
    Ok(agent)
}

/// Says, when all is in place, that pods may start.
fn write_subnet_file(agent: &Agent, config: &Config, network: &NetworkConfig) -> Result<(), Error> {
    let path = &config.subnet_file;
    let env = SubnetEnv {
        network: network.ipv4.network,
        ipv6_network: network.ipv6.map(|range| range.network),
        subnet: agent.own.subnet,
        mtu_bytes: agent.overlays.mtu_bytes(),
        ip_masq: config.rules.masquerade,
    };
    env.write(path).map_err(|source| Error::SubnetFile { path: path.clone(), source })?;
    agent.health.set_subnet_file_written();
    info!(path = %path.display(), peers = agent.peers.reachable_count(), "ready");
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = notify::ready(&socket)
    {
        warn!(%error, socket = %socket.display(), "systemd could not be told that we are ready");
    }
    Ok(())
}

/// Asks etcd until it answers, for ever: the operator may start it after us.
async fn until_etcd_answers<T, F>(what: &str, hint: Option<&str>, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut attempt = 0;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_transient() => {
                if attempt % ATTEMPTS_PER_LOG_LINE == 0 {
                    warn!(error = %chain(&error), attempt, hint, "waiting for etcd to {what}");
                }
                attempt += 1;
                sleep(START_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until somebody has written a network configuration that can be used.
///
/// A wrong one is said once, with the field and the remedy, and waited out like a missing one: whoever repairs it need not start us again.
async fn wait_for_network(registry: &Registry) -> Result<NetworkConfig, Error> {
    let key = registry.config_key();
    let mut attempt = 0;
    let mut refused = None;
    loop {
        match until_etcd_answers("read the network configuration", registry.hint(), || registry.network_config())
            .await?
        {
            None if attempt % ATTEMPTS_PER_LOG_LINE == 0 => {
                warn!(key, attempt, "waiting for somebody to write the network configuration");
            }
            None => {}
            Some(json) => match NetworkConfig::parse(&json) {
                Ok(network) => return Ok(network),
                Err(error) if refused.as_ref() != Some(&json) => {
                    error!(key, error = %chain(&error), "wrong network configuration; waiting for somebody to repair it");
                    refused = Some(json);
                }
                Err(_) => {}
            },
        }
        attempt += 1;
        sleep(START_PAUSE).await;
    }
}

/// Describes the overlays, with the MAC addresses that other workers know our devices by, if there are any.
fn describe_overlays(
    kernel: &mut Kernel,
    config: &Config,
    interface: &ExternalInterface,
    network: &NetworkConfig,
    listing: &Listing,
) -> Result<Overlays, Error> {
    let own_entries = || listing.entries.iter().filter(|entry| entry.is_held_by(interface.public.ipv4));
    let mut transport = |family: Family, local: IpAddr| match &network.backend {
        Backend::Vxlan(vxlan) => {
            let mut device = Device::new(vxlan, interface, local)?;
            let announced = own_entries()
                .find_map(|entry| entry.attributes.as_ref()?.vxlan_data(family).ok())
                .map(|data| data.vtep_mac);
            device.mac = match kernel.mac_of(&device)?.or(announced) {
                Some(mac) => mac,
                None => random_mac()?,
            };
            debug!(device = %device.name, mac = %device.mac, "our VTEP");
            Ok(Transport::Vxlan { device, direct_routing: vxlan.direct_routing })
        }
        Backend::HostGw => {
            host_gw::check(interface)?;
            Ok::<_, Error>(Transport::HostGw { interface: interface.name.clone(), mtu_bytes: interface.mtu_bytes })
        }
    };
    let mut overlay = |network: IpNet, local: IpAddr| {
        let transport = transport(Family::of(local), local)?;
        Ok::<_, Error>(Overlay { network, subnet: None, transport, blackhole: config.blackhole })
    };
    let ipv4 = overlay(network.ipv4.network.into(), interface.public.ipv4.into())?;
    let ipv6 = match (network.ipv6, interface.public.ipv6) {
        (Some(range), Some(local)) => Some(overlay(range.network.into(), local.into())?),
        _ => None,
    };
    Ok(Overlays { ipv4, ipv6 })
}

/// What our lease says about how to reach us.
fn announcement(overlays: &Overlays, public: PublicAddresses) -> Attributes {
    let data = |overlay: &Overlay| overlay.device().map(Device::lease_data);
    match data(&overlays.ipv4) {
        Some(ipv4) => Attributes::vxlan(public, ipv4, overlays.ipv6.as_ref().and_then(data)),
        None => Attributes::host_gw(public),
    }
}
