//! Endpoints: the addresses behind a Service, as EndpointSlices list them, and which of them may take a connection.
//!
//! A Service's endpoints are spread over any number of slices (a hundred endpoints each by default), written by a controller or
//! by hand. A slice names its Service by a label. While an endpoint moves from one slice to another it may stand in both.
//!
//! Source: Kubernetes API `discovery/v1` EndpointSlice; KEP-1669 (terminating endpoints), `pkg/proxy/topology.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;

use k8s_openapi::api::discovery::v1 as api;

use crate::error::ObjectError;
use crate::service::{Protocol, ServiceName, ServicePort, TrafficPolicy};

/// The label that names a slice's Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label of slices whose Service is headless: nobody proxies those.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// One EndpointSlice, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ServiceName,
    /// The endpoints it lists.
    pub endpoints: Vec<Endpoint>,
    /// The ports that all of them serve.
    pub ports: Vec<SlicePort>,
}

/// One endpoint, on all of its slice's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// What it can be used for.
    pub condition: Condition,
    /// The worker it runs on, if the slice says so.
    pub node: Option<String>,
}

/// What an endpoint can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Takes connections.
    Ready,
    /// Shutting down but still answering: takes connections only if no endpoint is ready.
    TerminatingButServing,
    /// Takes none.
    NotReady,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port that it stands for.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: NonZeroU16,
}

/// What remains of a Service's endpoints for one kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice<T> {
    /// Connections are spread evenly over these, sorted; never empty.
    Spread(BTreeSet<T>),
    /// There is none in the cluster: refuse, so that the client knows at once.
    Refuse,
    /// There are some, but policy Local excludes all of them: drop, so that a load balancer in front tries another worker.
    Drop,
}

impl Slice {
    /// Takes from a Kubernetes object what the proxy needs.
    ///
    /// `None` for a slice that is of no use to us: of IPv6 addresses or host names, of a headless Service, or of none at all.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] names the field that cannot be understood.
    pub fn from_object(namespace: &str, object: &api::EndpointSlice) -> Result<Option<Self>, ObjectError> {
        let labels = object.metadata.labels.as_ref();
        let is_headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS_LABEL));
        let service =
            labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)).filter(|name| !name.is_empty() && !is_headless);
        let Some(service) = service.filter(|_| object.address_type == "IPv4") else { return Ok(None) };
        Ok(Some(Self {
            service: ServiceName::new(namespace, service),
            endpoints: object.endpoints.iter().map(Endpoint::from_object).collect::<Result<_, _>>()?,
            ports: object
                .ports
                .iter()
                .flatten()
                .filter_map(|port| SlicePort::from_object(port).transpose())
                .collect::<Result<_, _>>()?,
        }))
    }
}

impl Endpoint {
    fn from_object(endpoint: &api::Endpoint) -> Result<Self, ObjectError> {
        // All addresses of one endpoint are the same pod's; clients may be content with the first.
        let text = endpoint
            .addresses
            .first()
            .ok_or_else(|| ObjectError::field("endpoints.addresses", "an endpoint needs an address"))?;
        let address: Ipv4Addr = text
            .parse()
            .map_err(|_| ObjectError::field("endpoints.addresses", format!("`{text}` is not an IPv4 address")))?;
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(ObjectError::field("endpoints.addresses", format!("{address} cannot be the address of a pod")));
        }
        let conditions = endpoint.conditions.as_ref();
        // An unknown `ready` counts as ready, an unknown `serving` as whatever `ready` is: discovery/v1, EndpointConditions.
        let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
        let is_terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        let condition = match (is_ready, is_serving && is_terminating) {
            (true, _) => Condition::Ready,
            (false, true) => Condition::TerminatingButServing,
            (false, false) => Condition::NotReady,
        };
        Ok(Self { address, condition, node: endpoint.node_name.clone() })
    }
}

impl SlicePort {
    /// A port without a number stands for "all ports", which a ClusterIP cannot express; such a one is left out.
    fn from_object(port: &api::EndpointPort) -> Result<Option<Self>, ObjectError> {
        let Some(number) = port.port else { return Ok(None) };
        let checked = u16::try_from(number).ok().and_then(NonZeroU16::new);
        let checked =
            checked.ok_or_else(|| ObjectError::field("ports.port", format!("{number} is not within 1 to 65535")))?;
        let protocol = Protocol::parse(port.protocol.as_deref(), "ports.protocol")?;
        Ok(Some(Self { name: port.name.clone().unwrap_or_default(), protocol, port: checked }))
    }
}

/// Chooses where connections to `port` go: merged over all slices, each address and port once.
///
/// `node` is the name of this worker, which only policy Local asks for.
pub fn choose_for_port<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &ServicePort,
    policy: TrafficPolicy,
    node: &str,
) -> Choice<SocketAddrV4> {
    let targets = slices.into_iter().flat_map(|slice| {
        let ports = slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        ports.flat_map(|own| {
            slice.endpoints.iter().map(|endpoint| (SocketAddrV4::new(endpoint.address, own.port.get()), endpoint))
        })
    });
    choose(targets, policy, node)
}

/// Chooses where packets of all protocols go: whatever the slices say of ports, each address once.
pub fn choose_for_any<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    policy: TrafficPolicy,
    node: &str,
) -> Choice<Ipv4Addr> {
    choose(
        slices.into_iter().flat_map(|slice| &slice.endpoints).map(|endpoint| (endpoint.address, endpoint)),
        policy,
        node,
    )
}

/// Ready endpoints; if there are none, those that terminate but still serve; with policy Local, of this worker's own.
fn choose<'a, T: Ord + Copy>(
    targets: impl Iterator<Item = (T, &'a Endpoint)>,
    policy: TrafficPolicy,
    node: &str,
) -> Choice<T> {
    // Two slices may disagree about an endpoint that moves between them; the better condition counts.
    let mut merged: BTreeMap<T, (Condition, bool)> = BTreeMap::new();
    for (target, endpoint) in targets {
        let is_local = endpoint.node.as_deref() == Some(node);
        let (condition, was_local) = merged.entry(target).or_insert((endpoint.condition, is_local));
        if endpoint.condition.rank() > condition.rank() {
            *condition = endpoint.condition;
        }
        *was_local |= is_local;
    }
    let usable = |is_candidate: &dyn Fn(bool) -> bool| {
        let of = |wanted| {
            merged.iter().filter(move |(_, (c, local))| *c == wanted && is_candidate(*local)).map(|(target, _)| *target)
        };
        let ready: BTreeSet<T> = of(Condition::Ready).collect();
        if ready.is_empty() { of(Condition::TerminatingButServing).collect() } else { ready }
    };
    let everywhere = usable(&|_| true);
    let chosen = match policy {
        TrafficPolicy::Cluster => everywhere.clone(),
        TrafficPolicy::Local => usable(&|is_local| is_local),
    };
    match (chosen.is_empty(), everywhere.is_empty()) {
        (false, _) => Choice::Spread(chosen),
        (true, false) => Choice::Drop,
        (true, true) => Choice::Refuse,
    }
}

impl Condition {
    fn rank(self) -> u8 {
        match self {
            Self::NotReady => 0,
            Self::TerminatingButServing => 1,
            Self::Ready => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(endpoints: &Value) -> Slice {
        let object = json!({"metadata": {"labels": {SERVICE_NAME_LABEL: "web"}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]});
        Slice::from_object("shop", &serde_json::from_value(object).unwrap()).unwrap().unwrap()
    }

    fn http() -> ServicePort {
        ServicePort { name: "http".to_owned(), protocol: Protocol::Tcp, port: NonZeroU16::new(80).unwrap() }
    }

    fn choice(slices: &[Slice], policy: TrafficPolicy) -> Vec<String> {
        match choose_for_port(slices, &http(), policy, "w1") {
            Choice::Spread(targets) => targets.iter().map(ToString::to_string).collect(),
            Choice::Refuse => vec!["refuse".to_owned()],
            Choice::Drop => vec!["drop".to_owned()],
        }
    }

    #[test]
    fn slices_are_merged_and_duplicates_counted_once() {
        let one = slice(&json!([{"addresses": ["11.0.0.2"]}, {"addresses": ["11.0.0.1"]}]));
        let two =
            slice(&json!([{"addresses": ["11.0.0.2"], "conditions": {"ready": false}}, {"addresses": ["11.0.0.3"]}]));
        assert_eq!(choice(&[one, two], TrafficPolicy::Cluster), ["11.0.0.1:8080", "11.0.0.2:8080", "11.0.0.3:8080"]);
    }

    #[test]
    fn terminating_endpoints_serve_only_while_none_is_ready() {
        let leaving =
            json!({"addresses": ["11.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let gone = json!({"addresses": ["11.0.0.2"], "conditions": {"ready": false}});
        let ready = json!({"addresses": ["11.0.0.3"], "conditions": {"ready": true}});
        assert_eq!(choice(&[slice(&json!([leaving, gone, ready]))], TrafficPolicy::Cluster), ["11.0.0.3:8080"]);
        assert_eq!(choice(&[slice(&json!([leaving, gone]))], TrafficPolicy::Cluster), ["11.0.0.1:8080"]);
        assert_eq!(choice(&[slice(&json!([gone]))], TrafficPolicy::Cluster), ["refuse"]);
    }

    #[test]
    fn policy_local_keeps_to_this_worker_and_drops_when_others_have_endpoints() {
        let here = json!({"addresses": ["11.0.0.1"], "nodeName": "w1"});
        let there = json!({"addresses": ["11.0.0.2"], "nodeName": "w2"});
        assert_eq!(choice(&[slice(&json!([here, there]))], TrafficPolicy::Local), ["11.0.0.1:8080"]);
        assert_eq!(choice(&[slice(&json!([there]))], TrafficPolicy::Local), ["drop"]);
        assert_eq!(choice(&[], TrafficPolicy::Local), ["refuse"]);
    }

    #[test]
    fn a_port_of_another_name_or_protocol_has_no_endpoints() {
        let slices = [slice(&json!([{"addresses": ["11.0.0.1"]}]))];
        let metrics = ServicePort { name: "metrics".to_owned(), ..http() };
        assert_eq!(choose_for_port(&slices, &metrics, TrafficPolicy::Cluster, "w1"), Choice::Refuse);
        let udp = ServicePort { protocol: Protocol::Udp, ..http() };
        assert_eq!(choose_for_port(&slices, &udp, TrafficPolicy::Cluster, "w1"), Choice::Refuse);
        assert_eq!(
            choose_for_any(&slices, TrafficPolicy::Cluster, "w1"),
            Choice::Spread([Ipv4Addr::new(11, 0, 0, 1)].into())
        );
    }

    #[test]
    fn foreign_and_headless_slices_are_left_alone_and_bad_addresses_named() {
        let read = |kind: &str, labels: Value, address: &str| {
            let object =
                json!({"metadata": {"labels": labels}, "addressType": kind, "endpoints": [{"addresses": [address]}]});
            Slice::from_object("shop", &serde_json::from_value(object).unwrap())
        };
        let label = json!({SERVICE_NAME_LABEL: "web"});
        assert_eq!(read("IPv6", label.clone(), "fd00::1").unwrap(), None);
        assert_eq!(read("IPv4", json!({}), "11.0.0.1").unwrap(), None);
        assert_eq!(read("IPv4", json!({SERVICE_NAME_LABEL: "web", HEADLESS_LABEL: ""}), "11.0.0.1").unwrap(), None);
        let refusal = read("IPv4", label.clone(), "11.0.0.256").unwrap_err().to_string();
        assert_eq!(refusal, "endpoints.addresses: `11.0.0.256` is not an IPv4 address");
        assert!(read("IPv4", label, "127.0.0.1").is_err());
    }
}
