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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use linux_net::{MacAddr, Vni};
use serde::{Deserialize, Serialize};

use crate::error::LeaseError;
use crate::family::Prefix;
use linux_net::ip::Family;

/// The `BackendType` of a lease that is reached by VXLAN.
pub const VXLAN: &str = "vxlan";
/// The `BackendType` of a lease whose worker is itself the next router.
pub const HOST_GW: &str = "host-gw";

/// The subnet of one worker, as the last part of a key names it.
///
/// ```text
/// 10.5.29.0-24                       one family
/// 10.5.29.0-24&fd00:5:0:3::-64       two families; the colons stay
/// ```
///
/// `/` would start another level of the key, hence the dash. There is always an IPv4 half: flannel on etcd has no way to write a key
/// without one.
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

    /// Its half of one family.
    #[must_use]
    pub fn half(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::V4 => Some(self.ipv4.into()),
            Family::V6 => self.ipv6.map(IpNet::from),
        }
    }

    /// Says whether the two share an address of either family, whatever their lengths.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let share_ipv6 = self.ipv6.zip(other.ipv6).is_some_and(|(ours, theirs)| ours.overlaps(&theirs));
        self.ipv4.overlaps(&other.ipv4) || share_ipv6
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

/// The addresses of a worker in the underlay, one for each family that the overlay has: what others send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicAddresses {
    /// Where IPv4 pods' packets go; by this address a worker also recognises its own lease.
    pub ipv4: Ipv4Addr,
    /// Where IPv6 pods' packets go, in a dual-stack cluster.
    pub ipv6: Option<Ipv6Addr>,
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
    /// The attributes of a worker that is reached by VXLAN, over each family that there is data for.
    #[must_use]
    pub fn vxlan(addresses: PublicAddresses, ipv4: VxlanData, ipv6: Option<VxlanData>) -> Self {
        Self {
            public_ip: addresses.ipv4,
            public_ipv6: addresses.ipv6,
            backend_type: Some(VXLAN.to_owned()),
            backend_data: Some(ipv4.to_json()),
            backend_v6_data: ipv6.map(VxlanData::to_json),
        }
    }

    /// The attributes of a worker that is the next router to its pods.
    #[must_use]
    pub fn host_gw(addresses: PublicAddresses) -> Self {
        Self {
            public_ip: addresses.ipv4,
            public_ipv6: addresses.ipv6,
            backend_type: Some(HOST_GW.to_owned()),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    /// The worker's address in the underlay of one family.
    #[must_use]
    pub fn public_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.public_ip.into()),
            Family::V6 => self.public_ipv6.map(IpAddr::from),
        }
    }

    /// Says whether the lease is of the backend with this name.
    ///
    /// # Errors
    ///
    /// [`LeaseError::ForeignBackend`] when it is of another.
    pub fn check_backend(&self, name: &'static str) -> Result<(), LeaseError> {
        match self.backend_type.as_deref().unwrap_or("none") {
            same if same == name => Ok(()),
            other => Err(LeaseError::ForeignBackend { theirs: other.to_owned(), ours: name }),
        }
    }

    /// Reads one family's backend data of a VXLAN lease.
    ///
    /// # Errors
    ///
    /// [`LeaseError::BackendData`] when the data is not in the shape of [`VxlanData`].
    pub fn vxlan_data(&self, family: Family) -> Result<VxlanData, LeaseError> {
        let (field, data) = match family {
            Family::V4 => ("BackendData", self.backend_data.as_ref()),
            Family::V6 => ("BackendV6Data", self.backend_v6_data.as_ref()),
        };
        let found = || data.map_or_else(|| "absent".to_owned(), ToString::to_string);
        data.and_then(VxlanData::from_json).ok_or_else(|| LeaseError::BackendData { field, found: found() })
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

impl VxlanData {
    fn to_json(self) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        object.insert("VNI".to_owned(), self.vni.get().into());
        object.insert("VtepMAC".to_owned(), self.vtep_mac.to_string().into());
        object.into()
    }

    fn from_json(data: &serde_json::Value) -> Option<Self> {
        let vni = u32::try_from(data.get("VNI")?.as_u64()?).ok()?;
        Some(Self { vni: Vni::new(vni).ok()?, vtep_mac: data.get("VtepMAC")?.as_str()?.parse().ok()? })
    }
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
    /// The etcd revision of our own write: a younger one was somebody else's.
    pub mod_revision: i64,
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

    fn data(mac: &str) -> VxlanData {
        VxlanData { vni: Vni::new(100).unwrap(), vtep_mac: mac.parse().unwrap() }
    }

    #[test]
    fn the_value_has_the_bytes_that_flanneld_writes() {
        let addresses = PublicAddresses { ipv4: [192, 168, 100, 11].into(), ipv6: None };
        let attributes = Attributes::vxlan(addresses, data("2e:36:a1:04:b5:c6"), None);
        assert_eq!(String::from_utf8(attributes.to_json()).unwrap(), RECORDED);
        assert_eq!(serde_json::from_str::<Attributes>(RECORDED).unwrap(), attributes);
        assert_eq!(attributes.vxlan_data(Family::V4).unwrap(), data("2e:36:a1:04:b5:c6"));
    }

    #[test]
    fn dual_stack_and_host_gw_have_the_bytes_that_flanneld_writes() {
        let addresses =
            PublicAddresses { ipv4: [192, 168, 100, 11].into(), ipv6: Some("fd00:aa::11".parse().unwrap()) };
        let dual = Attributes::vxlan(addresses, data("2e:36:a1:04:b5:c6"), Some(data("2e:36:a1:04:b5:c7")));
        let expected = r#"{"PublicIP":"192.168.100.11","PublicIPv6":"fd00:aa::11","BackendType":"vxlan","BackendData":{"VNI":100,"VtepMAC":"2e:36:a1:04:b5:c6"},"BackendV6Data":{"VNI":100,"VtepMAC":"2e:36:a1:04:b5:c7"}}"#;
        assert_eq!(String::from_utf8(dual.to_json()).unwrap(), expected);
        assert_eq!(dual.vxlan_data(Family::V6).unwrap(), data("2e:36:a1:04:b5:c7"));
        let host_gw = Attributes::host_gw(PublicAddresses { ipv6: None, ..addresses });
        let expected = r#"{"PublicIP":"192.168.100.11","PublicIPv6":null,"BackendType":"host-gw"}"#;
        assert_eq!(String::from_utf8(host_gw.to_json()).unwrap(), expected);
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
        let attributes = |json| serde_json::from_str::<Attributes>(json).unwrap();
        let foreign =
            attributes(r#"{"PublicIP":"10.0.0.3","BackendType":"host-gw"}"#).check_backend(VXLAN).unwrap_err();
        assert!(foreign.to_string().contains("host-gw"));
        let read = |json| attributes(json).vxlan_data(Family::V4).unwrap_err().to_string();
        assert!(
            read(r#"{"PublicIP":"10.0.0.3","BackendType":"vxlan","BackendData":{"VNI":1}}"#).contains(r#"{"VNI":1}"#)
        );
        assert!(
            read(r#"{"PublicIP":"10.0.0.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"x"}}"#)
                .contains("VtepMAC")
        );
        let dual = attributes(r#"{"PublicIP":"10.0.0.3","BackendType":"vxlan"}"#).vxlan_data(Family::V6).unwrap_err();
        assert!(dual.to_string().contains("BackendV6Data is absent"), "{dual}");
    }

    #[test]
    fn subnets_overlap_in_either_family() {
        let subnet = |key: &str| key.parse::<Subnet>().unwrap();
        let ours = subnet("10.5.29.0-24&fd00:5:0:3::-64");
        for (other, expected) in [
            ("10.5.29.128-25", true),
            ("10.5.0.0-16", true),
            ("10.5.30.0-24", false),
            ("10.5.30.0-24&fd00:5:0:3::-64", true),
            ("10.5.30.0-24&fd00:5:0:4::-64", false),
        ] {
            assert_eq!(ours.overlaps(&subnet(other)), expected, "{other}");
            assert_eq!(subnet(other).overlaps(&ours), expected, "{other}");
        }
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
