//! The half of a request that comes through the environment: `CNI_COMMAND` and its companions.
//!
//! Source: CNI specification 1.1.0, section 2, "Parameters"; the limits are those of libcni's `pkg/utils`.

use std::fmt;
use std::path::{Path, PathBuf};

use linux_net::IfName;

use crate::error::{Code, Error, Result};

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach the container to the network.
    Add,
    /// Detach it; succeeds when there is nothing to detach.
    Del,
    /// Say whether the attachment is still what ADD had made.
    Check,
    /// Free what belongs to no attachment of the list in the configuration.
    Gc,
    /// Say whether an ADD could be served now.
    Status,
    /// Name the versions of the specification this plugin speaks.
    Version,
}

impl Command {
    /// The command as it stands in `CNI_COMMAND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Whether the command is about one interface of one container, so that id, netns and name mean something.
    #[must_use]
    pub const fn is_about_an_attachment(self) -> bool {
        match self {
            Self::Add | Self::Del | Self::Check => true,
            Self::Gc | Self::Status | Self::Version => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A container's id: a letter or digit, then letters, digits, `_`, `.` and `-`; at most 200 bytes.
///
/// The specification sets no length; an id becomes part of file names (255 bytes), so a longer one is refused at once
/// rather than by the file system half-way through an ADD.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks and takes an id.
    ///
    /// # Errors
    ///
    /// Code 4 for a character outside the set above, or for too many of them.
    pub fn new(text: &str) -> Result<Self> {
        if !is_plain_name(text) {
            return Err(Error::new(Code::InvalidEnvironment, "invalid characters in containerID").with_details(text));
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(Error::new(
                Code::InvalidEnvironment,
                format!(
                    "containerID of {} bytes is too long for a file name; use at most {MAX_NAME_BYTES}",
                    text.len()
                ),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An id or network name is part of `<network>-<id>-<ifname>` and the like; 200 leaves room in the 255 bytes of a name.
pub(crate) const MAX_NAME_BYTES: usize = 200;

/// `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, the pattern of container ids and network names.
pub(crate) fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// The environment of an ADD, DEL or CHECK (and of GC and STATUS, where only `path` means something).
#[derive(Debug, Clone)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub container_id: ContainerId,
    /// `CNI_NETNS`: the path of the container's network namespace; DEL may lack it.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: the interface to make in there; `None` for GC and STATUS.
    pub ifname: Option<IfName>,
    /// `CNI_ARGS`, as it came.
    pub args: String,
    /// `CNI_PATH`: where further plugins are looked for.
    pub path: Vec<PathBuf>,
    /// `CNI_NETNS_OVERRIDE`: the given namespace may be the plugin's own.
    pub allow_own_netns: bool,
}

impl Environment {
    /// What tests need of one: no namespace, no path.
    #[cfg(test)]
    pub(crate) fn of(container_id: &str, ifname: &str, args: &str) -> Result<Self> {
        Ok(Self {
            container_id: ContainerId::new(container_id)?,
            netns: None,
            ifname: Some(parse_ifname(ifname)?),
            args: args.to_owned(),
            path: Vec::new(),
            allow_own_netns: false,
        })
    }

    /// The interface name; every command that gets here with a container has one.
    ///
    /// # Errors
    ///
    /// Code 4 when `CNI_IFNAME` is missing.
    pub fn ifname(&self) -> Result<&IfName> {
        self.ifname.as_ref().ok_or_else(|| Error::new(Code::InvalidEnvironment, "interface name is empty"))
    }

    /// The path of the namespace.
    ///
    /// # Errors
    ///
    /// Code 4 when `CNI_NETNS` is missing.
    pub fn netns(&self) -> Result<&Path> {
        self.netns
            .as_deref()
            .ok_or_else(|| Error::new(Code::InvalidEnvironment, "required env variables [CNI_NETNS] missing"))
    }

    /// The value of one key of `CNI_ARGS`; the first one when it is given twice.
    #[must_use]
    pub fn arg(&self, key: &str) -> Option<&str> {
        parse_args(&self.args).ok()?.into_iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Refuses keys of `CNI_ARGS` that no plugin of this crate knows, unless `IgnoreUnknown` is true.
    ///
    /// A chain gets one `CNI_ARGS`, so the keys of all its plugins are known to each; the Go plugins know their own
    /// only, and a runtime must set `IgnoreUnknown` to ask bridge for a MAC and host-local for an address.
    ///
    /// # Errors
    ///
    /// Code 4 for an unknown key and for a pair without `=`.
    pub fn check_args(&self) -> Result<()> {
        let pairs = parse_args(&self.args)?;
        let is_true = |value: &str| matches!(value.to_ascii_lowercase().as_str(), "1" | "true");
        if pairs.iter().any(|(key, value)| *key == "IgnoreUnknown" && is_true(value)) {
            return Ok(());
        }
        let unknown: Vec<_> = pairs
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| *key != "IgnoreUnknown" && !KNOWN_ARGS.contains(key))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Code::InvalidEnvironment,
            format!("CNI_ARGS: unknown args {unknown:?}; add IgnoreUnknown=1 to have them passed over"),
        ))
    }
}

/// The keys of `CNI_ARGS` that mean something: an address, its gateway (read by nobody since long), a MAC.
const KNOWN_ARGS: [&str; 3] = ["IP", "GATEWAY", "MAC"];

/// Splits `K=V;K2=V2`.
///
/// # Errors
///
/// Code 4 for a pair without `=`.
pub fn parse_args(text: &str) -> Result<Vec<(&str, &str)>> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=').ok_or_else(|| {
                Error::new(
                    Code::InvalidEnvironment,
                    format!("CNI_ARGS: invalid CNI_ARGS pair \"{pair}\"; write KEY=VALUE"),
                )
            })
        })
        .collect()
}

/// The variables as they came, complete for their command but not yet checked one by one.
///
/// The two steps are apart because the Go library reads and judges standard input between them, and a runtime that
/// makes two mistakes at once should hear of the same one from either.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variables {
    command: String,
    container_id: String,
    netns: String,
    ifname: String,
    args: String,
    path: String,
    netns_override: String,
}

impl Variables {
    /// Collects the variables through `lookup`; `None` when there is no `CNI_COMMAND`, that is when a person called.
    ///
    /// # Errors
    ///
    /// Code 4 naming every variable that the command needs and that is missing or empty.
    pub fn collect(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let get = |name: &str| lookup(name).unwrap_or_default();
        let variables = Self {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            netns_override: get("CNI_NETNS_OVERRIDE"),
        };
        if variables.command.is_empty() {
            return Ok(None);
        }
        let command = variables.command.as_str();
        let is_attachment = matches!(command, "ADD" | "DEL" | "CHECK");
        let required = [
            ("CNI_CONTAINERID", &variables.container_id, is_attachment),
            ("CNI_NETNS", &variables.netns, matches!(command, "ADD" | "CHECK")),
            ("CNI_IFNAME", &variables.ifname, is_attachment),
            ("CNI_PATH", &variables.path, is_attachment || matches!(command, "GC" | "STATUS")),
        ];
        let missing: Vec<_> = required
            .iter()
            .filter(|(_, value, is_required)| *is_required && value.is_empty())
            .map(|(name, ..)| *name)
            .collect();
        if missing.is_empty() {
            return Ok(Some(variables));
        }
        Err(Error::new(Code::InvalidEnvironment, format!("required env variables [{}] missing", missing.join(","))))
    }

    /// Whether the command is VERSION, the only one that needs neither standard input nor any other variable.
    #[must_use]
    pub fn asks_for_the_version(&self) -> bool {
        self.command == Command::Version.as_str()
    }

    /// Checks each variable.
    ///
    /// # Errors
    ///
    /// Code 4 for a bad container id or interface name and for an unknown command.
    pub fn check(self) -> Result<(Command, Environment)> {
        let command = Command::ALL.into_iter().find(|command| command.as_str() == self.command);
        let is_attachment = command.is_none_or(Command::is_about_an_attachment);
        let container_id = if is_attachment { ContainerId::new(&self.container_id)? } else { ContainerId::default() };
        let ifname = if is_attachment { Some(parse_ifname(&self.ifname)?) } else { None };
        let command = command
            .ok_or_else(|| Error::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {}", self.command)))?;
        let environment = Environment {
            container_id,
            netns: Some(PathBuf::from(self.netns)).filter(|path| !path.as_os_str().is_empty()),
            ifname,
            args: self.args,
            path: std::env::split_paths(&self.path).filter(|path| !path.as_os_str().is_empty()).collect(),
            allow_own_netns: !matches!(self.netns_override.to_ascii_lowercase().as_str(), "" | "0" | "f" | "false"),
        };
        Ok((command, environment))
    }
}

/// Checks an interface name by the rules of CNI, which are the kernel's plus `:`.
///
/// # Errors
///
/// Code 4 saying which rule it breaks.
pub fn parse_ifname(text: &str) -> Result<IfName> {
    let refuse = |msg: &str, details: &str| Err(Error::new(Code::InvalidEnvironment, msg).with_details(details));
    if text.is_empty() {
        return refuse("interface name is empty", "");
    }
    if text.len() > 15 {
        return refuse("interface name is too long", "interface name should be less than 16 characters");
    }
    if matches!(text, "." | "..") {
        return refuse("interface name is . or ..", "");
    }
    if text.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        return refuse("interface name contains / or : or whitespace characters", "");
    }
    text.parse::<IfName>().map_err(|source| Error::new(Code::InvalidEnvironment, source.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(pairs: &[(&str, &str)]) -> Result<Option<Variables>> {
        Variables::collect(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    /// A complete ADD with one variable replaced.
    fn add_with(name: &str, value: &str) -> Result<(Command, Environment)> {
        let mut pairs = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        ];
        pairs.retain(|(key, _)| *key != name);
        pairs.push((name, value));
        collect(&pairs).and_then(|variables| variables.unwrap().check())
    }

    #[test]
    fn no_command_at_all_is_a_person_asking() {
        assert_eq!(collect(&[("CNI_PATH", "/x")]).unwrap(), None);
    }

    #[test]
    fn missing_variables_are_named_together_in_order() {
        for (command, missing) in [
            ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
            ("GC", "CNI_PATH"),
            ("STATUS", "CNI_PATH"),
        ] {
            let error = collect(&[("CNI_COMMAND", command)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert_eq!(error.msg, format!("required env variables [{missing}] missing"));
        }
    }

    #[test]
    fn version_needs_nothing_else() {
        assert!(collect(&[("CNI_COMMAND", "VERSION")]).unwrap().unwrap().asks_for_the_version());
    }

    #[test]
    fn hostile_values_are_refused_with_code_4() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", ".hidden"),
            ("CNI_CONTAINERID", "new\nline"),
            ("CNI_CONTAINERID", &"x".repeat(201)),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "eth0:1"),
            ("CNI_IFNAME", "two words"),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_COMMAND", "add"),
        ] {
            let error = add_with(name, value).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name}={value}");
        }
    }

    #[test]
    fn the_path_is_a_list() {
        let (command, environment) = add_with("CNI_ARGS", "").unwrap();
        assert_eq!(command, Command::Add);
        assert_eq!(environment.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
    }

    #[test]
    fn unknown_args_are_refused_unless_told_otherwise() {
        let (_, environment) = add_with("CNI_ARGS", "IP=10.0.0.9;K8S_POD_NAME=p").unwrap();
        assert_eq!(environment.arg("IP"), Some("10.0.0.9"));
        assert!(environment.check_args().unwrap_err().msg.contains("K8S_POD_NAME"));
        let (_, environment) = add_with("CNI_ARGS", "IgnoreUnknown=1;IP=10.0.0.9;K8S_POD_NAME=p").unwrap();
        environment.check_args().unwrap();
    }

    #[test]
    fn a_pair_without_a_value_is_refused() {
        let (_, environment) = add_with("CNI_ARGS", "IgnoreUnknown=1;nonsense").unwrap();
        assert_eq!(environment.check_args().unwrap_err().code, Code::InvalidEnvironment);
    }
}
