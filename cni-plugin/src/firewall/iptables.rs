//! The one rule in a chain that is not ours: what the table `cni` accepted, iptables accepts.
//!
//! ```text
//! insert rule ip filter FORWARD meta mark & 0x1000 == 0x1000 accept comment "accepted in table cni"
//! ```
//!
//! It goes where the rules of the Go plugin go: before all others of iptables' chain `FORWARD`, in front of its policy. Without that chain there
//! is nothing to do. It stays when containers go, as `CNI-FORWARD` of the Go plugin does; alone it does nothing. Somebody who
//! flushes the chain takes it away: the next ADD puts it back, and CHECK tells.

use linux_net::nft::{Batch, CmpOp, Expr, Family, Meta, Nft, Op, Rule, RuleInfo, Statement, Table, Value};

use crate::error::{Error, Result};
use crate::firewall::config::Config;
use crate::firewall::plan::ACCEPTED;

const FORWARD: &str = "FORWARD";

/// The chain the Go plugin jumps to unless it is told another name.
const USUAL_ADMIN_CHAIN: &str = "CNI-ADMIN";

/// Puts the rule into iptables' chain of these families, where there is one.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn ensure(config: &Config, families: &[Family]) -> Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    for family in families {
        batch.extend(missing(&mut nft, config, *family)?.into_iter().map(Op::InsertRule));
    }
    Ok(nft.commit(&batch)?)
}

/// Looks whether it is there.
///
/// # Errors
///
/// Code 102 with the rule that is missing.
pub fn check(config: &Config, families: &[Family]) -> Result<()> {
    let mut nft = Nft::open()?;
    for family in families {
        if let Some(rule) = missing(&mut nft, config, *family)?.into_iter().next() {
            return Err(Error::check(format!("expected rule is not there: nft {}", Op::InsertRule(rule))));
        }
    }
    Ok(())
}

/// The rules that are not in the chain, in the order in which they are to be inserted: each before the one inserted last.
fn missing(nft: &mut Nft, config: &Config, family: Family) -> Result<Vec<Rule>> {
    let table = Table::new(family, "filter");
    let chains = nft.chains(&table)?;
    let is_there = |name: &str| chains.iter().any(|info| info.chain.name == name);
    if !is_there(FORWARD) {
        return Ok(Vec::new());
    }
    let admin = config.admin_chain.as_deref().unwrap_or(USUAL_ADMIN_CHAIN);
    let mut wanted = vec![rule(&table, Statement::accept(), "accepted in table cni")];
    if is_there(admin) {
        wanted.push(rule(&table, Statement::jump(admin), &format!("{admin} before what table cni accepted")));
    }
    let there = nft.rules_of_chain(&table, FORWARD)?;
    let has = |rule: &Rule| there.iter().any(|info: &RuleInfo| info.comment == rule.comment);
    wanted.retain(|rule| !has(rule));
    Ok(wanted)
}

fn rule(table: &Table, verdict: Statement, comment: &str) -> Rule {
    let is_accepted =
        Statement::Match { left: Expr::from(Meta::Mark).and(ACCEPTED), op: CmpOp::Eq, right: Value::Mark(ACCEPTED) };
    let mut rule = Rule::new(table, FORWARD, [is_accepted, verdict]);
    rule.comment = Some(comment.to_owned());
    rule
}
