//! The inside of the sandbox: what process 1 mounts before anything else happens.
//!
//! | place | becomes | why |
//! |---|---|---|
//! | `/proc`, `/sys` | fresh | they show the lab's processes and devices |
//! | `/run` | an empty tmpfs, shared | `/run/netns` holds the lab's namespaces; what the host runs stays out of sight |
//! | `/var/lib` | an overlay in memory | CNI plugins and nginx keep files there; the host's stay as they are |
//! | `/tmp/knetsim` | the lab's directory on the host | logs outlive the lab |
//!
//! Nothing of it needs to be undone: the mount namespace goes with its last process.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use linux_net::{IfName, Netlink, Op, sandbox::mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{component::STATE, impls};

/// Where the sandbox keeps what it needs for itself.
const SCRATCH: &str = "/run/knetsim";
/// What the lab's processes find as their host name.
const HOST_NAME: &str = "knetsim";

/// Prepares the namespaces this process was born into. `directory` is the lab's on the host.
///
/// # Errors
///
/// When the kernel refuses a mount, which one and what to do.
pub fn prepare(directory: &Path) -> anyhow::Result<()> {
    // The directory that commands start in may lie on what is about to be covered.
    let here = std::env::current_dir();
    mount::make_all_private()?;
    mount::proc(Path::new("/proc"))
        .context("in a container, run it with --privileged so that the lab can mount a /proc of its own")?;
    mount::sysfs(Path::new("/sys"))?;
    mount::tmpfs(Path::new("/run"))?;
    // Shared: a namespace that is made later shows in the mount namespaces of daemons that run already.
    mount::make_shared(Path::new("/run"))?;
    for needed in ["/run/netns", "/run/lock", SCRATCH] {
        std::fs::create_dir_all(needed).with_context(|| format!("make {needed}"))?;
    }
    own_var_lib()?;
    bind_state(directory)?;
    if let Ok(here) = here {
        // A directory that is covered is one that nobody can be in.
        let _ = std::env::set_current_dir(here);
    }
    nix::unistd::sethostname(HOST_NAME).context("set the host name of the lab")?;
    Netlink::open()?.apply(&Op::SetUp { dev: IfName::loopback() })?;
    raise_open_files();
    Ok(())
}

fn own_var_lib() -> anyhow::Result<()> {
    let var_lib = Path::new("/var/lib");
    let scratch = Path::new(SCRATCH).join("var-lib");
    std::fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    if mount::overlay(var_lib, &scratch).is_err() {
        // Without overlayfs the lab does with an empty one.
        mount::tmpfs(var_lib)?;
    }
    for needed in ["/var/lib/cni", "/var/lib/nginx"] {
        std::fs::create_dir_all(needed).with_context(|| format!("make {needed}"))?;
    }
    Ok(())
}

/// Shows the lab's directory as `/tmp/knetsim`.
fn bind_state(directory: &Path) -> anyhow::Result<()> {
    let state = Path::new(STATE);
    if directory == state {
        return Ok(());
    }
    if !state.exists() {
        // An ordinary user's mount point in the host's /tmp would stay behind, in the way of others. So /tmp becomes the
        // lab's own, with links to what the host has there.
        own_tmp()?;
    }
    // After own_tmp the lab's directory is found through its link.
    let directory = directory.canonicalize().with_context(|| format!("open {}", directory.display()))?;
    Ok(mount::bind(&directory, state)?)
}

fn own_tmp() -> anyhow::Result<()> {
    let host = Path::new(SCRATCH).join("host-tmp");
    let tmp = Path::new("/tmp");
    std::fs::create_dir_all(&host).with_context(|| format!("make {}", host.display()))?;
    mount::bind(tmp, &host)?;
    let entries: Vec<_> =
        std::fs::read_dir(tmp).context("read /tmp")?.flatten().map(|entry| entry.file_name()).collect();
    mount::tmpfs(tmp)?;
    for name in entries {
        symlink(host.join(&name), tmp.join(&name))
            .with_context(|| format!("link {} into the lab's /tmp", name.display()))?;
    }
    std::fs::create_dir(STATE).with_context(|| format!("make {STATE}"))
}

/// A lab of some hundred nodes holds some thousand files open; the soft limit is 1024 on most machines.
fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // The hard limit is always allowed.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The PATH of everything that runs in the lab: root's directories too, which an ordinary user's PATH lacks.
///
/// # Errors
///
/// When a directory has a `:` in its name.
pub fn path_variable() -> anyhow::Result<std::ffi::OsString> {
    let directories: Vec<PathBuf> = impls::search_path();
    match std::env::join_paths(&directories) {
        Ok(path) => Ok(path),
        Err(error) => bail!("a directory of programs cannot stand in PATH: {error}"),
    }
}
