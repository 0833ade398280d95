//! Names, and other words of a lab file, each checked once.

use std::net::Ipv4Addr;

use toml::Spanned;

use super::{
    ClusterName, Rate,
    check::{LabError, Source},
};

pub(super) fn cluster_name(source: &Source<'_>, name: &Spanned<String>) -> Result<ClusterName, LabError> {
    let text = name.get_ref();
    let id = text.strip_prefix('C').unwrap_or("");
    let fits = (1..=3).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if fits {
        Ok(ClusterName(text.clone()))
    } else {
        let message = format!("cluster name {text:?} must be C and one to three digits or lower-case letters, like C0");
        Err(source.error(name.span(), message))
    }
}

/// A node's name within its cluster. With the cluster's name before it and `-eth0` behind, it must fit an interface name.
pub(super) fn short_name(source: &Source<'_>, name: &Spanned<String>) -> Result<String, LabError> {
    let text = name.get_ref();
    let fits = (1..=6).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if fits {
        Ok(text.clone())
    } else {
        let message =
            format!("node name {text:?} must be one to six lower-case letters and digits, a letter first, like w1");
        Err(source.error(name.span(), message))
    }
}

/// A namespace and the name of a pod (63 and 100, with a dot between) fit; the name of its network namespace is that of a file.
const MAX_CONTAINER_NAME: usize = 180;

/// Checks a container's name: 1 to 180 letters, digits, `-`, `.`, not first. `_` would be ambiguous in `k0_c1`.
///
/// # Errors
///
/// A sentence that says what a name looks like.
pub fn container_name(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_CONTAINER_NAME).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "container name {text:?} must be 1 to {MAX_CONTAINER_NAME} letters, digits, '-' or '.', a letter or digit first, like c1"
        ))
    }
}

/// The name of the Service that `kp_vip_add` makes for an address.
#[must_use]
pub fn vip_service_name(address: Ipv4Addr) -> String {
    format!("vip-{}", address.to_string().replace('.', "-"))
}

/// A Kubernetes object's name (RFC 1123 label).
pub(super) fn object_name(source: &Source<'_>, name: &Spanned<String>) -> Result<String, LabError> {
    let text = name.get_ref();
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        Ok(text.clone())
    } else {
        let message = format!("name {text:?} must be 1 to 63 lower-case letters, digits or '-', like grp1");
        Err(source.error(name.span(), message))
    }
}

pub(super) fn interface_name(source: &Source<'_>, name: &Spanned<String>) -> Result<String, LabError> {
    let text = name.get_ref();
    // A port of the switch is called `C0s0-eth1`, so up to eight bytes go to what stands behind the name.
    let fits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if fits {
        Ok(text.clone())
    } else {
        let message = format!("bridge name {text:?} must be one to eight letters and digits, like t0");
        Err(source.error(name.span(), message))
    }
}

pub(super) fn rate(source: &Source<'_>, rate: Option<&Spanned<String>>) -> Result<Option<Rate>, LabError> {
    let Some(rate) = rate else { return Ok(None) };
    let text = rate.get_ref();
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "kbit" => Some(1_000),
        "mbit" => Some(1_000_000),
        "gbit" => Some(1_000_000_000),
        _ => None,
    };
    let bits = digits.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    match bits {
        Some(bits_per_second) if bits_per_second >= 8_000 => Ok(Some(Rate { bits_per_second })),
        _ => Err(source.error(
            rate.span(),
            format!("rate {text:?} must be a number with kbit, mbit or gbit, at least 8kbit, like 100mbit"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn rates_are_read_as_tc_writes_them() {
        let source = Source { path: Path::new("x"), text: "" };
        let read = |text: &str| rate(&source, Some(&Spanned::new(0..0, text.to_owned())));
        assert_eq!(read("100mbit").unwrap(), Some(Rate { bits_per_second: 100_000_000 }));
        assert_eq!(read("64kbit").unwrap(), Some(Rate { bits_per_second: 64_000 }));
        for wrong in ["100", "mbit", "1kbit", "100MB", "99999999999999gbit"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
