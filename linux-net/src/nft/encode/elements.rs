//! From elements to the attributes of a message.

use nftnl_sys as sys;

use super::{
    super::{
        Data, Element, MapData, Set, Type, Value, bytes,
        compile::verdict_code,
        constants::NFT_SET_ELEM_INTERVAL_END,
        ffi::{SetObject, c_string},
        userdata,
    },
    millis,
};
use crate::error::{Error, Result};

/// How the elements of one set are written.
pub(super) struct SetEncoding {
    key: Vec<Type>,
    data: Option<Vec<Type>>,
    verdicts: bool,
    interval: bool,
    ranged: bool,
}

impl SetEncoding {
    pub(super) fn of(set: &Set) -> Result<Self> {
        let data = match &set.data {
            Some(MapData::Value(data)) => Some(data.components()?),
            Some(MapData::Verdict) | None => None,
        };
        Ok(Self {
            key: set.key.components()?,
            data,
            verdicts: set.data == Some(MapData::Verdict),
            interval: set.interval,
            ranged: set.is_ranged_concatenation()?,
        })
    }

    pub(super) fn add(&self, object: &mut SetObject, element: &Element, deletes: bool) -> Result<()> {
        let is_range = |value: &Value| bytes::last(value) != *value;
        if !self.interval && element.key.iter().any(is_range) {
            let reason = "the set was not declared with flags interval";
            return Err(Error::Invalid { what: "element", value: element.to_string(), reason });
        }
        let mut key = Vec::with_capacity(16);
        bytes::append_all(&element.key, &self.key, self.ranged, &mut key)?;
        let last: Vec<Value> = if self.interval { element.key.iter().map(bytes::last).collect() } else { Vec::new() };
        let mut key_end = Vec::new();
        if self.interval {
            bytes::append_all(&last, &self.key, self.ranged, &mut key_end)?;
        }
        let data = if deletes { None } else { self.data(element)? };
        let verdict = match &element.data {
            Some(Data::Verdict(verdict)) if !deletes => {
                let (code, chain) = verdict_code(verdict);
                Some((code, chain.map(c_string).transpose()?))
            }
            _ => None,
        };
        let comment = element.comment.as_deref().filter(|_| !deletes).map(userdata::of_comment).transpose()?;
        object.element(|new| {
            new.set_data(sys::NFTNL_SET_ELEM_KEY, &key);
            if self.ranged {
                new.set_data(sys::NFTNL_SET_ELEM_KEY_END, &key_end);
            }
            if let Some(data) = &data {
                new.set_data(sys::NFTNL_SET_ELEM_DATA, data);
            }
            if let Some((code, chain)) = &verdict {
                new.set_u32(sys::NFTNL_SET_ELEM_VERDICT, code.cast_unsigned());
                if let Some(chain) = chain {
                    new.set_str(sys::NFTNL_SET_ELEM_CHAIN, chain);
                }
            }
            if let Some(timeout) = element.timeout {
                new.set_u64(sys::NFTNL_SET_ELEM_TIMEOUT, millis(timeout));
            }
            if let Some(expires) = element.expires {
                new.set_u64(sys::NFTNL_SET_ELEM_EXPIRATION, millis(expires));
            }
            if let Some(comment) = &comment {
                new.set_data(sys::NFTNL_SET_ELEM_USERDATA, comment);
            }
        });
        if self.interval && !self.ranged {
            // A set of ranges in one dimension holds their borders: the first value, and the one after the last.
            if let Some(after) = successor(key_end) {
                object.element(|end| {
                    end.set_data(sys::NFTNL_SET_ELEM_KEY, &after)
                        .set_u32(sys::NFTNL_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                });
            }
        }
        Ok(())
    }

    fn data(&self, element: &Element) -> Result<Option<Vec<u8>>> {
        let mismatch = |reason| Error::Invalid { what: "element", value: element.to_string(), reason };
        match (&element.data, &self.data) {
            (Some(Data::Value(values)), Some(types)) => {
                let mut data = Vec::with_capacity(8);
                bytes::append_all(values, types, false, &mut data)?;
                Ok(Some(data))
            }
            (Some(Data::Verdict(_)), None) if self.verdicts => Ok(None),
            (None, None) if !self.verdicts => Ok(None),
            (None, _) => Err(mismatch("it has no value, but it is for a map")),
            (Some(_), None) if !self.verdicts => Err(mismatch("it has a value, but it is for a set")),
            (Some(_), _) => Err(mismatch("its value is not what the map was declared with")),
        }
    }
}

/// Returns the big-endian number after this one; `None` after the greatest.
fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_after_the_last_address_of_a_network_closes_the_range() {
        assert_eq!(successor(vec![10, 255, 255, 255]), Some(vec![11, 0, 0, 0]));
        assert_eq!(successor(vec![255, 255]), None, "a range up to the end stays open");
    }
}
