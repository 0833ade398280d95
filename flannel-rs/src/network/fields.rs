//! A JSON object, read as Go's decoder reads it into a struct.
//!
//! Source: Go `encoding/json`, `Unmarshal`.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::NetworkError;
use crate::family::Prefix;

use super::range::SubnetRange;

/// A JSON object whose fields are asked for by name.
pub(super) struct Fields<'a> {
    /// Where the object stands in the document, for error messages; with a trailing dot unless it is empty.
    pub(super) path: &'static str,
    /// Its fields, as they stand in the document.
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// Finds a field: in any case, of two spellings the later, `null` as if it were absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let same_name = self.map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        same_name.map(|(_, value)| value).rfind(|value| !value.is_null())
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(name, value, "must be true or false"))
    }

    pub(super) fn integer(&self, name: &str) -> Result<Option<u64>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.wrong(name, value, "must be a whole number, without quotes"))
    }

    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>, NetworkError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(name, value, "must be a string"))
    }

    /// Reads a network, host bits cleared.
    pub(super) fn network<P: Prefix>(&self, name: &str, example: &str) -> Result<P, NetworkError> {
        let advice = || format!("must be a network such as {example:?}");
        let text = self.string(name)?.ok_or_else(|| self.wrong(name, "absent", advice()))?;
        let network: P = text.parse().map_err(|_| self.wrong(name, text, advice()))?;
        P::containing(network.first(), network.length()).ok_or_else(|| self.wrong(name, text, advice()))
    }

    /// Reads the base of the first or last subnet of a range: inside the network, and where a subnet begins.
    pub(super) fn bound<P: Prefix>(&self, name: &str, default: P, range: &SubnetRange<P>) -> Result<P, NetworkError> {
        let Some(text) = self.string(name)? else { return Ok(default) };
        let advice = || format!("must be the address of a subnet in {}", range.network);
        let address: P::Address = text.parse().map_err(|_| self.wrong(name, text, advice()))?;
        let number = P::number(address);
        if number == 0 {
            return Ok(default); // What Go's decoder leaves where nothing is given.
        }
        if !(range.network.first()..=range.network.last()).contains(&number) {
            return Err(self.wrong(name, address, format!("must lie in the network {}", range.network)));
        }
        let subnet = P::containing(number, range.subnet_len).ok_or_else(|| self.wrong(name, text, advice()))?;
        if subnet.first() != number {
            let base = subnet.to_string();
            let base = base.split('/').next().unwrap_or_default();
            return Err(self.wrong(name, address, format!("must be the base of a /{}; use {base}", range.subnet_len)));
        }
        Ok(subnet)
    }

    pub(super) fn wrong(&self, name: &str, value: impl Display, advice: impl Into<String>) -> NetworkError {
        wrong(format!("{}{name}", self.path), value, advice)
    }
}

/// The error for a field.
pub(super) fn wrong(field: impl Into<String>, value: impl Display, advice: impl Into<String>) -> NetworkError {
    NetworkError::Field { field: field.into(), value: value.to_string(), advice: advice.into() }
}

/// Names what a JSON value is, for values too long to print.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
