//! `knetsim bench cni`: what a CNI plugin costs, ours beside the Go plugins.
//!
//! Each side has a host namespace of its own, in which its plugins are called as a runtime calls them: variables, a configuration on standard
//! input, an answer on standard output. What is measured is the time from the start of the process to its end. The two take turns, and
//! a first call of each, which makes the bridge, does not count.
//!
//! | case | what is called |
//! |---|---|
//! | ADD, DEL | bridge with host-local, for a fresh pod each time |
//! | dual stack | the same with a range of each family |
//! | masquerade | the same with `ipMasq` |
//! | flannel | flannel, which calls bridge, which calls host-local |
//! | host port | portmap with one mapping, for a pod that bridge attached before |
//! | 5,000 reservations | host-local alone in a directory that is that full |
//! | VERSION | bridge; the peer is `/bin/true` |
//!
//! A DEL is mostly the kernel's removal of a device, the same for both.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use linux_net::NetNs;
use serde_json::{Value, json};

use super::table::{Case, Unit};
use crate::{
    cli::BenchInsideArgs,
    component,
    impls::{self, Component, Impl},
    prompt::execute::print,
};

/// Runs of each case for one `--repeat`: an ADD takes milliseconds, and many of them make a steady median.
const RUNS_PER_REPEAT: u32 = 6;
/// How full the directory of host-local is in the case that is about that.
const RESERVATIONS: u32 = 5000;
/// Where the files of the measurement are: a tmpfs of its own.
const DIRECTORY: &str = "/run/bench";

/// The name of our side, and of the peer.
const NAMES: [&str; 2] = ["cni-plugin", "Go plugins"];

/// Measures in a process of its own, which is gone afterwards with all it made.
pub(super) fn measure(repeat: u32) -> anyhow::Result<Vec<Case>> {
    for (plugin, lost) in
        [("bridge", "cni-plugin is measured alone"), ("flannel", "ours is measured alone in that case")]
    {
        if impls::find_for(Component::Cni, Impl::Real, plugin).is_none() {
            super::warn(&format!(
                "the Go plugin {plugin} is not installed, so {lost}; `knetsim doctor` says how to get it"
            ))?;
        }
    }
    super::in_child("bench-cni", &[repeat])
}

/// Measures in namespaces of this process and prints the cases as JSON.
///
/// # Errors
///
/// When a plugin does not do its work.
pub fn inside(args: &BenchInsideArgs) -> anyhow::Result<ExitCode> {
    super::own_namespaces()?;
    std::fs::create_dir(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
    let ours = Path::new(DIRECTORY).join("plugins");
    let made =
        Command::new(component::program("cni-plugin")?).arg("install").arg(&ours).stdout(Stdio::null()).status()?;
    if !made.success() {
        bail!("cni-plugin install {}: {made}", ours.display());
    }
    let mut sides = vec![Side::new(NAMES[0], vec![ours])?];
    if impls::find_for(Component::Cni, Impl::Real, "bridge").is_some() {
        sides.push(Side::new(NAMES[1], impls::plugin_directories())?);
    }
    let runs = args.repeat * RUNS_PER_REPEAT;
    let mut numbers = Numbers::new();
    for scene in SCENES {
        let sides: Vec<&Side> = sides.iter().filter(|side| scene.plugins().iter().all(|name| side.has(name))).collect();
        for run in 0..=runs {
            for side in &sides {
                let times = scene.run(side, run)?.into_iter().map(|(verb, time)| (verb, side.name, time));
                note(&mut numbers, scene, run, times);
            }
            if scene == Scene::Version {
                note(&mut numbers, scene, run, std::iter::once(("VERSION", TRUE, time_of_true(&sides[0].host)?)));
            }
        }
    }
    print(&serde_json::to_string(&cases(&numbers))?)?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps the times of a run, but for the first.
fn note(
    numbers: &mut Numbers,
    scene: Scene,
    run: u32,
    times: impl Iterator<Item = (&'static str, &'static str, Duration)>,
) {
    for (verb, name, time) in times.filter(|_| run > 0) {
        numbers.entry((scene, verb, name)).or_default().push(time.as_secs_f64() * 1000.0);
    }
}

/// How long the program that does nothing takes, started in the same way.
fn time_of_true(host: &NetNs) -> anyhow::Result<Duration> {
    let (_, time) = timed(host, Command::new(TRUE).env_clear(), "")?;
    Ok(time)
}

/// Runs a program in a namespace, with `input` to read, and tells how long it took. It is this thread that goes there, before the clock
/// starts: a child with nothing to do between its fork and its program starts fastest.
fn timed(host: &NetNs, process: &mut Command, input: &str) -> anyhow::Result<(Output, Duration)> {
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    host.run(|| {
        let begin = Instant::now();
        let mut child = process.spawn().with_context(|| format!("start {}", process.get_program().display()))?;
        // A program that refuses its variables does not read.
        let _ = child.stdin.take().context("no pipe")?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        Ok((output, begin.elapsed()))
    })?
}

type Numbers = BTreeMap<(Scene, &'static str, &'static str), Vec<f64>>;

fn cases(numbers: &Numbers) -> Vec<Case> {
    let case = |key: &(Scene, &'static str, &'static str)| {
        let name = format!("{}{}: {}", key.0.name(), key.1, key.2);
        numbers.get(key).map(|runs| Case::new(&name, Unit::Milliseconds, runs.clone()))
    };
    let mut cases = Vec::new();
    for (scene, verb, _) in numbers.keys().filter(|(_, _, side)| *side == NAMES[0]) {
        let peer = case(&(*scene, verb, if *scene == Scene::Version { TRUE } else { NAMES[1] }));
        let ours = case(&(*scene, verb, NAMES[0]));
        cases.extend(ours.map(|ours| match &peer {
            Some(peer) => ours.beside(peer),
            None => ours,
        }));
        cases.extend(peer);
        if *scene == Scene::Version {
            cases.extend(case(&(*scene, verb, NAMES[1])));
        }
    }
    cases
}

/// The peer of VERSION: a program that does nothing.
const TRUE: &str = "/bin/true";

/// The plugins of one side, and the node that they work on.
struct Side {
    name: &'static str,
    path: Vec<PathBuf>,
    host: NetNs,
    directory: PathBuf,
}

impl Side {
    fn new(name: &'static str, path: Vec<PathBuf>) -> anyhow::Result<Self> {
        let number = NAMES.iter().position(|other| *other == name).unwrap_or_default();
        let directory = Path::new(DIRECTORY).join(number.to_string());
        std::fs::create_dir_all(directory.join("full/net"))?;
        let lease = "FLANNEL_NETWORK=11.0.0.0/8\nFLANNEL_SUBNET=11.14.64.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        std::fs::write(directory.join("subnet.env"), lease)?;
        for number in 0..RESERVATIONS {
            let address = std::net::Ipv4Addr::from(0x0a20_0002 + number);
            std::fs::write(directory.join(format!("full/net/{address}")), format!("full{number}\r\neth0"))?;
        }
        let last = std::net::Ipv4Addr::from(0x0a20_0001 + RESERVATIONS);
        std::fs::write(directory.join("full/net/last_reserved_ip.0"), last.to_string())?;
        let host = NetNs::create(&format!("host{number}"))?;
        Ok(Self { name, path, host, directory })
    }

    fn find(&self, plugin: &str) -> Option<PathBuf> {
        self.path.iter().map(|directory| directory.join(plugin)).find(|path| path.is_file())
    }

    fn has(&self, plugin: &str) -> bool {
        self.find(plugin).is_some()
    }

    /// Calls a plugin for the pod `id` and returns its answer and how long it took.
    fn call(&self, plugin: &str, command: &str, id: &str, conf: &Value) -> anyhow::Result<(Value, Duration)> {
        let program = self.find(plugin).with_context(|| format!("{} has no {plugin}", self.name))?;
        let mut process = Command::new(program);
        process
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", format!("/run/netns/{id}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", std::env::join_paths(&self.path)?);
        let (output, time) = timed(&self.host, &mut process, &conf.to_string())?;
        if !output.status.success() {
            let [answer, words] =
                [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            bail!("{}: {command} of {plugin}: {answer}{words}", self.name);
        }
        let answer = if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout)? };
        Ok((answer, time))
    }

    fn conf(&self, scene: Scene) -> Value {
        let v4 = json!([{"subnet": "10.22.0.0/16"}]);
        let ranges = if scene == Scene::DualStack { json!([v4, [{"subnet": "fd22::/64"}]]) } else { json!([v4]) };
        let ipam = json!({"type": "host-local", "dataDir": self.directory, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]});
        let mut conf = match scene {
            Scene::Plain | Scene::DualStack | Scene::HostPort | Scene::Version => json!({"ipam": ipam}),
            Scene::Masquerade => json!({"ipam": ipam, "ipMasq": true}),
            Scene::Flannel => json!({
                "subnetFile": self.directory.join("subnet.env"), "dataDir": self.directory.join("flannel"),
                "ipam": {"dataDir": self.directory}
            }),
            Scene::Full => json!({"ipam": {
                "type": "host-local", "dataDir": self.directory.join("full"), "ranges": [[{"subnet": "10.32.0.0/16"}]]
            }}),
        };
        let [plugin, ..] = scene.plugins() else { return conf };
        let bridge = format!("br-{}", scene.number());
        let more = json!({"cniVersion": "1.0.0", "name": "net", "type": plugin, "bridge": bridge, "isGateway": true});
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        if scene == Scene::Flannel {
            conf["delegate"] = json!({"bridge": bridge});
        }
        conf
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    Plain,
    DualStack,
    Masquerade,
    Flannel,
    HostPort,
    Full,
    Version,
}

const SCENES: [Scene; 7] =
    [Scene::Plain, Scene::DualStack, Scene::Masquerade, Scene::Flannel, Scene::HostPort, Scene::Full, Scene::Version];

impl Scene {
    fn name(self) -> &'static str {
        match self {
            Scene::Plain | Scene::Version => "",
            Scene::DualStack => "dual stack, ",
            Scene::Masquerade => "masquerade, ",
            Scene::Flannel => "flannel, ",
            Scene::HostPort => "host port, ",
            Scene::Full => "5,000 reservations, ",
        }
    }

    /// The programs that it needs; the first is the one that is called.
    fn plugins(self) -> &'static [&'static str] {
        match self {
            Scene::Plain | Scene::DualStack | Scene::Masquerade | Scene::Version => &["bridge", "host-local"],
            Scene::Flannel => &["flannel", "bridge", "host-local"],
            Scene::HostPort => &["bridge", "host-local", "portmap"],
            Scene::Full => &["host-local"],
        }
    }

    fn number(self) -> usize {
        SCENES.iter().position(|other| *other == self).unwrap_or_default()
    }

    /// One run on one side: what was done, and how long it took.
    fn run(self, side: &Side, run: u32) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let conf = side.conf(self);
        let id = format!("p{}-{run}", self.number());
        let plugin = self.plugins()[0];
        match self {
            Scene::Version => {
                let (_, version) = side.call(plugin, "VERSION", "", &json!({"cniVersion": "1.0.0"}))?;
                Ok(vec![("VERSION", version)])
            }
            Scene::Full => {
                let (_, add) = side.call(plugin, "ADD", &id, &conf)?;
                let (_, del) = side.call(plugin, "DEL", &id, &conf)?;
                Ok(vec![("ADD", add), ("DEL", del)])
            }
            Scene::Plain | Scene::DualStack | Scene::Masquerade | Scene::Flannel => {
                let _pod = NetNs::create(&id)?;
                let (_, add) = side.call(plugin, "ADD", &id, &conf)?;
                let (_, del) = side.call(plugin, "DEL", &id, &conf)?;
                NetNs::delete(&id)?;
                Ok(vec![("ADD", add), ("DEL", del)])
            }
            Scene::HostPort => {
                let _pod = NetNs::create(&id)?;
                let (attached, _) = side.call(plugin, "ADD", &id, &conf)?;
                let mapping = json!({
                    "cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": attached,
                    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
                });
                let (_, add) = side.call("portmap", "ADD", &id, &mapping)?;
                let (_, del) = side.call("portmap", "DEL", &id, &mapping)?;
                side.call(plugin, "DEL", &id, &conf)?;
                NetNs::delete(&id)?;
                Ok(vec![("ADD", add), ("DEL", del)])
            }
        }
    }
}
