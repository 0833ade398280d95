//! Firewall rules: what leaves the pod network gets the worker's address, and what is forwarded within it is let through.
//!
//! Pods' addresses mean nothing outside the cluster, so a packet to elsewhere must bear an address that the answer finds its way back to.
//! Between pods nothing is translated. With C the network of the cluster and P the subnet of this worker, the rules are, in
//! this order, at the very end of the packet's way out:
//!
//! | rule | why |
//! |---|---|
//! | mark 0x4000 set → leave it | somebody else masquerades it already (kube-proxy's mark) |
//! | P → C → leave it | from our pods to any pod |
//! | C → P → leave it | from any pod to ours |
//! | not C → P → leave it | from outside to our pods: the client's address stays visible |
//! | C → not multicast → masquerade | from a pod to the world |
//! | not C → C → masquerade | from this worker itself, or the world, to a pod elsewhere, so that the answer comes back this way |
//!
//! These are the rules that flanneld makes with iptables. Its own nftables variant differs in two places, for the worse: it
//! compares the mark as a whole, and its fourth rule says "not P → C", so that the sixth never matches. Ours need neither the `iptables`
//! binary nor its tables: they stand in a table of our own, `flannel`, which is replaced as a whole in one transaction. The same transaction removes
//! what a flanneld left on this worker, of either kind.
//!
//! The forward chain lets packets from and to C pass. An accept here does not overrule a drop in another table; it is for a
//! forward policy of this table's own hook, and shows in its place what flanneld shows.
//!
//! Source: flannel `pkg/trafficmngr/iptables/iptables.go`, `masqRules`; `pkg/trafficmngr/nftables/nftables.go`.

mod left_over;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use linux_net::ip;
use linux_net::nft::{
    Batch, Chain, ChainKind, Expr, Family, Field, Hook, HookPoint, MasqueradeFlags, Meta, Nft, Op, Policy, Priority,
    Rule, Statement, Table, Value,
};
use tracing::{info, warn};

use crate::config::RulesConfig;
use crate::error::Error;
use crate::overlay::{Overlay, Overlays};

/// The name of our table.
const TABLE: &str = "flannel";
/// The bit by which kube-proxy marks packets that it will masquerade itself.
const MASQUERADE_MARK: u32 = 0x4000;
/// Multicast is not routed to the world, so it is not translated either.
const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);
/// The same for IPv6. Source: RFC 4291, section 2.7.
const MULTICAST_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);

/// The rules that this worker should have, of both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    config: RulesConfig,
    ipv4: FamilyRules,
    /// `None` where the cluster has no IPv6.
    ipv6: Option<FamilyRules>,
}

/// What the rules of one family are about: a worker that holds `subnet` of `network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FamilyRules {
    network: IpNet,
    subnet: IpNet,
}

impl Rules {
    /// The rules for a worker with these overlays; `config` may want none at all. `None` as long as the worker has no subnet.
    #[must_use]
    pub fn new(config: RulesConfig, overlays: &Overlays) -> Option<Self> {
        let of = |overlay: &Overlay| Some(FamilyRules { network: overlay.network, subnet: overlay.subnet? });
        Some(Self { config, ipv4: of(&overlays.ipv4)?, ipv6: overlays.ipv6.as_ref().and_then(of) })
    }

    /// The transaction that replaces whatever is in our tables by these rules.
    #[must_use]
    pub fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        for (family, rules) in [(Family::Ip, Some(self.ipv4)), (Family::Ip6, self.ipv6)] {
            let table = table(family);
            // Deleting a table that is not there is an error; adding one that is, is not.
            batch.extend([Op::AddTable(table.clone()), Op::DelTable(table.clone())]);
            let Some(rules) = rules.filter(|_| self.config.wants_any()) else { continue };
            batch.push(Op::AddTable(table.clone()));
            for (chain, rules) in rules.chains(&table, self.config) {
                let name = chain.name.clone();
                batch.push(Op::AddChain(chain));
                let rules =
                    rules.into_iter().map(|statements| Op::AddRule(Rule::new(&table, name.clone(), statements)));
                batch.extend(rules);
            }
        }
        batch
    }

    /// How many rules each table should have.
    fn counts(&self) -> Vec<(Table, usize)> {
        let count = |family, rules: FamilyRules| {
            let table = table(family);
            let count = rules.chains(&table, self.config).iter().map(|(_, rules)| rules.len()).sum();
            (table, count)
        };
        let ipv6 = self.ipv6.map(|rules| count(Family::Ip6, rules));
        std::iter::once(count(Family::Ip, self.ipv4)).chain(ipv6).collect()
    }
}

impl RulesConfig {
    fn wants_any(self) -> bool {
        self.masquerade || self.forward
    }
}

impl FamilyRules {
    /// The chains that are wanted, each with its rules.
    fn chains(self, table: &Table, config: RulesConfig) -> Vec<(Chain, Vec<Vec<Statement>>)> {
        let mut chains = Vec::new();
        if config.masquerade {
            let hook = hook(ChainKind::Nat, HookPoint::Postrouting, Priority::SRCNAT);
            chains.push((Chain::base(table, "postrouting", hook), self.masquerade_rules(config)));
        }
        if config.forward {
            let hook = hook(ChainKind::Filter, HookPoint::Forward, Priority::FILTER);
            let rules =
                vec![vec![from(self.network), Statement::accept()], vec![to(self.network), Statement::accept()]];
            chains.push((Chain::base(table, "forward", hook), rules));
        }
        chains
    }

    fn masquerade_rules(self, config: RulesConfig) -> Vec<Vec<Statement>> {
        let (cluster, pods) = (self.network, self.subnet);
        let masquerade = || {
            Statement::Masquerade(MasqueradeFlags { fully_random: config.fully_random, ..MasqueradeFlags::default() })
        };
        let multicast = match cluster {
            IpNet::V4(_) => IpNet::V4(MULTICAST),
            IpNet::V6(_) => IpNet::V6(MULTICAST_V6),
        };
        let is_marked = Statement::equal(Expr::from(Meta::Mark).and(MASQUERADE_MARK), Value::Mark(MASQUERADE_MARK));
        vec![
            vec![is_marked, Statement::ret()],
            vec![from(pods), to(cluster), Statement::ret()],
            vec![from(cluster), to(pods), Statement::ret()],
            vec![not_from(cluster), to(pods), Statement::ret()],
            vec![from(cluster), not_to(multicast), masquerade()],
            vec![not_from(cluster), to(cluster), masquerade()],
        ]
    }
}

/// Replaces whatever is in our tables, and whatever a flanneld left, by `rules`; when they are none, as after the option was turned off, the
/// tables go.
///
/// # Errors
///
/// [`Error::Kernel`] when the kernel refuses them; the former rules stand then.
pub fn install(rules: &Rules) -> Result<(), Error> {
    let mut batch = left_over::plan_removal().unwrap_or_else(|error| {
        warn!(%error, "cannot see whether a flanneld left rules");
        Batch::default()
    });
    let left = batch.0.len();
    batch.extend(rules.batch().0);
    let mut committed = batch.commit();
    if left > 0 {
        match &committed {
            Ok(()) => info!(changes = left, "rules of a flanneld removed"),
            // Ours matter more.
            Err(error) => {
                warn!(%error, "the rules that a flanneld left stay");
                committed = rules.batch().commit();
            }
        }
    }
    committed.map_err(|source| Error::Kernel { what: format!("set the firewall rules of table {TABLE}"), source })?;
    info!(masquerade = rules.config.masquerade, forward = rules.config.forward, "firewall rules set");
    Ok(())
}

/// Installs the rules again if a table or some of its rules are gone, as after `nft flush ruleset`.
///
/// # Errors
///
/// [`Error::Kernel`] when the kernel does not answer or refuses them.
pub fn restore(rules: &Rules) -> Result<(), Error> {
    if !rules.config.wants_any() {
        return Ok(());
    }
    let wanted = rules.counts();
    let count = || -> linux_net::Result<Vec<(Table, usize)>> {
        let mut nft = Nft::open()?;
        let tables = nft.tables()?;
        let mut counts = Vec::new();
        for (table, _) in &wanted {
            let rules = if tables.contains(table) { nft.rules(table)?.len() } else { 0 };
            counts.push((table.clone(), rules));
        }
        Ok(counts)
    };
    let present = count()
        .map_err(|source| Error::Kernel { what: format!("read the firewall rules of table {TABLE}"), source })?;
    if present == wanted {
        return Ok(());
    }
    warn!(?present, ?wanted, "somebody changed our firewall rules; setting them again");
    install(rules)
}

fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

fn hook(kind: ChainKind, at: HookPoint, priority: Priority) -> Hook {
    Hook { kind, at, priority, policy: Some(Policy::Accept), device: None }
}

fn from(network: IpNet) -> Statement {
    Statement::equal(Field::source(ip::Family::of(network.addr())), Value::from(network))
}

fn not_from(network: IpNet) -> Statement {
    Statement::differs(Field::source(ip::Family::of(network.addr())), Value::from(network))
}

fn to(network: IpNet) -> Statement {
    Statement::equal(Field::destination(ip::Family::of(network.addr())), Value::from(network))
}

fn not_to(network: IpNet) -> Statement {
    Statement::differs(Field::destination(ip::Family::of(network.addr())), Value::from(network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Transport;

    fn overlay(network: &str, subnet: &str) -> Overlay {
        let transport = Transport::HostGw { interface: "eth0".parse().unwrap(), mtu_bytes: 1500 };
        let (network, subnet) = (network.parse().unwrap(), Some(subnet.parse().unwrap()));
        Overlay { network, subnet, transport, blackhole: false }
    }

    fn rules(masquerade: bool, forward: bool, is_dual_stack: bool) -> Rules {
        let config = RulesConfig { masquerade, fully_random: true, forward };
        let ipv6 = is_dual_stack.then(|| overlay("fd00:11::/48", "fd00:11:0:1::/64"));
        Rules::new(config, &Overlays { ipv4: overlay("11.0.0.0/8", "11.10.0.0/20"), ipv6 }).unwrap()
    }

    /// The tables that are made, with the number of rules in each.
    fn made(rules: &Rules) -> Vec<(String, usize)> {
        let ops = rules.batch().0;
        let is_rule_of = |table: &Table, op: &Op| matches!(op, Op::AddRule(rule) if rule.table == *table);
        let count = |table: &Table| ops.iter().filter(|op| is_rule_of(table, op)).count();
        [Family::Ip, Family::Ip6].map(table).iter().map(|table| (table.to_string(), count(table))).collect()
    }

    #[test]
    fn both_tables_are_replaced_in_one_transaction() {
        let ops = rules(true, true, true).batch().0;
        for family in [Family::Ip, Family::Ip6] {
            let of_table: Vec<_> = ops
                .iter()
                .filter(|op| matches!(op, Op::AddTable(other) | Op::DelTable(other) if *other == table(family)))
                .cloned()
                .collect();
            assert_eq!(
                of_table,
                [Op::AddTable(table(family)), Op::DelTable(table(family)), Op::AddTable(table(family))]
            );
        }
        let chains: Vec<_> = ops
            .iter()
            .filter_map(|op| if let Op::AddChain(chain) = op { Some(&chain.name[..]) } else { None })
            .collect();
        assert_eq!(chains, ["postrouting", "forward", "postrouting", "forward"]);
    }

    #[test]
    fn nothing_wanted_means_that_the_tables_go() {
        let ops = rules(false, false, true).batch().0;
        let gone = |family| [Op::AddTable(table(family)), Op::DelTable(table(family))];
        assert_eq!(ops, [gone(Family::Ip), gone(Family::Ip6)].concat());
    }

    #[test]
    fn each_option_brings_its_own_chain_and_each_family_its_own_table() {
        let counts = |rules: &Rules| made(rules).into_iter().map(|(_, count)| count).collect::<Vec<_>>();
        assert_eq!(counts(&rules(true, false, false)), [6, 0]);
        assert_eq!(counts(&rules(false, true, false)), [2, 0]);
        assert_eq!(counts(&rules(true, true, true)), [8, 8]);
        assert_eq!(rules(true, true, true).counts().iter().map(|(_, count)| *count).collect::<Vec<_>>(), [8, 8]);
    }

    #[test]
    fn the_rules_of_a_flanneld_go_with_the_transaction_that_sets_ours() {
        if !linux_net::testing::enter_sandbox() {
            return;
        }
        let shell = |line: &str| {
            let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        // As flanneld makes them by iptables, and by nftables.
        shell(
            "iptables -t nat -N FLANNEL-POSTRTG && iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG &&
             iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN &&
             iptables -N FLANNEL-FWD && iptables -A FORWARD -j FLANNEL-FWD && iptables -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT &&
             ip6tables -t nat -N FLANNEL-POSTRTG && ip6tables -t nat -A POSTROUTING -j FLANNEL-POSTRTG &&
             iptables -A FORWARD -s 192.0.2.1 -j DROP &&
             nft 'add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg'",
        );
        install(&rules(true, true, false)).unwrap();
        let ruleset = shell("nft list ruleset");
        assert!(!ruleset.contains("FLANNEL") && !ruleset.contains("flannel-ipv4"), "{ruleset}");
        assert!(ruleset.contains("192.0.2.1"), "somebody else's rule in a shared chain is gone: {ruleset}");
        assert!(ruleset.contains("table ip flannel"), "{ruleset}");
    }
}
