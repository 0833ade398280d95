//! The agent's life: start, one event loop, shutdown.
//!
//! ```text
//!            start                                    the loop                                   shutdown
//!  interface → configuration → device →   ┌→ event: a lease came or went (etcd)      ┐     stop at once; device, routes,
//!  lease → rules → peers → subnet.env     │  event: a link, route, neighbour changed │     rules and lease stay, as pods do
//!  → READY=1                              │  event: the clock                        │     (--release-on-exit: lease deleted)
//!                                         └─ observe the kernel, plan, apply ←───────┘
//! ```
//!
//! Whatever happened, the answer is the same: compare what is with what should be, and change the difference. There is no
//! "handle this removal" that could be missed.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::apply::Kernel;
use crate::config::Config;
use crate::error::{Error, RegistryError, chain};
use crate::health::{self, Health};
use crate::interface::ExternalInterface;
use crate::keeper;
use crate::lease::{Attributes, OwnLease};
use crate::masquerade::{self, Rules};
use crate::network::{Backend, NetworkConfig, VxlanConfig};
use crate::notify;
use crate::peer::{OwnKey, PeerTable};
use crate::registry::{Listing, Registry};
use crate::subnet_env::{self, SubnetEnv};
use crate::vxlan::{Device, Overlay};
use crate::watch::{SubnetEvent, watch_subnets};

/// How often etcd is asked while it is away, or has no configuration yet; as in flanneld.
const START_PAUSE: Duration = Duration::from_secs(1);
/// One line in the log for so many vain attempts.
const ATTEMPTS_PER_LOG_LINE: u32 = 30;
/// Batches of events that wait while one is programmed; more wait in etcd.
const EVENT_QUEUE: usize = 16;
/// Changes in the kernel come in bursts; they are answered together, and soon enough for a device to be back within a second.
const KERNEL_QUIET: Duration = Duration::from_millis(20);
/// Passes that keep finding something to change, as when two programs are at odds over one route, come ever more seldom, up to this.
const LONGEST_QUIET: Duration = Duration::from_secs(1);
/// The longest that giving the lease back may delay the end.
const RELEASE_LIMIT: Duration = Duration::from_millis(1500);

/// Runs the agent until `shutdown` completes.
///
/// # Errors
///
/// [`Error`] for what cannot be waited out: a wrong configuration, no interface, no free subnet, a kernel that refuses the device.
/// An etcd that is away, at start or later, is waited for.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    tokio::pin!(shutdown);
    let health = Health::new();
    let mut tasks = JoinSet::new();
    if let Some(address) = config.health {
        tasks.spawn(health::serve(health::listen(address).await?, health.clone()));
    }
    let mut agent = tokio::select! {
        started = Box::pin(Agent::start(&config, &health)) => started?,
        () = &mut shutdown => return Ok(()),
    };

    let (events_in, mut events) = mpsc::channel(EVENT_QUEUE);
    tasks.spawn(watch_subnets(agent.registry.clone(), agent.revision, events_in));
    let (lost_in, lost) = mpsc::channel(1);
    let (own_in, own) = watch::channel(agent.own.clone());
    tasks.spawn(keeper::keep(agent.registry.clone(), own_in, config.renew_margin, lost, health.clone()));

    let mut tick = interval_at(Instant::now() + config.resync, config.resync);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut due, mut quiet) = (None, KERNEL_QUIET);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(batch) = events.recv() => {
                // What has arrived meanwhile is programmed in the same pass.
                let batches = std::iter::once(batch).chain(std::iter::from_fn(|| events.try_recv().ok()));
                if agent.handle_events(batches.flatten().collect()) == OwnKey::Lost {
                    warn!(subnet = %agent.own.subnet, "our key vanished from etcd; creating it again");
                    health.metrics().leases_lost.inc();
                    // A full channel means that the keeper has been told already.
                    let _ = lost_in.try_send(());
                }
                agent.reconcile();
            }
            () = agent.kernel.changed(&agent.device) => due = due.or(Some(Instant::now() + quiet)),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                quiet = if agent.reconcile() { LONGEST_QUIET.min(quiet * 2) } else { KERNEL_QUIET };
            }
            _ = tick.tick() => {
                agent.reconcile();
                agent.restore_rules();
            }
        }
    }

    drop(tasks);
    if config.release_on_exit {
        let own = own.borrow().clone();
        match timeout(RELEASE_LIMIT, agent.registry.release(&own)).await {
            Ok(Ok(())) => info!(subnet = %own.subnet, "lease released"),
            Ok(Err(error)) => warn!(error = %chain(&error), "our lease is left to run out"),
            Err(_) => warn!("etcd did not answer in time; our lease is left to run out"),
        }
    }
    info!("ended; device, routes and rules stay for the pods that live on them");
    Ok(())
}

/// Completes when the process is asked to end, by SIGTERM or SIGINT.
///
/// # Errors
///
/// [`Error::System`] when the handlers cannot be set.
pub fn termination() -> Result<impl Future<Output = ()>, Error> {
    let handler = |kind| signal(kind).map_err(|source| Error::System { what: "handle signals", source });
    let (mut term, mut int) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// A started agent.
struct Agent {
    kernel: Kernel,
    registry: Registry,
    /// The revision of etcd up to which `peers` is complete.
    revision: i64,
    own: OwnLease,
    device: Device,
    peers: PeerTable,
    rules: Rules,
    health: Health,
}

impl Agent {
    /// Goes through all steps up to the subnet file.
    async fn start(config: &Config, health: &Health) -> Result<Self, Error> {
        let mut kernel = Kernel::open()?;
        let interface = kernel.external_interface(&config.interfaces)?;
        let public_ip = config.public_ip.unwrap_or(interface.address);
        info!(interface = %interface.name, address = %interface.address, %public_ip, "external interface");

        let registry = until_etcd_answers("prepare connections", || Registry::connect(&config.etcd)).await?;
        let network = wait_for_network(&registry).await?;
        let Backend::Vxlan(vxlan) = &network.backend;
        let mut listing = until_etcd_answers("list the subnets", || registry.list()).await?;

        // The device comes before the lease, so that a worker whose kernel refuses it does not promise others to be reachable.
        let mut device = make_device(&mut kernel, vxlan, &interface, &network, &listing, public_ip)?;
        kernel.reconcile(&Overlay { device: &device, peers: vec![] }, health)?;

        let attributes = Attributes::vxlan(public_ip, device.lease_data());
        let previous = subnet_env::previous_subnet(&config.subnet_file);
        let own = loop {
            match registry.acquire(&network, &attributes, previous, &mut listing).await {
                Ok(own) => break own,
                Err(error) if error.is_transient() => {
                    warn!(error = %chain(&error), "no lease yet; trying again");
                    sleep(START_PAUSE).await;
                    listing = until_etcd_answers("list the subnets", || registry.list()).await?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        info!(subnet = %own.subnet, lease_id = own.lease_id(), "this worker's subnet");

        device.set_subnet(own.subnet.ipv4);
        let rules = Rules::new(config.rules, network.network, own.subnet.ipv4);
        masquerade::install(&rules)?;
        let mut peers = PeerTable::new(own.subnet, public_ip, vxlan.vni);
        // Our own key may be younger than the listing; the watch will show it.
        let _ = peers.handle_events(vec![SubnetEvent::Listed(listing.entries)]);
        let mut agent =
            Self { kernel, registry, revision: listing.revision, own, device, peers, rules, health: health.clone() };
        agent.reconcile();
        agent.write_subnet_file(config, &network)?;
        Ok(agent)
    }

    /// Says, when all is in place, that pods may start.
    fn write_subnet_file(&self, config: &Config, network: &NetworkConfig) -> Result<(), Error> {
        let path = &config.subnet_file;
        let env = SubnetEnv {
            network: network.network,
            subnet: self.own.subnet.ipv4,
            mtu_bytes: self.device.mtu_bytes,
            ip_masq: config.rules.masquerade,
        };
        env.write(path).map_err(|source| Error::SubnetFile { path: path.clone(), source })?;
        self.health.set_subnet_file_written();
        info!(path = %path.display(), peers = self.peers.peers().count(), "ready");
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
            && let Err(error) = notify::ready(&socket)
        {
            warn!(%error, socket = %socket.display(), "systemd could not be told that we are ready");
        }
        Ok(())
    }

    fn handle_events(&mut self, events: Vec<SubnetEvent>) -> OwnKey {
        self.peers.handle_events(events)
    }

    /// Brings the kernel's state to the desired one and says whether that took any change. What fails is logged, and tried again with
    /// the next event or tick.
    fn reconcile(&mut self) -> bool {
        let overlay = Overlay { device: &self.device, peers: self.peers.peers().collect() };
        match self.kernel.reconcile(&overlay, &self.health) {
            Ok(changes) => changes > 0,
            Err(error) => {
                error!(error = %chain(&error), "the overlay is not complete");
                true
            }
        }
    }

    /// Puts our firewall table back if somebody flushed it.
    fn restore_rules(&self) {
        if let Err(error) = masquerade::restore(&self.rules) {
            error!(error = %chain(&error), "the firewall rules are not in place");
        }
    }
}

/// Asks etcd until it answers, for ever: the operator may start it after us.
async fn until_etcd_answers<T, F>(what: &str, mut request: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut attempt = 0;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_transient() => {
                if attempt % ATTEMPTS_PER_LOG_LINE == 0 {
                    warn!(error = %chain(&error), attempt, "waiting for etcd to {what}");
                }
                attempt += 1;
                sleep(START_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until somebody has written the network configuration.
async fn wait_for_network(registry: &Registry) -> Result<NetworkConfig, Error> {
    let key = registry.config_key();
    let mut attempt = 0;
    loop {
        if let Some(json) = until_etcd_answers("read the network configuration", || registry.network_config()).await? {
            return NetworkConfig::parse(&json).map_err(|source| Error::Network { key, source });
        }
        if attempt % ATTEMPTS_PER_LOG_LINE == 0 {
            warn!(key, attempt, "waiting for somebody to write the network configuration");
        }
        attempt += 1;
        sleep(START_PAUSE).await;
    }
}

/// Describes our device, with the MAC address that other workers know it by, if there is one.
fn make_device(
    kernel: &mut Kernel,
    vxlan: &VxlanConfig,
    interface: &ExternalInterface,
    network: &NetworkConfig,
    listing: &Listing,
    public_ip: std::net::Ipv4Addr,
) -> Result<Device, Error> {
    let mut device = Device::new(vxlan, interface, network.network, public_ip)?;
    let announced = listing.entries.iter().filter(|entry| entry.is_held_by(public_ip));
    let announced =
        announced.filter_map(|entry| entry.attributes.as_ref()?.vxlan_data().ok()).map(|data| data.vtep_mac).next();
    match kernel.mac_of(&device)?.or(announced) {
        Some(mac) => {
            debug!(%mac, "keeping our MAC address");
            device.mac = mac;
        }
        None => device.mac = crate::vxlan::random_mac()?,
    }
    Ok(device)
}
