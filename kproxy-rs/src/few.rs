//! Sets and maps for a few elements, of which there are very many.
//!
//! Each of ten thousand Services has a handful of slices, ids and claims, most often one. A `BTreeMap` of one element takes the
//! room of eleven, because its nodes have a fixed size: most of a kilobyte for a single slice. A sorted vector takes the room of
//! one. To insert or remove an element it moves the later ones, which is little as long as they are few.

use std::borrow::Borrow;

/// A sorted map of a few pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewMap<K, V>(Vec<(K, V)>);

/// A sorted set of a few elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewSet<T>(Vec<T>);

impl<K: Ord, V> FewMap<K, V> {
    /// The value of a key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let index = self.find(key).ok()?;
        Some(&self.0[index].1)
    }

    /// Says whether there is such a key.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_ok()
    }

    /// The value of a key, which may be changed; it is the default one if there was none.
    pub fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let index = self.find(&key).unwrap_or_else(|index| {
            insert_at(&mut self.0, index, (key, V::default()));
            index
        });
        &mut self.0[index].1
    }

    /// Gives a key a value. Returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(index) => Some(std::mem::replace(&mut self.0[index].1, value)),
            Err(index) => {
                insert_at(&mut self.0, index, (key, value));
                None
            }
        }
    }

    /// Takes a key and its value away.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let index = self.find(key).ok()?;
        Some(self.0.remove(index).1)
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All pairs, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.0.binary_search_by(|(own, _)| own.borrow().cmp(key))
    }
}

impl<T: Ord> FewSet<T> {
    /// Adds an element, if it is not there yet.
    pub fn insert(&mut self, element: T) {
        if let Err(index) = self.0.binary_search(&element) {
            insert_at(&mut self.0, index, element);
        }
    }

    /// Takes an element away, if it is there.
    pub fn remove(&mut self, element: &T) {
        if let Ok(index) = self.0.binary_search(element) {
            self.0.remove(index);
        }
    }

    /// Says whether an element is there.
    #[must_use]
    pub fn contains(&self, element: &T) -> bool {
        self.0.binary_search(element).is_ok()
    }

    /// The least element.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.0.first()
    }

    /// All elements, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A vector that grows by itself begins with room for four; this one with room for one, and then by half.
fn insert_at<T>(sorted: &mut Vec<T>, index: usize, element: T) {
    if sorted.len() == sorted.capacity() {
        sorted.reserve_exact(1 + sorted.len() / 2);
    }
    sorted.insert(index, element);
}

impl<K, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Default for FewSet<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> IntoIterator for FewMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T: Ord> IntoIterator for &'a FewSet<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Ord> Extend<T> for FewSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        self.0.extend(elements);
        self.0.sort_unstable();
        self.0.dedup();
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_sorted_and_has_each_key_once() {
        let mut map = FewMap::default();
        assert_eq!(
            [map.insert("b", 2), map.insert("a", 1), map.insert("c", 3), map.insert("b", 4)],
            [None, None, None, Some(2)]
        );
        assert_eq!(map.values().copied().collect::<Vec<_>>(), [1, 4, 3]);
        *map.get_or_default("d") += 5;
        *map.get_or_default("a") += 5;
        assert_eq!(
            map.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>(),
            [("a", 6), ("b", 4), ("c", 3), ("d", 5)]
        );
        assert_eq!((map.remove("b"), map.remove("b"), map.get("b"), map.get("c")), (Some(4), None, None, Some(&3)));
        assert!(map.contains_key("d") && !map.contains_key("b") && !map.is_empty());
    }

    #[test]
    fn a_set_is_sorted_and_has_each_element_once() {
        let mut set = FewSet::default();
        set.extend([3, 1, 3]);
        for element in [2, 1] {
            set.insert(element);
        }
        assert_eq!(set.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
        set.remove(&1);
        set.remove(&1);
        assert!(set.first() == Some(&2) && set.contains(&3) && !set.contains(&1) && set.len() == 2 && !set.is_empty());
    }

    #[test]
    fn one_element_takes_the_room_of_one() {
        let (mut map, mut set) = (FewMap::default(), FewSet::default());
        map.insert("a", 1);
        set.insert("a");
        assert_eq!((map.0.capacity(), set.0.capacity()), (1, 1));
    }
}
