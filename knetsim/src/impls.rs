//! Which implementation of each component runs, and where its programs are.
//!
//! A program that is missing is an error that names it and how to get it; nothing is ever replaced silently.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The parts of the lab that can be swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The overlay agent.
    Flannel,
    /// The CNI plugins and the runtime side that calls them.
    Cni,
    /// The service proxy.
    Kproxy,
    /// The HTTP ingress.
    Ingress,
    /// The cluster-to-cluster router.
    Interconnect,
}

/// All components, in the order in which they start.
pub const COMPONENTS: [Component; 5] =
    [Component::Flannel, Component::Cni, Component::Kproxy, Component::Ingress, Component::Interconnect];

impl Component {
    /// Whether every worker runs one of its own, so that a worker can choose.
    #[must_use]
    pub fn runs_on_every_worker(self) -> bool {
        match self {
            Component::Flannel | Component::Cni | Component::Kproxy => true,
            Component::Ingress | Component::Interconnect => false,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Component::Flannel => "flannel",
            Component::Cni => "cni",
            Component::Kproxy => "kproxy",
            Component::Ingress => "ingress",
            Component::Interconnect => "interconnect",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who implements a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Impl {
    /// The program of this workspace.
    Rust,
    /// The program that Kubernetes clusters run.
    Real,
    /// For the service proxy: the original's static rules, loaded with `nft`.
    Nft,
}

impl fmt::Display for Impl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Impl::Rust => "rust",
            Impl::Real => "real",
            Impl::Nft => "nft",
        })
    }
}

/// The choice for every component. Written `real`, or `flannel=real,kproxy=nft`; what is not named is `rust`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Impls(BTreeMap<Component, Impl>);

impl Default for Impls {
    fn default() -> Self {
        Self(COMPONENTS.map(|component| (component, Impl::Rust)).into())
    }
}

impl Impls {
    /// The choice for one component.
    #[must_use]
    pub fn of(&self, component: Component) -> Impl {
        self.0.get(&component).copied().unwrap_or(Impl::Rust)
    }

    /// The choice for one component on a worker that said `own` in the lab file: its own word wins over `--impl`.
    #[must_use]
    pub fn on(&self, own: &WorkerImpls, component: Component) -> Impl {
        own.0.get(&component).copied().unwrap_or_else(|| self.of(component))
    }

    /// Takes over what a further `--impl` says.
    #[must_use]
    pub fn merge(mut self, choices: &ImplArg) -> Self {
        for (component, choice) in &choices.0 {
            self.0.insert(*component, *choice);
        }
        self
    }
}

/// What one worker says in the lab file of who implements what, as `impl = { flannel = "real" }`; mostly nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerImpls(BTreeMap<Component, Impl>);

impl WorkerImpls {
    /// Takes one choice in, by the names of component and implementation.
    ///
    /// # Errors
    ///
    /// When there is no such component or implementation, or the component does not run on every worker, with what is right.
    pub fn choose(&mut self, component: &str, choice: &str) -> Result<(), String> {
        let component = component_named(component)?;
        if !component.runs_on_every_worker() {
            let own = COMPONENTS.into_iter().filter(|component| component.runs_on_every_worker());
            let own: Vec<&str> = own.map(Component::as_str).collect();
            return Err(format!(
                "a worker chooses for {} only; {component} does not run on every worker, so choose with --impl {component}={choice}",
                own.join(", ")
            ));
        }
        self.0.insert(component, impl_named(component, choice)?);
        Ok(())
    }
}

/// One `--impl` argument: choices for some or all components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImplArg(Vec<(Component, Impl)>);

impl FromStr for ImplArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut choices = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some((component, choice)) => {
                    let component = component_named(component.trim())?;
                    choices.push((component, impl_named(component, choice.trim())?));
                }
                None if part == "rust" => choices.extend(COMPONENTS.map(|component| (component, Impl::Rust))),
                None if part == "real" => choices.extend(COMPONENTS.map(|component| (component, Impl::Real))),
                None => {
                    return Err(format!("{part:?} is neither rust, real nor COMPONENT=IMPL, like flannel=real"));
                }
            }
        }
        if choices.is_empty() {
            Err("nothing is chosen; write rust, real or COMPONENT=IMPL".to_owned())
        } else {
            Ok(Self(choices))
        }
    }
}

fn component_named(name: &str) -> Result<Component, String> {
    COMPONENTS.into_iter().find(|component| component.as_str() == name).ok_or_else(|| {
        format!("there is no component {name:?}; there are {}", COMPONENTS.map(Component::as_str).join(", "))
    })
}

fn impl_named(component: Component, name: &str) -> Result<Impl, String> {
    match (name, component) {
        ("rust", _) => Ok(Impl::Rust),
        ("real", _) => Ok(Impl::Real),
        ("nft", Component::Kproxy) => Ok(Impl::Nft),
        ("nft", _) => Err(format!("nft is an implementation of kproxy only; {component} is rust or real")),
        (other, Component::Kproxy) => Err(format!("kproxy is rust, real or nft, not {other:?}")),
        (other, _) => Err(format!("{component} is rust or real, not {other:?}")),
    }
}

/// A program of an implementation: where to look for it and how to get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// The file's name.
    pub name: &'static str,
    /// How a user gets it.
    pub how_to_get: &'static str,
}

const fn program(name: &'static str, how_to_get: &'static str) -> Program {
    Program { name, how_to_get }
}

const BUILD: &str = "run `make build`";
const DEPS: &str = "run `make deps` as root";

/// Programs that every lab needs.
pub const NEEDED: [Program; 6] = [
    program("etcd", DEPS),
    program("nft", DEPS),
    program("ip", DEPS),
    program("ping", DEPS),
    program("curl", DEPS),
    program("tc", DEPS),
];

/// The programs of one implementation of a component.
#[must_use]
pub fn programs(component: Component, choice: Impl) -> Vec<Program> {
    match (component, choice) {
        (Component::Flannel, Impl::Real) => vec![
            program(
                "flanneld",
                "build flannel v0.2x from its source with Go and put flanneld on PATH or in /opt/cni/bin",
            ),
            // It ends at once without, even where it is told to use nftables.
            program("iptables", DEPS),
        ],
        (Component::Flannel, Impl::Rust | Impl::Nft) => vec![program("flannel-rs", BUILD)],
        (Component::Cni, Impl::Real) => ["bridge", "host-local", "portmap"].map(|name| program(name, DEPS)).into(),
        (Component::Cni, Impl::Rust | Impl::Nft) => vec![program("cni-plugin", BUILD)],
        (Component::Kproxy, Impl::Real) => vec![
            program(
                "kube-proxy",
                "build cmd/kube-proxy of Kubernetes 1.33 or later from its source with Go and put it on PATH or in /opt/cni/bin",
            ),
            program("nft", DEPS),
        ],
        (Component::Kproxy, Impl::Nft) => vec![program("nft", DEPS)],
        (Component::Kproxy, Impl::Rust) => vec![program("kproxy-rs", BUILD)],
        (Component::Ingress, Impl::Real) => vec![program("nginx", DEPS)],
        (Component::Ingress, Impl::Rust | Impl::Nft) => vec![program("ingress-rs", BUILD)],
        (Component::Interconnect, Impl::Real) => vec![program(
            "skrouterd",
            "build skupper-router 3.x from its source and put skrouterd on PATH or in /opt/cni/bin",
        )],
        (Component::Interconnect, Impl::Rust | Impl::Nft) => vec![program("interconnect-rs", BUILD)],
    }
}

/// Real programs that are used when they are there and do without otherwise, with what stands in for them.
pub const OPTIONAL_REAL: [(Program, &str); 2] = [
    (program("flannel", "run `make real` where Go is installed"), "ours hands over to the real bridge and host-local"),
    (program(CNITOOL, "run `make real` where Go is installed"), "ours calls the real plugins"),
];

/// Directories with programs beyond PATH: those of root, which an ordinary user's PATH lacks, and those of CNI plugins.
const EXTRA_DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", PLUGIN_DIRECTORIES[0]];

/// See [`plugin_directories`].
const PLUGIN_DIRECTORIES: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// The runtime side of CNI: no plugin, so it may be anywhere on PATH.
const CNITOOL: &str = "cnitool";

/// Where programs are looked for, in order: beside `knetsim` itself, on PATH, then in the usual places of daemons.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(EXTRA_DIRECTORIES.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    directories.retain(|directory| seen.insert(directory.clone()));
    directories
}

/// Finds a program by name.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|directory| directory.join(name)).find(|candidate| is_executable(candidate))
}

/// Finds a program of the real implementation: our links of the same name do not count.
#[must_use]
pub fn find_real(name: &str) -> Option<PathBuf> {
    let ours = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let directories = search_path().into_iter().filter(|directory| Some(directory) != ours.as_ref());
    directories.map(|directory| directory.join(name)).find(|candidate| is_executable(candidate))
}

/// Finds a real CNI plugin. Plugins are looked for where plugins are kept only: one of them is called `bridge`, and so is a
/// program of iproute2.
#[must_use]
pub fn find_plugin(name: &str) -> Option<PathBuf> {
    plugin_directories().into_iter().map(|directory| directory.join(name)).find(|candidate| is_executable(candidate))
}

/// Where real CNI plugins are kept: the specification's usual place, and Debian's.
#[must_use]
pub fn plugin_directories() -> Vec<PathBuf> {
    PLUGIN_DIRECTORIES.iter().map(PathBuf::from).filter(|directory| directory.is_dir()).collect()
}

/// Finds a program of an implementation of a component.
#[must_use]
pub fn find_for(component: Component, choice: Impl, name: &str) -> Option<PathBuf> {
    match (component, choice) {
        (Component::Cni, Impl::Real) if name != CNITOOL => find_plugin(name),
        (_, Impl::Rust) => find(name),
        (_, Impl::Real | Impl::Nft) => find_real(name),
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A program that is missing, with the component and the choice that need it; none for what every lab needs.
pub type Missing = (Option<(Component, Impl)>, Program);

/// The programs that the choices of a lab need and this machine lacks.
#[must_use]
pub fn missing(choices: &BTreeSet<(Component, Impl)>) -> Vec<Missing> {
    let needed = NEEDED.iter().filter(|program| find(program.name).is_none()).map(|program| (None, *program));
    let chosen = choices.iter().flat_map(|&(component, choice)| {
        let lacking = move |program: &Program| find_for(component, choice, program.name).is_none();
        programs(component, choice).into_iter().filter(lacking).map(move |program| (Some((component, choice)), program))
    });
    needed.chain(chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_chooses_for_all_components() {
        let impls = Impls::default().merge(&"real".parse().unwrap());
        assert!(COMPONENTS.into_iter().all(|component| impls.of(component) == Impl::Real));
    }

    #[test]
    fn single_components_are_chosen_by_name_and_later_words_win() {
        let impls = Impls::default().merge(&"real,flannel=rust, kproxy=nft".parse().unwrap());
        assert_eq!(impls.of(Component::Flannel), Impl::Rust);
        assert_eq!(impls.of(Component::Kproxy), Impl::Nft);
        assert_eq!(impls.of(Component::Ingress), Impl::Real);
    }

    #[test]
    fn wrong_choices_are_refused_with_the_right_ones() {
        let table = [
            ("fake", "neither rust, real nor COMPONENT=IMPL"),
            ("flanel=real", "there are flannel, cni, kproxy, ingress, interconnect"),
            ("ingress=nft", "ingress is rust or real"),
            ("kproxy=ipvs", "kproxy is rust, real or nft"),
            ("", "nothing is chosen"),
        ];
        for (text, expected) in table {
            let error = text.parse::<ImplArg>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_workers_own_word_wins_over_the_command_line() {
        let impls = Impls::default().merge(&"flannel=real".parse().unwrap());
        let mut own = WorkerImpls::default();
        own.choose("flannel", "rust").unwrap();
        assert_eq!(impls.on(&own, Component::Flannel), Impl::Rust);
        assert_eq!(impls.on(&WorkerImpls::default(), Component::Flannel), Impl::Real);
        assert_eq!(impls.on(&own, Component::Cni), Impl::Rust);
    }

    #[test]
    fn the_bridge_of_iproute2_is_not_taken_for_the_plugin() {
        if let Some(plugin) = find_for(Component::Cni, Impl::Real, "bridge") {
            assert!(plugin_directories().iter().any(|directory| plugin.starts_with(directory)), "{}", plugin.display());
        }
        assert_eq!(find_plugin("ip"), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        assert_eq!(find("no-such-program-of-any-lab"), None);
        assert!(find("sh").is_some());
    }
}
