//! A Service: one stable address in front of endpoints that come and go.
//!
//! A [`Service`] here is what the proxy needs of a Kubernetes Service, checked: whatever stands in this type can be programmed.
//!
//! Source: Kubernetes API `core/v1` Service; `pkg/proxy/serviceport.go` for which Services a proxy leaves alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use crate::error::ObjectError;
use linux_net::ip::Family;

/// A Service with this annotation set to `true` answers every protocol and port on its address, ping included.
///
/// Only the address of a packet is translated, its ports are kept; `spec.ports` may be empty. Kubernetes has no such thing. It is
/// what a VIP in a textbook does, and lets a student `ping` a ClusterIP.
pub const ALL_PROTOCOLS_ANNOTATION: &str = "knetsim.io/all-protocols";

/// How a Service chooses among its endpoints: see [`Balance`]. Kubernetes knows the first way only.
pub const BALANCE_ANNOTATION: &str = "knetsim.io/load-balancing";

/// How much of the traffic the endpoints of a Service get: `blue=9,green=1` gives a pod whose name begins with `blue` nine times what one
/// gets whose name begins with `green`. The longest beginning counts; a pod without one has 1, and 0 is none at all.
pub const WEIGHTS_ANNOTATION: &str = "knetsim.io/weights";

/// A Service or slice with this label belongs to another proxy, whose name is the value.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Kubernetes' own value for a Service with session affinity that names none. Source: `core/v1`, `DefaultClientIPServiceAffinitySeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The longest that Kubernetes allows: a day.
const LONGEST_AFFINITY_SECONDS: u32 = 86_400;

/// Namespace and name of a Service, sorted by the one and then the other. Prints as `namespace/name`.
///
/// A dozen maps name each Service; they share one text. Between its parts stands a NUL, which is less than whatever else a name may
/// have in it: so texts sort as pairs of names do, by one comparison.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// A Service that has addresses for us to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The addresses that clients inside the cluster use: `spec.clusterIPs`, one of a family at most.
    pub cluster_ips: Box<[IpAddr]>,
    /// Addresses that the administrator routes to the workers: `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of load balancers that hand packets on as they are: `status.loadBalancer.ingress`, but for those of mode `Proxy`.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Who may use these; everybody when empty.
    pub source_ranges: Box<[IpNet]>,
    /// What is served; empty only if `reach` is [`Reach::AllProtocols`].
    pub ports: Box<[ServicePort]>,
    /// Which packets to the address are served.
    pub reach: Reach,
    /// Which endpoints take traffic from inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// Which endpoints take traffic from outside.
    pub external_policy: TrafficPolicy,
    /// For how long after its last connection a client is sent where it was sent before; `None` for not at all.
    pub affinity: Option<Duration>,
    /// How endpoints are chosen.
    pub balance: Balance,
    /// How much each endpoint gets.
    pub weights: Weights,
    /// The port on which load balancers ask whether this worker has endpoints: of a Service of type `LoadBalancer` with external policy Local.
    pub health_check_node_port: Option<NonZeroU16>,
}

/// How endpoints are chosen: the values of [`BALANCE_ANNOTATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Balance {
    /// `random`: at random for each connection, as kube-proxy does.
    #[default]
    Random,
    /// `round-robin`: one after the other. Services with as many endpoints share the counter.
    RoundRobin,
    /// `source-hash`: by the client's address, so that a client stays with an endpoint as long as their number does not change.
    SourceHash,
    /// `jhash`: by a hash of the IP header's checksum, as the simulator that this laboratory descends from did. IPv6 has no such checksum;
    /// there it is a hash of both addresses and ports.
    Jhash,
}

/// The numbers of [`WEIGHTS_ANNOTATION`], by the beginnings of pods' names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Weights(BTreeMap<String, u8>);

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
    pub name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the ClusterIP. The port on the endpoint stands in the slices.
    pub port: NonZeroU16,
    /// The port on every worker's own addresses, for a Service of type `NodePort` or `LoadBalancer`.
    pub node_port: Option<NonZeroU16>,
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
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self([namespace.as_ref(), "\0", name.as_ref()].concat().into())
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The name, unique in the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('\0').unwrap_or_default()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = self.parts();
        write!(f, "{namespace}/{name}")
    }
}

impl Service {
    /// Takes from a Kubernetes object what the proxy needs.
    ///
    /// `None` for a Service that is not ours to serve: headless, of type `ExternalName`, without an address yet, or left to another
    /// proxy by its label.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] names the field that cannot be understood.
    pub fn from_object(object: &api::Service) -> Result<Option<Self>, ObjectError> {
        let has_other_proxy =
            object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
        let Some(spec) = object.spec.as_ref().filter(|_| !has_other_proxy) else { return Ok(None) };
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            return Ok(None);
        }
        let cluster_ips = cluster_ips(spec)?;
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
        let ports = spec.ports.iter().flatten().map(|port| ServicePort::from_object(port, has_node_ports));
        let ports = ports.collect::<Result<Box<[_]>, _>>()?;
        let annotation = |name: &str| object.metadata.annotations.as_ref()?.get(name).map(String::as_str);
        let reach = reach(annotation(ALL_PROTOCOLS_ANNOTATION))?;
        if ports.is_empty() && reach == Reach::ListedPorts {
            return Err(ObjectError::field("spec.ports", "a Service needs at least one port"));
        }
        let external_policy = policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy")?;
        let health_check_node_port = match spec.health_check_node_port {
            Some(port) if kind == "LoadBalancer" && external_policy == TrafficPolicy::Local && port != 0 => {
                Some(port_number(port, "spec.healthCheckNodePort")?)
            }
            _ => None,
        };
        Ok(Some(Self {
            cluster_ips,
            external_ips: addresses(spec.external_ips.iter().flatten(), "spec.externalIPs")?,
            load_balancer_ips: if kind == "LoadBalancer" { load_balancer_ips(object)? } else { Box::default() },
            source_ranges: source_ranges(spec)?,
            ports,
            reach,
            internal_policy: policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy")?,
            external_policy,
            affinity: affinity(spec)?,
            balance: Balance::parse(annotation(BALANCE_ANNOTATION))?,
            weights: Weights::parse(annotation(WEIGHTS_ANNOTATION))?,
            health_check_node_port,
        }))
    }

    /// The families that it has a ClusterIP of.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.cluster_ips.iter().map(|address| Family::of(*address))
    }
}

impl ServicePort {
    fn from_object(port: &api::ServicePort, has_node_ports: bool) -> Result<Self, ObjectError> {
        let protocol = Protocol::parse(port.protocol.as_deref(), "spec.ports.protocol")?;
        let node_port = port.node_port.filter(|number| has_node_ports && *number != 0);
        Ok(Self {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: port_number(port.port, "spec.ports.port")?,
            node_port: node_port.map(|number| port_number(number, "spec.ports.nodePort")).transpose()?,
        })
    }
}

impl Balance {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Random, Self::RoundRobin, Self::SourceHash, Self::Jhash];

    /// Its number in a tag: two bits.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Random => 0,
            Self::RoundRobin => 1,
            Self::SourceHash => 2,
            Self::Jhash => 3,
        }
    }

    /// Its name in an annotation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::SourceHash => "source-hash",
            Self::Jhash => "jhash",
        }
    }

    fn parse(text: Option<&str>) -> Result<Self, ObjectError> {
        let Some(text) = text else { return Ok(Self::default()) };
        Self::ALL.into_iter().find(|balance| balance.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            ObjectError::field(annotation_field(BALANCE_ANNOTATION), format!("`{text}` is none of {names}"))
        })
    }
}

impl Weights {
    fn parse(text: Option<&str>) -> Result<Self, ObjectError> {
        let pairs = text.unwrap_or_default().split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let read = |pair: &str| {
            let (prefix, weight) = pair.split_once('=')?;
            let weight = weight.trim().parse().ok().filter(|weight| *weight <= 100)?;
            Some((prefix.trim().to_owned(), weight))
        };
        let refuse = |pair: &str| {
            let what = format!("`{pair}` is no beginning of a pod's name with a weight of 0 to 100, such as blue=9");
            ObjectError::field(annotation_field(WEIGHTS_ANNOTATION), what)
        };
        pairs.map(|pair| read(pair).ok_or_else(|| refuse(pair))).collect::<Result<_, _>>().map(Self)
    }

    /// The weight of an endpoint, by the name of its pod if it has one.
    #[must_use]
    pub fn of(&self, pod: Option<&str>) -> u8 {
        let Some(pod) = pod else { return 1 };
        let matching = self.0.iter().filter(|(prefix, _)| pod.starts_with(prefix.as_str()));
        matching.max_by_key(|(prefix, _)| prefix.len()).map_or(1, |(_, weight)| *weight)
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
    pub const fn number(self) -> u8 {
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

fn annotation_field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

/// Reads the number of a port.
///
/// # Errors
///
/// [`ObjectError`] names the field called `field`.
pub fn port_number(number: i32, field: &str) -> Result<NonZeroU16, ObjectError> {
    let checked = u16::try_from(number).ok().and_then(NonZeroU16::new);
    checked.ok_or_else(|| ObjectError::field(field, format!("{number} is not within 1 to 65535")))
}

fn reach(text: Option<&str>) -> Result<Reach, ObjectError> {
    match text {
        None | Some("false") => Ok(Reach::ListedPorts),
        Some("true") => Ok(Reach::AllProtocols),
        Some(other) => {
            let what = format!("`{other}` is neither `true` nor `false`");
            Err(ObjectError::field(annotation_field(ALL_PROTOCOLS_ANNOTATION), what))
        }
    }
}

fn policy(text: Option<&str>, field: &str) -> Result<TrafficPolicy, ObjectError> {
    match text {
        None | Some("Cluster" | "") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(ObjectError::field(field, format!("`{other}` is neither `Cluster` nor `Local`"))),
    }
}

/// Session affinity: for how long, if at all.
fn affinity(spec: &api::ServiceSpec) -> Result<Option<Duration>, ObjectError> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => Ok(None),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            let seconds = match config.and_then(|client_ip| client_ip.timeout_seconds) {
                None => DEFAULT_AFFINITY_SECONDS,
                Some(seconds) => u32::try_from(seconds)
                    .ok()
                    .filter(|seconds| (1..=LONGEST_AFFINITY_SECONDS).contains(seconds))
                    .ok_or_else(|| {
                        ObjectError::field(field, format!("{seconds} is not within 1 to {LONGEST_AFFINITY_SECONDS}"))
                    })?,
            };
            Ok(Some(Duration::from_secs(seconds.into())))
        }
        Some(other) => {
            Err(ObjectError::field("spec.sessionAffinity", format!("`{other}` is neither `None` nor `ClientIP`")))
        }
    }
}

/// The first address of each family; `clusterIPs` is the newer field, and `clusterIP` its first entry.
fn cluster_ips(spec: &api::ServiceSpec) -> Result<Box<[IpAddr]>, ObjectError> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let all = addresses(listed.filter(|text| !text.is_empty() && *text != "None"), "spec.clusterIP")?;
    let first = |family| all.iter().copied().find(|address| Family::of(*address) == family);
    Ok([first(Family::V4), first(Family::V6)].into_iter().flatten().collect())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>, field: &str) -> Result<Box<[IpAddr]>, ObjectError> {
    let refuse = |text: &str| ObjectError::field(field, format!("`{text}` is not an IP address"));
    let mut addresses = texts.map(|text| text.parse().map_err(|_| refuse(text))).collect::<Result<Vec<IpAddr>, _>>()?;
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    Ok(addresses.into())
}

/// The addresses whose packets come as the client sent them. A balancer of mode `Proxy` ends connections itself, and its packets come from it.
fn load_balancer_ips(object: &api::Service) -> Result<Box<[IpAddr]>, ObjectError> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let as_sent = ingress.filter(|point| point.ip_mode.as_deref() != Some("Proxy"));
    addresses(as_sent.filter_map(|point| point.ip.as_ref()), "status.loadBalancer.ingress.ip")
}

/// The networks of clients of the load balancer.
fn source_ranges(spec: &api::ServiceSpec) -> Result<Box<[IpNet]>, ObjectError> {
    let read = |text: &String| {
        let network: Option<IpNet> = text.trim().parse().ok();
        let refuse = || {
            ObjectError::field("spec.loadBalancerSourceRanges", format!("`{text}` is no network such as 192.0.2.0/24"))
        };
        network.map(|network| network.trunc()).ok_or_else(refuse)
    };
    let ranges = spec.load_balancer_source_ranges.iter().flatten().map(read).collect::<Result<Vec<_>, _>>()?;
    // Everybody of a family is no restriction of it; overlapping ones are one.
    Ok(IpNet::aggregate(&ranges).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Result<Option<Service>, ObjectError> {
        Service::from_object(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn names_are_sorted_by_namespace_first() {
        let [short, long] = ["shop", "shop-eu"].map(|namespace| ServiceName::new(namespace, "web"));
        assert!(short < long && short.to_string() > long.to_string());
        assert_eq!((long.namespace(), long.name(), long.to_string().as_str()), ("shop-eu", "web", "shop-eu/web"));
    }

    #[test]
    fn several_ports_keep_their_names_and_protocols() {
        let service = read(json!({"metadata": {"name": "dns"}, "spec": {"clusterIP": "100.64.0.10", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]}}));
        let ports = service.unwrap().unwrap().ports;
        let expected = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];
        assert_eq!(ports.iter().map(|port| (&*port.name, port.protocol)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_dual_stack_service_has_an_address_of_each_family() {
        let service = read(
            json!({"spec": {"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "100.64.0.1"], "ports": [{"port": 80}]}}),
        );
        let expected: [IpAddr; 2] = ["100.64.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(*service.unwrap().unwrap().cluster_ips, expected);
    }

    #[test]
    fn a_load_balancer_has_all_kinds_of_addresses() {
        let service = read(json!({"spec": {
            "type": "LoadBalancer", "clusterIP": "100.64.0.1", "externalIPs": ["198.51.100.1", "198.51.100.1"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999, "sessionAffinity": "ClientIP",
            "loadBalancerSourceRanges": ["192.0.2.7/24", "192.0.2.128/25"], "ports": [{"port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.7"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "lb.example.org"}]}}}));
        let service = service.unwrap().unwrap();
        let text = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&service.external_ips), ["198.51.100.1"]);
        assert_eq!(text(&service.load_balancer_ips), ["203.0.113.7"]);
        assert_eq!(*service.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!((service.external_policy, service.affinity), (TrafficPolicy::Local, Some(Duration::from_hours(3))));
        assert_eq!(service.ports[0].node_port.unwrap().get(), 30080);
        assert_eq!(service.health_check_node_port.unwrap().get(), 30999);
    }

    #[test]
    fn annotations_choose_how_endpoints_are_chosen() {
        let service = |annotations: serde_json::Value| {
            read(
                json!({"metadata": {"annotations": annotations}, "spec": {"clusterIP": "100.64.0.1", "ports": [{"port": 80}]}}),
            )
        };
        for balance in Balance::ALL {
            let read = service(json!({BALANCE_ANNOTATION: balance.name()})).unwrap().unwrap();
            assert_eq!(read.balance, balance);
        }
        let error = service(json!({BALANCE_ANNOTATION: "best"})).unwrap_err().to_string();
        assert!(error.contains("`best` is none of random, round-robin, source-hash, jhash"), "{error}");
        let weights = service(json!({WEIGHTS_ANNOTATION: "blue=9, blue-canary=0,green=1"})).unwrap().unwrap().weights;
        let of = |pod| weights.of(pod);
        assert_eq!(
            [of(Some("blue-1")), of(Some("blue-canary-1")), of(Some("green")), of(Some("x")), of(None)],
            [9, 0, 1, 1, 1]
        );
        assert!(service(json!({WEIGHTS_ANNOTATION: "blue"})).is_err());
        assert!(service(json!({WEIGHTS_ANNOTATION: "blue=101"})).is_err());
    }

    #[test]
    fn services_that_are_not_ours_are_left_alone() {
        let ports = json!([{"port": 80}]);
        for object in [
            json!({"spec": {"clusterIP": "None", "ports": ports}}),
            json!({"spec": {"ports": ports}}),
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
        let sticky = json!({"clusterIP": "100.64.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}});
        assert!(refusal(sticky).contains("0 is not within 1 to 86400"));
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
