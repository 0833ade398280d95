//! Scenarios with two workers: a network configuration, and the state that flanneld made of it, under `tests/recorded`.
//!
//! What ours does otherwise on purpose stands in one table, [`DELIBERATE`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agent::{Agent, Program};
use super::lab::Lab;
use super::state::{State, capture};
use super::wait_within;

/// One way in which ours is meant to differ: in each line that begins with `lines`, `flanneld` stands for flanneld's text and `ours` for
/// ours; `reason` is for the reader.
struct Deliberate {
    lines: &'static str,
    flanneld: &'static str,
    ours: &'static str,
    only_dual_stack: bool,
    reason: &'static str,
}

/// All deliberate differences but one: rules of iptables become rules of nftables, see [`as_nft`].
const DELIBERATE: &[Deliberate] = &[
    Deliberate {
        lines: "route",
        flanneld: "protocol boot",
        ours: "protocol 70",
        only_dual_stack: false,
        reason: "routes that bear a mark can be told from those of others, and swept when a crashed run left them",
    },
    Deliberate {
        lines: "FLANNEL_MTU=1450",
        flanneld: "1450",
        ours: "1430",
        only_dual_stack: true,
        reason: "with two families a pod's interface must fit both devices, and IPv6 takes 20 bytes more",
    },
];

/// The subnet that each worker had in a former run, so that flanneld does not draw lots.
const PREVIOUS: [&str; 2] = [
    "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.0.1/20\n",
    "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.10.16.1/20\n",
];
/// What two families add to it.
const PREVIOUS_IPV6: [&str; 2] = [
    "FLANNEL_IPV6_NETWORK=fd00:11::/32\nFLANNEL_IPV6_SUBNET=fd00:11:0:10::1/64\n",
    "FLANNEL_IPV6_NETWORK=fd00:11::/32\nFLANNEL_IPV6_SUBNET=fd00:11:0:20::1/64\n",
];

/// One folder under `recorded`.
pub struct Scenario {
    folder: PathBuf,
    /// The network configuration.
    pub config: String,
}

impl Scenario {
    /// Reads the scenario of this name.
    pub fn named(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded").join(name);
        let config = fs::read_to_string(folder.join("network-config.json")).unwrap();
        Self { folder, config }
    }

    /// The state that should be there when these programs run on `w1` and `w2`.
    pub fn expected(&self, programs: [Program; 2]) -> State {
        let paths = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let files = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        let states = files.filter(|(name, _)| name != "network-config.json").map(|(name, path)| {
            let recorded = fs::read_to_string(path).unwrap();
            let is_ours =
                (1..).zip(programs).any(|(n, program)| name.starts_with(&format!("w{n}.")) && program == Program::Ours);
            (name, if is_ours { self.translate(&recorded) } else { recorded })
        });
        states.collect()
    }

    /// Starts two agents and returns the state that they come to: `expected`, as soon as it is there, or what has not changed for a while.
    pub fn run(&self, programs: [Program; 2], expected: Option<&State>) -> State {
        let lab = Lab::with_config(2, &self.config);
        for ((n, ipv4), ipv6) in (1..).zip(PREVIOUS).zip(PREVIOUS_IPV6) {
            // A wish for a family that the network has not makes flanneld forget the other one.
            let ipv6 = if self.is_dual_stack() { ipv6 } else { "" };
            lab.plant_subnet_file(n, &format!("{ipv4}{ipv6}"));
        }
        let workers: Vec<Agent> =
            (1..).zip(programs).map(|(n, program)| lab.launch(program, n, &["-ip-masq"]).ready()).collect();
        let workers: Vec<&Agent> = workers.iter().collect();
        let (mut state, mut since) = (capture(&lab, &workers), Instant::now());
        wait_within(Duration::from_secs(30), "the state to settle", || {
            let now = capture(&lab, &workers);
            if now != state {
                (state, since) = (now, Instant::now());
            }
            (expected == Some(&state) || since.elapsed() > Duration::from_secs(3)).then(|| state.clone())
        })
    }

    /// Runs the scenario and insists on the recorded state.
    #[track_caller]
    pub fn check(&self, programs: [Program; 2]) {
        let expected = self.expected(programs);
        let observed = self.run(programs, Some(&expected));
        for (file, text) in &expected {
            let (left, right): (Vec<&str>, Vec<&str>) = (text.lines().collect(), observed[file].lines().collect());
            let missing: Vec<_> = left.iter().filter(|line| !right.contains(line)).collect();
            let surplus: Vec<_> = right.iter().filter(|line| !left.contains(line)).collect();
            let name = self.folder.display();
            assert!(left == right, "{name}: {file}: missing {missing:#?}, not expected {surplus:#?}");
        }
        assert_eq!(expected.len(), observed.len());
    }

    /// Records the state that flanneld makes.
    pub fn record(&self) {
        for (file, text) in self.run([Program::Flanneld; 2], None) {
            fs::write(self.folder.join(file), text).unwrap();
        }
    }

    fn is_dual_stack(&self) -> bool {
        self.config.contains("EnableIPv6")
    }

    /// Turns flanneld's state into what ours should be.
    fn translate(&self, text: &str) -> String {
        let translated = text.lines().map(|line| {
            if let Some(rule) = line.strip_prefix("rule ") {
                return as_nft(rule);
            }
            let applies = |difference: &&Deliberate| {
                line.starts_with(difference.lines) && (self.is_dual_stack() || !difference.only_dual_stack)
            };
            let differences = DELIBERATE.iter().filter(applies);
            Some(
                differences
                    .fold(line.to_owned(), |line, difference| line.replace(difference.flanneld, difference.ours)),
            )
        });
        translated.flatten().map(|line| line + "\n").collect()
    }
}

/// Turns a rule of iptables into one of nftables, each in the form in which its program lists it; the jumps from the hooks go,
/// because our chains are at the hooks themselves.
///
/// ```text
/// ip iptables -A FLANNEL-POSTRTG ! -s 11.0.0.0/8 -d 11.10.0.0/20 -m comment --comment "flanneld masq" -j RETURN
/// ip nft postrouting ip saddr != 11.0.0.0/8 ip daddr 11.10.0.0/20 return
/// ```
fn as_nft(rule: &str) -> Option<String> {
    let (family, rule) = rule.split_once(" iptables -A ")?;
    let (chain, mut rest) = rule.split_once(' ')?;
    let hook = match chain {
        "FLANNEL-FWD" => "forward",
        "FLANNEL-POSTRTG" => "postrouting",
        _ => return None,
    };
    let mut words = vec![format!("rule {family} nft {hook}")];
    while !rest.is_empty() {
        let (negation, text) = rest.strip_prefix("! ").map_or(("", rest), |text| ("!= ", text));
        let mut parts = text.splitn(3, ' ');
        let (option, value) = (parts.next()?, parts.next()?);
        rest = parts.next().unwrap_or_default();
        match (option, value) {
            ("-s", net) => words.push(format!("{family} saddr {negation}{net}")),
            ("-d", net) => words.push(format!("{family} daddr {negation}{net}")),
            ("--mark", "0x4000/0x4000") => words.push("meta mark & 0x00004000 == 0x00004000".to_owned()),
            ("-m", "mark" | "comment") => {}
            ("--comment", _) => rest = rest.split_once("\" ")?.1, // It goes on to the closing quotation mark.
            ("-j", "MASQUERADE") => words.push("masquerade fully-random".to_owned()),
            ("-j", verdict) => words.push(verdict.to_lowercase()),
            other => panic!("a rule with something new: {other:?}"),
        }
        rest = rest.trim_end_matches("--random-fully"); // It has no value, and stands at the end.
    }
    Some(words.join(" "))
}
