//! The versions of the CNI specification, and what each of them allows.

use std::fmt;

use serde_json::json;

use crate::error::{Code, Error, Result};

/// A released version of the CNI specification, oldest first, so that `>=` reads as "has at least the features of".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.1.0: one IPv4 and one IPv6 address.
    V0_1_0,
    /// 0.2.0: the same wire form, and the VERSION command.
    V0_2_0,
    /// 0.3.0: lists of interfaces and addresses; chained plugins.
    V0_3_0,
    /// 0.3.1: the same wire form as 0.3.0.
    V0_3_1,
    /// 0.4.0: the CHECK command, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: an address no longer says its own family; single-plugin files are deprecated.
    V1_0_0,
    /// 1.1.0: GC and STATUS; the MTU of an interface, metrics and tables of a route.
    V1_1_0,
}

impl SpecVersion {
    /// Every version this crate speaks, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version: the one VERSION answers with.
    pub const NEWEST: Self = Self::V1_1_0;

    /// Reads `cniVersion`. An absent or empty one means 0.1.0, because that version had no such field.
    ///
    /// # Errors
    ///
    /// Code 1 for a version this crate does not speak.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions").with_details(format!(
                "config is \"{text}\", plugin supports [{}]",
                Self::ALL.map(|version| format!("\"{version}\"")).join(" ")
            ))
        })
    }

    /// The version as it stands in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to the VERSION command (CNI specification 1.1.0, section 5, "VERSION success").
#[must_use]
pub fn version_answer() -> String {
    json!({
        "cniVersion": SpecVersion::NEWEST.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_a_version_is_the_oldest_one() {
        assert_eq!(SpecVersion::parse("").unwrap(), SpecVersion::V0_1_0);
    }

    #[test]
    fn an_unknown_version_is_refused_with_code_1_and_the_supported_ones() {
        let error = SpecVersion::parse("9.9.9").unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
        assert!(error.details.contains("9.9.9") && error.details.contains("1.1.0"), "{error:?}");
    }

    #[test]
    fn every_version_reads_back_from_its_own_text() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.as_str()).unwrap(), version);
        }
    }
}
