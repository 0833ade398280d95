//! What the addresses of an IPAM result mean for bridge and container. Pure: no kernel here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::bridge::config::Config;
use crate::error::{Code, Error, Result};
use crate::result::wire::is_ipv4;
use crate::result::{CniResult, Route};

/// The container's interface is the third of the result: bridge, host end, container end.
pub const CONTAINER_INTERFACE: usize = 2;

/// Fills in what the IPAM plugin left open: the interface of each address, its gateway, the default route.
///
/// # Errors
///
/// Code 103 when there is no address: an IPAM plugin that answers ADD gives one.
pub fn complete(config: &Config, mut ipam: CniResult) -> Result<CniResult> {
    if ipam.ips.is_empty() {
        return Err(Error::new(Code::Plugin, "IPAM plugin returned missing IP config"));
    }
    for ip in &mut ipam.ips {
        ip.interface = Some(CONTAINER_INTERFACE);
        if config.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_host(&ip.address));
        }
        let default = default_net(is_ipv4(&ip.address));
        // One that names no next hop goes through the same gateway: adding a second fails, as the Go plugin's ADD does.
        if config.is_default_gateway && !ipam.routes.iter().any(|route| route.dst == default) {
            ipam.routes.push(Route::new(default, ip.gateway));
        }
    }
    Ok(ipam)
}

/// The addresses the bridge must bear to be the gateway, with the prefix lengths of the container's addresses.
#[must_use]
pub fn bridge_addresses(config: &Config, result: &CniResult) -> Vec<IpNet> {
    let gateways = result.ips.iter().filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok());
    if config.is_gateway { gateways.collect() } else { Vec::new() }
}

/// What to do about one address the bridge should have, given those it has.
#[derive(Debug, PartialEq, Eq)]
pub enum BridgeAddress {
    /// It is there.
    Keep,
    /// Remove these, then add it.
    Add {
        /// Addresses of the same subnet that stand in the way; only with `forceAddress`.
        instead_of: Vec<IpNet>,
    },
}

/// Decides on one address. Several IPv6 addresses may stand side by side as long as their subnets do not overlap.
///
/// # Errors
///
/// Code 7 when another address stands in the way and `forceAddress` is off.
pub fn bridge_address(config: &Config, wanted: IpNet, present: &[IpNet]) -> Result<BridgeAddress> {
    if present.contains(&wanted) {
        return Ok(BridgeAddress::Keep);
    }
    let in_the_way = |other: &IpNet| match (other, wanted) {
        (IpNet::V4(_), IpNet::V4(_)) => true,
        (IpNet::V6(_), IpNet::V6(_)) => other.contains(&wanted.addr()) || wanted.contains(&other.addr()),
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => false,
    };
    let instead_of: Vec<_> = present.iter().copied().filter(|other| in_the_way(other)).collect();
    if !instead_of.is_empty() && !config.force_address {
        return Err(Error::config(format!(
            "failed to set bridge addr: \"{}\" already has an IP address different from {wanted}; \
             set forceAddress, or remove the address",
            config.bridge
        )));
    }
    Ok(BridgeAddress::Add { instead_of })
}

/// `0.0.0.0/0` or `::/0`.
#[must_use]
pub fn default_net(is_ipv4: bool) -> IpNet {
    if is_ipv4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

/// The first address of the subnet of `net`: where a gateway is by custom.
fn first_host(net: &IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from(u32::from(network).wrapping_add(1))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from(u128::from(network).wrapping_add(1))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bridge::vlan::VlanConfig;
    use crate::result::Dns;
    use crate::version::SpecVersion;

    fn config(is_default_gateway: bool, force_address: bool) -> Config {
        Config {
            bridge: "cni0".parse().unwrap(),
            is_gateway: true,
            is_default_gateway,
            force_address,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            enable_dad: false,
            mac: None,
            vlans: VlanConfig::default(),
            mac_spoof_check: false,
            port_isolation: false,
            disable_container_interface: false,
            dns: Dns::default(),
            ipam: "host-local".to_owned(),
        }
    }

    fn ipam(value: &Value) -> CniResult {
        CniResult::from_value(value, SpecVersion::V1_1_0).unwrap()
    }

    #[test]
    fn the_first_address_of_the_subnet_is_the_gateway_when_none_is_given() {
        let result = complete(&config(true, false), ipam(&json!({"ips": [{"address": "10.1.2.9/24"}]}))).unwrap();
        assert_eq!(result.ips[0].gateway, Some("10.1.2.1".parse().unwrap()));
        assert_eq!(result.routes, [Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.2.1".parse().unwrap()))]);
        assert_eq!(bridge_addresses(&config(true, false), &result), ["10.1.2.1/24".parse().unwrap()]);
    }

    #[test]
    fn a_default_route_of_the_ipam_plugin_is_not_doubled() {
        for route in [json!({"dst": "0.0.0.0/0", "gw": "10.1.2.7"}), json!({"dst": "0.0.0.0/0"})] {
            let given = json!({"ips": [{"address": "10.1.2.9/24"}], "routes": [route]});
            assert_eq!(complete(&config(true, false), ipam(&given)).unwrap().routes.len(), 1);
        }
    }

    #[test]
    fn each_family_gets_its_default_route() {
        let given = json!({"ips": [{"address": "10.1.2.9/24"}, {"address": "fd00::9/64"}]});
        let routes = complete(&config(true, false), ipam(&given)).unwrap().routes;
        assert_eq!(routes.iter().map(|route| route.dst.to_string()).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
    }

    #[test]
    fn an_ipam_result_without_an_address_is_refused() {
        assert_eq!(complete(&config(false, false), CniResult::default()).unwrap_err().code, Code::Plugin);
    }

    #[test]
    fn another_address_on_the_bridge_is_an_error_unless_forced() {
        let (wanted, other) = ("10.1.2.1/24".parse().unwrap(), "10.1.3.1/24".parse().unwrap());
        assert_eq!(bridge_address(&config(true, false), wanted, &[wanted]).unwrap(), BridgeAddress::Keep);
        bridge_address(&config(true, false), wanted, &[other]).unwrap_err();
        assert_eq!(
            bridge_address(&config(true, true), wanted, &[other]).unwrap(),
            BridgeAddress::Add { instead_of: vec![other] }
        );
    }

    #[test]
    fn ipv6_subnets_that_do_not_overlap_live_side_by_side() {
        let present = ["fd00:1::1/64".parse().unwrap(), "10.1.2.1/24".parse().unwrap()];
        let wanted = "fd00:2::1/64".parse().unwrap();
        assert_eq!(
            bridge_address(&config(true, false), wanted, &present).unwrap(),
            BridgeAddress::Add { instead_of: Vec::new() }
        );
    }
}
