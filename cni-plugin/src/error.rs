//! The error of the protocol: a code, a message, details.
//!
//! An error crosses process boundaries here (a delegate's error is printed by the plugin that called it, unchanged), so
//! it is a struct with the specification's three fields rather than an enum of causes; [`Code`] is the enum.
//! Source: CNI specification 1.1.0, section 5, "Error".

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::version::SpecVersion;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The number a runtime decides by: below 100 the specification's, from 100 on this crate's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the configuration asks for a version, or a command its version does not have.
    IncompatibleVersion,
    /// 2: a field of the configuration is known and not supported; the message names it.
    UnsupportedField,
    /// 3: the container does not exist, or is not known; nothing is left to clean up.
    UnknownContainer,
    /// 4: an environment variable is missing or malformed.
    InvalidEnvironment,
    /// 5: a file could not be read or written.
    Io,
    /// 6: what came was not JSON, or not of the expected shape.
    Decode,
    /// 7: the configuration is readable and wrong.
    InvalidConfig,
    /// 8: the network namespace is the caller's own (used by the Go library; not in the specification).
    InvalidNetns,
    /// 11: a passing trouble: the runtime should try again later.
    TryAgain,
    /// 50: the plugin cannot serve an ADD now (answer of STATUS).
    Unavailable,
    /// 51: as 50, and containers that exist may have lost connectivity.
    LimitedConnectivity,
    /// 100: the kernel refused an operation; the message holds it as a command line.
    Kernel,
    /// 101: no address could be reserved.
    Allocation,
    /// 102: CHECK found something other than what ADD had made.
    CheckFailed,
    /// 103: another plugin could not be found or run, or died without an answer.
    Plugin,
    /// Any other number, from a plugin that is not ours.
    Other(u32),
}

impl Code {
    const NAMED: [(u32, Self); 15] = [
        (1, Self::IncompatibleVersion),
        (2, Self::UnsupportedField),
        (3, Self::UnknownContainer),
        (4, Self::InvalidEnvironment),
        (5, Self::Io),
        (6, Self::Decode),
        (7, Self::InvalidConfig),
        (8, Self::InvalidNetns),
        (11, Self::TryAgain),
        (50, Self::Unavailable),
        (51, Self::LimitedConnectivity),
        (100, Self::Kernel),
        (101, Self::Allocation),
        (102, Self::CheckFailed),
        (103, Self::Plugin),
    ];

    /// The number as it stands in the JSON.
    #[must_use]
    pub fn number(self) -> u32 {
        if let Self::Other(number) = self {
            return number;
        }
        Self::NAMED.iter().find(|(_, code)| *code == self).map_or(0, |(number, _)| *number)
    }
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        Self::NAMED.iter().find(|(n, _)| *n == number).map_or(Self::Other(number), |(_, code)| *code)
    }
}

/// An error as the protocol knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What a runtime decides by.
    pub code: Code,
    /// One short sentence.
    pub msg: String,
    /// What helps a person; may be empty.
    pub details: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with the part that helps a person.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Code 7: the configuration is readable and wrong.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, msg)
    }

    /// Code 2: a field that the real plugin has and this one does not.
    #[must_use]
    pub fn unsupported(plugin: &str, field: &str) -> Self {
        Self::new(
            Code::UnsupportedField,
            format!("field \"{field}\" is not supported by this {plugin} plugin; remove it or use the Go plugin"),
        )
    }

    /// Code 6: JSON that is broken, or of another shape than expected.
    #[must_use]
    pub fn decode(what: &str, source: &serde_json::Error) -> Self {
        Self::new(Code::Decode, format!("cannot decode {what}: {source}"))
    }

    /// Code 5: an operation on a file, said as a verb: `"read"`, `"lock"`.
    #[must_use]
    pub fn io(verb: &str, path: &Path, source: &io::Error) -> Self {
        Self::new(Code::Io, format!("cannot {verb} {}: {source}", path.display()))
    }

    /// Code 102: CHECK found something other than what ADD had made.
    pub fn check(msg: impl Into<String>) -> Self {
        Self::new(Code::CheckFailed, msg)
    }

    /// The JSON that a plugin prints on standard output before it exits with status 1.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut object = json!({
            "cniVersion": SpecVersion::NEWEST.as_str(),
            "code": self.code.number(),
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = Value::from(self.details.clone());
        }
        format!("{object:#}")
    }

    /// Reads the error that another plugin printed; `None` when `bytes` are no such thing.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let number = u32::try_from(value.get("code")?.as_u64()?).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self { code: Code::from(number), msg: text("msg"), details: text("details") })
    }
}

impl From<linux_net::Error> for Error {
    fn from(source: linux_net::Error) -> Self {
        let mut msg = source.to_string();
        let mut cause = std::error::Error::source(&source);
        while let Some(error) = cause {
            msg = format!("{msg}: {error}");
            cause = error.source();
        }
        Self::new(Code::Kernel, msg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_keeps_its_number_both_ways() {
        for number in [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 102, 103, 999] {
            assert_eq!(Code::from(number).number(), number);
        }
    }

    #[test]
    fn an_error_survives_the_way_through_json() {
        let error = Error::config("bad \"quote\"").with_details("line 3");
        assert_eq!(Error::from_json(error.to_json().as_bytes()), Some(error));
    }

    #[test]
    fn a_result_is_not_taken_for_an_error() {
        assert_eq!(Error::from_json(br#"{"cniVersion":"1.0.0","ips":[]}"#), None);
    }
}
