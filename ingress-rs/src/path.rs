//! The path of a request, in the one spelling that routing compares.
//!
//! One resource has many spellings: `/a`, `/%61`, `/b/../a`. If the proxy and the backend resolve them differently, a
//! request for one place is checked as another: the split view behind CVE-2025-66490 of Traefik. So the rules are few and fixed:
//!
//! - `%61` and `a` are the same (RFC 3986 §6.2.2.2): escapes of unreserved characters are decoded **for matching only**;
//! - every other escape stays as it is, `%2F` above all: an encoded slash does not separate elements;
//! - an element `.` or `..` is refused, also when a part of it is encoded (`%2e%2E`, `..%2Fadmin`, `..%5C`): what it would
//!   lead to depends on who resolves it;
//! - doubled slashes are kept: `/a//b` has three elements, `a`, the empty one and `b`;
//! - what is *sent on* is always the path the client wrote, byte for byte.

use std::borrow::Cow;

use thiserror::Error;

/// A path fit to be compared: absolute, escapes of unreserved characters decoded, no dot segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchPath<'a>(Cow<'a, str>);

/// Why a path cannot be routed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// The path does not begin with `/`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// A `%` is not followed by two hexadecimal digits.
    #[error("the path has a `%` that is not followed by two hexadecimal digits")]
    BrokenEscape,
    /// The path holds an encoded NUL, which ends a string in many a backend.
    #[error("the path holds `%00`")]
    Nul,
    /// An element is `.` or `..`, plainly or encoded.
    #[error("the path has an element `.` or `..`; send the resolved path")]
    DotSegment,
}

impl<'a> MatchPath<'a> {
    /// Reads the path of a request target or of a rule, without its query.
    ///
    /// # Errors
    ///
    /// [`PathError`] says which of the rules above the path breaks.
    pub fn parse(raw: &'a str) -> Result<MatchPath<'a>, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let path = decode_unreserved(raw)?;
        if has_dot_segment(&path) {
            return Err(PathError::DotSegment);
        }
        Ok(MatchPath(path))
    }

    /// The comparable spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes `%XX` where it stands for an unreserved character (RFC 3986 §2.3); borrows when there is nothing to decode.
fn decode_unreserved(raw: &str) -> Result<Cow<'_, str>, PathError> {
    let Some(first) = raw.find('%') else { return Ok(Cow::Borrowed(raw)) };
    let mut decoded = String::with_capacity(raw.len());
    decoded.push_str(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let escape = rest.get(at..at + 3).ok_or(PathError::BrokenEscape)?;
        let byte = decode_escape(escape).ok_or(PathError::BrokenEscape)?;
        match byte {
            0 => return Err(PathError::Nul),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => decoded.push(char::from(byte)),
            // RFC 3986 §6.2.2.1: `%2f` and `%2F` are equal, so one case is chosen.
            _ => decoded.push_str(&escape.to_ascii_uppercase()),
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    Ok(Cow::Owned(decoded))
}

/// The byte that `%XX` stands for.
fn decode_escape(escape: &str) -> Option<u8> {
    // `from_str_radix` would also take a sign, as in `%+1`.
    let digits = &escape.as_bytes()[1..];
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(&escape[1..], 16).ok()
}

/// Whether an element is a dot segment for some reader: one that splits at `/` only, or one that decodes `%2F` and `%5C` first.
fn has_dot_segment(path: &str) -> bool {
    // Dots are decoded already, so an element with a dot segment holds "/." or an encoded or plain separator before a dot.
    if !path.contains('.') {
        return false;
    }
    let separated = path.replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
    separated.split('/').any(|element| element == "." || element == "..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_path_compare_equal() {
        for (raw, expected) in [
            ("/", "/"),
            ("/foo/", "/foo/"),
            ("/%66oo", "/foo"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a//b", "/a//b"),
            ("/%7euser", "/~user"),
            ("/100%25", "/100%25"),
            ("/a..b/...", "/a..b/..."),
            ("/%C3%BC", "/%C3%BC"),
        ] {
            assert_eq!(MatchPath::parse(raw).as_ref().map(MatchPath::as_str), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (raw, expected) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("foo", PathError::NotAbsolute),
            ("/%", PathError::BrokenEscape),
            ("/%2", PathError::BrokenEscape),
            ("/%zz", PathError::BrokenEscape),
            ("/%+1", PathError::BrokenEscape),
            ("/a%00b", PathError::Nul),
            ("/..", PathError::DotSegment),
            ("/a/../b", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/a/%2e%2E/b", PathError::DotSegment),
            ("/a/.%2e", PathError::DotSegment),
            ("/a/..%2fb", PathError::DotSegment),
            ("/a%5C..%5cb", PathError::DotSegment),
            ("/a\\..\\b", PathError::DotSegment),
        ] {
            assert_eq!(MatchPath::parse(raw), Err(expected), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn parsing_twice_changes_nothing(raw in "/[a-z.%/2fFeE05cC~]{0,24}") {
            if let Ok(once) = MatchPath::parse(&raw) {
                let twice = MatchPath::parse(once.as_str());
                prop_assert_eq!(twice.as_ref().map(MatchPath::as_str), Ok(once.as_str()));
            }
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(raw in ".*") {
            let _ = MatchPath::parse(&raw);
        }
    }
}
