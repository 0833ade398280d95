//! `macspoofchk`: a pod sends frames from its own MAC address only.
//!
//! ```text
//! table bridge cni {
//!     set spoof_checked { type ifname; elements = { veth1f00a2b3 comment "lab c1 eth0" } }
//!     set spoof_allowed { type ifname . ether_addr; elements = { veth1f00a2b3 . 02:00:00:00:00:07 comment "lab c1 eth0" } }
//!     chain spoof_check { type filter hook prerouting priority -300; policy accept
//!                         iifname @spoof_checked iifname . ether saddr != @spoof_allowed drop }
//! }
//! ```
//!
//! One rule for all pods, before everything else that looks at frames. The Go plugin makes two chains and four rules for each, through the program
//! nft.

use linux_net::nft::{
    Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, HookPoint, Meta, Op, Policy, Priority, Rule, Set,
    Spec, Statement, Table, Type, Value,
};
use linux_net::{IfName, MacAddr};

use crate::attachment::{Mark, Valid};
use crate::error::{Code, Error, Result};
use crate::nftables::{self, Claim, TABLE};

const CHAIN: &str = "spoof_check";

fn table() -> Table {
    Table::new(Family::Bridge, TABLE)
}

fn checked() -> Set {
    Set::new(&table(), "spoof_checked", Spec::types([Type::Ifname]))
}

fn allowed() -> Set {
    Set::new(&table(), "spoof_allowed", Spec::types([Type::Ifname, Type::EtherAddr]))
}

/// The table with its sets and its rule: made each time; what is there already stays.
fn frame() -> Batch {
    let hook = Hook {
        kind: ChainKind::Filter,
        at: HookPoint::Prerouting,
        priority: Priority(-300), // what the bridge family calls dstnat
        policy: Some(Policy::Accept),
        device: None,
    };
    let source = Expr::Concat(vec![Meta::Iifname.into(), Field::EtherSaddr.into()]);
    let statements = vec![
        Statement::in_set(Meta::Iifname, checked().name),
        Statement::not_in_set(source, allowed().name),
        Statement::drop(),
    ];
    Batch(vec![
        Op::AddTable(table()),
        Op::AddSet(checked()),
        Op::AddSet(allowed()),
        Op::AddChain(Chain::base(&table(), CHAIN, hook)),
        Op::FlushChain { table: table(), chain: CHAIN.to_owned() },
        Op::AddRule(Rule::new(&table(), CHAIN, statements)),
    ])
}

fn claims(port: &IfName, mac: MacAddr) -> [Claim; 2] {
    let port = || Value::IfName(port.clone());
    [
        Claim { set: checked(), elements: vec![Element::key([port()])] },
        Claim { set: allowed(), elements: vec![Element::key([port(), Value::Mac(mac)])] },
    ]
}

/// From now on only frames from `mac` pass the port.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn add(port: &IfName, mac: MacAddr, mark: &Mark) -> Result<()> {
    // A port has a random name: an element of the same name is of a port that has gone.
    let added = nftables::claim(&frame(), &claims(port, mac), mark, |_| true)?;
    added.map_err(|taken| Error::new(Code::Kernel, format!("port {port} is checked already: {:?}", taken.element)))
}

/// CHECK of the same.
///
/// # Errors
///
/// Code 102 with what is missing.
pub fn check(port: &IfName, mac: MacAddr, mark: &Mark) -> Result<()> {
    nftables::check(&frame(), &claims(port, mac), mark)
}

/// Forgets an attachment's port.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn remove(mark: &Mark) -> Result<()> {
    nftables::release(&[checked(), allowed()], |remark| remark == mark.as_str()).map(drop)
}

/// Forgets the ports of attachments that are not to be kept.
///
/// # Errors
///
/// Code 100 when the kernel refuses.
pub fn remove_stale(valid: &Valid) -> Result<()> {
    nftables::release(&[checked(), allowed()], |remark| valid.is_stale(remark)).map(drop)
}
