//! The HTTP ingress of a worker: `ingress-rs`, or nginx with a configuration that says the same.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use linux_net::NetNs;

use super::{accepts, node_directory, program, real_program, write_file};
use crate::{
    impls::Impl,
    lab::{Ingress, IngressPath},
    supervisor::{DaemonId, DaemonSpec},
};

/// The name of the daemon.
#[must_use]
pub fn id(ingress: &Ingress) -> DaemonId {
    DaemonId::new(&ingress.worker, &format!("ingress-{}", ingress.name))
}

/// Writes the configuration and says how the daemon is started.
///
/// # Errors
///
/// When the program is missing, the file cannot be written or the worker has no namespace.
pub fn spec(ingress: &Ingress, choice: Impl) -> anyhow::Result<DaemonSpec> {
    let (program, arguments) = match choice {
        Impl::Real => {
            let file = config_file(ingress, "conf");
            write_file(&file, &nginx_config(ingress))?;
            (
                real_program("nginx")?,
                vec!["-e".to_owned(), "stderr".to_owned(), "-c".to_owned(), file.display().to_string()],
            )
        }
        Impl::Rust | Impl::Nft => {
            let file = config_file(ingress, "toml");
            write_file(&file, &rust_config(ingress))?;
            (program("ingress-rs")?, vec!["--config".to_owned(), file.display().to_string()])
        }
    };
    Ok(DaemonSpec {
        id: id(ingress),
        program,
        arguments,
        environment: Vec::new(),
        netns: NetNs::open(&ingress.worker)?,
        log: node_directory(&ingress.worker).join(format!("{}.log", ingress.name)),
        restart: true,
    })
}

/// Whether it listens.
#[must_use]
pub fn is_ready(netns: &NetNs, ingress: &Ingress) -> bool {
    accepts(netns, SocketAddr::from(([127, 0, 0, 1], ingress.port)))
}

fn config_file(ingress: &Ingress, ending: &str) -> PathBuf {
    node_directory(&ingress.worker).join(format!("{}.{ending}", ingress.name))
}

/// The configuration of `ingress-rs`.
///
/// An endpoint of the lab is a virtual address, and a service proxy balances connections, not requests: kept connections
/// would send every request to the same container. Hence `keepalive = 0`.
fn rust_config(ingress: &Ingress) -> String {
    let mut text =
        format!("# Written by knetsim for the ingress {}.\nlisten = \"0.0.0.0:{}\"\n", ingress.name, ingress.port);
    for IngressPath { path, endpoint } in &ingress.paths {
        let path = toml::Value::String(path.clone());
        let _ = write!(text, "\n[[route]]\npath = {path}\nbackends = [\"{endpoint}\"]\nkeepalive = 0\n");
    }
    text
}

/// The configuration of nginx. A prefix of Kubernetes ends at a slash, so each path needs two locations.
fn nginx_config(ingress: &Ingress) -> String {
    let scratch = format!("/run/knetsim/nginx-{}-{}", ingress.worker, ingress.name);
    let mut locations = String::new();
    for IngressPath { path, endpoint } in &ingress.paths {
        let path = quoted(path.trim_end_matches('/'));
        let pass = format!("proxy_pass http://{endpoint};");
        if path != "\"\"" {
            let _ = writeln!(locations, "    location = {path} {{ {pass} }}");
        }
        let below = format!("{}/\"", path.trim_end_matches('"'));
        let _ = writeln!(locations, "    location {below} {{ {pass} }}");
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|module| format!("  {module}_temp_path {scratch}-{module};\n"))
        .concat();
    format!(
        "# Written by knetsim for the ingress {name}.\n\
         daemon off;\nuser root;\nworker_processes 1;\npid {scratch}.pid;\nerror_log stderr;\n\
         events {{\n}}\n\
         http {{\n  access_log off;\n{temporary}  server {{\n    listen {port};\n\
         \x20   proxy_set_header Host $http_host;\n\
         \x20   proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         {locations}    location / {{ return 404; }}\n  }}\n}}\n",
        name = ingress.name,
        port = ingress.port,
    )
}

/// A word in nginx's quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn both_configurations_say_the_same() {
        let ingress = &Lab::default_lab().clusters[0].ingresses[0];
        insta::assert_snapshot!("ingress-rs", rust_config(ingress));
        insta::assert_snapshot!("nginx", nginx_config(ingress));
    }
}
