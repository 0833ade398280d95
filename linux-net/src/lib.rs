//! Namespaces, netlink, nftables and sysctl of Linux, as data that is applied and can be printed.
//!
//! Everything that this laboratory does to the kernel goes through this crate. It does it without the programs `ip`,
//! `bridge` and `nft`, by the same system calls as they, and every operation can print itself as the command that a student would type.
//!
//! # A network namespace
//!
//! is a second network stack in one kernel: its own links, addresses, routes, neighbours, firewall, ports and `/proc/sys/net`. A process is
//! in one (a thread, to be exact); a socket stays in the one it was opened in. A veth pair is a cable between two of them:
//!
//! ```text
//!   namespace C0w1 (a worker)                       namespace k0_c1 (a pod)
//!  ┌──────────────────────────────────────┐        ┌──────────────────────┐
//!  │ routes  nftables  sysctl             │        │ routes  nftables     │
//!  │ C0w1-eth0   flannel.100   cni0 ── veth0 ══════ eth0   lo             │
//!  └────┬─────────────────────────────────┘        └──────────────────────┘
//!       └─ another cable, to the switch
//! ```
//!
//! [`NetNs`] makes, opens and enters them. A whole lab stands inside further namespaces (users, mounts, processes),
//! which [`sandbox`] makes and [`process`] starts programs in, so that an ordinary user can be root there and nothing is left behind.
//!
//! # An rtnetlink message
//!
//! Links, addresses, routes and neighbours are changed through a socket that speaks in messages. This one is `ip link add cni0 type bridge`:
//!
//! ```text
//!  0              4        6        8              12             16
//! +--------------+--------+--------+--------------+--------------+
//! | length 60    | type 16| flags  | number 7     | 0            |  header: RTM_NEWLINK, create it, answer me
//! +--------------+--------+--------+--------------+--------------+
//! | family, kind, number of the link, flags, which flags change  |  struct ifinfomsg: all 0, the kernel shall choose
//! +-----------+-----------+--------------------------------------+
//! | length  9 | IFLA_IFNAME   3 | "cni0\0" + padding             |  attributes: length, kind, value,
//! +-----------+-----------------+--------------------------------+  padded to four bytes,
//! | length 16 | IFLA_LINKINFO 18 | length 11 | KIND 1 | "bridge" |  and some contain others
//! +-----------+------------------+-------------------------------+
//! ```
//!
//! The answer has the same number 7 and an errno, 0 for success; newer kernels add a sentence, which our errors repeat.
//!
//! # An nftables batch
//!
//! is one datagram with many messages of that form. The kernel takes all of it or nothing, and packets see the old rules or the new ones,
//! never a mixture:
//!
//! ```text
//! | BATCH_BEGIN | NEWTABLE | NEWSET front | NEWSETELEM ~1000 elements | … | NEWCHAIN | NEWRULE | … | BATCH_END |
//! ```
//!
//! A rule travels as a program for sixteen small registers (`nft --debug=netlink list ruleset` prints them; see the head of `nft/compile.rs`).
//!
//! # The life of one operation
//!
//! 1. A component compares what should be with what is and plans [`Op`]s: plain values, which tests compare and logs print.
//! 2. [`Netlink::apply_all`] looks up the numbers of the links they name, turns them into messages (`netlink/encode.rs`) and sends a
//!    hundred at a time.
//! 3. The kernel answers each; an error comes back as [`Error::Refused`] with the command, the errno and the kernel's own words.
//! 4. [`Netlink::routes`] and its like read back what stands there now (`netlink/decode.rs`), in the same types.
//!
//! The same for rules: [`nft::Op`]s in a [`nft::Batch`], [`nft::Nft::commit`], [`nft::Nft::elements`].
//!
//! The programs in `examples/` do one thing each, and any user can run them. Where to begin reading: [`netns`], [`netlink::Op`],
//! `netlink/encode.rs`, then [`nft`].
//!
//! What is left out: multipath routes (read back without their next routers), of traffic control all but token buckets and redirection, and of
//! nftables all that the components do not need (anonymous sets, named counters, limits, logs, `queue`). Of rules, the chain, the comment, the
//! constants and the target of a jump are read back; the kernel keeps programs, not text.
//!
//! Sources: RFC 3549; RFC 7348; man 7 `netlink`, `rtnetlink`, `namespaces`; iproute2; nftables and libnftnl; Linux `include/uapi/linux/`.

pub mod conntrack;
pub mod error;
pub mod ip;
pub mod name;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod process;
pub mod sandbox;
pub mod sysctl;
pub mod testing;

pub use error::{Error, Result};
pub use name::{IfName, MacAddr, Vni};
pub use netlink::{Netlink, Op};
pub use netns::NetNs;
