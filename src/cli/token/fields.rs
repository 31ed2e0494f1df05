//! The values of a record as text for people.

use serde_json::Value;

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
