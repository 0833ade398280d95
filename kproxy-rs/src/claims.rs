//! What only one Service can have: an address, an address with a port.
//!
//! The first that claims it has it, in the order of names, so that all workers agree whoever came before. The others wait: whoever gives a
//! thing up makes room for the next.

use std::collections::BTreeMap;

use crate::few::FewSet;
use crate::service::ServiceName;

/// Who claims what.
#[derive(Debug)]
pub struct Claims<T>(BTreeMap<T, FewSet<ServiceName>>);

impl<T: Ord + Copy> Claims<T> {
    /// Who has it, if anybody claims it.
    #[must_use]
    pub fn holder(&self, what: T) -> Option<&ServiceName> {
        self.0.get(&what)?.first()
    }

    /// Gives up what a Service claimed, and claims what it wants. Returns the others who got or lost something by that.
    pub fn change(&mut self, name: &ServiceName, former: &[T], wanted: &[T]) -> Vec<ServiceName> {
        let mut affected = Vec::new();
        for what in former.iter().filter(|what| !wanted.contains(what)) {
            let Some(claimants) = self.0.get_mut(what) else { continue };
            let had_it = claimants.first() == Some(name);
            claimants.remove(name);
            affected.extend(claimants.first().filter(|_| had_it).cloned());
            if claimants.is_empty() {
                self.0.remove(what);
            }
        }
        for what in wanted.iter().filter(|what| !former.contains(what)) {
            let claimants = self.0.entry(*what).or_default();
            let holder = claimants.first().cloned();
            claimants.insert(name.clone());
            affected.extend(holder.filter(|_| claimants.first() == Some(name)));
        }
        affected
    }
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_in_the_order_of_names_has_it_and_the_next_when_that_one_goes() {
        let [a, b, c] = ["a", "b", "c"].map(|name| ServiceName::new("shop", name));
        let mut claims = Claims::default();
        assert_eq!(claims.change(&b, &[], &[80]), []);
        assert_eq!(claims.change(&c, &[], &[80, 81]), [], "it gets nothing that another has");
        assert_eq!(claims.change(&a, &[], &[80]), vec![b.clone()]);
        assert_eq!((claims.holder(80), claims.holder(81), claims.holder(82)), (Some(&a), Some(&c), None));
        assert_eq!(claims.change(&a, &[80], &[81]), [b.clone(), c.clone()]);
        assert_eq!((claims.holder(80), claims.holder(81)), (Some(&b), Some(&a)));
        assert_eq!(claims.change(&c, &[80, 81], &[]), []);
        assert_eq!(claims.change(&b, &[80], &[]), []);
        assert_eq!(claims.holder(80), None);
    }
}
