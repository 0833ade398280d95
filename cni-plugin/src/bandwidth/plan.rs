//! Which operations make a limit. Pure: no kernel here.

use linux_net::IfName;
use linux_net::netlink::{Ifb, Link, Op, Qdisc};
use sha2::{Digest, Sha512};

use crate::attachment::Mark;
use crate::bandwidth::config::Config;
use crate::conf::NetworkName;
use crate::env::ContainerId;
use crate::error::Result;

/// The queue of an ifb is its bucket's; the one that the kernel would give it is not used.
const IFB_QUEUE_PACKETS: u32 = 0;

/// The name of a container's ifb, as the Go plugin makes it, so that either finds the other's: `bwp` and a hash of network and container.
///
/// # Errors
///
/// None in fact: twelve hexadecimal digits and three letters are a name.
pub fn ifb_name(network: &NetworkName, container_id: &ContainerId) -> Result<IfName> {
    let hash = Sha512::new().chain_update(network.as_str()).chain_update(container_id.as_str()).finalize();
    let digits: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("bwp{digits}").parse()?)
}

/// What an ADD does, in its order: the veth is slowed first, and the redirection comes when all that it leads to is there.
#[must_use]
pub fn add(config: &Config, veth: &Link, ifb: &IfName, mark: &Mark) -> Vec<Op> {
    let (veth_dev, ifb_dev) = (|| veth.name.clone(), || ifb.clone());
    let mut ops = Vec::new();
    if let Some(limit) = config.ingress {
        ops.push(Op::AddQdisc { dev: veth_dev(), qdisc: Qdisc::TokenBucket(limit.bucket()) });
    }
    if let Some(limit) = config.egress {
        ops.extend([
            Op::AddIfb(Ifb {
                name: ifb_dev(),
                mtu_bytes: Some(veth.mtu_bytes),
                tx_queue_packets: Some(IFB_QUEUE_PACKETS),
            }),
            Op::SetAlias { dev: ifb_dev(), alias: mark.to_string() },
            Op::SetUp { dev: ifb_dev() },
            Op::AddQdisc { dev: ifb_dev(), qdisc: Qdisc::TokenBucket(limit.bucket()) },
            Op::AddQdisc { dev: veth_dev(), qdisc: Qdisc::Ingress },
            Op::AddRedirect { dev: veth_dev(), to: ifb_dev() },
        ]);
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_ifb_is_the_go_plugins() {
        // printf %s netc1 | sha512sum | cut -c1-12
        let name = ifb_name(&NetworkName::new("net").unwrap(), &ContainerId::new("c1").unwrap()).unwrap();
        assert_eq!(name.as_str(), "bwp623e1c388032");
    }
}
