//! Which rule takes a request: a pure table from paths to targets.
//!
//! The semantics are those of the Kubernetes Ingress (`networking.k8s.io/v1`, "Path types"):
//!
//! | rule | takes | does not take |
//! |---|---|---|
//! | `Exact /foo` | `/foo` | `/foo/`, `/FOO`, `/foo/bar` |
//! | `Prefix /foo` or `Prefix /foo/` | `/foo`, `/foo/`, `/foo/bar` | `/foobar`, `/FOO` |
//! | `Prefix /` | everything | |
//!
//! The longest matching path wins, and on a tie `Exact` before `Prefix`. A lookup costs one hash per element of the path, however
//! many rules there are: it asks for the whole path first and then cuts one element after the other from its end.
//!
//! A table belongs to one host name; a table per host is how host rules join.

use std::collections::{HashMap, hash_map::Entry};

use serde::Deserialize;

use crate::path::MatchPath;

/// How a rule's path is compared, in the words of the Kubernetes Ingress.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum PathType {
    /// Byte for byte.
    Exact,
    /// By whole elements; a slash at the end of the rule's path does not count.
    #[default]
    Prefix,
}

/// Targets by path, for one host.
#[derive(Debug)]
pub struct Table<T> {
    exact: HashMap<String, T>,
    /// Keys bear no slash at their end, so `/` is the empty string.
    prefix: HashMap<String, T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { exact: HashMap::new(), prefix: HashMap::new() }
    }
}

impl<T> Table<T> {
    /// Adds a rule.
    ///
    /// # Errors
    ///
    /// Gives `target` back when the table has a rule of the same type for the same path; the first one stays.
    pub fn insert(&mut self, path: &MatchPath<'_>, path_type: PathType, target: T) -> Result<(), T> {
        let entry = match path_type {
            PathType::Exact => self.exact.entry(path.as_str().to_owned()),
            PathType::Prefix => self.prefix.entry(path.as_str().strip_suffix('/').unwrap_or(path.as_str()).to_owned()),
        };
        match entry {
            Entry::Occupied(_) => Err(target),
            Entry::Vacant(entry) => {
                entry.insert(target);
                Ok(())
            }
        }
    }

    /// All targets, in no particular order.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.prefix.values())
    }

    /// The target of the rule that takes `path`, if any does.
    #[must_use]
    pub fn find(&self, path: &MatchPath<'_>) -> Option<&T> {
        // An exact match is as long as the whole path: no prefix is longer, and a tie goes to Exact.
        self.exact.get(path.as_str()).or_else(|| ancestors(path.as_str()).find_map(|prefix| self.prefix.get(prefix)))
    }
}

/// `/a/b` → `/a/b`, `/a`, and the empty string, which is the key of the rule `/`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind('/').map(|slash| &path[..slash]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(rules: &[(PathType, &'static str)]) -> Table<String> {
        let mut table = Table::default();
        for &(path_type, path) in rules {
            let parsed = MatchPath::parse(path).unwrap();
            table.insert(&parsed, path_type, format!("{path_type:?} {path}")).unwrap();
        }
        table
    }

    fn find<'t>(table: &'t Table<String>, path: &str) -> &'t str {
        table.find(&MatchPath::parse(path).unwrap()).map_or("404", String::as_str)
    }

    /// Source: kubernetes-sigs/ingress-controller-conformance, feature "path rules".
    #[test]
    fn the_conformance_table_of_path_rules_holds() {
        use PathType::{Exact, Prefix};
        type Case = (&'static [(PathType, &'static str)], &'static [(&'static str, &'static str)]);
        let cases: &[Case] = &[
            (
                &[(Exact, "/foo")],
                &[("/foo", "Exact /foo"), ("/foo/", "404"), ("/FOO", "404"), ("/bar", "404"), ("/foo/bar", "404")],
            ),
            (
                &[(Prefix, "/foo")],
                &[("/foo", "Prefix /foo"), ("/foo/", "Prefix /foo"), ("/FOO", "404"), ("/foobar", "404")],
            ),
            (
                &[(Prefix, "/aaa"), (Prefix, "/aaa/bbb")],
                &[
                    ("/aaa/bbb", "Prefix /aaa/bbb"),
                    ("/aaa/bbb/ccc", "Prefix /aaa/bbb"),
                    ("/aaa/ccc", "Prefix /aaa"),
                    ("/aaaccc", "404"),
                    ("/aa", "404"),
                ],
            ),
            (
                &[(Prefix, "/foo"), (Exact, "/foo")],
                &[("/foo", "Exact /foo"), ("/foo/", "Prefix /foo"), ("/foo/bar", "Prefix /foo")],
            ),
            (
                &[(Prefix, "/aaa/bbb/")],
                &[
                    ("/aaa/bbb", "Prefix /aaa/bbb/"),
                    ("/aaa/bbb/", "Prefix /aaa/bbb/"),
                    ("/aaa/bbb/c", "Prefix /aaa/bbb/"),
                ],
            ),
            (&[(Exact, "/foo/")], &[("/foo/", "Exact /foo/"), ("/foo", "404")]),
            (&[(Prefix, "/")], &[("/", "Prefix /"), ("/a/b", "Prefix /"), ("//", "Prefix /")]),
            (&[(Prefix, "/a"), (Prefix, "/%7Ejo")], &[("/~jo/x", "Prefix /%7Ejo"), ("/%7ejo", "Prefix /%7Ejo")]),
            (&[(Prefix, "/a%2fb")], &[("/a%2Fb/c", "Prefix /a%2fb"), ("/a/b", "404")]),
        ];
        for (rules, requests) in cases {
            let table = table(rules);
            for (path, expected) in *requests {
                assert_eq!(find(&table, path), *expected, "{path} with {rules:?}");
            }
        }
    }

    #[test]
    fn a_second_rule_for_the_same_path_is_given_back() {
        let mut table = table(&[(PathType::Prefix, "/foo")]);
        let path = MatchPath::parse("/foo/").unwrap();
        assert_eq!(table.insert(&path, PathType::Prefix, "second".into()), Err("second".into()));
        assert_eq!(table.insert(&path, PathType::Exact, "other type".into()), Ok(()));
    }

    /// The text of the specification, as slowly as it reads: elements compared one by one, the longest rule kept.
    fn by_the_book<'r>(rules: &'r [String], path: &str) -> Option<&'r String> {
        let elements = |path: &str| path.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
        rules
            .iter()
            .filter(|rule| {
                let rule = elements(rule.strip_suffix('/').unwrap_or(rule));
                elements(path).starts_with(&rule)
            })
            .max_by_key(|rule| rule.strip_suffix('/').unwrap_or(rule).len())
    }

    proptest! {
        #[test]
        fn the_hashed_lookup_agrees_with_the_specification(
            rules in proptest::collection::btree_set("(/[ab]{0,2}){1,4}", 0..6),
            path in "(/[ab]{0,2}){1,5}",
        ) {
            let rules: Vec<String> = rules.into_iter().collect();
            let mut table = Table::default();
            let mut kept = Vec::new();
            for rule in &rules {
                if table.insert(&MatchPath::parse(rule).unwrap(), PathType::Prefix, rule.clone()).is_ok() {
                    kept.push(rule.clone());
                }
            }
            prop_assert_eq!(table.find(&MatchPath::parse(&path).unwrap()), by_the_book(&kept, &path));
        }
    }
}
