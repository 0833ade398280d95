//! What the user writes: one TOML file, checked whole before anything of it is used.
//!
//! ```toml
//! listen = "0.0.0.0:8001"         # where clients come in
//! admin = "127.0.0.1:8081"        # /healthz, /readyz, /metrics; optional
//! workers = 1                     # threads, each with its own event loop and connection pool
//! max_connections = 4096          # clients at once; more wait in the kernel's queue
//!
//! [timeouts]                      # all optional; these are the defaults
//! client_head = "15s"             # a client's request line and headers
//! keep_alive = "75s"              # a client's connection between two requests
//! connect = "2s"                  # reaching a backend
//! response_head = "60s"           # a backend's status and headers, once it has the request
//! body_idle = "60s"               # between two pieces of a body, either way
//! backend_keep_alive = "4s"       # an unused connection to a backend
//! tunnel_idle = "1h"              # an upgraded connection (WebSocket) with no byte either way
//! drain = "10s"                   # what is in flight at SIGTERM
//!
//! [[route]]
//! path = "/svc1"
//! path_type = "Prefix"            # or "Exact"; Prefix if left out
//! backends = ["100.64.11.1:8000"] # in turn
//! keepalive = 32                  # unused connections kept per backend and worker
//! ```
//!
//! With `keepalive = 0` every request gets a connection of its own. A virtual IP needs that when each *request* shall be
//! balanced: the service proxy chooses an endpoint per connection, so a kept connection stays with one endpoint.
//!
//! A mistake is reported with its place, `file:line:column: what is wrong; what to write instead`, and nothing is applied.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::error::ConfigError;
use crate::path::MatchPath;
use crate::route::PathType;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address and port for clients; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Address and port for `/healthz`, `/readyz` and `/metrics`.
    pub admin: Option<SocketAddr>,
    /// Threads that serve clients, at least 1.
    pub workers: usize,
    /// Clients' connections held at once, over all workers, at least 1.
    pub max_connections: usize,
    /// How long anything may take.
    pub timeouts: Timeouts,
    /// The rules, in the order of the file; no two have the same path and type.
    pub routes: Vec<RouteConfig>,
}

/// How long anything may take. None is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A client's request line and headers, from its first byte.
    pub client_head: Duration,
    /// A client's connection between two requests.
    pub keep_alive: Duration,
    /// The TCP handshake with a backend.
    pub connect: Duration,
    /// A backend's status line and headers, counted while it is the backend that is waited for.
    pub response_head: Duration,
    /// The gap between two pieces of a body, either way, and a client that does not read its response.
    pub body_idle: Duration,
    /// An unused connection to a backend. The backend must not close first, or a request is sent into a closing connection.
    pub backend_keep_alive: Duration,
    /// An upgraded connection with no byte in either direction.
    pub tunnel_idle: Duration,
    /// What is in flight when the ingress is told to stop.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            client_head: Duration::from_secs(15),
            keep_alive: Duration::from_secs(75),   // nginx's keepalive_timeout
            connect: Duration::from_secs(2),       // one lost SYN is sent again after 1 s
            response_head: Duration::from_mins(1), // nginx's proxy_read_timeout
            body_idle: Duration::from_mins(1),
            backend_keep_alive: Duration::from_secs(4), // Node and uvicorn close after 5 s
            tunnel_idle: Duration::from_hours(1),
            drain: Duration::from_secs(10), // Kubernetes kills a pod 30 s after SIGTERM
        }
    }
}

/// One rule: the paths it takes, and who answers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The path as written; it parses as a [`MatchPath`].
    pub path: String,
    /// How `path` is compared.
    pub path_type: PathType,
    /// Who answers, in turn; never empty.
    pub backends: Vec<SocketAddr>,
    /// Unused connections kept per backend and worker; 0 opens one per request.
    pub keepalive: usize,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file, and the line and column of the mistake.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(path, &text)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] names the first mistake.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let checker = Checker { path, text };
        let file: File =
            toml::from_str(text).map_err(|error| checker.refuse(error.span().unwrap_or(0..0), error.message()))?;
        checker.check(&file)
    }

    /// What of `new` only takes effect in a new process, as the names of the keys.
    #[must_use]
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        [
            ("listen", self.listen != new.listen),
            ("admin", self.admin != new.admin),
            ("workers", self.workers != new.workers),
            ("max_connections", self.max_connections != new.max_connections),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

/// The file as serde reads it; values keep their place in the text, so that a check can point at them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Spanned<String>,
    admin: Option<Spanned<String>>,
    workers: Option<Spanned<usize>>,
    max_connections: Option<Spanned<usize>>,
    #[serde(default)]
    timeouts: TimeoutsFile,
    #[serde(default, rename = "route")]
    routes: Vec<RouteFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutsFile {
    client_head: Option<Spanned<String>>,
    keep_alive: Option<Spanned<String>>,
    connect: Option<Spanned<String>>,
    response_head: Option<Spanned<String>>,
    body_idle: Option<Spanned<String>>,
    backend_keep_alive: Option<Spanned<String>>,
    tunnel_idle: Option<Spanned<String>>,
    drain: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteFile {
    path: Spanned<String>,
    #[serde(default)]
    path_type: PathType,
    backends: Spanned<Vec<Spanned<String>>>,
    #[serde(default = "default_keepalive")]
    keepalive: usize,
}

fn default_keepalive() -> usize {
    32
}

/// Turns the file into domain types, and byte offsets into lines and columns.
struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Checker<'_> {
    fn check(&self, file: &File) -> Result<Config, ConfigError> {
        Ok(Config {
            listen: self.address(&file.listen)?,
            admin: file.admin.as_ref().map(|admin| self.address(admin)).transpose()?,
            workers: self.at_least_one(file.workers.as_ref(), 1)?,
            max_connections: self.at_least_one(file.max_connections.as_ref(), 4096)?,
            timeouts: self.timeouts(&file.timeouts)?,
            routes: self.routes(&file.routes)?,
        })
    }

    fn timeouts(&self, file: &TimeoutsFile) -> Result<Timeouts, ConfigError> {
        let default = Timeouts::default();
        let read = |value: &Option<Spanned<String>>, default| match value {
            Some(value) => self.duration(value),
            None => Ok(default),
        };
        Ok(Timeouts {
            client_head: read(&file.client_head, default.client_head)?,
            keep_alive: read(&file.keep_alive, default.keep_alive)?,
            connect: read(&file.connect, default.connect)?,
            response_head: read(&file.response_head, default.response_head)?,
            body_idle: read(&file.body_idle, default.body_idle)?,
            backend_keep_alive: read(&file.backend_keep_alive, default.backend_keep_alive)?,
            tunnel_idle: read(&file.tunnel_idle, default.tunnel_idle)?,
            drain: read(&file.drain, default.drain)?,
        })
    }

    fn routes(&self, files: &[RouteFile]) -> Result<Vec<RouteConfig>, ConfigError> {
        let mut seen = BTreeMap::new();
        let mut routes = Vec::with_capacity(files.len());
        for file in files {
            let route = self.route(file)?;
            let path = MatchPath::parse(&route.path).expect("`route` has parsed it");
            let key = match route.path_type {
                PathType::Exact => format!("Exact {}", path.as_str()),
                PathType::Prefix => format!("Prefix {}", path.as_str().strip_suffix('/').unwrap_or(path.as_str())),
            };
            if let Some(first) = seen.insert(key, file.path.span()) {
                let (line, _) = self.place(first.start);
                let message = format!("this path is taken by the route at line {line}; a path has one route of a type");
                return Err(self.refuse(file.path.span(), &message));
            }
            routes.push(route);
        }
        Ok(routes)
    }

    fn route(&self, file: &RouteFile) -> Result<RouteConfig, ConfigError> {
        let path = file.path.get_ref();
        if path.contains(['?', '#']) {
            return Err(self.refuse(file.path.span(), "a rule's path has no query and no fragment"));
        }
        MatchPath::parse(path).map_err(|error| self.refuse(file.path.span(), &error.to_string()))?;
        if file.backends.get_ref().is_empty() {
            let message = "a route needs a backend, as in backends = [\"100.64.11.1:8000\"]";
            return Err(self.refuse(file.backends.span(), message));
        }
        let backends = file.backends.get_ref().iter().map(|backend| {
            let address = self.address(backend)?;
            if address.port() == 0 {
                return Err(self.refuse(backend.span(), "a backend's port is 1 to 65535"));
            }
            Ok(address)
        });
        Ok(RouteConfig {
            path: path.clone(),
            path_type: file.path_type,
            backends: backends.collect::<Result<_, _>>()?,
            keepalive: file.keepalive,
        })
    }

    fn address(&self, value: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        value.get_ref().parse().map_err(|_| {
            let message =
                format!("`{}` is not an IP address and port, as in 10.0.0.3:8001 or [::1]:8001", value.get_ref());
            self.refuse(value.span(), &message)
        })
    }

    fn at_least_one(&self, value: Option<&Spanned<usize>>, default: usize) -> Result<usize, ConfigError> {
        match value {
            None => Ok(default),
            Some(value) if *value.get_ref() == 0 => Err(self.refuse(value.span(), "this must be 1 or more")),
            Some(value) => Ok(*value.get_ref()),
        }
    }

    fn duration(&self, value: &Spanned<String>) -> Result<Duration, ConfigError> {
        parse_duration(value.get_ref()).ok_or_else(|| {
            let message = format!(
                "`{}` is not a duration: a whole number above zero and ms, s, m or h, as in 500ms or 2s",
                value.get_ref()
            );
            self.refuse(value.span(), &message)
        })
    }

    fn refuse(&self, span: Range<usize>, message: &str) -> ConfigError {
        let (line, column) = self.place(span.start);
        // serde's messages may end in a line break and span lines; ours is one line.
        let message = message.trim_end().replace('\n', "; ");
        ConfigError::Invalid { path: PathBuf::from(self.path), line, column, message }
    }

    /// Line and column, both from 1, of a byte offset.
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Reads `500ms`, `2s`, `5m` or `1h`; nothing for zero, a fraction or another unit.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    // A year is longer than any of these may sensibly be, and keeps deadlines far from the clock's end.
    let millis = number.checked_mul(millis).filter(|millis| (1..=31_536_000_000).contains(millis))?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("ingress.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_of_this_module_is_the_default() {
        let example: String = include_str!("config.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").to_owned() + "\n")
            .collect();
        let config = parse(&example).unwrap();
        assert_eq!(config.timeouts, Timeouts::default());
        let short = "listen = '0.0.0.0:8001'\nadmin = '127.0.0.1:8081'\n\
             [[route]]\npath = '/svc1'\nbackends = ['100.64.11.1:8000']\n";
        assert_eq!(parse(short), Ok(config));
    }

    #[test]
    fn a_mistake_is_reported_with_its_place() {
        let route = |body: &str| format!("listen = '0.0.0.0:1'\n[[route]]\n{body}\n");
        let files = [
            String::new(),
            "listen = 8001\n".into(),
            "listen = 'localhost:8001'\n".into(),
            "listen = '0.0.0.0:1'\nlisten_backlog = 3\n".into(),
            "listen = '0.0.0.0:1'\n\nadmin = '127.0.0.1'\n".into(),
            "listen = '0.0.0.0:1'\nworkers = 0\n".into(),
            "listen = '0.0.0.0:1'\nworkers = -1\n".into(),
            "listen = '0.0.0.0:1'\n[timeouts]\nconnect = '2'\n".into(),
            "listen = '0.0.0.0:1'\n[timeouts]\nconnect = '0s'\n".into(),
            "listen = '0.0.0.0:1'\n[timeouts]\nread = '2s'\n".into(),
            "listen = '0.0.0.0:1\n".into(),
            route("path = '/a'"),
            route("path = '/a'\nbackends = []"),
            route("path = '/a'\nbackends = ['10.0.0.1:80', 'web:80']"),
            route("path = '/a'\nbackends = ['10.0.0.1:0']"),
            route("path = 'a'\nbackends = ['10.0.0.1:80']"),
            route("path = '/a/../b'\nbackends = ['10.0.0.1:80']"),
            route("path = '/a?b'\nbackends = ['10.0.0.1:80']"),
            route("path = '/a'\npath_type = 'Regex'\nbackends = ['10.0.0.1:80']"),
            route("path = '/a'\nbackends = ['10.0.0.1:80']\n[[route]]\npath = '/%61/'\nbackends = ['10.0.0.2:80']"),
        ];
        let report = files
            .iter()
            .map(|file| format!("{}\n    → {}\n", file.trim_end(), parse(file).expect_err("a mistake")))
            .collect::<Vec<_>>()
            .join("\n");
        insta::assert_snapshot!(report);
    }

    #[test]
    fn only_what_a_running_process_cannot_change_needs_a_restart() {
        let old = parse("listen = '0.0.0.0:1'\n").unwrap();
        let new = parse("listen = '0.0.0.0:2'\nworkers = 2\n[timeouts]\ndrain = '1s'\n").unwrap();
        assert_eq!(old.needs_restart(&new), ["listen", "workers"]);
        assert!(old.needs_restart(&old).is_empty());
    }

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_mins(2)));
        for bad in ["", "s", "5", "1.5s", "-1s", "0ms", "1d", "9999999h", "99999999999999999999s", "1 s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
