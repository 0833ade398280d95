//! What the first packet of a connection costs: pods connect to a ClusterIP of few Services, to one of many, and to an endpoint itself.
//!
//! Every case has a worker of its own with pods of its own. One thread connects for all of them, in turns of a few connections each,
//! so that all meet the same noise; it shares its processor with the pods that answer. What counts is the time of the connection alone: SYN, SYN and ACK. The addresses
//! are drawn from all Services of the table, so that a large table cannot hide in a cache.

use std::net::SocketAddrV4;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::pods::{Pods, connect};
use crate::cmd::bench::table::{Case, Unit};

/// Connections in one turn; the first, which finds the worker's code and data out of the caches, does not count.
const TURN: usize = 21;
/// Turns of each case for one `--repeat`.
const TURNS_PER_REPEAT: u32 = 100;
/// A step through all addresses that comes to each of them, as it is a prime number.
const STEP: usize = 7919;

/// One case.
pub(super) struct Target {
    /// What is connected to, in words.
    name: String,
    /// Who connects.
    pub(super) pods: Pods,
    /// To what, in turn.
    addresses: Vec<SocketAddrV4>,
    /// The times of all connections, in microseconds.
    times: Vec<f64>,
}

impl Target {
    /// A case that nothing is known of yet.
    pub(super) fn new(name: String, pods: Pods, addresses: Vec<SocketAddrV4>) -> Self {
        Self { name, pods, addresses, times: Vec::new() }
    }
}

/// Connects to all targets in turns. Every connection must succeed.
pub(super) fn measure(targets: &mut [Target], repeat: u32) -> anyhow::Result<()> {
    let mut step = 0_usize;
    for _ in 0..repeat * TURNS_PER_REPEAT {
        for target in &mut *targets {
            let times = target.pods.as_client(|| {
                let mut times = Vec::with_capacity(TURN);
                for turn in 0..TURN {
                    let address = target.addresses[(step + turn) * STEP % target.addresses.len()];
                    times.push(connect(address)?.as_secs_f64() * 1e6);
                }
                Ok(times)
            })?;
            target.times.extend(&times[1..]);
        }
        step += TURN;
    }
    Ok(())
}

/// The cases, each beside the first.
pub(super) fn cases(targets: Vec<Target>) -> Vec<Case> {
    let mut cases = targets.into_iter().map(|target| Case::new(&target.name, Unit::Microseconds, target.times));
    let Some(first) = cases.next() else { return Vec::new() };
    let others: Vec<Case> = cases.map(|case| case.beside(&first)).collect();
    [first].into_iter().chain(others).collect()
}

/// Binds this thread, and all that it starts from now on, to one processor: which one a pod wakes up on would matter more than all
/// that is measured.
pub(super) fn share_one_processor() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    if let Some(first) = (0..CpuSet::count()).find(|number| allowed.is_set(*number).unwrap_or(false)) {
        one.set(first)?;
        sched_setaffinity(this, &one)?;
    }
    Ok(())
}
