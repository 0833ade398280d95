//! What a field of the packet presupposes.

use nftnl_sys as sys;

use super::{
    super::{
        CmpOp, Expr, Family, Field, Meta, Value,
        constants::{family_number, family_of},
    },
    Compiler, number,
};
use crate::error::{Error, Result};

/// What the rule has matched so far, which decides how later bytes of the packet are to be read.
#[derive(Default)]
pub(super) struct Known {
    ethernet: bool,
    network: Option<Family>,
    transport: Option<u8>,
}

impl Compiler<'_> {
    /// Matches what the fields in `expr` presuppose, unless the rule has matched it before: an IPv4 address is nothing to look for
    /// in an IPv6 packet. `nft` does so silently, and does not list what it can add again.
    pub(super) fn depend_on(&mut self, expr: &Expr) -> Result<()> {
        let mut fields = Vec::new();
        expr.fields(&mut fields);
        for field in fields {
            match field {
                Field::IpSaddr | Field::IpDaddr | Field::IpProtocol | Field::IpChecksum => {
                    self.depend_on_network(Family::Ip)?;
                }
                Field::Ip6Saddr | Field::Ip6Daddr => self.depend_on_network(Family::Ip6)?,
                Field::TcpSport | Field::TcpDport => self.depend_on_transport(libc::IPPROTO_TCP)?,
                Field::UdpSport | Field::UdpDport => self.depend_on_transport(libc::IPPROTO_UDP)?,
                Field::EtherSaddr | Field::EtherDaddr => self.depend_on_ethernet(),
                Field::ThSport | Field::ThDport => {}
            }
        }
        Ok(())
    }

    fn depend_on_network(&mut self, wanted: Family) -> Result<()> {
        match self.family {
            Family::Ip | Family::Ip6 if self.family == wanted => return Ok(()),
            Family::Ip | Family::Ip6 => {
                return Err(Error::Invalid {
                    what: "rule",
                    value: format!("{wanted:?} in a table of family {:?}", self.family),
                    reason: "no such packet comes to that table",
                });
            }
            Family::Inet | Family::Bridge | Family::Netdev => {}
        }
        if self.known.network == Some(wanted) {
            return Ok(());
        }
        self.known.network = Some(wanted);
        if self.family == Family::Inet {
            let protocol = u8::try_from(family_number(wanted)).expect("families have small numbers");
            self.load(&Expr::Meta(Meta::Nfproto), 0, 1)?;
            self.cmp(CmpOp::Eq, &[protocol]);
        } else {
            const META_PROTOCOL: u32 = 1; // the EtherType
            let ether_type: u16 = if wanted == Family::Ip { 0x0800 } else { 0x86dd };
            self.rule
                .expr(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, META_PROTOCOL)
                .u32(sys::NFTNL_EXPR_META_DREG, number(0));
            self.cmp(CmpOp::Eq, &ether_type.to_be_bytes());
        }
        Ok(())
    }

    /// Above the link layer, a packet may have come from a device without Ethernet headers.
    fn depend_on_ethernet(&mut self) {
        const META_IIFTYPE: u32 = 8;
        if self.family == Family::Bridge || self.known.ethernet {
            return;
        }
        self.known.ethernet = true;
        self.rule.expr(c"meta").u32(sys::NFTNL_EXPR_META_KEY, META_IIFTYPE).u32(sys::NFTNL_EXPR_META_DREG, number(0));
        self.cmp(CmpOp::Eq, &libc::ARPHRD_ETHER.to_ne_bytes());
    }

    pub(super) fn depend_on_transport(&mut self, wanted: i32) -> Result<()> {
        let wanted = u8::try_from(wanted).expect("protocols have one byte");
        if self.known.transport == Some(wanted) {
            return Ok(());
        }
        self.known.transport = Some(wanted);
        self.load(&Expr::Meta(Meta::L4proto), 0, 1)?;
        self.cmp(CmpOp::Eq, &[wanted]);
        Ok(())
    }

    pub(super) fn learn(&mut self, left: &Expr, op: CmpOp, right: &Value) {
        if op != CmpOp::Eq {
            return;
        }
        match (left, right) {
            (Expr::Meta(Meta::L4proto) | Expr::Payload(Field::IpProtocol), Value::Protocol(protocol)) => {
                self.known.transport = Some(*protocol);
            }
            (Expr::Meta(Meta::Nfproto), Value::Integer(protocol)) => self.known.network = family_of(*protocol),
            _ => {}
        }
    }
}
