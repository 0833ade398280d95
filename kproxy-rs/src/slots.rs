//! How many slots a Service's endpoints take, in the eight bits that a tag has for it.
//!
//! The number must be in the tag, because it chooses the chain. Numbers up to 239 are their own code. Hundreds of endpoints of one Service are
//! rare, and a cluster has few such Services; for their numbers there are fifteen codes to borrow.

use std::collections::BTreeMap;
use std::fmt;

/// The most slots that a tag can say by their number.
pub const MAX_NARROW: u8 = 239;
/// The codes of larger numbers.
const WIDE: std::ops::RangeInclusive<u8> = MAX_NARROW + 1..=254;

/// A number of slots, at least 1, and what a tag says for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slots {
    count: u16,
    code: u8,
}

/// Lends codes for numbers of slots that are too large for a tag: each stands for one number as long as somebody needs it.
///
/// So a cluster may have any number of Services with hundreds of endpoints, as long as they have no more than 15 different numbers of them.
#[derive(Debug, Default, Clone)]
pub struct Widths {
    /// By code: the number, and how many have borrowed it.
    lent: BTreeMap<u8, (u16, u32)>,
}

impl Slots {
    /// The most that a tag can say without a borrowed code.
    pub const WIDEST_NARROW: Self = Self { count: MAX_NARROW as u16, code: MAX_NARROW };

    /// A number that a tag can say; `None` for 0 and for more than [`MAX_NARROW`].
    #[must_use]
    pub fn narrow(count: usize) -> Option<Self> {
        let code = u8::try_from(count).ok().filter(|code| (1..=MAX_NARROW).contains(code))?;
        Some(Self { count: code.into(), code })
    }

    /// What a tag says for it.
    #[must_use]
    pub fn code(self) -> u8 {
        self.code
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u16 {
        self.count
    }
}

/// The number; of one with a borrowed code, that too, because the same number may have another code at another time.
impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if WIDE.contains(&self.code) { write!(f, "{}.{}", self.count, self.code) } else { self.count.fmt(f) }
    }
}

impl Widths {
    /// Borrows a code for `count` slots; if there is none left, for the next larger number that has one, and if there is none of that
    /// either, `None`.
    pub fn borrow(&mut self, count: u16) -> Option<Slots> {
        let lent = |wanted: &dyn Fn(u16) -> bool| {
            let suitable = self.lent.iter().filter(|(_, (count, _))| wanted(*count));
            suitable.min_by_key(|(_, (count, _))| *count).map(|(code, (count, _))| (*code, *count))
        };
        let free = || WIDE.into_iter().find(|code| !self.lent.contains_key(code)).map(|code| (code, count));
        let (code, count) = lent(&|other| other == count).or_else(free).or_else(|| lent(&|other| other > count))?;
        self.lent.entry(code).or_insert((count, 0)).1 += 1;
        Some(Slots { count, code })
    }

    /// Gives a code back. One that was not borrowed needs no giving back.
    pub fn give_back(&mut self, slots: Slots) {
        if let Some((_, borrowers)) = self.lent.get_mut(&slots.code) {
            *borrowers -= 1;
            if *borrowers == 0 {
                self.lent.remove(&slots.code);
            }
        }
    }
}

/// The endpoints in their slots: each as often as its weight says, in the smallest numbers that do.
#[must_use]
pub fn fill<T: Copy>(targets: &[(T, u8)]) -> Vec<T> {
    let divisor = targets.iter().map(|(_, weight)| *weight).fold(0, gcd).max(1);
    let wanted: usize = targets.iter().map(|(_, weight)| usize::from(weight / divisor)).sum();
    // Weights lose precision before they take more slots than a tag can say, but every endpoint has one.
    let scale = wanted.div_ceil(usize::from(MAX_NARROW)).max(1);
    let times = |weight: u8| match usize::from(weight / divisor) {
        0 => 0,
        times => (times / scale).max(1),
    };
    targets.iter().flat_map(|(target, weight)| std::iter::repeat_n(*target, times(*weight))).collect()
}

fn gcd(one: u8, other: u8) -> u8 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_code_stands_for_one_number_while_it_is_lent() {
        assert_eq!(Slots::narrow(239), Some(Slots::WIDEST_NARROW));
        assert_eq!((Slots::narrow(0), Slots::narrow(240)), (None, None));
        let mut widths = Widths::default();
        let first = widths.borrow(300).unwrap();
        assert_eq!(widths.borrow(300), Some(first));
        let others: Vec<Slots> = (301..315).map(|count| widths.borrow(count).unwrap()).collect();
        assert_eq!(others.iter().map(|slots| slots.code).collect::<BTreeSet<_>>().len(), 14);
        assert_eq!(widths.borrow(240).map(Slots::count), Some(300), "the next larger one");
        assert_eq!(widths.borrow(400), None);
        for _ in 0..3 {
            assert_eq!(widths.borrow(400), None, "three have borrowed it");
            widths.give_back(first);
        }
        assert_eq!(widths.borrow(400).map(|slots| (slots.count, slots.code)), Some((400, first.code)));
        widths.give_back(Slots::WIDEST_NARROW);
        assert_eq!((Slots::WIDEST_NARROW.to_string(), first.to_string()), ("239".to_owned(), "300.240".to_owned()));
    }
}
