//! What a configuration and a container's addresses mean in nftables. Pure: no kernel here.

use linux_net::nft::{
    Batch, Chain, ChainKind, Ct, Element, Expr, Family, Hook, HookPoint, Meta, Op, Policy, Priority, Rule, Set, Spec,
    Statement, Type, Value, Verdict,
};
use linux_net::{IfName, ip};

use crate::error::{Error, Result};
use crate::firewall::config::{Config, IngressPolicy};
use crate::nftables::{Claim, Words};
use crate::result::CniResult;

/// The bit of the packet's mark that says: the table `cni` accepted it. kube-proxy has bits 14 and 15, portmap of the Go plugins 13, Calico those from
/// 16 on.
pub const ACCEPTED: u32 = 1 << 12;

/// The chain for the administrator's rules that is there without a name in the configuration.
const ADMIN: &str = "admin";
const INGRESS: &str = "firewall_ingress";
const FORWARD: &str = "firewall_forward";

/// Before iptables' `FORWARD`, which shall see the mark.
const BEFORE_FILTER: Priority = Priority(-1);

/// What an ADD makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tables, sets, chains and rules, for the families of the container.
    pub frame: Batch,
    /// The container's elements.
    pub claims: Vec<Claim>,
    /// The families of its addresses.
    pub families: Vec<Family>,
}

impl Plan {
    /// Plans for all addresses of the result.
    ///
    /// # Errors
    ///
    /// Code 7 when a policy is about a bridge and the result names no interface.
    pub fn new(config: &Config, result: &CniResult) -> Result<Self> {
        let bridge = bridge(config, result)?;
        let admin = config.admin_chain.as_deref().unwrap_or(ADMIN);
        let mut plan = Self { frame: Batch::new(), claims: Vec::new(), families: Vec::new() };
        for family in ip::FAMILIES {
            let words = Words::of(family);
            let addresses = result.ips.iter().map(|ip| ip.address.addr());
            let mut addresses: Vec<_> =
                addresses.filter(|address| ip::Family::of(*address) == family).map(Value::from).collect();
            addresses.sort();
            addresses.dedup();
            if addresses.is_empty() {
                continue;
            }
            let sets = Sets::of(&words);
            plan.frame.extend(sets.frame(admin));
            plan.families.push(words.table.family);
            let each = |element: &dyn Fn(&Value) -> Element| addresses.iter().map(element).collect::<Vec<_>>();
            plan.claims.push(Claim { set: sets.pods, elements: each(&|pod| Element::key([pod.clone()])) });
            let to_admin = |pod: &Value| Element::verdict([pod.clone()], Verdict::Jump(admin.to_owned()));
            plan.claims.push(Claim { set: sets.admin, elements: each(&to_admin) });
            if let Some((bridge, verdict)) = &bridge {
                let from_bridge =
                    |pod: &Value| Element::verdict([pod.clone(), Value::IfName(bridge.clone())], verdict.clone());
                plan.claims.push(Claim { set: sets.same_bridge, elements: each(&from_bridge) });
                plan.claims.push(Claim { set: sets.restricted, elements: each(&|pod| Element::key([pod.clone()])) });
            }
        }
        Ok(plan)
    }
}

/// The bridge that a policy is about, and what happens to packets from it; `None` for an open door.
fn bridge(config: &Config, result: &CniResult) -> Result<Option<(IfName, Verdict)>> {
    let (word, verdict) = match config.ingress_policy {
        IngressPolicy::Open => return Ok(None),
        IngressPolicy::SameBridge => ("same-bridge", Verdict::Return),
        IngressPolicy::Isolated => ("isolated", Verdict::Drop),
    };
    let missing = || {
        Error::config(format!(
            "interface needs to be set for ingress policy \"{word}\", make sure to chain \"firewall\" plugin with \"bridge\""
        ))
    };
    // By the plugins' habit the first interface of a result is the bridge.
    let first = result.interfaces.first().filter(|interface| interface.sandbox.is_empty()).ok_or_else(missing)?;
    Ok(Some((first.name.parse().map_err(|_| missing())?, verdict)))
}

/// The sets of both families.
#[must_use]
pub fn sets() -> Vec<Set> {
    let of = |words| {
        let Sets { pods, admin, same_bridge, restricted, .. } = Sets::of(&words);
        [pods, admin, same_bridge, restricted]
    };
    Words::both().into_iter().flat_map(of).collect()
}

/// The sets of one family.
struct Sets {
    words: Words,
    pods: Set,
    admin: Set,
    same_bridge: Set,
    restricted: Set,
}

impl Sets {
    fn of(words: &Words) -> Self {
        let (table, address) = (&words.table, words.address);
        let pod_and_bridge = Spec::types([address, Type::Ifname]);
        Self {
            pods: Set::new(table, "firewall_pods", Spec::types([address])),
            admin: Set::verdict_map(table, "firewall_admin", Spec::types([address])),
            same_bridge: Set::verdict_map(table, "ingress_same_bridge", pod_and_bridge),
            restricted: Set::new(table, "ingress_restricted", Spec::types([address])),
            words: words.clone(),
        }
    }

    /// Everything, each time: what is there already stays, what is missing or was changed by hand is put right. The administrator's chain is only
    /// made, never emptied.
    fn frame(&self, admin: &str) -> Vec<Op> {
        let table = &self.words.table;
        let hook = Hook {
            kind: ChainKind::Filter,
            at: HookPoint::Forward,
            priority: BEFORE_FILTER,
            policy: Some(Policy::Accept),
            device: None,
        };
        let mut ops = vec![Op::AddTable(table.clone())];
        ops.extend([&self.pods, &self.admin, &self.same_bridge, &self.restricted].map(|set| Op::AddSet(set.clone())));
        ops.push(Op::AddChain(Chain::regular(table, admin)));
        for (chain, rules) in [
            (Chain::regular(table, INGRESS), self.ingress_rules()),
            (Chain::base(table, FORWARD, hook), self.forward_rules()),
        ] {
            let name = chain.name.clone();
            ops.push(Op::AddChain(chain));
            ops.push(Op::FlushChain { table: table.clone(), chain: name.clone() });
            ops.extend(rules.into_iter().map(|rule| Op::AddRule(Rule::new(table, name.clone(), rule))));
        }
        ops
    }

    fn ingress_rules(&self) -> Vec<Vec<Statement>> {
        let Words { source, destination, .. } = self.words;
        let to_pod_from_bridge = Expr::Concat(vec![destination.into(), Meta::Iifname.into()]);
        let is_restricted = |field| Statement::in_set(field, self.restricted.name.clone());
        vec![
            vec![Statement::Vmap { key: to_pod_from_bridge, map: self.same_bridge.name.clone() }],
            vec![is_restricted(source), is_restricted(destination), Statement::drop()],
        ]
    }

    fn forward_rules(&self) -> Vec<Vec<Statement>> {
        let Words { source, destination, .. } = self.words;
        let ask_admin =
            |field: linux_net::nft::Field| Statement::Vmap { key: field.into(), map: self.admin.name.clone() };
        let is_pod = |field| Statement::in_set(field, self.pods.name.clone());
        let is_answer = Statement::equal(Ct::State, Value::CtState(Ct::STATE_ESTABLISHED | Ct::STATE_RELATED));
        let mark = || Statement::SetMeta { key: Meta::Mark, value: Expr::from(Meta::Mark).or(ACCEPTED) };
        vec![
            vec![Statement::jump(INGRESS)],
            vec![ask_admin(destination)],
            vec![ask_admin(source)],
            vec![is_answer, is_pod(destination), mark(), Statement::accept()],
            vec![is_pod(source), mark(), Statement::accept()],
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Interface, IpConfig};

    fn elements(ingress_policy: IngressPolicy, result: &CniResult) -> Result<Vec<String>> {
        let plan = Plan::new(&Config { admin_chain: None, ingress_policy }, result)?;
        let of = |claim: &Claim| {
            let name = claim.set.name.clone();
            claim.elements.iter().map(move |element| format!("{name}: {element}")).collect::<Vec<_>>()
        };
        Ok(plan.claims.iter().flat_map(of).collect())
    }

    fn result() -> CniResult {
        let ip = |text: &str| IpConfig { interface: None, address: text.parse().unwrap(), gateway: None };
        let bridge = Interface { name: "cni0".to_owned(), ..Interface::default() };
        CniResult { interfaces: vec![bridge], ips: vec![ip("10.22.0.2/24")], ..CniResult::default() }
    }

    #[test]
    fn a_container_is_some_elements_more_with_a_policy() {
        let open = ["firewall_pods: 10.22.0.2", "firewall_admin: 10.22.0.2 : jump admin"];
        assert_eq!(elements(IngressPolicy::Open, &result()).unwrap(), open);
        assert_eq!(
            elements(IngressPolicy::SameBridge, &result()).unwrap()[2..],
            ["ingress_same_bridge: 10.22.0.2 . \"cni0\" : return", "ingress_restricted: 10.22.0.2"]
        );
        assert_eq!(
            elements(IngressPolicy::Isolated, &result()).unwrap()[2],
            "ingress_same_bridge: 10.22.0.2 . \"cni0\" : drop"
        );
    }

    #[test]
    fn a_policy_needs_a_bridge() {
        let bare = CniResult { interfaces: Vec::new(), ..result() };
        assert!(elements(IngressPolicy::SameBridge, &bare).unwrap_err().msg.contains("same-bridge"));
        elements(IngressPolicy::Open, &bare).unwrap();
    }
}
