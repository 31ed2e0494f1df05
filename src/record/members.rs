//! JSON objects without repeated members. Of two members with the same name another program may read the other, so an
//! object that has them is refused.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Gives a known name back, and `None` for an unknown name.
pub type Known = fn(&str) -> Option<&'static str>;

/// The known members of an object. Unknown members were skipped.
pub struct Members {
    known: Known,
    values: Vec<(&'static str, Value)>,
}

/// Why a text has no members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The text is not a JSON object.
    #[error("is not a JSON object")]
    Form,
    /// Two known members, or two members within a known member, have the same name.
    #[error("has a member twice")]
    Twice,
}

impl Members {
    /// Reads `json`, an object, as far as its members are `known`.
    ///
    /// # Errors
    /// [`MembersError`].
    pub fn read(json: &[u8], known: Known) -> Result<Self, MembersError> {
        let twice = Cell::new(false);
        let mut reader = serde_json::Deserializer::from_slice(json);
        let values = Object { known, twice: &twice }.deserialize(&mut reader);
        let values = values.and_then(|values| reader.end().map(|()| values));
        match values {
            Err(_) => Err(MembersError::Form),
            Ok(_) if twice.get() => Err(MembersError::Twice),
            Ok(values) => Ok(Self { known, values }),
        }
    }

    /// The value of a known member, if the object has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        debug_assert!((self.known)(name).is_some(), "{name} is never read");
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// The value that `json` is, unless an object in it has a member twice.
pub fn value(json: &str) -> Option<Value> {
    let twice = Cell::new(false);
    let mut reader = serde_json::Deserializer::from_str(json);
    let value = Any { twice: &twice }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    (!twice.get()).then_some(value)
}

/// Reads an object.
struct Object<'a> {
    known: Known,
    /// Set when the object has a member twice.
    twice: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Vec<(&'static str, Value)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Vec<(&'static str, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut members: Self::Value = Vec::with_capacity(4);
        while let Some(name) = map.next_key::<String>()? {
            match (self.known)(&name) {
                Some(known) => {
                    if members.iter().any(|(name, _)| *name == known) {
                        self.twice.set(true);
                    }
                    members.push((known, map.next_value_seed(Any { twice: self.twice })?));
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(members)
    }
}

/// Reads any value.
#[derive(Clone, Copy)]
struct Any<'a> {
    /// Set when an object has a member twice.
    twice: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Value, S::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value, M::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            if members.insert(name, value).is_some() {
                self.twice.set(true);
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_is_there_once_at_any_depth() {
        let read = |json: &str| {
            let known: Known = |name| (name == "a").then_some("a");
            Members::read(json.as_bytes(), known).map(|members| members.get("a").cloned())
        };
        let deep = json!([{ "b": [1, -1, 0.5, null, true, "x"] }]);
        assert_eq!(read(&format!(r#"{{"a":{deep},"c":1,"c":{{"d":1,"d":2}}}}"#)), Ok(Some(deep)));
        for json in [r#"{"a":1,"a":1}"#, r#"{"a":[{"b":1,"b":2}]}"#] {
            assert_eq!(read(json), Err(MembersError::Twice), "{json}");
        }
        for json in ["", "[]", "\"tg_x\"", "{} {}", "{\"a\":", "{\"a\":1e999}"] {
            assert_eq!(read(json), Err(MembersError::Form), "{json}");
        }
        assert_eq!(value("[1]"), Some(json!([1])));
        assert_eq!(value(r#"[{"b":1,"b":2}]"#), None);
    }
}
