//! `tuning`: kernel parameters and settings of the pod's interface, after another plugin has made it.
//!
//! ```json
//! {"type": "tuning", "sysctl": {"net.core.somaxconn": "512", "net.ipv4.conf.IFNAME.arp_filter": "1"},
//!  "mtu": 1400, "promisc": true, "capabilities": {"mac": true}}
//! ```
//!
//! What the settings of the interface were before is kept in a file ([`backup`]), because an interface may outlive its attachment: a physical one
//! goes back to the node. Parameters are not put back; they go with the namespace.
//!
//! An administrator may say in `/etc/cni/tuning/allowlist.conf` which parameters a configuration may set ([`sysctl`]).
//!
//! Beyond the Go plugin: a DEL whose namespace has gone removes the file, GC removes what is left over, the result tells of a new MTU, and a
//! failed ADD puts back what it changed.
//!
//! Source: containernetworking/plugins, `plugins/meta/tuning`.

pub mod backup;
pub mod config;
pub mod sysctl;

use linux_net::netlink::{Link, Netlink, Op};
use linux_net::{IfName, NetNs};

use crate::attachment::{Mark, Valid};
use crate::conf::Conf;
use crate::env::Environment;
use crate::error::{Code, Error, Result};
use crate::namespace::{self, apply};
use crate::plugin::Plugin;
use crate::result::CniResult;
use crate::tuning::backup::{Backup, BackupDir};
use crate::tuning::config::{Config, Settings};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Tuning;

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, env: &Environment, conf: &Conf) -> Result<CniResult> {
        let config = Config::read(env, conf)?;
        let ifname = env.ifname()?;
        sysctl::AllowList::load()?.check(config.sysctl.keys().map(String::as_str))?;
        let mut result = conf.prev_result()?.ok_or_else(|| Error::config("Required prevResult missing"))?;
        let netns = namespace::open(env)?;
        write_parameters(&netns, &config, ifname)?;
        if config.settings != Settings::default() {
            let mut pod = Netlink::open_in(&netns)?;
            let link = pod.link(ifname)?.ok_or_else(|| no_interface(ifname))?;
            let before = Settings::of(&link, &config.settings);
            let backups = BackupDir::new(&config.data_dir);
            backups.save(env, &Backup::new(&before, &Mark::of(env, conf)?))?;
            change(&mut pod, ifname, &config.settings).inspect_err(|_| {
                // The first error is the one to report.
                drop(change(&mut pod, ifname, &before));
                drop(backups.remove(env));
            })?;
        }
        for interface in &mut result.interfaces {
            if interface.name == ifname.as_str() && !interface.sandbox.is_empty() {
                interface.mac = config.settings.mac.map_or(interface.mac.clone(), |mac| mac.to_string());
                interface.mtu = config.settings.mtu_bytes.or(interface.mtu);
            }
        }
        Ok(result)
    }

    fn del(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        let backups = BackupDir::new(&config.data_dir);
        let Some(backup) = backups.load(env)? else { return Ok(()) };
        // A file that is cut short says nothing, and an interface that has gone needs nothing.
        if let (Some(before), Some(netns)) = (backup.settings(), namespace::open_if_there(env)?) {
            let mut pod = Netlink::open_in(&netns)?;
            if pod.has_link(env.ifname()?)? {
                // What the kernel refuses now it will refuse the next time too, and the container would stay attached for ever.
                drop(change(&mut pod, env.ifname()?, &before));
            }
        }
        backups.remove(env)
    }

    fn check(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let config = Config::read(env, conf)?;
        conf.required_prev_result()?;
        let ifname = env.ifname()?;
        let netns = namespace::open(env)?;
        for (key, wanted) in &config.sysctl {
            let path = sysctl::path(key, ifname)?;
            let found = netns.run(|| linux_net::sysctl::get(&path))??;
            if !found.split_whitespace().eq(wanted.split_whitespace()) {
                return Err(Error::check(format!(
                    "Tuning configured value of {path} is {wanted}, current value is {found}"
                )));
            }
        }
        let link = Netlink::open_in(&netns)?.link(ifname)?;
        let link = link.ok_or_else(|| Error::check(format!("Cannot find container link {ifname}")))?;
        compare(&config.settings, &link)
    }

    fn gc(&self, env: &Environment, conf: &Conf) -> Result<()> {
        let valid = Valid::of(conf)?;
        BackupDir::new(&Config::read(env, conf)?.data_dir).remove_stale(&valid)
    }

    /// It needs nothing but the kernel, and an allow list that can be read.
    fn status(&self, _env: &Environment, _conf: &Conf) -> Result<()> {
        sysctl::AllowList::load().map(|_| ()).map_err(|error| Error { code: Code::Unavailable, ..error })
    }
}

fn no_interface(ifname: &IfName) -> Error {
    Error::config(format!("failed to get \"{ifname}\": there is no such interface in the container"))
        .with_details("tuning changes what a plugin before it in the list has made")
}

fn write_parameters(netns: &NetNs, config: &Config, ifname: &IfName) -> Result<()> {
    let parameters = config.sysctl.iter().map(|(key, value)| Ok((sysctl::path(key, ifname)?, value)));
    let parameters = parameters.collect::<Result<Vec<_>>>()?;
    netns.run(|| parameters.iter().try_for_each(|(path, value)| linux_net::sysctl::set(path, value)))??;
    Ok(())
}

/// Gives the interface those settings that are there.
fn change(pod: &mut Netlink, ifname: &IfName, settings: &Settings) -> Result<()> {
    let dev = || ifname.clone();
    let ops = [
        settings.mac.map(|mac| Op::SetMac { dev: dev(), mac }),
        settings.promiscuous.map(|on| Op::SetPromiscuous { dev: dev(), on }),
        settings.mtu_bytes.map(|mtu_bytes| Op::SetMtu { dev: dev(), mtu_bytes }),
        settings.all_multicast.map(|on| Op::SetAllMulticast { dev: dev(), on }),
        settings.tx_queue_packets.map(|packets| Op::SetTxQueueLength { dev: dev(), packets }),
    ];
    apply(pod, &ops.into_iter().flatten().collect::<Vec<_>>())
}

/// CHECK of the interface. One that was not asked to be promiscuous must not be.
fn compare(wanted: &Settings, link: &Link) -> Result<()> {
    let wanted = Settings { promiscuous: Some(wanted.promiscuous.unwrap_or(false)), ..wanted.clone() };
    let found = Settings::of(link, &wanted);
    let name = &link.name;
    let differs = |what: &str, wanted: String, found: String| {
        (wanted != found).then(|| format!("Tuning configured {what} of {name} is {wanted}, current value is {found}"))
    };
    let say = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    let yes = |flag: Option<bool>| flag.map(|flag| flag.to_string()).unwrap_or_default();
    let mac = |settings: &Settings| settings.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let differences = [
        differs("Ethernet", mac(&wanted), mac(&found)),
        differs("promisc", yes(wanted.promiscuous), yes(found.promiscuous)),
        differs("MTU", say(wanted.mtu_bytes), say(found.mtu_bytes)),
        differs("all-multicast mode", yes(wanted.all_multicast), yes(found.all_multicast)),
        differs("Transmit Queue Length", say(wanted.tx_queue_packets), say(found.tx_queue_packets)),
    ];
    match differences.into_iter().flatten().next() {
        Some(first) => Err(Error::check(first)),
        None => Ok(()),
    }
}
