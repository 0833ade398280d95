//! The names that routers exchange: of a router, and of an address.
//!
//! An *address* is not an IP address. It is the name under which a service is known to every router, whichever
//! cluster it runs in: `web:80`, say. A `tcpConnector` offers an address, a `tcpListener` asks for one.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest name, in bytes; a control frame must hold several of them.
pub const MAX_NAME_BYTES: usize = 255;

/// The name of a router, unique in the network: `router.id` in its configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(Arc<str>);

/// The name of a service in the network of routers, such as `web:80`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

/// A text that is no name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing was written.
    #[error("a {0} must not be empty")]
    Empty(&'static str),
    /// More than [`MAX_NAME_BYTES`].
    #[error("a {what} of {length} bytes is too long; use {MAX_NAME_BYTES} bytes at most")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A space or a control character, which would make logs ambiguous.
    #[error("a {0} must not contain spaces or control characters")]
    Character(&'static str),
}

impl RouterId {
    /// Checks a router's name.
    ///
    /// # Errors
    ///
    /// [`NameError`] when it is empty, longer than [`MAX_NAME_BYTES`], or contains spaces or control characters.
    pub fn new(text: &str) -> Result<RouterId, NameError> {
        check("router id", text).map(RouterId)
    }
}

impl Address {
    /// Checks an address.
    ///
    /// # Errors
    ///
    /// [`NameError`] when it is empty, longer than [`MAX_NAME_BYTES`], or contains spaces or control characters.
    pub fn new(text: &str) -> Result<Address, NameError> {
        check("address", text).map(Address)
    }

    /// The address as it is written in configurations and on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(what: &'static str, text: &str) -> Result<Arc<str>, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty(what));
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { what, length: text.len() });
    }
    if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(NameError::Character(what));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(Address::new("web:80").unwrap().to_string(), "web:80");
        assert_eq!(Address::new(""), Err(NameError::Empty("address")));
        assert_eq!(RouterId::new("a b"), Err(NameError::Character("router id")));
        assert_eq!(Address::new("a\u{1b}[2J"), Err(NameError::Character("address")));
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(Address::new(&long), Err(NameError::TooLong { what: "address", length: 256 }));
    }
}
