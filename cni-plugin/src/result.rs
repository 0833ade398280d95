//! The result of ADD, in the shape of the newest specification; [`crate::result::wire`] holds the older shapes.
//!
//! Everything inside this crate speaks 1.1.0. Conversion happens at the edge: on reading a `prevResult` or another
//! plugin's answer, and on printing.
//!
//! Source: CNI specification 1.1.0, section 5, "ADD Success".

pub mod wire;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::version::SpecVersion;

/// What ADD has made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CniResult {
    /// Interfaces, on the host and in the container; `ips` point into this list.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses given to the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub ips: Vec<IpConfig>,
    /// Routes of the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub routes: Vec<Route>,
    /// Name servers for the container.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// One interface that ADD made or found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name, in the namespace it is in.
    pub name: String,
    /// Its MAC address, as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of the network namespace it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A unix socket that stands for the interface (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI address of the device (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "pciID")]
    pub pci_id: Option<String>,
}

/// One address of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The index in [`CniResult::interfaces`] of the interface that bears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the prefix length of its subnet.
    pub address: IpNet,
    /// The gateway of that subnet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::empty_as_none")]
    pub gateway: Option<IpAddr>,
}

/// One route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination; `0.0.0.0/0` is the default route.
    pub dst: IpNet,
    /// The next hop; without one, the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::empty_as_none")]
    pub gw: Option<IpAddr>,
    /// The path MTU in bytes (since 1.1.0, as are all below).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The maximal segment size to announce to TCP peers, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric: the smaller wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; the main one (254) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope: 0 global, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with nothing but a destination and, perhaps, a next hop.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Name service for the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers, most preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains tried for short names.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "wire::null_as_default")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// Reads a result. Its own `cniVersion` decides the shape, or `assumed` when it has none.
    ///
    /// # Errors
    ///
    /// Code 1 for an unknown version, code 6 for a value of another shape.
    pub fn from_value(value: &Value, assumed: SpecVersion) -> Result<Self> {
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => assumed,
            Some(text) => SpecVersion::parse(text)?,
        };
        let decoded = if version < SpecVersion::V0_3_0 {
            wire::V02::deserialize(value).map(Self::from)
        } else {
            Self::deserialize(value)
        };
        let result = decoded.map_err(|source| Error::decode(&format!("result of version {version}"), &source))?;
        for ip in &result.ips {
            if ip.interface.is_some_and(|index| index >= result.interfaces.len()) {
                return Err(Error::new(
                    crate::error::Code::Decode,
                    format!("result: address {} points at an interface that is not in the list", ip.address),
                ));
            }
        }
        Ok(result)
    }

    /// The addresses that the interface of this index bears.
    #[must_use]
    pub fn addresses_of(&self, interface: usize) -> Vec<IpNet> {
        self.ips.iter().filter(|ip| ip.interface == Some(interface)).map(|ip| ip.address).collect()
    }

    /// The result in the shape of `version`. What that version has no word for is left out.
    ///
    /// # Errors
    ///
    /// Code 7 when an old shape cannot hold it: 0.1.0 and 0.2.0 need an address.
    pub fn to_value(&self, version: SpecVersion) -> Result<Value> {
        wire::encode(self, version)
    }

    /// The result as it is printed: indented by four blanks, without a final newline, as the Go library does.
    ///
    /// # Errors
    ///
    /// As [`CniResult::to_value`].
    pub fn print(&self, version: SpecVersion) -> Result<String> {
        wire::pretty(&self.to_value(version)?)
    }
}
