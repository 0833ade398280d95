//! The examples in `conf/` are accepted by the programs they are for, and a mistake in them is refused with its place.

use std::{path::PathBuf, process::Command};

use tests::{Lab, program, run};

fn conf(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conf").join(name)
}

#[test]
fn the_example_of_the_ingress_is_accepted() -> anyhow::Result<()> {
    run(Command::new(program("ingress-rs")?).arg("--check").arg("--config").arg(conf("ingress.toml")))?.ok()?;
    Ok(())
}

#[test]
fn the_example_of_the_interconnect_is_accepted_and_a_mistake_in_it_is_not() -> anyhow::Result<()> {
    let check =
        |file: &std::path::Path| run(Command::new(program("interconnect-rs")?).arg("--check").arg("-c").arg(file));
    check(&conf("interconnect.json"))?.ok()?;
    let directory = tempfile::tempdir()?;
    let wrong = directory.path().join("wrong.json");
    std::fs::write(&wrong, std::fs::read_to_string(conf("interconnect.json"))?.replace("tcpConnector", "tcpConector"))?;
    let output = check(&wrong)?;
    assert!(!output.status.success() && output.stderr.contains("tcpConnector"), "{output}");
    Ok(())
}

#[test]
fn the_example_of_cni_is_what_the_lab_writes() -> anyhow::Result<()> {
    let mut lab = Lab::boot("conf", &[])?;
    let written: serde_json::Value =
        serde_json::from_str(&lab.type_line("sh cat /tmp/knetsim/C0w1/10-flannel.conflist")?)?;
    let example: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(conf("cni.conflist"))?)?;
    assert_eq!(written, example);
    Ok(())
}
