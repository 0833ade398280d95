//! # flannel-rs: one flat network for pods on many machines
//!
//! Kubernetes demands that every pod can reach every other pod by its address, on whichever worker it runs, without translation.
//! The machines, though, know nothing of pods: their switches and routers carry the workers' own addresses only. An *overlay* closes the
//! gap: packets between pods travel inside packets between workers. This crate is the agent that builds one, a stand-in for
//! flanneld: same flags, same keys in etcd, same state in the kernel. One runs on every worker, and they never speak to each
//! other. Each writes down in etcd where its pods are, and reads where those of the others are.
//!
//! ```text
//!         worker w1, 10.0.0.3                      etcd                          worker w2, 10.0.0.4
//!  ┌──────────────────────────────┐    /coreos.com/network/config       ┌──────────────────────────────┐
//!  │ flannel-rs ── writes ────────┼──► …/subnets/11.10.0.0-20 ──────────┼── reads ──► flannel-rs       │
//!  │     │    ◄─── reads ─────────┼─── …/subnets/11.10.16.0-20 ◄────────┼── writes ───    │            │
//!  │     ▼ netlink                │                                     │                 ▼ netlink    │
//!  │ route, neighbour, FDB entry  │                                     │ route, neighbour, FDB entry  │
//!  │                              │                                     │                              │
//!  │ c1 ── cni0 ── flannel.100 ───┼── eth0 ══ UDP 8472, VXLAN ══ eth0 ──┼── flannel.100 ── cni0 ── c2  │
//!  │ 11.10.0.2                    │                                     │                   11.10.16.2 │
//!  └──────────────────────────────┘                                     └──────────────────────────────┘
//! ```
//!
//! ## One lease through the code
//!
//! 1. [`mod@start`] reads the network configuration ([`network`]): here 11.0.0.0/8, a /20 for each worker, by VXLAN. It finds the
//!    interface towards the others ([`interface`]) and makes the VXLAN device, whose MAC address is the one the others know, if they know one.
//! 2. [`registry`] lists the subnets that are taken; [`allocate`] chooses: the one we had, else the lowest that is free; the
//!    registry creates its key in a transaction that fails if somebody else was faster. The value ([`lease`]) says: to reach these
//!    pods, send VXLAN to 10.0.0.3, inner destination MAC 2e:36:…. The key hangs on an etcd lease of 24 hours.
//! 3. [`subnet_env`] writes down the subnet for the CNI plugin, which gives pods addresses from it.
//! 4. On w2, [`watch`] turns the new key into an event and [`peer`] into a peer. [`overlay`] says what should stand in the kernel for
//!    it: three entries ([`vxlan`]), or a single route ([`host_gw`]). [`plan`] compares that with what does, and [`apply`] has the
//!    kernel carry out the difference.
//! 5. [`keeper`] renews the etcd lease every eight hours, and puts the key back if it is lost. If w1 dies for good, etcd deletes the key a
//!    day later, the same event reaches w2 as a deletion, and the three entries go.
//!
//! ## One packet through the kernel
//!
//! No packet passes through this program: it programs the kernel and steps aside. c1 sends to 11.10.16.2, a pod on w2:
//!
//! 1. c1's default route leads to `cni0`, w1's bridge. w1 looks the address up: `11.10.16.0/20 via 11.10.16.0 dev flannel.100 onlink`.
//! 2. The next hop's MAC is a permanent neighbour: `11.10.16.0 lladdr 4a:01:…`. No ARP is sent.
//! 3. `flannel.100` takes the Ethernet frame. Its FDB says that 4a:01:… is behind 10.0.0.4. The frame goes into VXLAN (VNI 100) and UDP.
//! 4. The outer packet, 10.0.0.3 → 10.0.0.4, crosses the underlay like any other.
//! 5. w2's `flannel.100` unwraps the frame, finds its own MAC on it, and routes the inner packet to `cni0` and c2.
//!
//! See it all with `ip -d link show flannel.100`, `ip route show proto 70`, `ip neigh show dev flannel.100` and
//! `bridge fdb show dev flannel.100`. In a dual-stack cluster the same stands a second time for IPv6, on `flannel-v6.100` ([`family`]).
//! With `host-gw` steps 2, 3 and 5 fall away, and with them the overlay: w2 is simply the next router.
//!
//! ## How the agent stays right
//!
//! It never reacts to an event by one particular change. Every event, from etcd, from the kernel or from the clock, leads to the same
//! three steps: *observe* what the kernel has, *plan* the difference to what it should have (a pure function, [`plan::plan`]), *apply* it.
//! (For news from etcd what the last pass left stands for what the kernel has, as long as that has not said otherwise.)
//! So a restart sweeps what a crashed run left, a device deleted by hand comes back with its MAC and all peers, and a second pass
//! finds nothing to do. What is ours is marked: routes by protocol 70, the firewall tables by their name `flannel` ([`masquerade`]).
//! While etcd is away the kernel's state is left alone: pods keep talking. And whatever happens in etcd, the subnet of a running agent
//! never changes ([`keeper`] has the table).
//!
//! ## What flanneld does that this leaves out
//!
//! - Backends other than `vxlan` and `host-gw`: a configuration that asks for one is refused by name.
//! - Leases as annotations of Kubernetes nodes (`--kube-subnet-mgr`), and with them clusters with IPv6 alone; Windows.
//! - Rules through iptables: ours are in nftables always, so `EnableNFTables` changes nothing.
//!
//! ## What it does otherwise, on purpose
//!
//! | flanneld | here | because |
//! |---|---|---|
//! | routes of protocol `boot` | protocol 70 | a restarted agent must know its own, and sweep them |
//! | draws one of the first 100 free subnets | takes the lowest | two runs of a lab look alike |
//! | announces 1450 to dual-stack pods | 1430, the smaller of the two families' | a pod's large IPv6 packets fit |
//! | IPv6 device with the MTU of IPv4 | 20 bytes less | the outer IPv6 header is longer |
//! | rule 4 of its nftables rules | that of its iptables rules | its own sixth rule never matches otherwise |
//! | reads the configuration before it looks for an interface; a wrong one ends it or is waited for, depending on the mistake | a wrong one is always waited for | whoever repairs it need not restart every agent |
//! | `--ip-blackhole-route` without a metric | with the highest | it must not hide the pods' bridge |
//! | a certificate authority alone is ignored | it is enough for TLS | an etcd without client certificates is common |
//!
//! What concerns leases stands at the head of [`registry`] and [`keeper`].
//!
//! ## Reading order
//!
//! The modules below stand in the order in which they are best read.
//!
//! Source: flannel, `Documentation/backends.md`, `Documentation/reservations.md` and the files named in each module; RFC 7348 for
//! VXLAN.

pub mod config;
pub mod family;
pub mod network;

pub mod lease;

pub mod allocate;
pub mod registry;
pub mod watch;

pub mod peer;

pub mod keeper;

pub mod interface;

pub mod host_gw;
pub mod overlay;
pub mod vxlan;

pub mod plan;

pub mod apply;
pub mod masquerade;
pub mod subnet_env;

pub mod health;
pub mod log;
pub mod notify;

pub mod run;
pub mod start;

pub mod error;
