//! Namespaces, netlink, nftables and sysctl of Linux, as data that is applied and can be printed.

pub mod error;
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
