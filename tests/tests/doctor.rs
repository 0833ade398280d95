//! `knetsim doctor` says what there is and what is lacking, program by program.

use tests::{knetsim, run};

#[test]
fn the_doctor_finds_programs_where_they_are_and_says_how_to_get_the_others() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let flanneld = directory.path().join("flanneld");
    std::fs::write(&flanneld, "#!/bin/sh\n")?;
    std::fs::set_permissions(&flanneld, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let with = std::env::join_paths([directory.path().to_owned()].into_iter().chain(std::env::split_paths(&path)))?;
    let output = run(knetsim(&["doctor"])?.env("PATH", with))?.ok()?;
    let line = |text: &str| output.stdout.lines().find(|line| line.contains(text)).unwrap_or_default().to_owned();
    assert!(line("flanneld ").starts_with("  ok"), "{output}");
    assert!(line("flanneld ").contains(&flanneld.display().to_string()), "{output}");
    for needed in ["namespaces", "vxlan ", "nftables ", "flannel-rs", "etcd"] {
        assert!(line(needed).starts_with("  ok"), "{needed}\n{output}");
    }
    // A kernel may do without these; the doctor tells.
    for overlay in ["vxlan over IPv6", "IPv6 masquerade", "vxlan GBP"] {
        let line = line(overlay);
        assert!(line.starts_with("  yes") || line.starts_with("  no"), "{overlay}\n{output}");
    }
    assert!(line("skrouterd ").contains("skrouterd on PATH") || line("skrouterd ").starts_with("  ok"), "{output}");
    assert!(output.stdout.contains("The default lab can boot"), "{output}");
    Ok(())
}
