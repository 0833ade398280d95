//! One entity of the file, and its attributes with their types.
//!
//! skrouterd's own writers put numbers and booleans as JSON numbers and booleans or as strings, so both are read.

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::ConfigError;
use super::schema::{self, EntityType};

/// Ports that may be written by name, as in /etc/services.
const SERVICES: [(&str, u16); 4] = [("amqp", 5672), ("amqps", 5671), ("http", 80), ("https", 443)];

/// `[type, {attributes}]`, the attributes known to exist.
#[derive(Debug)]
pub(super) struct Entity<'a> {
    /// Position in the array, from 0.
    index: usize,
    pub(super) kind: &'static EntityType,
    attributes: &'a Map<String, Value>,
}

impl<'a> Entity<'a> {
    pub(super) fn new(index: usize, value: &'a Value) -> Result<Entity<'a>, ConfigError> {
        let at = |message: String| ConfigError::Entity { index, entity: String::new(), message };
        let Some([Value::String(kind), Value::Object(attributes)]) = value.as_array().map(Vec::as_slice) else {
            return Err(at("is not of the form [\"entityType\", {attributes}]".into()));
        };
        let kind = schema::entity_type(kind).ok_or_else(|| {
            let nearest = schema::nearest(kind, schema::ENTITIES.iter().map(|entity| entity.name));
            at(format!("unknown entity type \"{kind}\"{}", suggest(nearest)))
        })?;
        let entity = Entity { index, kind, attributes };
        let known = || kind.attributes.iter().chain(&schema::COMMON).copied();
        match attributes.keys().find(|key| !known().any(|name| name == *key)) {
            Some(key) => {
                Err(entity.error(format!("unknown attribute \"{key}\"{}", suggest(schema::nearest(key, known())))))
            }
            None => Ok(entity),
        }
    }

    /// An error about this entity.
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::Entity { index: self.index, entity: self.title(), message: message.into() }
    }

    /// The type, and the name if it has one: `tcpListener "web"`.
    pub(super) fn title(&self) -> String {
        match self.attributes.get("name") {
            Some(Value::String(name)) => format!("{} \"{name}\"", self.kind.name),
            _ => self.kind.name.to_owned(),
        }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.attributes.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(format!("{key} is {other}; write a string"))),
        }
    }

    pub(super) fn required(&self, key: &str) -> Result<&'a str, ConfigError> {
        self.string(key)?.ok_or_else(|| self.error(format!("{key} is missing")))
    }

    pub(super) fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.string(key)?.map(PathBuf::from))
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.attributes.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(Value::String(text)) if ["true", "yes", "1", "on"].contains(&text.as_str()) => Ok(Some(true)),
            Some(Value::String(text)) if ["false", "no", "0", "off"].contains(&text.as_str()) => Ok(Some(false)),
            Some(other) => Err(self.error(format!("{key} is {other}; write true or false"))),
        }
    }

    /// A whole number that fits `T`, written as a number or as a string.
    pub(super) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>, ConfigError> {
        let text = match self.attributes.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        text.parse().map(Some).map_err(|_| self.error(format!("{key} is \"{text}\"; write a whole number in range")))
    }

    /// A port from 1 to 65535, as a number, a string or one of a few names.
    pub(super) fn port(&self) -> Result<Option<u16>, ConfigError> {
        let text = match self.attributes.get("port") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        if let Some((_, port)) = SERVICES.iter().find(|(name, _)| *name == text) {
            return Ok(Some(*port));
        }
        match text.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(self.error(format!("port is \"{text}\"; write a number from 1 to 65535"))),
        }
    }

    /// One of the words in `allowed`, or the default.
    pub(super) fn word(
        &self,
        key: &str,
        allowed: &[&'static str],
        default: &'static str,
    ) -> Result<&'static str, ConfigError> {
        let Some(text) = self.string(key)? else { return Ok(default) };
        allowed.iter().copied().find(|word| *word == text).ok_or_else(|| {
            let nearest = schema::nearest(text, allowed.iter().copied());
            self.error(format!("{key} is \"{text}\"{}; there are {}", suggest(nearest), allowed.join(", ")))
        })
    }
}

fn suggest(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"))
}
