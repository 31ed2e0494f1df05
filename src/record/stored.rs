//! A record as a store keeps it, and its fields in the one form that is shown and copied.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::field;
use crate::base::clock::UnixTime;

/// A token record as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredRecord {
    /// The fields of a hash.
    Fields(HashMap<String, String>),
    /// The text of a JSON object.
    Json(String),
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// The id that it is stored under, as `token:<id>`.
    pub id: String,
    /// The fields of the hash; at least one.
    pub fields: Vec<(String, String)>,
    /// When the store forgets it.
    pub expires_at: Option<UnixTime>,
}

/// The fields of a record, in whichever form a store keeps it. A value that cannot be read is shown as it is.
pub fn fields(record: &StoredRecord) -> Map<String, Value> {
    match record {
        StoredRecord::Json(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::from_iter([("unreadable".to_owned(), Value::from(text.as_str()))]),
        },
        StoredRecord::Fields(fields) => {
            let value = |(name, text): (&String, &String)| {
                let value = field::named(name).and_then(|field| field.shown(text));
                (name.clone(), value.unwrap_or_else(|| Value::from(text.as_str())))
            };
            fields.iter().map(value).collect()
        }
    }
}

/// The texts that a hash keeps of `fields`: texts as they are, other values as JSON.
pub fn texts(fields: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(fields: &[(&str, &str)]) -> StoredRecord {
        let owned = |&(name, text): &(&str, &str)| (name.to_owned(), text.to_owned());
        StoredRecord::Fields(fields.iter().map(owned).collect())
    }

    #[test]
    fn a_hash_and_a_json_string_show_the_same() {
        let a =
            hash(&[("rate_limit", "100"), ("allowed_routes", r#"["/a","/b/*"]"#), ("name", "7")]);
        let b = StoredRecord::Json(
            r#"{"rate_limit":100,"allowed_routes":["/a","/b/*"],"name":"7"}"#.into(),
        );
        assert_eq!(fields(&a), fields(&b));
        let back = StoredRecord::Fields(texts(&fields(&b)).into_iter().collect());
        assert_eq!(back, a);
    }

    #[test]
    fn a_broken_record_is_shown_as_it_is() {
        assert_eq!(fields(&hash(&[("rate_limit", "many")]))["rate_limit"], "many");
        assert_eq!(fields(&StoredRecord::Json("[1]".into()))["unreadable"], "[1]");
    }
}
