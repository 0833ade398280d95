//! A real etcd with the leases of workers that do not exist.

use std::{net::Ipv4Addr, path::Path};

use etcd_client::{DeleteOptions, PutOptions, Txn, TxnOp};
use ipnet::Ipv4Net;

use super::etcd::Etcd;
use crate::{
    component::flannel,
    lab::{Lab, Node},
};

/// Where leases stand, with flanneld's default prefix.
const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Length of a worker's subnet in the default lab's network configuration.
const SUBNET_LEN: u8 = 20;
/// The first subnets of the range are left to the agents: flanneld draws among the first 100 that are free.
const FIRST_SUBNET: Ipv4Addr = Ipv4Addr::new(11, 20, 0, 0);
/// Leases that one transaction writes; etcd allows 128 operations.
const PER_TRANSACTION: u32 = 100;
/// A day, as flanneld's leases.
const TTL_SECONDS: i64 = 86_400;

/// An etcd of one member with leases in it.
pub(super) struct Leases {
    etcd: Etcd,
    /// etcd's own lease, to which the keys of all workers that do not exist are tied.
    lease_id: i64,
}

impl Leases {
    /// Starts etcd on the lab's first member and writes the network configuration. The calling thread must be in the member's
    /// namespace.
    pub(super) async fn start(lab: &Lab, member: &Node, directory: &Path) -> anyhow::Result<Self> {
        let etcd = Etcd::start(member, directory).await?;
        let mut client = etcd.client.clone();
        client.put(flannel::CONFIG_KEY, lab.pods.flannel_config.as_str(), None).await?;
        let lease_id = client.lease_grant(TTL_SECONDS, None).await?.id();
        Ok(Self { etcd, lease_id })
    }

    /// Takes all leases out of etcd, then puts in those of the first `count` workers that do not exist.
    pub(super) async fn reset(&mut self, count: u32) -> anyhow::Result<()> {
        self.etcd.client.delete(SUBNETS, Some(DeleteOptions::new().with_prefix())).await?;
        for first in (0..count).step_by(PER_TRANSACTION as usize) {
            let puts = (first..count.min(first + PER_TRANSACTION)).map(|number| {
                let (_, key, value) = lease(number);
                TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease_id)))
            });
            self.etcd.client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await?;
        }
        Ok(())
    }

    /// Puts the lease of worker `number` in.
    pub(super) async fn put(&mut self, number: u32) -> anyhow::Result<()> {
        let (_, key, value) = lease(number);
        self.etcd.client.put(key, value, Some(PutOptions::new().with_lease(self.lease_id))).await?;
        Ok(())
    }
}

/// The subnet of worker `number`, from 0.
pub(super) fn subnet(number: u32) -> Ipv4Net {
    let base = u32::from(FIRST_SUBNET) + (number << (32 - SUBNET_LEN));
    Ipv4Net::new_assert(base.into(), SUBNET_LEN)
}

/// Subnet, key and value of worker `number`, as flanneld writes them.
fn lease(number: u32) -> (Ipv4Net, String, String) {
    let subnet = subnet(number);
    let key = format!("{SUBNETS}{}-{SUBNET_LEN}", subnet.network());
    let public_ip = Ipv4Addr::from(0x0a07_0000 + number);
    let [_, _, high, low] = number.to_be_bytes();
    let value = format!(
        "{{\"PublicIP\":\"{public_ip}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":100,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}}}}"
    );
    (subnet, key, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_what_flanneld_would_write() {
        let (subnet, key, value) = lease(999);
        assert_eq!(subnet.to_string(), "11.82.112.0/20");
        assert_eq!(key, "/coreos.com/network/subnets/11.82.112.0-20");
        let expected = r#"{"PublicIP":"10.7.3.231","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"02:00:00:00:03:e7"}}"#;
        assert_eq!(value, expected);
    }

    #[test]
    fn the_leases_fit_the_default_labs_network_configuration() {
        let config = Lab::default_lab().pods.flannel_config;
        for expected in ["\"SubnetLen\": 20", "\"SubnetMax\": \"11.99.0.0\"", "\"VNI\": 100"] {
            assert!(config.contains(expected), "{expected}: {config}");
        }
        let last = super::super::flannel::LEASES + super::super::flannel::PUTS;
        assert!(subnet(last).network() < Ipv4Addr::new(11, 99, 0, 0));
    }
}
