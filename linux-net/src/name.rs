//! Names and numbers that the kernel limits, checked once, where they enter the program.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The name of a network interface: 1 to 15 bytes, no white space, no `/`, not `.` or `..`.
///
/// The limit is `IFNAMSIZ` (16) less the terminating zero; the rules are those of the kernel's `dev_valid_name()`.
///
/// # Examples
///
/// ```
/// use linux_net::IfName;
/// let name: IfName = "flannel.100".parse()?;
/// assert_eq!(name.as_str(), "flannel.100");
/// assert!("a-name-that-is-too-long".parse::<IfName>().is_err());
/// # Ok::<(), linux_net::Error>(())
/// ```
///
/// It is held in place, as the kernel holds it, because states of thousands of routes and entries bear one each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName {
    /// Zeros behind the name.
    bytes: [u8; IfName::MAX_BYTES],
    length: u8,
}

impl IfName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 15; // IFNAMSIZ 16, less the terminating zero

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the kernel would not take the name.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let reason = if name.is_empty() {
            "it is empty"
        } else if name.len() > Self::MAX_BYTES {
            "it is longer than 15 bytes"
        } else if name == "." || name == ".." {
            "it names a directory"
        } else if name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace()) {
            "it contains white space, a slash, a colon or a zero"
        } else {
            return Ok(Self::held(name));
        };
        Err(Error::Invalid { what: "interface name", value: name.to_owned(), reason })
    }

    /// Returns the loopback interface's name, `lo`.
    #[must_use]
    pub fn loopback() -> Self {
        Self::held("lo")
    }

    /// Takes a name of at most [`Self::MAX_BYTES`].
    fn held(name: &str) -> Self {
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Self { bytes, length: u8::try_from(name.len()).expect("15 is less than 256") }
    }

    /// Returns the name as text.
    ///
    /// # Panics
    ///
    /// Never: it was text when it was taken.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("it was text when it was taken")
    }
}

impl FromStr for IfName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<&str> for IfName {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<String> for IfName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl AsRef<str> for IfName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_str())
    }
}

/// An Ethernet hardware address, printed as `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zero: in an FDB, the entry that says where frames to unknown addresses go.
    pub const ZERO: Self = Self([0; 6]);

    /// Returns the six bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::Invalid { what: "MAC address", value: text.to_owned(), reason: "write it as aa:bb:cc:dd:ee:ff" };
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| matches!(part.len(), 1 | 2)).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, octet) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A VXLAN network identifier: 24 bits.
///
/// Source: RFC 7348, section 5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vni(u32);

impl Vni {
    /// The greatest identifier.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Checks a number.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `vni` does not fit into 24 bits.
    pub fn new(vni: u32) -> Result<Self> {
        if vni > Self::MAX {
            return Err(Error::Invalid { what: "VNI", value: vni.to_string(), reason: "it is greater than 16777215" });
        }
        Ok(Self(vni))
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = Error;

    fn try_from(vni: u32) -> Result<Self> {
        Self::new(vni)
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernels_rules() {
        for good in ["lo", "C0w1-eth0", "flannel.100", "exactly15bytes."] {
            assert_eq!(good.parse::<IfName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:b", "exactly16bytes.."] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        let error = "exactly16bytes..".parse::<IfName>().unwrap_err();
        assert_eq!(error.to_string(), r#"interface name "exactly16bytes.." is not valid: it is longer than 15 bytes"#);
    }

    #[test]
    fn a_mac_address_reads_as_it_prints() {
        let mac: MacAddr = "0A:0b:00:01:fe:ff".parse().unwrap();
        assert_eq!(mac, MacAddr([10, 11, 0, 1, 254, 255]));
        assert_eq!(mac.to_string(), "0a:0b:00:01:fe:ff");
        for bad in ["", "0a:0b:00:01:fe", "0a:0b:00:01:fe:ff:00", "0a:0b:00:01:fe:fg", "0a0b:0:0:0:0:0"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::new(16_777_215).unwrap().get(), 16_777_215);
        assert!(Vni::new(16_777_216).is_err());
    }
}
