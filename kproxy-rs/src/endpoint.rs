//! Endpoints: the addresses behind a Service, as EndpointSlices list them, and which of them may take a connection.
//!
//! A Service's endpoints are spread over any number of slices (a hundred endpoints each by default), written by a controller or
//! by hand. A slice names its Service by a label. While an endpoint moves from one slice to another it may stand in both.
//!
//! Source: Kubernetes API `discovery/v1` EndpointSlice; KEP-1669 (terminating endpoints), `pkg/proxy/topology.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use k8s_openapi::api::discovery::v1 as api;

use crate::entry::Target;
use crate::error::ObjectError;
use crate::node::Node;
use crate::service::{Protocol, ServiceName, ServicePort, TrafficPolicy, Weights, port_number};
use linux_net::ip::Family;

/// The label that names a slice's Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label of slices whose Service is headless: nobody proxies those.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// One EndpointSlice, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ServiceName,
    /// The family of all its addresses.
    pub family: Family,
    /// The endpoints it lists.
    pub endpoints: Box<[Endpoint]>,
    /// The ports that all of them serve.
    pub ports: Box<[SlicePort]>,
}

/// One endpoint, on all of its slice's ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// What it can be used for.
    pub condition: Condition,
    /// The worker it runs on, if the slice says so.
    pub node: Option<Box<str>>,
    /// The name of the pod, if the slice says so.
    pub pod: Option<Box<str>>,
    /// The zones whose clients should prefer it; empty for no hint.
    pub zones: Box<[String]>,
    /// The workers whose clients should prefer it; empty for no hint.
    pub nodes: Box<[String]>,
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
    pub name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: NonZeroU16,
}

/// What remains of a Service's endpoints for one kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice<T> {
    /// Connections are spread over these, sorted, each with its weight; never empty, and some weight is not 0.
    Spread(Vec<(T, u8)>),
    /// There is none in the cluster: refuse, so that the client knows at once.
    Refuse,
    /// There are some, but policy Local excludes all of them: drop, so that a load balancer in front tries another worker.
    Drop,
}

impl Slice {
    /// Takes from a Kubernetes object what the proxy needs.
    ///
    /// `None` for a slice that is of no use to us: of host names, of a headless Service, or of none at all.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] names the field that cannot be understood.
    pub fn from_object(namespace: &str, object: &api::EndpointSlice) -> Result<Option<Self>, ObjectError> {
        let labels = object.metadata.labels.as_ref();
        let is_headless = labels.is_some_and(|labels| labels.contains_key(HEADLESS_LABEL));
        let service =
            labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL)).filter(|name| !name.is_empty() && !is_headless);
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return Ok(None),
        };
        let Some(service) = service else { return Ok(None) };
        let endpoints = object.endpoints.iter().map(|endpoint| Endpoint::from_object(endpoint, family));
        Ok(Some(Self {
            service: ServiceName::new(namespace, service),
            family,
            endpoints: endpoints.collect::<Result<_, _>>()?,
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
    fn from_object(endpoint: &api::Endpoint, family: Family) -> Result<Self, ObjectError> {
        // All addresses of one endpoint are the same pod's; clients may be content with the first.
        let text = endpoint
            .addresses
            .first()
            .ok_or_else(|| ObjectError::field("endpoints.addresses", "an endpoint needs an address"))?;
        let address: Option<IpAddr> = text.parse().ok().filter(|address| Family::of(*address) == family);
        let address = address
            .ok_or_else(|| ObjectError::field("endpoints.addresses", format!("`{text}` is not an {family} address")))?;
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
        let hints = endpoint.hints.as_ref();
        Ok(Self {
            address,
            condition,
            node: endpoint.node_name.as_deref().map(Into::into),
            pod: endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()).map(Into::into),
            zones: hints
                .and_then(|hints| hints.for_zones.as_ref())
                .into_iter()
                .flatten()
                .map(|zone| zone.name.clone())
                .collect(),
            nodes: hints
                .and_then(|hints| hints.for_nodes.as_ref())
                .into_iter()
                .flatten()
                .map(|node| node.name.clone())
                .collect(),
        })
    }
}

impl SlicePort {
    /// A port without a number stands for "all ports", which a ClusterIP cannot express; such a one is left out.
    fn from_object(port: &api::EndpointPort) -> Result<Option<Self>, ObjectError> {
        let Some(number) = port.port else { return Ok(None) };
        Ok(Some(Self {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: Protocol::parse(port.protocol.as_deref(), "ports.protocol")?,
            port: port_number(number, "ports.port")?,
        }))
    }
}

/// An endpoint that several slices may list, as it counts.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    condition: Condition,
    is_local: bool,
    endpoint: &'a Endpoint,
}

/// The candidates for one port of a Service: merged over all slices, each address and port once.
#[derive(Debug)]
pub struct Candidates<'a, T>(BTreeMap<T, Candidate<'a>>);

/// Finds the candidates for connections to `port`, on this worker `node` and elsewhere.
pub fn candidates_for_port<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &ServicePort,
    node: &Node,
) -> Candidates<'a, Target> {
    let targets = slices.into_iter().flat_map(|slice| {
        let ports = slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        let ports: Vec<NonZeroU16> = ports.map(|own| own.port).collect();
        ports.into_iter().flat_map(|port| {
            slice.endpoints.iter().map(move |endpoint| (Target { address: endpoint.address, port }, endpoint))
        })
    });
    Candidates::merged(targets, node)
}

/// Finds the candidates for packets of all protocols: whatever the slices say of ports, each address once.
pub fn candidates_for_any<'a>(slices: impl IntoIterator<Item = &'a Slice>, node: &Node) -> Candidates<'a, IpAddr> {
    let endpoints = slices.into_iter().flat_map(|slice| &slice.endpoints);
    Candidates::merged(endpoints.map(|endpoint| (endpoint.address, endpoint)), node)
}

impl<'a, T: Ord + Copy> Candidates<'a, T> {
    fn merged(targets: impl Iterator<Item = (T, &'a Endpoint)>, node: &Node) -> Self {
        // Two slices may disagree about an endpoint that moves between them; the better condition counts.
        let mut merged: BTreeMap<T, Candidate<'a>> = BTreeMap::new();
        for (target, endpoint) in targets {
            let is_local = endpoint.node.as_deref() == Some(node.name.as_str());
            let condition = endpoint.condition;
            let candidate = merged.entry(target).or_insert(Candidate { condition, is_local, endpoint });
            if condition.rank() > candidate.condition.rank() {
                (candidate.condition, candidate.endpoint) = (condition, endpoint);
            }
            candidate.is_local |= is_local;
        }
        Self(merged)
    }

    /// Chooses for a policy: ready endpoints; if there are none, those that terminate but still serve. With policy Local those of this
    /// worker alone; with policy Cluster those near this worker, where hints say which.
    #[must_use]
    pub fn choose(&self, policy: TrafficPolicy, node: &Node, weights: &Weights) -> Choice<T> {
        let everywhere = self.usable(|_| true);
        let chosen = match policy {
            TrafficPolicy::Cluster => near(&everywhere, node),
            TrafficPolicy::Local => self.usable(|candidate| candidate.is_local),
        };
        let weighted: Vec<(T, u8)> =
            chosen.iter().map(|(target, endpoint)| (*target, weights.of(endpoint.pod.as_deref()))).collect();
        match (weighted.iter().any(|(_, weight)| *weight > 0), everywhere.is_empty()) {
            (true, _) => Choice::Spread(weighted),
            // All are weighted 0, or none is here.
            (false, false) => Choice::Drop,
            (false, true) => Choice::Refuse,
        }
    }

    /// How many of this worker's endpoints take connections: what a load balancer asks for.
    #[must_use]
    pub fn local_count(&self) -> usize {
        self.usable(|candidate| candidate.is_local).len()
    }

    fn usable(&self, is_candidate: impl Fn(&Candidate<'a>) -> bool) -> Vec<(T, &'a Endpoint)> {
        let of = |wanted| {
            let candidates =
                self.0.iter().filter(|(_, candidate)| candidate.condition == wanted && is_candidate(candidate));
            candidates.map(|(target, candidate)| (*target, candidate.endpoint)).collect::<Vec<_>>()
        };
        let ready = of(Condition::Ready);
        if ready.is_empty() { of(Condition::TerminatingButServing) } else { ready }
    }
}

/// Keeps the endpoints whose hints name this worker, or else its zone, provided that every endpoint has such a hint and one names us.
///
/// Source: Kubernetes `pkg/proxy/topology.go`, `canUseTopology`: half of a hint is none, since the others would be overloaded.
fn near<'a, T: Copy>(all: &[(T, &'a Endpoint)], node: &Node) -> Vec<(T, &'a Endpoint)> {
    let by = |hints: fn(&Endpoint) -> &[String], own: &str| {
        let complete = all.iter().all(|(_, endpoint)| !hints(endpoint).is_empty());
        let near: Vec<_> =
            all.iter().filter(|(_, endpoint)| hints(endpoint).iter().any(|hint| hint == own)).copied().collect();
        (complete && !near.is_empty()).then_some(near)
    };
    let by_zone = || by(|endpoint| &endpoint.zones, node.zone.as_deref()?);
    by(|endpoint| &endpoint.nodes, &node.name).or_else(by_zone).unwrap_or_else(|| all.to_vec())
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
        let port = NonZeroU16::new(80).unwrap();
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port, node_port: None }
    }

    fn w1() -> Node {
        Node { name: "w1".to_owned(), zone: Some("east".to_owned()) }
    }

    fn choice(slices: &[Slice], policy: TrafficPolicy) -> Vec<String> {
        match candidates_for_port(slices, &http(), &w1()).choose(policy, &w1(), &Weights::default()) {
            Choice::Spread(targets) => targets.iter().map(|(target, _)| target.to_string()).collect(),
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
        let metrics = ServicePort { name: "metrics".into(), ..http() };
        let choose = |port: &ServicePort| {
            candidates_for_port(&slices, port, &w1()).choose(TrafficPolicy::Cluster, &w1(), &Weights::default())
        };
        assert_eq!(choose(&metrics), Choice::Refuse);
        assert_eq!(choose(&ServicePort { protocol: Protocol::Udp, ..http() }), Choice::Refuse);
        assert_eq!(
            candidates_for_any(&slices, &w1()).choose(TrafficPolicy::Cluster, &w1(), &Weights::default()),
            Choice::Spread(vec![([11, 0, 0, 1].into(), 1)])
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
        assert_eq!(read("FQDN", label.clone(), "web.example.org").unwrap(), None);
        assert_eq!(read("IPv6", label.clone(), "fd00::1").unwrap().unwrap().family, Family::V6);
        assert_eq!(read("IPv4", json!({}), "11.0.0.1").unwrap(), None);
        assert_eq!(read("IPv4", json!({SERVICE_NAME_LABEL: "web", HEADLESS_LABEL: ""}), "11.0.0.1").unwrap(), None);
        let refusal = read("IPv4", label.clone(), "11.0.0.256").unwrap_err().to_string();
        assert_eq!(refusal, "endpoints.addresses: `11.0.0.256` is not an IPv4 address");
        assert!(read("IPv4", label, "127.0.0.1").is_err());
    }

    #[test]
    fn hints_keep_traffic_near_when_they_are_complete() {
        let east = json!({"addresses": ["11.0.0.1"], "hints": {"forZones": [{"name": "east"}]}});
        let west = json!({"addresses": ["11.0.0.2"], "hints": {"forZones": [{"name": "west"}]}});
        let none = json!({"addresses": ["11.0.0.3"]});
        let here =
            json!({"addresses": ["11.0.0.4"], "hints": {"forNodes": [{"name": "w1"}], "forZones": [{"name": "east"}]}});
        let cluster = |endpoints: Value| choice(&[slice(&endpoints)], TrafficPolicy::Cluster);
        assert_eq!(cluster(json!([east, west])), ["11.0.0.1:8080"]);
        assert_eq!(cluster(json!([east, west, none])).len(), 3, "one lacks a hint");
        assert_eq!(cluster(json!([west])), ["11.0.0.2:8080"], "nobody is near");
        assert_eq!(cluster(json!([here])), ["11.0.0.4:8080"]);
        assert_eq!(cluster(json!([here, east])).len(), 2, "hints for workers are not complete, those for zones are");
    }

    #[test]
    fn an_endpoint_weighted_0_gets_nothing() {
        let pod = |last: u8, name: &str| json!({"addresses": [format!("11.0.0.{last}")], "targetRef": {"kind": "Pod", "name": name}});
        let slices = [slice(&json!([pod(1, "blue-1"), pod(2, "green-1")]))];
        let weights = |text: &str| {
            let object = json!({"metadata": {"annotations": {crate::service::WEIGHTS_ANNOTATION: text}},
                "spec": {"clusterIP": "100.64.0.1", "ports": [{"port": 80}]}});
            crate::service::Service::from_object(&serde_json::from_value(object).unwrap()).unwrap().unwrap().weights
        };
        let choose = |text| {
            let candidates = candidates_for_port(&slices, &http(), &w1());
            match candidates.choose(TrafficPolicy::Cluster, &w1(), &weights(text)) {
                Choice::Spread(targets) => targets.iter().map(|(_, weight)| *weight).collect(),
                Choice::Refuse | Choice::Drop => vec![],
            }
        };
        assert_eq!(choose("blue=9"), [9, 1]);
        assert_eq!(choose("blue=0"), [0, 1]);
        assert_eq!(choose("blue=0,green=0"), [0; 0]);
    }
}
