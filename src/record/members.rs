//! JSON objects whose members are read once or not at all: of two that have one name, somebody else may
//! see the other one.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// The members of an object that mean something; others were passed over.
pub struct Members {
    known: Known,
    values: Vec<(&'static str, Value)>,
}

impl Members {
    /// Reads `json`, an object, as far as its members are `known`.
    ///
    /// # Errors
    /// When it is no JSON object, or holds a known member twice.
    pub fn read(json: &[u8], known: [&'static [&'static str]; 2]) -> serde_json::Result<Self> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let members = Known(known).deserialize(&mut reader)?;
        reader.end()?;
        Ok(members)
    }

    /// The member, which is a known one, if the object has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        debug_assert!(self.known.find(name).is_some(), "{name} is never read");
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// The names that mean something, in two lists.
#[derive(Clone, Copy)]
struct Known([&'static [&'static str]; 2]);

impl Known {
    fn find(&self, name: &str) -> Option<&'static str> {
        self.0.into_iter().flatten().find(|known| **known == name).copied()
    }
}

impl<'de> DeserializeSeed<'de> for Known {
    type Value = Members;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Known {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
        let mut members: Vec<(&'static str, Value)> = Vec::with_capacity(4);
        while let Some(name) = map.next_key::<String>()? {
            match self.find(&name) {
                Some(known) if members.iter().any(|(name, _)| *name == known) => {
                    return Err(M::Error::duplicate_field(known));
                }
                Some(known) => members.push((known, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Members { known: self, values: members })
    }
}
