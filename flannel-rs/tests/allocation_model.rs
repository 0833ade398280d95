//! Many agents on a small range, for some seconds, with everything that can go wrong: kills in mid-air, keys deleted, leases that run out,
//! an etcd that dies and returns. Whatever happens, no address ever has two owners, no reservation is lost, and who holds a
//! subnet keeps it.
//!
//! Most agents are tasks that do what an agent does with its [`Registry`]; three are the real program. What happens is drawn at random
//! from a seed, which is printed: `KNETSIM_SEED=… cargo test -p flannel-rs --test allocation_model` draws the same again, though tasks
//! and processes interleave as they like.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

#[path = "support/client.rs"]
mod client;
mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client::registry;
use flannel_rs::error::RegistryError;
use flannel_rs::lease::{Attributes, OwnLease, PublicAddresses, VxlanData};
use flannel_rs::network::NetworkConfig;
use flannel_rs::registry::Registry;
use flannel_rs::subnet_env::FormerSubnets;
use ipnet::Ipv4Net;
use linux_net::testing::enter_sandbox;
use linux_net::{MacAddr, Vni};
use support::agent::Agent;
use support::lab::Lab;
use support::{PREFIX, say};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Twenty subnets, of which all are wanted when every agent runs.
const CONFIG: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.11.48.0",
    "Backend": {"Type": "vxlan", "VNI": 100}}"#;
/// The same network with subnets of half the size: every fourth task reads this one, as if the configuration had been changed while
/// the others were running.
const HALVES: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 21, "SubnetMin": "11.10.0.0", "SubnetMax": "11.11.56.0",
    "Backend": {"Type": "vxlan", "VNI": 100}}"#;
/// Agents that are tasks; with the three below, and the two subnets reserved for nobody, they fill the range but for one.
const TASKS: u8 = 14;
const PROCESSES: u8 = 3;
/// A reservation for a task, and one of another length for a worker that never comes.
const RESERVED: [(&str, &str); 2] = [("11.10.32.0-20", "10.0.0.5"), ("11.10.64.0-19", "10.0.0.200")];
const STEPS: u32 = 30;

/// Numbers at random from a seed: splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn pause(&mut self) -> Duration {
        Duration::from_micros(self.roll(30_000))
    }
}

/// What the model knows of one agent.
#[derive(Debug, Clone)]
enum Agenthood {
    /// It does not run; this is what its subnet file says.
    Gone(Option<Ipv4Net>),
    /// It runs and holds this.
    Holds(OwnLease),
    /// It runs, but somebody took its subnet while its key was gone. It must not take another.
    Robbed(OwnLease),
}

/// What an agent does in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Start,
    /// It starts and is killed after a moment.
    StartAndDie(Duration),
    /// It notices that its key is gone, and puts it back.
    Reclaim,
}

fn attributes(number: u8) -> Attributes {
    let data = VxlanData { vni: Vni::new(100).unwrap(), vtep_mac: MacAddr([2, 0, 0, 0, 0, number]) };
    Attributes::vxlan(PublicAddresses { ipv4: Ipv4Addr::new(10, 0, 0, number), ipv6: None }, data, None)
}

/// Does what an agent does until it succeeds or a retry cannot help.
async fn carry_out(registry: Registry, number: u8, before: Agenthood, deed: Deed) -> Agenthood {
    let json = if number.is_multiple_of(4) { HALVES } else { CONFIG };
    let network = NetworkConfig::parse(json.as_bytes()).unwrap();
    loop {
        let result = match (&before, deed) {
            (Agenthood::Gone(ipv4), Deed::Start | Deed::StartAndDie(_)) => {
                let former = FormerSubnets { ipv4: *ipv4, ipv6: None };
                match registry.list().await {
                    Ok(mut listing) => registry.acquire(&network, &attributes(number), former, &mut listing).await,
                    Err(error) => Err(error),
                }
            }
            (Agenthood::Holds(own) | Agenthood::Robbed(own), Deed::Reclaim) => registry.reclaim(own).await,
            other => panic!("an agent cannot do that: {other:?}"),
        };
        match (result, &before) {
            (Ok(own), _) => return Agenthood::Holds(own),
            (Err(RegistryError::Taken { .. }), Agenthood::Holds(own) | Agenthood::Robbed(own)) => {
                return Agenthood::Robbed(own.clone());
            }
            (Err(error), _) if error.is_transient() => sleep(Duration::from_millis(50)).await,
            (Err(error), _) => panic!("agent {number}: {error}"),
        }
    }
}

/// The keys as they stand: subnet and holder.
fn keys(lab: &Lab) -> BTreeMap<String, Ipv4Addr> {
    let prefix = format!("{PREFIX}/subnets/");
    let text = lab.etcd.ctl(&["get", "--prefix", &prefix]);
    let lines: Vec<&str> = text.lines().collect();
    let holder = |value: &str| {
        let value: serde_json::Value = serde_json::from_str(value).unwrap();
        value["PublicIP"].as_str().unwrap().parse().unwrap()
    };
    lines.chunks(2).map(|pair| (pair[0].strip_prefix(&prefix).unwrap().to_owned(), holder(pair[1]))).collect()
}

fn net(key: &str) -> Ipv4Net {
    key.replace('-', "/").parse().unwrap()
}

/// Insists on everything that must always be true.
fn check(lab: &Lab, tasks: &BTreeMap<u8, Agenthood>, processes: &[Agent], step: u32) {
    let keys = keys(lab);
    let nets: Vec<(Ipv4Net, Ipv4Addr)> = keys.iter().map(|(key, holder)| (net(key), *holder)).collect();
    for (index, (one, holder)) in nets.iter().enumerate() {
        for (other, other_holder) in &nets[index + 1..] {
            assert!(!one.contains(other) && !other.contains(one), "step {step}: {one} and {other} overlap");
            assert_ne!(holder, other_holder, "step {step}: {holder} has both {one} and {other}");
        }
    }
    for (key, holder) in RESERVED {
        assert_eq!(keys.get(key), Some(&holder.parse().unwrap()), "step {step}: the reservation {key} is lost");
        assert_eq!(lab.etcd.lease_id(key), 0, "step {step}: the reservation {key} will run out");
    }
    for (number, task) in tasks {
        if let Agenthood::Holds(own) = task {
            let holder = keys.get(&own.subnet.to_string());
            assert_eq!(
                holder,
                Some(&Ipv4Addr::new(10, 0, 0, *number)),
                "step {step}: agent {number} lost {}",
                own.subnet
            );
        }
    }
    for process in processes {
        let holder = keys.get(&process.subnet());
        assert_eq!(holder, Some(&Ipv4Addr::new(10, 9, 0, process.number())), "step {step}: w{}", process.number());
    }
}

#[test]
fn no_address_has_two_owners_no_reservation_is_lost_and_holders_keep_their_subnet() {
    if !enter_sandbox() {
        return;
    }
    let seed = std::env::var("KNETSIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    say(&format!("KNETSIM_SEED={seed}")); // Shown when the test fails.
    let mut dice = Dice(seed);

    let mut lab = Lab::with_config(PROCESSES, CONFIG);
    for (key, holder) in RESERVED {
        lab.etcd.put(key, &format!(r#"{{"PublicIP":"{holder}","PublicIPv6":null}}"#));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let registry = runtime.block_on(registry(&lab.etcd));
    let mut tasks: BTreeMap<u8, Agenthood> = (1..=TASKS).map(|number| (number, Agenthood::Gone(None))).collect();
    // The processes start while the first tasks do.
    let mut processes: Vec<Agent> = (1..=PROCESSES).map(|n| lab.start(n, &[])).collect();
    let mut all_ready = false;

    for step in 0..STEPS {
        let deeds = draw_deeds(&mut dice, &lab, &mut tasks);
        let restart_etcd = dice.roll(10) == 0;
        let before = keys(&lab);
        let outcome =
            runtime.block_on(perform(&registry, &deeds, &tasks, restart_etcd.then_some((&mut lab, dice.pause()))));
        for (number, after) in outcome {
            if let (Agenthood::Gone(_), Agenthood::Holds(own)) = (&tasks[&number], &after) {
                // Who comes back finds the key that bears its address.
                let former = before.iter().find(|(_, holder)| **holder == Ipv4Addr::new(10, 0, 0, number));
                assert!(
                    former.is_none_or(|(key, _)| *key == own.subnet.to_string()),
                    "agent {number} moved: {former:?}"
                );
            }
            if let (Agenthood::Holds(old) | Agenthood::Robbed(old), Agenthood::Holds(new)) = (&tasks[&number], &after) {
                assert_eq!(old.subnet, new.subnet, "agent {number} changed its subnet");
            }
            tasks.insert(number, after);
        }
        if !all_ready {
            processes = processes.into_iter().map(Agent::ready).collect();
            all_ready = true;
        }
        if dice.roll(3) == 0 {
            let process = processes.remove(0);
            let (n, subnet) = (process.number(), process.subnet());
            drop(process); // kill -9
            processes.push(lab.restart_ready(n, &[]));
            assert_eq!(processes.last().map(Agent::subnet), Some(subnet), "w{n} moved");
        }
        check(&lab, &tasks, &processes, step);
    }
}

/// Draws who does what, and what befalls whom before.
fn draw_deeds(dice: &mut Dice, lab: &Lab, tasks: &mut BTreeMap<u8, Agenthood>) -> BTreeMap<u8, Deed> {
    let mut deeds = BTreeMap::new();
    for (number, task) in tasks {
        let deed = match (&*task, dice.roll(8)) {
            (Agenthood::Gone(_), 0..3) => Deed::Start,
            (Agenthood::Gone(_), 3..5) => Deed::StartAndDie(dice.pause()),
            (Agenthood::Holds(own), 0) => {
                *task = Agenthood::Gone(Some(own.subnet.ipv4)); // kill -9: its key stays
                continue;
            }
            // A reservation is the operator's to delete.
            (Agenthood::Holds(own), 1) if own.term.is_some() => {
                lab.etcd.delete(&own.subnet.to_string());
                Deed::Reclaim
            }
            (Agenthood::Holds(own), 2) if own.term.is_some() => {
                lab.etcd.expire(&own.subnet.to_string());
                Deed::Reclaim
            }
            (Agenthood::Holds(own), 3) if own.term.is_some() => {
                lab.etcd.delete(&own.subnet.to_string());
                *task = Agenthood::Gone(Some(own.subnet.ipv4)); // It ran out while the worker was down.
                continue;
            }
            (Agenthood::Robbed(_), _) => Deed::Reclaim,
            (Agenthood::Gone(_) | Agenthood::Holds(_), _) => continue,
        };
        deeds.insert(*number, deed);
    }
    deeds
}

/// Lets all deeds happen at once, and kills and restarts etcd in the middle of it if asked to.
async fn perform(
    registry: &Registry,
    deeds: &BTreeMap<u8, Deed>,
    tasks: &BTreeMap<u8, Agenthood>,
    restart: Option<(&mut Lab, Duration)>,
) -> BTreeMap<u8, Agenthood> {
    let mut running = JoinSet::new();
    for (&number, &deed) in deeds {
        let (registry, before) = (registry.clone(), tasks[&number].clone());
        running.spawn(async move {
            let work = carry_out(registry, number, before.clone(), deed);
            let after = match deed {
                Deed::Start | Deed::Reclaim => work.await,
                Deed::StartAndDie(after) => {
                    let _ = tokio::time::timeout(after, work).await;
                    before // What it was told, if anything, died with it; its key may be there or not.
                }
            };
            (number, after)
        });
    }
    if let Some((lab, pause)) = restart {
        sleep(pause).await;
        lab.etcd.kill();
        lab.etcd.restart();
    }
    running.join_all().await.into_iter().collect()
}
