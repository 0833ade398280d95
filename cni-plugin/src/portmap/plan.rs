//! What a configuration and a container's addresses mean in nftables. Pure: no kernel here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use linux_net::conntrack::Filter;
use linux_net::ip;
use linux_net::nft::{
    Batch, Chain, ChainKind, Ct, Data, Element, Expr, FibAddress, FibResult, Field, Hook, HookPoint, MasqueradeFlags,
    Meta, NatTarget, Op, Policy, Priority, Rule, Set, Spec, Statement, Type, Value,
};

use crate::env::Environment;
use crate::error::{Error, Result};
use crate::nftables::{Claim, Words};
use crate::portmap::config::{Config, Mapping, Protocol};
use crate::result::CniResult;

/// The chain that looks into the maps.
const HOSTPORTS: &str = "hostports";

/// `fib daddr type local`: an address of this machine.
const LOCAL: u32 = 2; // RTN_LOCAL

/// What an ADD makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tables, maps, chains and rules, for the families of the container.
    pub frame: Batch,
    /// The container's elements.
    pub claims: Vec<Claim>,
    /// Whether packets from 127.0.0.0/8 must be able to reach the container.
    pub needs_route_localnet: bool,
    /// The connections that go elsewhere until they are forgotten.
    pub contradicted: Vec<Filter>,
    addresses: Vec<IpAddr>,
}

impl Plan {
    /// Plans the mappings of a container with these addresses, one of each family at most.
    ///
    /// # Errors
    ///
    /// Code 7 when two mappings of the container have the same host port.
    pub fn new(config: &Config, addresses: &[IpNet]) -> Result<Self> {
        let mut plan = Self {
            frame: Batch::new(),
            claims: Vec::new(),
            needs_route_localnet: false,
            contradicted: Vec::new(),
            addresses: addresses.iter().map(IpNet::addr).collect(),
        };
        for address in addresses {
            let sets = Sets::of(&Words::of(ip::Family::of(address.addr())));
            let mappings: Vec<_> = config.mappings.iter().filter(|mapping| applies(mapping, address)).collect();
            if mappings.is_empty() {
                continue;
            }
            let (mut everywhere, mut somewhere) = (BTreeMap::new(), BTreeMap::new());
            for mapping in &mappings {
                let element = element(mapping, address);
                let map = if specific(mapping).is_some() { &mut somewhere } else { &mut everywhere };
                if map.insert(element.key.clone(), element.clone()).is_some_and(|other| other != element) {
                    let msg =
                        format!("portMappings: host port {} leads to two ports of the container", mapping.host_port);
                    return Err(Error::config(msg));
                }
            }
            let sources = if config.snat { sources(config, address) } else { Vec::new() };
            plan.needs_route_localnet |= config.snat && address.addr().is_ipv4();
            plan.contradicted.extend(mappings.iter().filter(|m| m.protocol.lingers()).map(|m| to_host_port(m)));
            plan.frame.extend(sets.frame());
            plan.claims.extend([
                Claim { set: sets.hostports, elements: everywhere.into_values().collect() },
                Claim { set: sets.hostip_hostports, elements: somewhere.into_values().collect() },
                Claim { set: sets.sources, elements: sources },
            ]);
        }
        Ok(plan)
    }

    /// Whether an element is about an address that is this container's now.
    #[must_use]
    pub fn leads_to_the_container(&self, element: &Element) -> bool {
        let to = match &element.data {
            Some(Data::Value(values)) => values.first(),
            Some(Data::Verdict(_)) | None => element.key.last(),
        };
        to.is_some_and(|to| self.addresses.iter().any(|address| Value::from(*address) == *to))
    }
}

/// The container's addresses that ports lead to: the first of each family, as the Go plugin has it.
///
/// # Errors
///
/// Code 4 when `CNI_IFNAME` is missing.
pub fn container_addresses(env: &Environment, result: &CniResult) -> Result<Vec<IpNet>> {
    let ifname = env.ifname()?.as_str();
    let is_of_container = |index: Option<usize>| {
        let interface = index.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    };
    let addresses = || result.ips.iter().filter(|ip| is_of_container(ip.interface)).map(|ip| ip.address);
    let first = |is_ipv4: bool| addresses().find(|address| address.addr().is_ipv4() == is_ipv4);
    Ok(first(true).into_iter().chain(first(false)).collect())
}

/// The sets of both families.
#[must_use]
pub fn sets() -> Vec<Set> {
    let of = |words| {
        let Sets { hostports, hostip_hostports, sources, .. } = Sets::of(&words);
        [hostports, hostip_hostports, sources]
    };
    Words::both().into_iter().flat_map(of).collect()
}

/// The connections that end with an element of a map: those that the container answers. `None` when clients do not linger.
#[must_use]
pub fn ended(element: &Element) -> Option<Filter> {
    let Some(Data::Value(target)) = &element.data else { return None };
    let [.., Value::Protocol(protocol), Value::Port(host_port)] = element.key[..] else { return None };
    let [ref address, Value::Port(container_port)] = target[..] else { return None };
    let address = match address {
        Value::Ipv4(address) => IpAddr::V4(*address),
        Value::Ipv6(address) => IpAddr::V6(*address),
        _ => return None,
    };
    (protocol == Protocol::Udp.number()).then(|| answered_by(address, host_port, container_port))
}

/// The connections that end with a container, by its configuration.
#[must_use]
pub fn ended_of(config: &Config, addresses: &[IpNet]) -> Vec<Filter> {
    let lingering = config.mappings.iter().filter(|mapping| mapping.protocol.lingers());
    let of = |mapping: &Mapping| {
        let (host_port, container_port) = (mapping.host_port, mapping.container_port);
        addresses.iter().map(move |address| answered_by(address.addr(), host_port, container_port))
    };
    lingering.flat_map(of).collect()
}

fn answered_by(address: IpAddr, host_port: u16, container_port: u16) -> Filter {
    Filter {
        protocol: Some(Protocol::Udp.number()),
        original_port: Some(host_port),
        reply_source: Some(address),
        reply_port: Some(container_port),
        ..Filter::default()
    }
}

/// All connections to a host port, whoever answers them.
fn to_host_port(mapping: &Mapping) -> Filter {
    Filter {
        protocol: Some(mapping.protocol.number()),
        original_destination: specific(mapping),
        original_port: Some(mapping.host_port),
        ..Filter::default()
    }
}

/// The one address of the node that a mapping is for.
fn specific(mapping: &Mapping) -> Option<IpAddr> {
    mapping.host_ip.filter(|address| !address.is_unspecified())
}

/// A mapping without `hostIP` is for both families; 0.0.0.0 and :: are for all addresses of theirs.
fn applies(mapping: &Mapping, address: &IpNet) -> bool {
    mapping.host_ip.is_none_or(|host_ip| host_ip.is_ipv4() == address.addr().is_ipv4())
}

fn element(mapping: &Mapping, address: &IpNet) -> Element {
    let port = [Value::Protocol(mapping.protocol.number()), Value::Port(mapping.host_port)];
    let key: Vec<_> = specific(mapping).map(Value::from).into_iter().chain(port).collect();
    Element::map(key, [address.addr().into(), Value::Port(mapping.container_port)])
}

/// From where a connection to the container must be masqueraded.
fn sources(config: &Config, address: &IpNet) -> Vec<Element> {
    let everything = |is_ipv4| IpNet::new_assert(if is_ipv4 { [0; 4].into() } else { [0u16; 8].into() }, 0);
    let nets = match address {
        _ if config.masq_all => vec![everything(address.addr().is_ipv4())],
        IpNet::V4(_) => vec![*address, IpNet::new_assert([127, 0, 0, 0].into(), 8)],
        IpNet::V6(_) => vec![*address],
    };
    nets.iter().map(|net| Element::key([Value::from(*net), address.addr().into()])).collect()
}

/// The sets of one family.
struct Sets {
    words: Words,
    hostports: Set,
    hostip_hostports: Set,
    sources: Set,
}

impl Sets {
    fn of(words: &Words) -> Self {
        let (table, address) = (&words.table, words.address);
        let target = || Spec::types([address, Type::InetService]);
        let port = [Type::InetProto, Type::InetService];
        Self {
            hostports: Set::map(table, "hostports", Spec::types(port), target()),
            hostip_hostports: Set::map(table, "hostip_hostports", Spec::types([address, port[0], port[1]]), target()),
            sources: Set::new(table, "hostport_sources", Spec::types([address, address])).interval(),
            words: words.clone(),
        }
    }

    /// Everything, each time: what is there already stays, what is missing or was changed by hand is put right.
    fn frame(&self) -> Vec<Op> {
        let Words { table, source, destination, .. } = &self.words;
        let base = |name: &str, at: HookPoint, priority: Priority| {
            let hook = Hook { kind: ChainKind::Nat, at, priority, policy: Some(Policy::Accept), device: None };
            Chain::base(table, name, hook)
        };
        let mut ops = vec![
            Op::AddTable(table.clone()),
            Op::AddSet(self.hostports.clone()),
            Op::AddSet(self.hostip_hostports.clone()),
            Op::AddSet(self.sources.clone()),
        ];
        let is_local = Expr::Fib { address: FibAddress::Daddr, result: FibResult::Type };
        let to_hostports = [Statement::equal(is_local, Value::FibType(LOCAL)), Statement::jump(HOSTPORTS)];
        let masquerade = [
            Statement::equal(Ct::Status, Value::CtStatus(Ct::STATUS_DNAT)),
            Statement::in_set(Expr::Concat(vec![(*source).into(), (*destination).into()]), self.sources.name.clone()),
            Statement::Masquerade(MasqueradeFlags::default()),
        ];
        let chains: [(Chain, Vec<Vec<Statement>>); 4] = [
            (Chain::regular(table, HOSTPORTS), self.translations()),
            (base("hostport_prerouting", HookPoint::Prerouting, Priority::DSTNAT), vec![to_hostports.to_vec()]),
            (base("hostport_output", HookPoint::Output, Priority::DSTNAT), vec![to_hostports.to_vec()]),
            (base("hostport_postrouting", HookPoint::Postrouting, Priority::SRCNAT), vec![masquerade.to_vec()]),
        ];
        for (chain, rules) in chains {
            let name = chain.name.clone();
            ops.push(Op::AddChain(chain));
            ops.push(Op::FlushChain { table: table.clone(), chain: name.clone() });
            ops.extend(rules.into_iter().map(|rule| Op::AddRule(Rule::new(table, name.clone(), rule))));
        }
        ops
    }

    /// The destination becomes what a map says; first those for one address of the node, which are more particular.
    fn translations(&self) -> Vec<Vec<Statement>> {
        let family = self.words.table.family;
        let port: [Expr; 2] = [Meta::L4proto.into(), Field::ThDport.into()];
        let address_and_port = [self.words.destination.into(), port[0].clone(), port[1].clone()];
        let translate = |key: Vec<Expr>, map: &Set| {
            let to = NatTarget::AddressAndPort(Expr::Concat(key).map(map.name.clone()));
            vec![Statement::Dnat { family, to }]
        };
        vec![translate(address_and_port.to_vec(), &self.hostip_hostports), translate(port.to_vec(), &self.hostports)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mappings: Vec<Mapping>) -> Config {
        Config { snat: true, masq_all: false, mappings }
    }

    fn mapping(host_ip: Option<&str>) -> Mapping {
        let host_ip = host_ip.map(|text| text.parse().unwrap());
        Mapping { protocol: Protocol::Udp, host_ip, host_port: 53, container_port: 5353 }
    }

    fn elements(config: &Config, address: &str) -> Vec<String> {
        let plan = Plan::new(config, &[address.parse().unwrap()]).unwrap();
        let of = |claim: &Claim| {
            let name = claim.set.name.clone();
            claim.elements.iter().map(move |element| format!("{name}: {element}")).collect::<Vec<_>>()
        };
        plan.claims.iter().flat_map(of).collect()
    }

    #[test]
    fn a_host_address_is_for_its_family_and_an_unspecified_one_for_all_of_it() {
        let v4 = "10.22.0.2/24";
        let everywhere = "hostports: udp . 53 : 10.22.0.2 . 5353";
        assert_eq!(elements(&config(vec![mapping(None)]), v4)[0], everywhere);
        assert_eq!(elements(&config(vec![mapping(Some("0.0.0.0"))]), v4)[0], everywhere);
        assert_eq!(
            elements(&config(vec![mapping(Some("192.0.2.1"))]), v4)[0],
            "hostip_hostports: 192.0.2.1 . udp . 53 : 10.22.0.2 . 5353"
        );
        assert_eq!(elements(&config(vec![mapping(Some("::1"))]), v4), [""; 0]);
        assert_eq!(
            elements(&config(vec![mapping(Some("::"))]), "fd00::2/64")[0],
            "hostports: udp . 53 : fd00::2 . 5353"
        );
    }

    #[test]
    fn the_subnet_and_the_nodes_loopback_are_masqueraded_or_everything_or_nothing() {
        let mut config = config(vec![mapping(None)]);
        let sources = |config: &Config, address: &str| elements(config, address)[1..].to_vec();
        assert_eq!(
            sources(&config, "10.22.0.2/24"),
            ["hostport_sources: 10.22.0.0/24 . 10.22.0.2", "hostport_sources: 127.0.0.0/8 . 10.22.0.2"]
        );
        assert_eq!(sources(&config, "fd00::2/64"), ["hostport_sources: fd00::/64 . fd00::2"]);
        config.masq_all = true;
        assert_eq!(sources(&config, "10.22.0.2/24"), ["hostport_sources: 0.0.0.0/0 . 10.22.0.2"]);
        config.snat = false;
        assert_eq!(sources(&config, "10.22.0.2/24"), [""; 0]);
    }

    #[test]
    fn one_host_port_for_two_container_ports_is_refused() {
        let other = Mapping { container_port: 54, ..mapping(None) };
        let address = ["10.22.0.2/24".parse().unwrap()];
        assert!(Plan::new(&config(vec![mapping(None), other]), &address).is_err());
        Plan::new(&config(vec![mapping(None), mapping(None)]), &address).unwrap();
    }

    #[test]
    fn the_connections_of_an_element_are_those_that_its_container_answers() {
        let plan = Plan::new(&config(vec![mapping(None)]), &["10.22.0.2/24".parse().unwrap()]).unwrap();
        let ended = ended(&plan.claims[0].elements[0]).unwrap();
        assert_eq!(
            ended.to_string(),
            "conntrack -D -p udp --orig-port-dst 53 --reply-src 10.22.0.2 --reply-port-src 5353"
        );
        assert_eq!(super::ended(&plan.claims[2].elements[0]), None);
    }
}
