//! What goes wrong around an overlay agent, and that ours comes through it: one module per kind of fault.
//!
//! Each test says in its comment what flanneld does in the same place. To see it, run the same bodies against the `flanneld` on PATH:
//!
//! ```text
//! KNETSIM_REAL=1 cargo test -p flannel-rs --test faults
//! ```
//!
//! The tests that fail then are the faults; those that pass say "so does flanneld". "Seen" in a comment means seen so with flanneld
//! v0.28.9+8; what is not marked so was read in its source.
//!
//! | module | fault |
//! |---|---|
//! | `stale` | entries of peers that vanished while nobody looked; routes that collide |
//! | `device` | the device, its parent or parts of it are deleted, reset or taken down |
//! | `mac` | a device's MAC address is changed by somebody, or differs from the one announced |
//! | `away` | etcd is away, and has compacted what was missed |
//! | `lease` | the lease is deleted, runs out, or is gone with an older snapshot |
//! | `owners` | two agents want one subnet, one key or one address |

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

#[path = "../support/mod.rs"]
mod support;

mod away;
mod device;
mod lease;
mod mac;
mod owners;
mod stale;

use support::agent::{Agent, Program};
use support::lab::Lab;

/// The program to try: ours, unless the reader wants to see flanneld fail.
fn program() -> Program {
    if std::env::var_os("KNETSIM_REAL").is_some() { Program::Flanneld } else { Program::Ours }
}

/// Starts the agent of worker `n` and waits until pods may start.
fn start(lab: &Lab, n: u8) -> Agent {
    lab.launch(program(), n, &[]).ready()
}
