//! What a flanneld on this worker has left: its rules stay when it ends, and would go on beside ours.
//!
//! It has two ways to make them. With nftables they are in tables of its own, `flannel-ipv4` and `flannel-ipv6`. With iptables they
//! are chains in the tables that everybody shares: `FLANNEL-POSTRTG` in `nat`, `FLANNEL-FWD` in `filter`, each with a jump to it. iptables on a
//! recent system is a front end to nftables, so these too are removed without its program. (Where it is the old kernel interface, `iptables-legacy`,
//! they are out of reach, and stay.) flanneld itself does the same with the rules of its other way.
//!
//! Source: flannel `pkg/trafficmngr/iptables/iptables.go` and `pkg/trafficmngr/nftables/nftables.go`, `CleanUp`.

use linux_net::nft::{Batch, Family, Nft, Op, Table};

/// The chains of flanneld in tables that are not its own.
const SHARED: [(&str, &str); 2] = [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")];

/// Plans the removal of everything that a flanneld left; empty when there is nothing.
///
/// # Errors
///
/// When the kernel does not say what is there.
pub(super) fn plan_removal() -> linux_net::Result<Batch> {
    let mut nft = Nft::open()?;
    let tables = nft.tables()?;
    let mut batch = Batch::default();
    for own in [Table::new(Family::Ip, "flannel-ipv4"), Table::new(Family::Ip6, "flannel-ipv6")] {
        batch.extend(tables.contains(&own).then_some(Op::DelTable(own)));
    }
    for family in [Family::Ip, Family::Ip6] {
        for (table, chain) in SHARED {
            let table = Table::new(family, table);
            if !tables.contains(&table) || !nft.chains(&table)?.iter().any(|info| info.chain.name == chain) {
                continue;
            }
            let jumps = nft.rules(&table)?.into_iter().filter(|rule| rule.target.as_deref() == Some(chain));
            batch.extend(jumps.map(|jump| Op::DelRule {
                table: table.clone(),
                chain: jump.chain,
                handle: jump.handle,
            }));
            let chain = chain.to_owned();
            batch.push(Op::FlushChain { table: table.clone(), chain: chain.clone() });
            batch.push(Op::DelChain { table, chain });
        }
    }
    Ok(batch)
}
