//! A Service: one stable address in front of endpoints that come and go.
//!
//! A [`Service`] here is what the proxy needs of a Kubernetes Service, checked: whatever stands in this type can be programmed.
//!
//! Source: Kubernetes API `core/v1` Service; `pkg/proxy/serviceport.go` for which Services a proxy leaves alone.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use k8s_openapi::api::core::v1 as api;

use crate::error::ObjectError;

/// A Service with this annotation set to `true` answers every protocol and port on its address, ping included.
///
/// Only the address of a packet is translated, its ports are kept; `spec.ports` may be empty. Kubernetes has no such thing. It is
/// what a VIP in a textbook does, and lets a student `ping` a ClusterIP.
pub const ALL_PROTOCOLS_ANNOTATION: &str = "knetsim.io/all-protocols";

/// A Service or slice with this label belongs to another proxy, whose name is the value.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Namespace and name of a Service. Prints as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
}

/// A Service that has a ClusterIP for us to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The address that clients use: `spec.clusterIP`, the first IPv4 one.
    pub cluster_ip: Ipv4Addr,
    /// What is served there; empty only if `reach` is [`Reach::AllProtocols`].
    pub ports: Vec<ServicePort>,
    /// Which packets to the address are served.
    pub reach: Reach,
    /// Which endpoints take traffic from inside the cluster.
    pub internal_policy: TrafficPolicy,
}

/// Which packets to a ClusterIP are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those to one of the Service's ports, as in Kubernetes; all others are refused.
    ListedPorts,
    /// All, see [`ALL_PROTOCOLS_ANNOTATION`]. Ports that are listed are translated as usual, all others kept.
    AllProtocols,
}

/// Which endpoints are candidates for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All of the cluster.
    Cluster,
    /// Those on this worker; if there are none, the packet is dropped.
    Local,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which slices refer to it; empty for the port of a Service that has a single one.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the ClusterIP. The port on the endpoint stands in the slices.
    pub port: NonZeroU16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl ServiceName {
    /// The Service called `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Service {
    /// Takes from a Kubernetes object what the proxy needs.
    ///
    /// `None` for a Service that is not ours to serve: headless, of type `ExternalName`, without an address yet, with IPv6
    /// addresses alone, or left to another proxy by its label.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] names the field that cannot be understood.
    pub fn from_object(object: &api::Service) -> Result<Option<Self>, ObjectError> {
        let has_other_proxy =
            object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
        let Some(spec) = object.spec.as_ref().filter(|_| !has_other_proxy) else { return Ok(None) };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        let Some(cluster_ip) = cluster_ip(spec)? else { return Ok(None) };
        let ports = spec.ports.iter().flatten().map(ServicePort::from_object).collect::<Result<Vec<_>, _>>()?;
        let reach = match object.metadata.annotations.as_ref().and_then(|all| all.get(ALL_PROTOCOLS_ANNOTATION)) {
            None => Reach::ListedPorts,
            Some(value) => match value.as_str() {
                "true" => Reach::AllProtocols,
                "false" => Reach::ListedPorts,
                other => {
                    let what = format!("`{other}` is neither `true` nor `false`");
                    return Err(ObjectError::field(format!("metadata.annotations[{ALL_PROTOCOLS_ANNOTATION}]"), what));
                }
            },
        };
        if ports.is_empty() && reach == Reach::ListedPorts {
            return Err(ObjectError::field("spec.ports", "a Service needs at least one port"));
        }
        let internal_policy = match spec.internal_traffic_policy.as_deref() {
            None | Some("Cluster") => TrafficPolicy::Cluster,
            Some("Local") => TrafficPolicy::Local,
            Some(other) => {
                return Err(ObjectError::field(
                    "spec.internalTrafficPolicy",
                    format!("`{other}` is neither `Cluster` nor `Local`"),
                ));
            }
        };
        Ok(Some(Self { cluster_ip, ports, reach, internal_policy }))
    }
}

impl ServicePort {
    fn from_object(port: &api::ServicePort) -> Result<Self, ObjectError> {
        let number = u16::try_from(port.port).ok().and_then(NonZeroU16::new);
        let number = number
            .ok_or_else(|| ObjectError::field("spec.ports.port", format!("{} is not within 1 to 65535", port.port)))?;
        let protocol = Protocol::parse(port.protocol.as_deref(), "spec.ports.protocol")?;
        Ok(Self { name: port.name.clone().unwrap_or_default(), protocol, port: number })
    }
}

impl Protocol {
    /// Reads the protocol of the field called `field`; absent or empty means TCP.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] for a protocol that Kubernetes does not know.
    pub fn parse(text: Option<&str>, field: &str) -> Result<Self, ObjectError> {
        match text {
            None | Some("" | "TCP") => Ok(Self::Tcp),
            Some("UDP") => Ok(Self::Udp),
            Some("SCTP") => Ok(Self::Sctp),
            Some(other) => Err(ObjectError::field(field, format!("`{other}` is none of TCP, UDP, SCTP"))),
        }
    }

    /// Its number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// The first IPv4 address of the Service; `clusterIPs` is the newer field, and `clusterIP` its first entry.
fn cluster_ip(spec: &api::ServiceSpec) -> Result<Option<Ipv4Addr>, ObjectError> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    for text in listed.filter(|text| !text.is_empty() && *text != "None") {
        match text.parse() {
            Ok(std::net::IpAddr::V4(address)) => return Ok(Some(address)),
            Ok(std::net::IpAddr::V6(_)) => {}
            Err(_) => return Err(ObjectError::field("spec.clusterIP", format!("`{text}` is not an IP address"))),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Option<Service>, ObjectError> {
        Service::from_object(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn several_ports_keep_their_names_and_protocols() {
        let service = read(json!({"metadata": {"name": "dns"}, "spec": {"clusterIP": "100.64.0.10", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]}}));
        let ports = service.unwrap().unwrap().ports;
        let expected = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];
        assert_eq!(ports.iter().map(|port| (port.name.as_str(), port.protocol)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_ipv4_address_of_a_dual_stack_service_is_served() {
        let service = read(
            json!({"spec": {"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "100.64.0.1"], "ports": [{"port": 80}]}}),
        );
        assert_eq!(service.unwrap().unwrap().cluster_ip, Ipv4Addr::new(100, 64, 0, 1));
    }

    #[test]
    fn services_that_are_not_ours_are_left_alone() {
        let ports = json!([{"port": 80}]);
        for object in [
            json!({"spec": {"clusterIP": "None", "ports": ports}}),
            json!({"spec": {"ports": ports}}),
            json!({"spec": {"clusterIP": "fd00::1", "ports": ports}}),
            json!({"spec": {"type": "ExternalName", "externalName": "example.org"}}),
            json!({"metadata": {"labels": {PROXY_NAME_LABEL: "other"}}, "spec": {"clusterIP": "100.64.0.1", "ports": ports}}),
        ] {
            assert_eq!(read(object.clone()).unwrap(), None, "{object}");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let refusal = |spec| read(json!({"spec": spec})).unwrap_err().to_string();
        assert_eq!(
            refusal(json!({"clusterIP": "100.64.0", "ports": [{"port": 80}]})),
            "spec.clusterIP: `100.64.0` is not an IP address"
        );
        assert_eq!(refusal(json!({"clusterIP": "100.64.0.1"})), "spec.ports: a Service needs at least one port");
        assert_eq!(
            refusal(json!({"clusterIP": "100.64.0.1", "ports": [{"port": 0}]})),
            "spec.ports.port: 0 is not within 1 to 65535"
        );
        let icmp = json!({"clusterIP": "100.64.0.1", "ports": [{"port": 80, "protocol": "ICMP"}]});
        assert_eq!(refusal(icmp), "spec.ports.protocol: `ICMP` is none of TCP, UDP, SCTP");
    }

    #[test]
    fn a_service_for_all_protocols_needs_no_port() {
        let object = json!({"metadata": {"annotations": {ALL_PROTOCOLS_ANNOTATION: "true"}}, "spec": {"clusterIP": "100.64.10.1"}});
        let service = read(object).unwrap().unwrap();
        assert_eq!((service.reach, service.ports.len()), (Reach::AllProtocols, 0));
    }
}
