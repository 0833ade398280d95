//! The half of a request that comes through standard input: the network configuration.
//!
//! A configuration is kept as the JSON object that came, because a plugin that delegates must pass on *all* of it,
//! fields it has never heard of included. Each plugin reads the fields it knows through [`Conf::read`], in any case of their names.
//!
//! Source: CNI specification 1.1.0, section 1, "Plugin configuration objects".

pub(crate) mod any_case;

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::env::{MAX_NAME_BYTES, is_plain_name};
use crate::error::{Code, Error, Result};
use crate::result::CniResult;
use crate::version::SpecVersion;

/// A network's name: the pattern of container ids, and at most 200 bytes, because it becomes a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkName(String);

impl NetworkName {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// Code 7 for an empty name, a character outside the pattern, or a name too long for a directory.
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::config("missing network name"));
        }
        if !is_plain_name(text) {
            return Err(Error::config("invalid characters found in network name").with_details(text));
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(Error::config(format!(
                "network name of {} bytes is too long for a directory; use at most {MAX_NAME_BYTES}",
                text.len()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One attachment, as GC lists the ones to keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, serde::Serialize)]
pub struct Attachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
}

/// The configuration of one plugin, as it is handed to that plugin.
#[derive(Debug, Clone)]
pub struct Conf {
    object: Map<String, Value>,
    /// `name`: the network, the same for every plugin of the list.
    pub network: NetworkName,
}

impl Conf {
    /// Reads what came on standard input. The version is judged later, by the command that needs it.
    ///
    /// # Errors
    ///
    /// Code 6 when the bytes are no JSON object, code 7 when the name is missing or invalid.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let object = serde_json::from_slice(bytes).map_err(|source| Error::decode("network config", &source))?;
        Self::new(object)
    }

    /// Takes an object that is JSON already.
    ///
    /// # Errors
    ///
    /// Code 7 when the name is missing or invalid, 6 when it is no string.
    pub fn new(object: Map<String, Value>) -> Result<Self> {
        let network = NetworkName::new(text(&object, "name")?)?;
        Ok(Self { object, network })
    }

    /// The whole object.
    #[must_use]
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// `cniVersion`.
    ///
    /// # Errors
    ///
    /// Code 1 for a version this crate does not speak.
    pub fn version(&self) -> Result<SpecVersion> {
        SpecVersion::parse(text(&self.object, "cniVersion")?)
    }

    /// Reads the fields that a plugin knows; others are passed over, as the specification has it.
    ///
    /// # Errors
    ///
    /// Code 7 naming the field of the wrong shape.
    pub fn read<'de, T: Deserialize<'de>>(&'de self) -> Result<T> {
        any_case::read(&self.object).map_err(|source| Error::config(format!("failed to load netconf: {source}")))
    }

    /// `prevResult`: what the plugins before this one (on ADD) or the whole list (on CHECK and DEL) had answered.
    ///
    /// # Errors
    ///
    /// Code 6 when it is no result of the configuration's version.
    pub fn prev_result(&self) -> Result<Option<CniResult>> {
        match any_case::get(&self.object, "prevResult") {
            None => Ok(None),
            Some(value) => CniResult::from_value(value, self.version()?).map(Some),
        }
    }

    /// `prevResult` where the command cannot do without (CHECK).
    ///
    /// # Errors
    ///
    /// Code 7 when it is missing.
    pub fn required_prev_result(&self) -> Result<CniResult> {
        self.prev_result()?.ok_or_else(|| Error::config("required prevResult missing"))
    }

    /// The attachments that GC must keep.
    ///
    /// # Errors
    ///
    /// Code 7 when the list is missing: an absent list must not be taken for "keep none".
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>> {
        let list = any_case::get(&self.object, "cni.dev/valid-attachments").ok_or_else(|| {
            Error::config("GC needs \"cni.dev/valid-attachments\"; an empty list frees everything of this network")
        })?;
        Vec::deserialize(list).map_err(|source| Error::config(format!("cni.dev/valid-attachments: {source}")))
    }

    /// The `type` in `ipam`, or an empty text when there is no IPAM.
    ///
    /// # Errors
    ///
    /// Code 7 when either is of the wrong shape.
    pub fn ipam_type(&self) -> Result<&str> {
        match any_case::get(&self.object, "ipam") {
            None => Ok(""),
            Some(Value::Object(ipam)) => text(ipam, "type"),
            Some(_) => Err(Error::config("\"ipam\" is not an object")),
        }
    }
}

/// A member that is a text; empty when absent.
pub(crate) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    match any_case::get(object, key) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(Error::new(Code::Decode, format!("\"{key}\" is not a string but {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_json_is_code_6_and_a_bad_name_code_7() {
        for (bytes, code) in [
            ("", Code::Decode),
            ("{", Code::Decode),
            ("[]", Code::Decode),
            (r#"{"name": 7}"#, Code::Decode),
            ("{}", Code::InvalidConfig),
            (r#"{"name": ""}"#, Code::InvalidConfig),
            (r#"{"name": "../x"}"#, Code::InvalidConfig),
            (r#"{"name": "a b"}"#, Code::InvalidConfig),
        ] {
            assert_eq!(Conf::parse(bytes.as_bytes()).unwrap_err().code, code, "{bytes}");
        }
    }

    #[test]
    fn gc_without_a_list_is_refused_rather_than_freeing_everything() {
        let conf = Conf::parse(br#"{"name":"n","cniVersion":"1.1.0"}"#).unwrap();
        assert_eq!(conf.valid_attachments().unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn a_prev_result_is_read_in_the_version_of_the_configuration() {
        let conf = Conf::parse(
            br#"{"name":"n","cniVersion":"0.2.0","prevResult":{"ip4":{"ip":"10.1.0.2/24","gateway":"10.1.0.1"}}}"#,
        )
        .unwrap();
        let result = conf.prev_result().unwrap().unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.1.0.2/24");
    }
}
