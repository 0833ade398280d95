//! Makes namespaces of all kinds around a program, which becomes process 1 there. Any user may run it.
//!
//! ```text
//! target/debug/examples/sandbox [PROGRAM [ARGUMENT…]]
//! ```

use std::{io::Write as _, path::Path, process::Command};

use linux_net::{
    IfName, Netlink, Op,
    process::CommandNamespaceExt,
    sandbox::{self, Namespaces, mount},
};

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let mut arguments = std::env::args_os().skip(1);

    sandbox::unshare(Namespaces::lab(true))?;
    nix::unistd::sethostname("lab")?;
    mount::make_all_private()?;
    mount::tmpfs(Path::new("/run"))?;
    Netlink::open()?.apply(&Op::SetUp { dev: IfName::loopback() })?;

    let mut command = match arguments.next() {
        Some(program) => Command::new(program),
        None => {
            let mut shell = Command::new("sh");
            shell.args([
                "-c",
                "echo \"user $(id -u), process $$, host $(hostname), /run has $(ls /run | wc -l) files\"",
            ]);
            shell
        }
    };
    let mut child = command.args(arguments).die_with_parent().spawn()?;
    writeln!(out, "process 1 of the sandbox is process {} here", child.id())?;
    let status = child.wait()?;
    writeln!(out, "it ended ({status}), and with it everything in there")?;
    Ok(())
}
