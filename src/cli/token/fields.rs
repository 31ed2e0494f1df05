//! The fields of a record: as JSON, as the texts of a hash, and as people read them.

use serde_json::{Map, Value};

use crate::store::StoredRecord;

/// The fields of a record, whatever form it is kept in. What cannot be read is shown as it is.
pub fn fields(record: &StoredRecord) -> Map<String, Value> {
    match record {
        StoredRecord::Json(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::from_iter([("unreadable".to_owned(), Value::from(text.as_str()))]),
        },
        StoredRecord::Fields(fields) => fields
            .iter()
            .map(|(name, text)| {
                let value = match name.as_str() {
                    "allowed_routes" | "limits" | "rate_limit" | "disabled" => {
                        serde_json::from_str(text).ok()
                    }
                    _ => None,
                };
                (name.clone(), value.unwrap_or_else(|| Value::from(text.as_str())))
            })
            .collect(),
    }
}

/// What a hash keeps of `fields`: texts as they are, everything else as JSON.
pub fn texts(fields: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// A value without quotes and brackets.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => printable(&other.to_string()),
    }
}

/// `text` without control characters: a record must not steer the terminal it is shown on.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
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
