//! Completion with the tabulator, and the grey hint behind the cursor: commands, nodes, containers, methods.

use std::sync::Arc;

use rustyline::{
    Context, Helper, Highlighter, Validator,
    completion::{Completer, Pair},
    hint::{Hinter, HistoryHinter},
};

use super::{
    line::{COMMANDS, Names},
    methods::{CLUSTER_METHODS, NODE_METHODS},
};
use crate::world::World;

#[derive(Helper, Highlighter, Validator)]
pub(super) struct Completion {
    world: Arc<World>,
    history: HistoryHinter,
}

impl Completion {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world, history: HistoryHinter {} }
    }
}

/// What could stand at the end of `text`: where the word to be completed begins, and the candidates for it.
pub(super) fn candidates(text: &str, names: &dyn Names, clusters: &[String]) -> (usize, Vec<String>) {
    let start = text.rfind(|c: char| c.is_whitespace() || c == '(' || c == '"').map_or(0, |at| at + 1);
    let word = &text[start..];
    let first = text[..start].trim().is_empty();
    let python = text.trim_start().starts_with("py ");
    if let Some((receiver, partial)) = word.split_once('.') {
        let methods: &[&str] = match clusters.iter().any(|cluster| cluster == receiver) {
            true => &CLUSTER_METHODS,
            false => &NODE_METHODS,
        };
        let containers = if first { names.containers(receiver) } else { Vec::new() };
        let methods = methods.iter().map(|method| format!("{method}("));
        let all = containers.into_iter().chain(methods).filter(|name| name.starts_with(partial));
        return (start + receiver.len() + 1, all.collect());
    }
    let mut all = names.nodes();
    if first {
        all.extend(COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).filter(|name| !name.starts_with("NODE")));
    }
    if first || python {
        all.extend(clusters.iter().cloned());
    }
    all.retain(|name| name.starts_with(word));
    all.sort();
    (start, all)
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let clusters: Vec<String> = self.world.lab.clusters.iter().map(|cluster| cluster.name.to_string()).collect();
        let (start, names) = candidates(&line[..position], &*self.world, &clusters);
        Ok((start, names.into_iter().map(|name| Pair { display: name.clone(), replacement: name }).collect()))
    }
}

impl Hinter for Completion {
    type Hint = String;

    fn hint(&self, line: &str, position: usize, context: &Context<'_>) -> Option<String> {
        self.history.hint(line, position, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab;

    impl Names for Lab {
        fn nodes(&self) -> Vec<String> {
            vec!["C0w1".to_owned(), "C0w2".to_owned()]
        }

        fn containers(&self, node: &str) -> Vec<String> {
            if node == "C0w1" { vec!["c1".to_owned()] } else { Vec::new() }
        }

        fn address(&self, _: &str) -> Option<String> {
            None
        }
    }

    fn complete(text: &str) -> (usize, Vec<String>) {
        candidates(text, &Lab, &["C0".to_owned()])
    }

    #[test]
    fn a_first_word_is_a_command_or_a_name() {
        assert_eq!(complete("pi"), (0, vec!["pingall".to_owned()]));
        assert_eq!(complete("C0"), (0, vec!["C0".to_owned(), "C0w1".to_owned(), "C0w2".to_owned()]));
    }

    #[test]
    fn behind_a_node_come_its_containers_and_its_methods() {
        assert_eq!(complete("C0w1.c"), (5, vec!["c1".to_owned(), "create_container(".to_owned(), "cmd(".to_owned()]));
        assert_eq!(complete("py C0.k"), (6, vec!["kp_vip_add(".to_owned()]));
    }

    #[test]
    fn a_later_word_is_a_node() {
        assert_eq!(complete("C0w1 ping C0w2"), (10, vec!["C0w2".to_owned()]));
    }
}
