//! `knetsim logs`: the logs of a node's daemons, of a lab that runs or of one that has ended.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{cli::LogsArgs, labdir::LabDir, prompt::line::did_you_mean};

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Prints the logs.
///
/// # Errors
///
/// When the node or the daemon has no log, with the names of those that have one.
pub fn run(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let directory = LabDir::new(&args.lab.name)?;
    let logs = logs_of(directory.path(), &args.node, args.daemon.as_deref())?;
    let mut stdout = std::io::stdout().lock();
    let mut positions = vec![0; logs.len()];
    loop {
        let mut last = None;
        for (log, position) in logs.iter().zip(&mut positions) {
            let text = read_from(log, position)?;
            if text.is_empty() {
                continue;
            }
            if logs.len() > 1 && last != Some(log) {
                writeln!(stdout, "==> {} <==", log.display())?;
                last = Some(log);
            }
            stdout.write_all(&text)?;
        }
        stdout.flush()?;
        if !args.follow || !directory.is_running() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}

/// The log files of a node: those in its directory, that of etcd beside it, and the router's for a router's node.
fn logs_of(directory: &Path, node: &str, daemon: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let all = all_logs(directory)?;
    if all.is_empty() {
        bail!("there are no logs in {}; was a lab of this name booted?", directory.display());
    }
    let of_node: Vec<_> = all.iter().filter(|(of, ..)| of == node).collect();
    if of_node.is_empty() {
        bail!("node {node:?} has no log{}", did_you_mean(node, all.iter().map(|(node, ..)| node.clone())));
    }
    let chosen: Vec<PathBuf> = of_node
        .iter()
        .filter(|(_, name, _)| daemon.is_none_or(|daemon| daemon == name))
        .map(|(.., path)| path.clone())
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = of_node.iter().map(|(_, name, _)| name.as_str()).collect();
        bail!("{node} has no log of {:?}; it has {}", daemon.unwrap_or(""), known.join(", "));
    }
    Ok(chosen)
}

/// All logs of a lab: node, daemon, file.
fn all_logs(directory: &Path) -> anyhow::Result<Vec<(String, String, PathBuf)>> {
    let mut logs = Vec::new();
    let entries = std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(node) = name.strip_suffix(".log") {
            logs.push((node.to_owned(), "etcd".to_owned(), path));
        } else if path.is_dir() {
            for inner in std::fs::read_dir(&path)?.flatten() {
                let file = inner.file_name().to_string_lossy().into_owned();
                let Some(stem) = file.strip_suffix(".log") else { continue };
                // The routers of the interconnect log by cluster: skupper/C0.log.
                let (node, daemon) = if name == "skupper" { (stem, "interconnect") } else { (name.as_str(), stem) };
                logs.push((node.to_owned(), daemon.to_owned(), inner.path()));
            }
        }
    }
    logs.sort();
    Ok(logs)
}

/// What a file holds behind `position`, which moves on.
fn read_from(path: &Path, position: &mut u64) -> anyhow::Result<Vec<u8>> {
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    file.seek(SeekFrom::Start(*position))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    *position += text.len() as u64;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_found_by_node_and_by_daemon() {
        let lab = tempfile::tempdir().unwrap();
        for file in ["C0e1.log", "C0w1/flannel.log", "C0w1/kproxy.log", "skupper/C0.log"] {
            let path = lab.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text\n").unwrap();
        }
        let find = |node: &str, daemon: Option<&str>| {
            logs_of(lab.path(), node, daemon)
                .map(|logs| {
                    logs.iter()
                        .map(|log| log.strip_prefix(lab.path()).unwrap().display().to_string())
                        .collect::<Vec<_>>()
                })
                .map_err(|error| error.to_string())
        };
        assert_eq!(find("C0w1", None).unwrap(), ["C0w1/flannel.log", "C0w1/kproxy.log"]);
        assert_eq!(find("C0w1", Some("flannel")).unwrap(), ["C0w1/flannel.log"]);
        assert_eq!(find("C0e1", Some("etcd")).unwrap(), ["C0e1.log"]);
        assert_eq!(find("C0", None).unwrap(), ["skupper/C0.log"]);
        assert!(find("C0w2", None).unwrap_err().contains("did you mean C0w1?"));
        assert!(find("C0w1", Some("etcd")).unwrap_err().contains("it has flannel, kproxy"));
    }
}
