//! Reading a netconf as Go does: the names of fields match in any case.
//!
//! The Go plugins decode with `encoding/json`, for which `"isGateway"`, `"isgateway"` and `"ISGATEWAY"` are one field; of two spellings the
//! later wins, and `null` leaves a field as if it were absent. Configurations in the field rely on it without knowing.
//!
//! serde tells a deserializer which fields a struct knows. So it is enough to stand between the JSON value and the struct, and to hand over each
//! key in the spelling that the struct knows.
//!
//! Source: Go `encoding/json`, `Unmarshal`.

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// Reads `object` into `T`, field names in any case.
///
/// # Errors
///
/// serde's, naming the field of the wrong shape.
pub(super) fn read<'de, T: Deserialize<'de>>(object: &'de Map<String, Value>) -> Result<T, Error> {
    T::deserialize(AnyCaseObject(object))
}

/// The member of this name, in any case; of several the last, and `None` for `null`.
pub(crate) fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let spellings = object.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    spellings.map(|(_, value)| value).rfind(|value| !value.is_null())
}

/// A JSON object between serde and the value.
struct AnyCaseObject<'de>(&'de Map<String, Value>);

/// Any JSON value between serde and the value.
struct AnyCase<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Error> for AnyCase<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for AnyCaseObject<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let members = self.0.iter().map(|(key, value)| (StrDeserializer::new(key), AnyCase(value)));
        visitor.visit_map(MapDeserializer::new(members))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let known = fields.iter().filter_map(|field| Some((StrDeserializer::new(field), AnyCase(get(self.0, field)?))));
        visitor.visit_map(MapDeserializer::new(known))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> Deserializer<'de> for AnyCase<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(object) => AnyCaseObject(object).deserialize_any(visitor),
            Value::Array(list) => visitor.visit_seq(SeqDeserializer::new(list.iter().map(AnyCase))),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(object) => AnyCaseObject(object).deserialize_struct(name, fields, visitor),
            other => other.deserialize_struct(name, fields, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outer {
        #[serde(default)]
        is_gateway: bool,
        #[serde(default)]
        mtu: u32,
        ip_masq: Option<bool>,
        #[serde(default)]
        ranges: Vec<Vec<Inner>>,
        #[serde(default)]
        sysctl: BTreeMap<String, String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Inner {
        range_start: String,
    }

    fn outer(value: Value) -> Result<Outer, Error> {
        let Value::Object(object) = value else { panic!("{value}") };
        read(&object)
    }

    #[test]
    fn names_match_in_any_case_at_every_depth() {
        let read = outer(json!({"ISGATEWAY": true, "ipmasq": true, "Ranges": [[{"RangeStart": "10.0.0.2"}]]})).unwrap();
        assert!(read.is_gateway && read.ip_masq == Some(true));
        assert_eq!(read.ranges, [[Inner { range_start: "10.0.0.2".to_owned() }]]);
    }

    #[test]
    fn of_two_spellings_the_later_wins_and_null_counts_as_absent() {
        assert_eq!(outer(json!({"mtu": 1, "MTU": 2})).unwrap().mtu, 2);
        assert_eq!(outer(json!({"mtu": 1, "MTU": null, "ipMasq": null})).unwrap().mtu, 1);
    }

    #[test]
    fn the_keys_of_a_map_are_data_and_stay_as_they_are() {
        let read = outer(json!({"SysCtl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})).unwrap();
        assert_eq!(read.sysctl.keys().collect::<Vec<_>>(), ["net.ipv4.conf.IFNAME.arp_filter"]);
    }

    #[test]
    fn a_wrong_shape_is_an_error_and_unknown_fields_are_passed_over() {
        assert!(outer(json!({"mtu": "1500"})).unwrap_err().to_string().contains("expected u32"));
        assert!(outer(json!({"ranges": {}})).is_err());
        assert!(outer(json!({"colour": "blue"})).is_ok());
    }
}
