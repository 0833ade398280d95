//! How the plugins are linked: so that they start fast, because an ADD is a process, and a good part of it is its start.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Libraries that go into the program where there is an archive of them; each that stays outside is looked for, mapped and joined at every
/// start, which takes some 70 µs.
/// With each goes what it needs in turn.
const INSIDE: [(&str, &str, &str); 2] = [("libgcc_s.so", "libgcc_eh.a", ""), ("libnftnl.so", "libnftnl.a", "-lmnl")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    // Addresses that are fixed when the program is linked need not be corrected in some seventy pages at every start.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    let directory = env::var("OUT_DIR")?;
    for (shared, archive, needed) in INSIDE {
        // The linker takes what a file of this name says for the library itself.
        let stand_in = Path::new(&directory).join(shared);
        match find(archive) {
            Some(path) => fs::write(stand_in, format!("INPUT({path} {needed})\n"))?,
            None if stand_in.exists() => fs::remove_file(stand_in)?,
            None => {}
        }
    }
    println!("cargo::rustc-link-search=native={directory}");
    Ok(())
}

/// Where the C compiler would find a file; it repeats the name alone when it would not.
fn find(archive: &str) -> Option<String> {
    let output = Command::new("cc").arg(format!("-print-file-name={archive}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && Path::new(&path).is_absolute()).then_some(path)
}
