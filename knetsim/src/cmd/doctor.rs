//! `knetsim doctor`: what this machine has for a lab, what it lacks, and how to get that.

use std::process::{Command, ExitCode, Stdio};

use crate::{
    impls::{self, COMPONENTS, Component, Impl, NEEDED, OPTIONAL_REAL, Program},
    prompt::execute::print,
};

/// Kernel features of the default lab: what it is, and a script that uses it in an empty network namespace.
const KERNEL: [(&str, &str); 3] = [
    ("veth, bridge", "ip link add br0 type bridge && ip link add v0 type veth peer name v1"),
    ("vxlan", "ip link add x0 type vxlan id 1 dstport 8472 local 127.0.0.1"),
    (
        "nftables",
        "nft 'add table ip d; add chain ip d c { type nat hook postrouting priority 100; }; add rule ip d c masquerade'",
    ),
];

/// What flannel's network configuration can ask for beyond the default lab, likewise.
const OVERLAY: [(&str, &str, &str); 3] = [
    (
        "vxlan over IPv6",
        "EnableIPv6",
        "ip link set lo up && ip link add x6 type vxlan id 2 dstport 8472 local ::1 && ip -6 address add fd00::/128 dev x6",
    ),
    (
        "IPv6 masquerade",
        "EnableIPv6 with --ip-masq",
        "nft 'add table ip6 d; add chain ip6 d c { type nat hook postrouting priority 100; }; add rule ip6 d c masquerade'",
    ),
    ("vxlan GBP", "Backend.GBP", "ip link add xg type vxlan id 3 dstport 8472 gbp local 127.0.0.1"),
];

/// Kernel features beyond the lab's needs: the device or module, how it is recognised, and what it would be for.
const FEATURES: [(&str, &str); 8] = [
    ("ip_vs", "services by IPVS"),
    ("openvswitch", "Open vSwitch as the underlay"),
    ("wireguard", "an encrypted overlay"),
    ("8021q", "VLANs on a bridge"),
    ("ipvlan", "pods without a bridge"),
    ("sch_netem", "delay and loss on a link"),
    ("nf_flow_table", "a fast path for forwarded connections"),
    ("nfnetlink_queue", "policies decided in user space"),
];

/// Prints what is there and what is not. The exit status is 1 when the default lab cannot boot.
///
/// # Errors
///
/// When standard output is closed.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut ready = true;
    let mut text = String::from("The kernel\n");
    ready &= report(&mut text, "namespaces", &namespaces());
    ready &= report(&mut text, "br_netfilter", &bridge_netfilter());
    for (what, script) in KERNEL {
        ready &= report(&mut text, what, &tried(script));
    }
    text.push_str("\nWhat an overlay can use beyond the default lab\n");
    for (what, setting, script) in OVERLAY {
        let (mark, said) = match tried(script) {
            Ok(_) => ("yes ", String::new()),
            Err(said) => ("no  ", format!("; {said}")),
        };
        text.push_str(&format!("  {mark}  {what:<16} {setting}{said}\n"));
    }
    text.push_str("\nPrograms that every lab needs\n");
    for program in &NEEDED {
        ready &= report_program(&mut text, program, impls::find(program.name).map(|path| path.display().to_string()));
    }
    for component in COMPONENTS {
        for choice in [Impl::Rust, Impl::Real, Impl::Nft] {
            if choice == Impl::Nft && component != Component::Kproxy {
                continue;
            }
            text.push_str(&format!("\n--impl {component}={choice}\n"));
            for program in impls::programs(component, choice) {
                let path = impls::find_for(component, choice, program.name);
                let found = report_program(&mut text, &program, path.map(|path| path.display().to_string()));
                ready &= found || choice != Impl::Rust;
            }
            if component == Component::Cni && choice == Impl::Real {
                for (program, stand_in) in &OPTIONAL_REAL {
                    let path = impls::find_for(component, choice, program.name).map(|path| path.display().to_string());
                    let found = report_program(&mut text, program, path);
                    if !found {
                        text.push_str(&format!("{:>12}without it {stand_in}\n", ""));
                    }
                }
            }
        }
    }
    text.push_str("\nKernel features that no part of the default lab needs\n");
    for (module, purpose) in FEATURES {
        let present = kernel_has(module);
        text.push_str(&format!("  {}  {module:<16} {purpose}\n", if present { "yes " } else { "no  " }));
    }
    text.push_str(if ready {
        "\nThe default lab can boot: `knetsim up`\n"
    } else {
        "\nThe default lab cannot boot yet.\n"
    });
    print(&text)?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds a line; returns whether it is good news.
fn report(text: &mut String, what: &str, result: &Result<String, String>) -> bool {
    let (mark, detail) = match result {
        Ok(detail) => ("ok  ", detail),
        Err(remedy) => ("LACK", remedy),
    };
    text.push_str(&format!("  {mark}  {what:<16} {detail}\n"));
    result.is_ok()
}

fn report_program(text: &mut String, program: &Program, path: Option<String>) -> bool {
    report(text, program.name, &path.ok_or_else(|| program.how_to_get.to_owned()))
}

/// Whether the namespaces of a lab can be made: tried in a child, so that this process stays where it is.
fn namespaces() -> Result<String, String> {
    let root = nix::unistd::geteuid().is_root();
    let program = impls::find("unshare").ok_or("the program unshare (package util-linux) is missing")?;
    let mut unshare = Command::new(program);
    if !root {
        unshare.args(["--user", "--map-root-user"]);
    }
    let output = unshare
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "true"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run unshare: {error}"))?;
    if output.status.success() {
        let kind = if root { "as root" } else { "as an ordinary user, with a user namespace" };
        return Ok(format!("can be made {kind}"));
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    for (setting, wrong, right) in [
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ] {
        if std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == wrong) {
            return Err(format!("{said}; `{right}` as root allows it, or run knetsim as root"));
        }
    }
    Err(format!("{said}; run knetsim as root, in a container with --privileged"))
}

fn bridge_netfilter() -> Result<String, String> {
    match std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        true => Ok("loaded".to_owned()),
        false => Err("`modprobe br_netfilter` as root loads it".to_owned()),
    }
}

/// Runs a script in a network namespace of its own, which is gone afterwards.
fn tried(script: &str) -> Result<String, String> {
    let program = impls::find("unshare").ok_or("the program unshare (package util-linux) is missing")?;
    let mut unshare = Command::new(program);
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let path = crate::sandbox::path_variable().map_err(|error| error.to_string())?;
    let output = unshare
        .args(["--net", "sh", "-c", script])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run unshare: {error}"))?;
    match output.status.success() {
        true => Ok("works".to_owned()),
        false => Err(format!("the kernel says: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Whether a module is loaded, built in, or there to be loaded.
fn kernel_has(module: &str) -> bool {
    let release =
        nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default();
    let listed = |file: &str| {
        let list = std::fs::read_to_string(format!("/lib/modules/{release}/{file}")).unwrap_or_default();
        list.lines().any(|line| {
            let path = line.split(':').next().unwrap_or("");
            let name = path.rsplit('/').next().unwrap_or("").split(".ko").next().unwrap_or("");
            name.replace('-', "_") == module
        })
    };
    std::path::Path::new("/sys/module").join(module).exists() || listed("modules.builtin") || listed("modules.dep")
}
