//! Which consumer a new connection goes to. Pure: values in, values out.
//!
//! Consumers of an address are this router's own `tcpConnector`s, and the routers at the other end of a link that
//! advertise the address. A local one always wins, since it costs no link; several take turns. Among routers the one
//! with the fewest open streams for the address wins, and equals take turns. Of several links to one router the
//! newest is used: an older one may be dead without our knowing yet. A stream that came over a link goes to a local
//! consumer only: routers do not pass on what is not for them.
//!
//! Source: skupper-router's distribution `closest`, with the counting of `balanced` among remote routers.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::TcpConnector;
use crate::name::{Address, RouterId};

/// One link since this router started; a new connection to the same peer is a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Where a client's connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a service of this router's.
    Local(TcpConnector),
    /// Over a link. The stream counts until [`Table::release`].
    Remote(LinkId),
}

/// All consumers known to this router.
#[derive(Debug, Default)]
pub struct Table {
    connectors: BTreeMap<Address, Vec<TcpConnector>>,
    links: BTreeMap<LinkId, Remote>,
    /// How often each address was chosen for, so that equals take turns.
    turns: BTreeMap<Address, usize>,
}

#[derive(Debug)]
struct Remote {
    router: RouterId,
    addresses: BTreeSet<Address>,
    open_streams: BTreeMap<Address, usize>,
}

impl Table {
    /// Replaces this router's own consumers.
    pub fn set_connectors(&mut self, connectors: &BTreeSet<TcpConnector>) {
        self.connectors.clear();
        for connector in connectors {
            self.connectors.entry(connector.address.clone()).or_default().push(connector.clone());
        }
        self.turns.retain(|address, _| {
            self.connectors.contains_key(address) || self.links.values().any(|link| link.addresses.contains(address))
        });
    }

    /// Adds a link to `router`, which has advertised nothing yet.
    pub fn add_link(&mut self, link: LinkId, router: RouterId) {
        self.links.insert(link, Remote { router, addresses: BTreeSet::new(), open_streams: BTreeMap::new() });
    }

    /// Replaces what the router at the other end of `link` has consumers for.
    pub fn set_addresses(&mut self, link: LinkId, addresses: BTreeSet<Address>) {
        if let Some(remote) = self.links.get_mut(&link) {
            remote.addresses = addresses;
        }
    }

    /// Forgets a link and all it led to.
    pub fn remove_link(&mut self, link: LinkId) {
        self.links.remove(&link);
    }

    /// The links to a router. There may be several: each of the two may have a connector to the other.
    #[must_use]
    pub fn links_to(&self, router: &RouterId) -> Vec<LinkId> {
        self.links.iter().filter(|(_, remote)| remote.router == *router).map(|(id, _)| *id).collect()
    }

    /// The addresses that this router has consumers for itself: what it advertises.
    #[must_use]
    pub fn advertised(&self) -> BTreeSet<Address> {
        self.connectors.keys().cloned().collect()
    }

    /// Whether there is a consumer of `address` anywhere.
    #[must_use]
    pub fn is_reachable(&self, address: &Address) -> bool {
        self.connectors.contains_key(address) || self.links.values().any(|remote| remote.addresses.contains(address))
    }

    /// Chooses a consumer for a client's connection, or none if there is none.
    pub fn choose(&mut self, address: &Address) -> Option<Route> {
        if let Some(connector) = self.choose_local(address) {
            return Some(Route::Local(connector));
        }
        let turn = self.turns.get(address).copied().unwrap_or_default();
        let able = self.newest_links_for(address);
        let open = |link: &LinkId| {
            self.links.get(link).and_then(|remote| remote.open_streams.get(address)).copied().unwrap_or_default()
        };
        // min_by_key takes the first of equals; starting at the turn makes that another one each time.
        let start = turn.checked_rem(able.len())?;
        let chosen = able.iter().cycle().skip(start).take(able.len()).copied().min_by_key(open)?;
        self.turns.insert(address.clone(), turn.wrapping_add(1));
        *self.links.get_mut(&chosen)?.open_streams.entry(address.clone()).or_default() += 1;
        Some(Route::Remote(chosen))
    }

    /// One link to each router that has consumers of `address`.
    fn newest_links_for(&self, address: &Address) -> Vec<LinkId> {
        let able = self.links.iter().filter(|(_, remote)| remote.addresses.contains(address));
        // Links come in the order of their age, so a newer one to the same router takes the place of an older one.
        let newest: BTreeMap<&RouterId, LinkId> = able.map(|(id, remote)| (&remote.router, *id)).collect();
        newest.into_values().collect()
    }

    /// Chooses among this router's own consumers, in turn.
    pub fn choose_local(&mut self, address: &Address) -> Option<TcpConnector> {
        let connectors = self.connectors.get(address)?;
        let turn = self.turns.entry(address.clone()).or_default();
        let connector = connectors.get(turn.checked_rem(connectors.len())?)?;
        *turn = turn.wrapping_add(1);
        Some(connector.clone())
    }

    /// Notes that a stream counted by [`Table::choose`] has ended.
    pub fn release(&mut self, link: LinkId, address: &Address) {
        let Some(remote) = self.links.get_mut(&link) else { return };
        if let Some(count) = remote.open_streams.get_mut(address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                remote.open_streams.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPort;

    const A: LinkId = LinkId(1);
    const B: LinkId = LinkId(2);

    #[test]
    fn a_local_consumer_wins_and_several_take_turns() {
        let mut table = table_with_links();
        table.set_connectors(&BTreeSet::from([connector("x", 1), connector("x", 2)]));
        let chosen: Vec<_> = (0..3).map(|_| table.choose(&address("x")).unwrap()).collect();
        assert_eq!(
            chosen,
            [Route::Local(connector("x", 1)), Route::Local(connector("x", 2)), Route::Local(connector("x", 1))]
        );
    }

    #[test]
    fn the_link_with_fewer_open_streams_wins_and_equals_take_turns() {
        let mut table = table_with_links();
        let x = address("x");
        assert_eq!(table.choose(&x), Some(Route::Remote(A)));
        assert_eq!(table.choose(&x), Some(Route::Remote(B)));
        table.release(B, &x);
        assert_eq!(table.choose(&x), Some(Route::Remote(B)));
        table.release(A, &x);
        table.release(B, &x);
        let first = table.choose(&x).unwrap();
        let Route::Remote(link) = first else { panic!("there is no local consumer") };
        table.release(link, &x);
        assert_ne!(table.choose(&x), Some(first), "one after another, too, they take turns");
    }

    #[test]
    fn of_several_links_to_one_router_the_newest_is_used() {
        let mut table = table_with_links();
        let newer = LinkId(3);
        table.add_link(newer, RouterId::new("a").unwrap());
        let x = address("x");
        table.set_addresses(newer, BTreeSet::from([x.clone()]));
        let chosen: BTreeSet<_> = (0..8).filter_map(|_| table.choose(&x)).map(|route| format!("{route:?}")).collect();
        assert_eq!(chosen, BTreeSet::from(["Remote(LinkId(2))".into(), "Remote(LinkId(3))".into()]));
        table.remove_link(newer);
        assert!((0..2).filter_map(|_| table.choose(&x)).any(|route| route == Route::Remote(A)));
    }

    #[test]
    fn what_no_link_leads_to_is_unreachable() {
        let mut table = table_with_links();
        assert!(table.is_reachable(&address("x")));
        table.remove_link(A);
        table.set_addresses(B, BTreeSet::new());
        assert!(!table.is_reachable(&address("x")));
        assert_eq!(table.choose(&address("x")), None);
    }

    #[test]
    fn a_stream_from_a_link_is_not_passed_on() {
        assert_eq!(table_with_links().choose_local(&address("x")), None);
    }

    #[test]
    fn only_own_consumers_are_advertised() {
        let mut table = table_with_links();
        table.set_connectors(&BTreeSet::from([connector("y", 1), connector("y", 2)]));
        assert_eq!(table.advertised(), BTreeSet::from([address("y")]));
    }

    fn table_with_links() -> Table {
        let mut table = Table::default();
        for (link, name) in [(A, "a"), (B, "b")] {
            table.add_link(link, RouterId::new(name).unwrap());
            table.set_addresses(link, BTreeSet::from([address("x")]));
        }
        table
    }

    fn address(text: &str) -> Address {
        Address::new(text).unwrap()
    }

    fn connector(text: &str, port: u16) -> TcpConnector {
        let to = HostPort { host: "127.0.0.1".into(), port };
        TcpConnector { name: to.to_string(), to, address: address(text) }
    }
}
