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
//! binary nor its tables: they stand in a table of our own, `flannel`, which is replaced as a whole in one transaction.
//!
//! The forward chain lets packets from and to C pass. An accept here does not overrule a drop in another table; it is for a
//! forward policy of this table's own hook, and shows in its place what flanneld shows.
//!
//! Source: flannel `pkg/trafficmngr/iptables/iptables.go`, `masqRules`; `pkg/trafficmngr/nftables/nftables.go`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux_net::nft::{
    Batch, Chain, ChainKind, Expr, Family, Field, Hook, HookPoint, MasqueradeFlags, Meta, Nft, Op, Policy, Priority,
    Rule, Statement, Table, Value,
};
use tracing::{info, warn};

use crate::config::RulesConfig;
use crate::error::Error;

/// The name of our table.
const TABLE: &str = "flannel";
/// The bit by which kube-proxy marks packets that it will masquerade itself.
const MASQUERADE_MARK: u32 = 0x4000;
/// Multicast is not routed to the world, so it is not translated either.
const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);

/// The rules that this worker should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    config: RulesConfig,
    network: Ipv4Net,
    subnet: Ipv4Net,
}

impl Rules {
    /// The rules for a worker that holds `subnet` of `network`; `config` may want none at all.
    #[must_use]
    pub fn new(config: RulesConfig, network: Ipv4Net, subnet: Ipv4Net) -> Self {
        Self { config, network, subnet }
    }

    /// The transaction that replaces whatever is in our table by these rules.
    #[must_use]
    pub fn batch(&self) -> Batch {
        // Deleting a table that is not there is an error; adding one that is, is not.
        let mut batch: Batch = [Op::AddTable(table()), Op::DelTable(table())].into_iter().collect();
        if self.is_empty() {
            return batch;
        }
        batch.push(Op::AddTable(table()));
        for (chain, rules) in self.chains() {
            let name = chain.name.clone();
            batch.push(Op::AddChain(chain));
            batch
                .extend(rules.into_iter().map(|statements| Op::AddRule(Rule::new(&table(), name.clone(), statements))));
        }
        batch
    }

    fn is_empty(&self) -> bool {
        !self.config.masquerade && !self.config.forward
    }

    fn rule_count(&self) -> usize {
        self.chains().iter().map(|(_, rules)| rules.len()).sum()
    }

    /// The chains that are wanted, each with its rules.
    fn chains(&self) -> Vec<(Chain, Vec<Vec<Statement>>)> {
        let mut chains = Vec::new();
        if self.config.masquerade {
            let hook = hook(ChainKind::Nat, HookPoint::Postrouting, Priority::SRCNAT);
            chains.push((Chain::base(&table(), "postrouting", hook), self.masquerade_rules()));
        }
        if self.config.forward {
            let hook = hook(ChainKind::Filter, HookPoint::Forward, Priority::FILTER);
            let rules =
                vec![vec![from(self.network), Statement::accept()], vec![to(self.network), Statement::accept()]];
            chains.push((Chain::base(&table(), "forward", hook), rules));
        }
        chains
    }

    fn masquerade_rules(&self) -> Vec<Vec<Statement>> {
        let (cluster, pods) = (self.network, self.subnet);
        let masquerade = || {
            Statement::Masquerade(MasqueradeFlags {
                fully_random: self.config.fully_random,
                ..MasqueradeFlags::default()
            })
        };
        let is_marked = Statement::equal(Expr::from(Meta::Mark).and(MASQUERADE_MARK), Value::Mark(MASQUERADE_MARK));
        vec![
            vec![is_marked, Statement::ret()],
            vec![from(pods), to(cluster), Statement::ret()],
            vec![from(cluster), to(pods), Statement::ret()],
            vec![not_from(cluster), to(pods), Statement::ret()],
            vec![from(cluster), not_to(MULTICAST), masquerade()],
            vec![not_from(cluster), to(cluster), masquerade()],
        ]
    }
}

/// Replaces whatever is in our table by `rules`; removes the table when they are none, as after the option was turned off.
///
/// # Errors
///
/// [`Error::Kernel`] when the kernel refuses them; the former rules stand then.
pub fn install(rules: &Rules) -> Result<(), Error> {
    let batch = rules.batch();
    batch
        .commit()
        .map_err(|source| Error::Kernel { what: format!("set the firewall rules of table {TABLE}"), source })?;
    info!(masquerade = rules.config.masquerade, forward = rules.config.forward, "firewall rules set");
    Ok(())
}

/// Installs the rules again if the table or some of its rules are gone, as after `nft flush ruleset`.
///
/// # Errors
///
/// [`Error::Kernel`] when the kernel does not answer or refuses them.
pub fn restore(rules: &Rules) -> Result<(), Error> {
    if rules.is_empty() {
        return Ok(());
    }
    let count = || -> linux_net::Result<usize> {
        let mut nft = Nft::open()?;
        if !nft.tables()?.contains(&table()) {
            return Ok(0);
        }
        Ok(nft.rules(&table())?.len())
    };
    let present = count()
        .map_err(|source| Error::Kernel { what: format!("read the firewall rules of table {TABLE}"), source })?;
    if present == rules.rule_count() {
        return Ok(());
    }
    warn!(present, wanted = rules.rule_count(), "somebody changed our firewall rules; setting them again");
    install(rules)
}

fn table() -> Table {
    Table::new(Family::Ip, TABLE)
}

fn hook(kind: ChainKind, at: HookPoint, priority: Priority) -> Hook {
    Hook { kind, at, priority, policy: Some(Policy::Accept), device: None }
}

fn from(network: Ipv4Net) -> Statement {
    Statement::equal(Field::IpSaddr, Value::Ipv4Net(network))
}

fn not_from(network: Ipv4Net) -> Statement {
    Statement::differs(Field::IpSaddr, Value::Ipv4Net(network))
}

fn to(network: Ipv4Net) -> Statement {
    Statement::equal(Field::IpDaddr, Value::Ipv4Net(network))
}

fn not_to(network: Ipv4Net) -> Statement {
    Statement::differs(Field::IpDaddr, Value::Ipv4Net(network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(masquerade: bool, forward: bool) -> Rules {
        let config = RulesConfig { masquerade, fully_random: true, forward };
        Rules::new(config, "11.0.0.0/8".parse().unwrap(), "11.10.0.0/20".parse().unwrap())
    }

    #[test]
    fn the_whole_table_is_replaced_in_one_transaction() {
        let ops = rules(true, true).batch().0;
        assert_eq!(ops[..3], [Op::AddTable(table()), Op::DelTable(table()), Op::AddTable(table())]);
        let chains: Vec<_> = ops
            .iter()
            .filter_map(|op| if let Op::AddChain(chain) = op { Some(&chain.name[..]) } else { None })
            .collect();
        assert_eq!(chains, ["postrouting", "forward"]);
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::AddRule(_))).count(), rules(true, true).rule_count());
    }

    #[test]
    fn nothing_wanted_means_that_the_table_goes() {
        let ops = rules(false, false).batch().0;
        assert_eq!(ops, [Op::AddTable(table()), Op::DelTable(table())]);
    }

    #[test]
    fn each_option_brings_its_own_chain() {
        assert_eq!((rules(true, false).rule_count(), rules(false, true).rule_count()), (6, 2));
    }
}
