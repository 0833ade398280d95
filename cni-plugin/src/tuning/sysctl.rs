//! Which kernel parameter a key of `sysctl` means, and whether the node's administrator lets it be set.

use std::path::Path;

use linux_net::IfName;
use regex::Regex;

use crate::error::{Error, Result};
use crate::file;

/// The file of allowed parameters; without it all of them are.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// The parameter below `/proc/sys`, with slashes: `net.ipv4.conf.IFNAME.arp_filter` is `net/ipv4/conf/eth0/arp_filter`.
///
/// # Errors
///
/// Code 7 for one outside of `net`: only those belong to the container's network namespace.
pub fn path(key: &str, ifname: &IfName) -> Result<String> {
    let path = key.replace('.', "/").replacen("IFNAME", ifname.as_str(), 1);
    let names: Vec<_> = path.split('/').collect();
    let is_plain = names.len() > 1 && names.iter().all(|name| !matches!(*name, "" | "." | ".."));
    if names[0] != "net" || !is_plain {
        return Err(Error::config(format!("invalid net sysctl key: \"{key}\"; only parameters below net. can be set")));
    }
    Ok(path)
}

/// What an administrator allows: regular expressions, one a line, of which one must match somewhere in the key.
#[derive(Debug)]
pub struct AllowList(Option<Vec<Regex>>);

impl AllowList {
    /// Reads the node's list.
    ///
    /// # Errors
    ///
    /// Code 5 when it is there and cannot be read, code 7 for a line that is no regular expression.
    pub fn load() -> Result<Self> {
        match file::read(Path::new(ALLOW_LIST))? {
            Some(bytes) => Self::parse(&String::from_utf8_lossy(&bytes)),
            None => Ok(Self(None)),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let compile =
            |line| Regex::new(line).map_err(|source| Error::config(format!("{ALLOW_LIST}: \"{line}\": {source}")));
        lines.map(compile).collect::<Result<_>>().map(|expressions| Self(Some(expressions)))
    }

    /// Checks keys as they stand in the configuration.
    ///
    /// # Errors
    ///
    /// Code 7 naming the first that is not allowed.
    pub fn check<'a>(&self, mut keys: impl Iterator<Item = &'a str>) -> Result<()> {
        let Some(allowed) = &self.0 else { return Ok(()) };
        match keys.find(|key| !allowed.iter().any(|expression| expression.is_match(key))) {
            None => Ok(()),
            Some(key) => {
                let allowed: Vec<_> = allowed.iter().map(Regex::as_str).collect();
                Err(Error::config(format!(
                    "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{}]",
                    allowed.join(" ")
                ))
                .with_details(ALLOW_LIST))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_key_may_name_the_interface() {
        let ifname = "eth0.5".parse().unwrap();
        assert_eq!(path("net.ipv4.conf.IFNAME.arp_filter", &ifname).unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        assert_eq!(path("net/core/somaxconn", &ifname).unwrap(), "net/core/somaxconn");
    }

    #[test]
    fn what_is_not_of_the_network_is_refused() {
        for key in
            ["kernel.hostname", "net", "net/../kernel/hostname", "network.x", "", "net..x", "/net/core/somaxconn"]
        {
            assert_eq!(path(key, &"eth0".parse().unwrap()).unwrap_err().code, Code::InvalidConfig, "{key}");
        }
    }

    #[test]
    fn one_line_that_matches_is_enough() {
        let list = AllowList::parse("^net\\.core\\..*$\n\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n").unwrap();
        list.check(["net.core.somaxconn", "net.ipv4.conf.IFNAME.arp_filter"].into_iter()).unwrap();
        let error = list.check(["net.core.somaxconn", "net.ipv4.tcp_sack"].into_iter()).unwrap_err();
        assert!(error.msg.starts_with("Sysctl net.ipv4.tcp_sack is not allowed"), "{error}");
        AllowList::parse("(").unwrap_err();
        AllowList(None).check(["anything"].into_iter()).unwrap();
    }
}
