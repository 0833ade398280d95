//! What a line of the prompt means. Parsing knows the names of the lab, so that it can suggest the nearest one.

use super::call::{Call, CallError};

/// One line, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// Nothing, or a comment.
    Empty,
    /// `help`, `help WORD`
    Help(Option<String>),
    /// `nodes`
    Nodes,
    /// `net`
    Net,
    /// `links`
    Links,
    /// `dump`
    Dump,
    /// `status`
    Status,
    /// `apply -f FILE`, `get services`, … : the words, as a shell would give them
    Objects(Vec<String>),
    /// `pingall`
    PingAll,
    /// `iperf A B`
    Iperf(String, String),
    /// `link A B up|down`
    Link {
        /// One end.
        a: String,
        /// The other.
        b: String,
        /// Whether it goes up.
        up: bool,
    },
    /// `sh CMD`
    Shell(String),
    /// `time LINE`
    Time(Box<Line>),
    /// `source FILE`
    Source(String),
    /// `exit`, `quit`, `EOF`
    Exit,
    /// `py C0w1.exec_container("c1", "ifconfig")`, with or without the `py`
    Call(Call),
    /// `C0w1 ifconfig`, `C0w1.c1 ping 11.10.0.2`
    Run {
        /// Full name of the node.
        node: String,
        /// A container on it, or none for the node itself.
        container: Option<String>,
        /// What its shell is given, node names already replaced by addresses.
        command: String,
    },
}

/// Why a line was refused. The lab goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The first word is neither a command nor a name of the lab.
    #[error("unknown command or node {word:?}{}; `help` lists the commands, `nodes` the nodes", hint(suggestion.as_deref()))]
    UnknownWord {
        /// The word.
        word: String,
        /// The nearest right one.
        suggestion: Option<String>,
    },
    /// A name stands where a node's name must.
    #[error("there is no node {name:?}{}", hint(suggestion.as_deref()))]
    UnknownNode {
        /// The name.
        name: String,
        /// The nearest right one.
        suggestion: Option<String>,
    },
    /// The node exists, the container does not.
    #[error("{node} has no container {container:?}{}", hint(suggestion.as_deref()))]
    UnknownContainer {
        /// The node.
        node: String,
        /// The name.
        container: String,
        /// The nearest right one.
        suggestion: Option<String>,
    },
    /// The command is known, its arguments are not what it takes.
    #[error("usage: {0}")]
    Usage(&'static str),
    /// A `py` line is not a call.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// `; did you mean C0w1?` with the candidate most like `name`; nothing when none is like it.
#[must_use]
pub fn did_you_mean(name: &str, candidates: impl IntoIterator<Item = String>) -> String {
    hint(nearest(name, candidates).as_deref())
}

fn hint(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// What the parser must know of the lab.
pub trait Names {
    /// Full names of all nodes and switches.
    fn nodes(&self) -> Vec<String>;
    /// Names of the containers that run on a node.
    fn containers(&self, node: &str) -> Vec<String>;
    /// The address that stands for a node's name in a command.
    fn address(&self, node: &str) -> Option<String>;
}

/// The commands with their usage and what they do, in the order of `help`.
pub const COMMANDS: [(&str, &str, &str); 21] = [
    ("nodes", "nodes", "list the nodes and switches"),
    ("net", "net", "list each node's interfaces and what they are linked to"),
    ("links", "links", "list the links and whether both ends are up"),
    ("dump", "dump", "list nodes, containers, addresses and process ids"),
    ("status", "status", "list the daemons: running since when, restarted how often"),
    ("apply", "apply -f FILE", "make the Kubernetes objects of a manifest; conf/examples has some"),
    ("get", "get KIND [NAME] [-o wide|yaml|json]", "show Kubernetes objects: get services, get pods -o wide"),
    ("delete", "delete KIND NAME | -f FILE", "delete a Kubernetes object"),
    ("scale", "scale deployment NAME --replicas N", "change the number of pods of a Deployment"),
    ("pingall", "pingall", "ping every node from every node"),
    ("iperf", "iperf NODE NODE", "measure TCP bandwidth between two nodes"),
    ("link", "link NODE NODE up|down", "bring a link up or down"),
    ("sh", "sh COMMAND", "run a command of the machine, inside the lab's sandbox"),
    ("time", "time LINE", "run a line and print how long it took"),
    ("source", "source FILE", "run the lines of a file"),
    (
        "py",
        "py NODE.METHOD(ARGUMENTS)",
        "exec_container, exec_container_async, create_container, delete_container, kp_vip_add, run_ingress",
    ),
    ("NODE", "NODE COMMAND", "run a command on a node; node names in it stand for their addresses"),
    ("NODE.CONTAINER", "NODE.CONTAINER COMMAND", "run a command in a container"),
    ("help", "help [COMMAND]", "print this list, or how one command is used"),
    ("exit", "exit", "tear the lab down and leave"),
    ("quit", "quit", "the same as exit"),
];

impl Line {
    /// Reads one line.
    ///
    /// # Errors
    ///
    /// [`LineError`] with the nearest right name, when the line is none of the forms above.
    pub fn parse(text: &str, names: &dyn Names) -> Result<Self, LineError> {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return Ok(Line::Empty);
        }
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let words: Vec<&str> = rest.split_whitespace().collect();
        let bare = |line: Line, usage| if rest.is_empty() { Ok(line) } else { Err(LineError::Usage(usage)) };
        match word {
            "help" | "?" => match words[..] {
                [] => Ok(Line::Help(None)),
                [topic] => Ok(Line::Help(Some(topic.to_owned()))),
                _ => Err(LineError::Usage("help [COMMAND]")),
            },
            "nodes" => bare(Line::Nodes, "nodes"),
            "net" => bare(Line::Net, "net"),
            "links" => bare(Line::Links, "links"),
            "dump" => bare(Line::Dump, "dump"),
            "status" => bare(Line::Status, "status"),
            "apply" | "get" | "delete" | "scale" => {
                Ok(Line::Objects(std::iter::once(word).chain(words).map(str::to_owned).collect()))
            }
            "pingall" => bare(Line::PingAll, "pingall"),
            "exit" | "quit" | "EOF" => bare(Line::Exit, "exit"),
            "iperf" => match words[..] {
                [a, b] => Ok(Line::Iperf(known_node(a, names)?, known_node(b, names)?)),
                _ => Err(LineError::Usage("iperf NODE NODE")),
            },
            "link" => match words[..] {
                [a, b, state @ ("up" | "down")] => {
                    Ok(Line::Link { a: known_node(a, names)?, b: known_node(b, names)?, up: state == "up" })
                }
                _ => Err(LineError::Usage("link NODE NODE up|down")),
            },
            "sh" if rest.is_empty() => Err(LineError::Usage("sh COMMAND")),
            "sh" => Ok(Line::Shell(rest.to_owned())),
            "time" if rest.is_empty() => Err(LineError::Usage("time LINE")),
            "time" => Ok(Line::Time(Box::new(Line::parse(rest, names)?))),
            "source" if words.len() != 1 => Err(LineError::Usage("source FILE")),
            "source" => Ok(Line::Source(rest.to_owned())),
            "py" => Ok(Line::Call(Call::parse(rest)?)),
            _ => Self::parse_node(text, word, rest, names),
        }
    }

    /// A line whose first word is no command: a node with a command, or a call without `py`.
    fn parse_node(text: &str, word: &str, rest: &str, names: &dyn Names) -> Result<Self, LineError> {
        if word.contains('(') {
            return Ok(Line::Call(Call::parse(text)?));
        }
        let (node, container) = match word.split_once('.') {
            Some((node, container)) => (node, Some(container)),
            None => (word, None),
        };
        let nodes = names.nodes();
        if !nodes.iter().any(|known| known == node) {
            let commands =
                COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).filter(|name| !name.starts_with("NODE"));
            let suggestion = nearest(node, nodes.into_iter().chain(commands));
            return Err(LineError::UnknownWord { word: word.to_owned(), suggestion });
        }
        if let Some(container) = container {
            known_container(node, container, names)?;
        }
        if rest.is_empty() {
            return Err(LineError::Usage(if container.is_some() { "NODE.CONTAINER COMMAND" } else { "NODE COMMAND" }));
        }
        Ok(Line::Run {
            node: node.to_owned(),
            container: container.map(str::to_owned),
            command: substitute(rest, names),
        })
    }
}

/// Checks the name of a node or switch.
///
/// # Errors
///
/// [`LineError::UnknownNode`] with the nearest right name.
pub fn known_node(name: &str, names: &dyn Names) -> Result<String, LineError> {
    let nodes = names.nodes();
    if nodes.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(LineError::UnknownNode { name: name.to_owned(), suggestion: nearest(name, nodes) })
}

/// Checks the name of a container on a node.
///
/// # Errors
///
/// [`LineError::UnknownContainer`] with the nearest right name.
pub fn known_container(node: &str, container: &str, names: &dyn Names) -> Result<(), LineError> {
    let containers = names.containers(node);
    if containers.iter().any(|known| known == container) {
        return Ok(());
    }
    let suggestion = nearest(container, containers);
    Err(LineError::UnknownContainer { node: node.to_owned(), container: container.to_owned(), suggestion })
}

/// Replaces each word that is a node's name by the node's address; the rest of the command stays as it is.
#[must_use]
pub fn substitute(command: &str, names: &dyn Names) -> String {
    let mut result = String::with_capacity(command.len());
    let mut word = String::new();
    let flush = |word: &mut String, result: &mut String| {
        match names.address(word) {
            Some(address) => result.push_str(&address),
            None => result.push_str(word),
        }
        word.clear();
    };
    for character in command.chars() {
        if character.is_whitespace() {
            flush(&mut word, &mut result);
            result.push(character);
        } else {
            word.push(character);
        }
    }
    flush(&mut word, &mut result);
    result
}

/// The candidate that takes the fewest slips of the finger to become `name`, if it takes few enough to be one.
#[must_use]
pub fn nearest(name: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    // One slip in a short name, one more for every four characters.
    let few_slips = 1 + name.chars().count() / 4;
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(slips, _)| *slips <= few_slips)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab;

    impl Names for Lab {
        fn nodes(&self) -> Vec<String> {
            ["C0e1", "C0w1", "C0w2", "C1w1", "t0"].map(str::to_owned).to_vec()
        }

        fn containers(&self, node: &str) -> Vec<String> {
            if node == "C0w1" { vec!["c1".to_owned(), "web".to_owned()] } else { Vec::new() }
        }

        fn address(&self, node: &str) -> Option<String> {
            match node {
                "C0w1" => Some("10.0.0.3".to_owned()),
                "C0w2" => Some("10.0.0.4".to_owned()),
                _ => None,
            }
        }
    }

    fn parse(text: &str) -> Result<Line, LineError> {
        Line::parse(text, &Lab)
    }

    #[test]
    fn a_nodes_name_stands_for_its_address_in_a_command() {
        let line = parse("C0w1 ping -c2  C0w2 | grep C0w2x").unwrap();
        let command = "ping -c2  10.0.0.4 | grep C0w2x".to_owned();
        assert_eq!(line, Line::Run { node: "C0w1".to_owned(), container: None, command });
    }

    #[test]
    fn the_short_form_reaches_a_container() {
        let line = parse("C0w1.c1 ip addr").unwrap();
        let run =
            Line::Run { node: "C0w1".to_owned(), container: Some("c1".to_owned()), command: "ip addr".to_owned() };
        assert_eq!(line, run);
    }

    #[test]
    fn a_call_needs_no_py() {
        assert_eq!(parse("py C0w1.create_container(\"c10\")"), parse("C0w1.create_container(\"c10\")"));
        assert!(matches!(parse("C0w1.create_container(\"c10\")"), Ok(Line::Call(_))));
    }

    #[test]
    fn wrong_names_are_answered_with_the_nearest_right_one() {
        let table = [
            ("C0w11 ifconfig", "did you mean C0w1?"),
            ("c0w2 ifconfig", "did you mean C0w2?"),
            ("pingal", "did you mean pingall?"),
            ("C0w1.wbe ls", "did you mean web?"),
            ("iperf C0w1 C1w", "did you mean C1w1?"),
            ("link C0w1 t1 up", "did you mean t0?"),
        ];
        for (text, expected) in table {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert!(!parse("xyzzy").unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn wrong_arguments_are_answered_with_the_usage() {
        for text in ["nodes x", "iperf C0w1", "link C0w1 t0", "link C0w1 t0 sideways", "sh", "time", "source", "C0w1"] {
            assert!(matches!(parse(text), Err(LineError::Usage(_))), "{text}");
        }
    }

    #[test]
    fn time_takes_a_whole_line() {
        assert_eq!(parse("time nodes"), Ok(Line::Time(Box::new(Line::Nodes))));
        assert!(parse("time nonsense").is_err());
    }

    #[test]
    fn comments_and_blank_lines_do_nothing() {
        assert_eq!(parse("  # a remark"), Ok(Line::Empty));
        assert_eq!(parse(""), Ok(Line::Empty));
    }
}
