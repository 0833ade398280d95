//! A lease: the claim of one worker on one subnet, as it stands in etcd.
//!
//! The *key* says which subnet, `<prefix>/subnets/10.5.29.0-24`; the *value* says who holds it and how to reach him:
//!
//! ```json
//! {"PublicIP":"192.168.100.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"2e:36:a1:04:b5:c6"}}
//! ```
//!
//! Both are written byte for byte as flanneld writes them, field order included, so that the two can share a cluster and a
//! difference in etcd always means a difference in substance.
//!
//! Source: flannel `pkg/subnet/subnet.go`, `MakeSubnetKey`, `ParseSubnetKey`; `pkg/lease/lease.go`, `LeaseAttrs`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use linux_net::{MacAddr, Vni};
use serde::{Deserialize, Serialize};

use crate::error::LeaseError;

/// The `BackendType` of a lease that is reached by VXLAN.
pub const VXLAN: &str = "vxlan";

/// The subnet of one worker, as the last part of a key names it.
///
/// ```text
/// 10.5.29.0-24                       one family
/// 10.5.29.0-24&fd00:5:0:3::-64       two families; the colons stay
/// ```
///
/// `/` would start another level of the key, hence the dash. The IPv6 half is read and kept, so that a dual-stack neighbour in the
/// same cluster is reached over IPv4; we never write one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// The IPv4 subnet, host bits clear.
    pub ipv4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack worker.
    pub ipv6: Option<Ipv6Net>,
}

impl Subnet {
    /// Makes the subnet of a worker with IPv4 only; bits of `ipv4` beyond its length are cleared.
    #[must_use]
    pub fn new(ipv4: Ipv4Net) -> Self {
        Self { ipv4: ipv4.trunc(), ipv6: None }
    }

    /// Says whether the two share an IPv4 address, whatever their lengths.
    #[must_use]
    pub fn overlaps(&self, other: Ipv4Net) -> bool {
        self.ipv4.contains(&other) || other.contains(&self.ipv4)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.addr(), self.ipv4.prefix_len())?;
        match self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.addr(), ipv6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for Subnet {
    type Err = LeaseError;

    fn from_str(key: &str) -> Result<Self, LeaseError> {
        let bad = || LeaseError::Key(key.to_owned());
        let (ipv4, ipv6) = match key.split_once('&') {
            Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
            None => (key, None),
        };
        let (address, length) = split_length(ipv4).ok_or_else(bad)?;
        let ipv4 = Ipv4Net::new(address, length).map_err(|_| bad())?;
        let ipv6 = match ipv6.map(split_length::<Ipv6Addr>) {
            None => None,
            Some(Some((address, length))) => Some(Ipv6Net::new(address, length).map_err(|_| bad())?),
            Some(None) => return Err(bad()),
        };
        // 10.5.29.7-24 would name the same subnet under a second key, and two workers could each own one of them.
        if ipv4 != ipv4.trunc() || ipv6.is_some_and(|ipv6| ipv6 != ipv6.trunc()) {
            return Err(bad());
        }
        Ok(Self { ipv4, ipv6 })
    }
}

/// Takes `address-length` apart.
fn split_length<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

/// The value of a lease: who holds the subnet, and how to reach him.
///
/// The fields stand in the order in which flanneld writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The address of the worker in the underlay: where VXLAN packets go.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// The same for IPv6; written as `null` when absent.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend by name, e.g. [`VXLAN`]; absent in a reservation made by hand.
    #[serde(rename = "BackendType", default, skip_serializing_if = "Option::is_none")]
    pub backend_type: Option<String>,
    /// What the backend needs to reach the worker, in a shape of the backend's own; see [`VxlanData`].
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<serde_json::Value>,
    /// The same for IPv6.
    #[serde(rename = "BackendV6Data", default, skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<serde_json::Value>,
}

impl Attributes {
    /// The attributes of a worker that is reached by VXLAN over IPv4.
    #[must_use]
    pub fn vxlan(public_ip: Ipv4Addr, data: VxlanData) -> Self {
        let mut object = serde_json::Map::new();
        object.insert("VNI".to_owned(), data.vni.get().into());
        object.insert("VtepMAC".to_owned(), data.vtep_mac.to_string().into());
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: Some(VXLAN.to_owned()),
            backend_data: Some(object.into()),
            backend_v6_data: None,
        }
    }

    /// Reads the backend data of a VXLAN lease.
    ///
    /// # Errors
    ///
    /// [`LeaseError::ForeignBackend`] for a lease of another backend, [`LeaseError::BackendData`] when the data is not in the
    /// shape of [`VxlanData`].
    pub fn vxlan_data(&self) -> Result<VxlanData, LeaseError> {
        let backend_type = self.backend_type.as_deref().unwrap_or("none");
        if backend_type != VXLAN {
            return Err(LeaseError::ForeignBackend(backend_type.to_owned()));
        }
        let data = self.backend_data.as_ref();
        let bad = || LeaseError::BackendData(data.map(ToString::to_string).unwrap_or_default());
        let field = |name: &str| data.and_then(|data| data.get(name));
        let vni = field("VNI").and_then(serde_json::Value::as_u64).and_then(|vni| u32::try_from(vni).ok());
        let vni = vni.and_then(|vni| Vni::new(vni).ok()).ok_or_else(bad)?;
        let mac = field("VtepMAC").and_then(serde_json::Value::as_str);
        let vtep_mac = mac.and_then(|mac| mac.parse().ok()).ok_or_else(bad)?;
        Ok(VxlanData { vni, vtep_mac })
    }

    /// The bytes that stand in etcd.
    ///
    /// # Panics
    ///
    /// Never: what the fields can hold always has a JSON form.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings, addresses and JSON values always serialises")
    }
}

/// The backend data of a VXLAN lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    /// The virtual network that the worker's device belongs to.
    pub vni: Vni,
    /// The MAC address of the worker's VXLAN device: the destination of the inner Ethernet frame.
    pub vtep_mac: MacAddr,
}

/// One key under `<prefix>/subnets/`, with what etcd knows about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The subnet that the key names.
    pub subnet: Subnet,
    /// The value, or `None` when it cannot be read: the subnet is taken all the same.
    pub attributes: Option<Attributes>,
    /// The etcd lease that keeps the key alive, or 0 for a *reservation*, a key without a lease that stays for ever.
    pub lease_id: i64,
    /// The etcd revision of the last write to the key.
    pub mod_revision: i64,
}

impl Entry {
    /// Says whether the entry belongs to the worker with this address.
    #[must_use]
    pub fn is_held_by(&self, public_ip: Ipv4Addr) -> bool {
        self.attributes.as_ref().is_some_and(|attributes| attributes.public_ip == public_ip)
    }

    /// Says whether the key is a reservation: one that does not end with an etcd lease.
    #[must_use]
    pub fn is_reservation(&self) -> bool {
        self.lease_id == 0
    }
}

/// Our own lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLease {
    /// Our subnet.
    pub subnet: Subnet,
    /// What we announce about ourselves.
    pub attributes: Attributes,
    /// The etcd lease that the key hangs on, and how long it lasts without renewal; `None` for a reservation, which lasts for ever.
    pub term: Option<Term>,
}

/// An etcd lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Its number in etcd.
    pub lease_id: i64,
    /// How long it lasts from each renewal on.
    pub ttl: Duration,
}

impl OwnLease {
    /// The etcd lease that the key hangs on; 0 for a reservation.
    #[must_use]
    pub fn lease_id(&self) -> i64 {
        self.term.map_or(0, |term| term.lease_id)
    }

    /// The address that we announce.
    #[must_use]
    pub fn public_ip(&self) -> Ipv4Addr {
        self.attributes.public_ip
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded from a flanneld of the v0.28 series.
    const RECORDED: &str = r#"{"PublicIP":"192.168.100.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"2e:36:a1:04:b5:c6"}}"#;

    #[test]
    fn the_value_has_the_bytes_that_flanneld_writes() {
        let data = VxlanData { vni: Vni::new(100).unwrap(), vtep_mac: "2e:36:a1:04:b5:c6".parse().unwrap() };
        let attributes = Attributes::vxlan([192, 168, 100, 11].into(), data);
        assert_eq!(String::from_utf8(attributes.to_json()).unwrap(), RECORDED);
        assert_eq!(serde_json::from_str::<Attributes>(RECORDED).unwrap(), attributes);
        assert_eq!(attributes.vxlan_data().unwrap(), data);
    }

    #[test]
    fn the_value_of_a_foreign_backend_or_a_reservation_survives_reading_and_writing() {
        for json in [
            r#"{"PublicIP":"10.0.0.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"10.0.0.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"2e:36:a1:04:b5:c6"},"BackendV6Data":{"VNI":1,"VtepMAC":"2e:36:a1:04:b5:c7"}}"#,
            r#"{"PublicIP":"10.0.0.3","PublicIPv6":null}"#,
        ] {
            let attributes: Attributes = serde_json::from_str(json).unwrap();
            assert_eq!(String::from_utf8(attributes.to_json()).unwrap(), json);
        }
    }

    #[test]
    fn backend_data_of_another_shape_is_an_error_that_shows_it() {
        let read = |json| serde_json::from_str::<Attributes>(json).unwrap().vxlan_data().unwrap_err().to_string();
        assert!(read(r#"{"PublicIP":"10.0.0.3","BackendType":"host-gw"}"#).contains("host-gw"));
        assert!(
            read(r#"{"PublicIP":"10.0.0.3","BackendType":"vxlan","BackendData":{"VNI":1}}"#).contains(r#"{"VNI":1}"#)
        );
        assert!(
            read(r#"{"PublicIP":"10.0.0.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"x"}}"#)
                .contains("VtepMAC")
        );
    }

    #[test]
    fn a_key_names_one_or_two_families() {
        let one: Subnet = "10.5.29.0-24".parse().unwrap();
        assert_eq!((one.ipv4.to_string().as_str(), one.ipv6), ("10.5.29.0/24", None));
        let two: Subnet = "10.5.29.0-24&fd00:5:0:3::-64".parse().unwrap();
        assert_eq!(two.ipv6.unwrap().to_string(), "fd00:5:0:3::/64");
        assert_eq!(two.to_string(), "10.5.29.0-24&fd00:5:0:3::-64");
    }

    #[test]
    fn a_key_that_is_no_subnet_is_refused() {
        for key in [
            "",
            "10.5.29.0",
            "10.5.29.0/24",
            "10.5.29.0-33",
            "10.5.29.7-24",
            "10.5.29.0-24&",
            "fd00::-64",
            "10.5.29.0-24-1",
            "10.5.29.0-24&fd00::1-64",
        ] {
            assert!(key.parse::<Subnet>().is_err(), "{key:?} was taken for a subnet");
        }
    }

    proptest! {
        #[test]
        fn every_subnet_survives_its_key(address: u32, length in 0_u8..=32, v6: Option<(u128, u8)>) {
            let ipv4 = Ipv4Net::new(address.into(), length).unwrap().trunc();
            let ipv6 = v6.map(|(address, length)| Ipv6Net::new(address.into(), length % 129).unwrap().trunc());
            let subnet = Subnet { ipv4, ipv6 };
            prop_assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
        }

        #[test]
        fn no_key_makes_the_parser_panic(key in "[0-9a-f.:&-]{0,40}") {
            let _ = key.parse::<Subnet>();
        }
    }
}
