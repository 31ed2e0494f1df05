//! The faults of a record: the field, the fault, and what to write instead.
//!
//! A message has one line and repeats no long value: a record that is wrong may hold a credential in the wrong place.

use std::fmt;

use serde_json::Value;

use crate::quota::RateError;

/// The longest value that a message repeats, in bytes: longer than any limit is written, shorter than a key made here.
const MAX_SHOWN: usize = 32;

/// A fault of a record: the field that is wrong, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// The field, or `record` for the whole.
    pub field: &'static str,
    /// The index of the wrong element, when the field is a list.
    pub element: Option<usize>,
    /// The fault, and what to write instead.
    pub problem: String,
}

impl RecordError {
    /// A fault of `field`. Values that `problem` repeats stand between backticks.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        let problem = masked(&problem.into(), |value| {
            value.len() <= MAX_SHOWN && !value.chars().any(char::is_control)
        });
        Self { field, element: None, problem }
    }

    /// A fault of the record as a whole.
    pub(super) fn of_record(problem: impl Into<String>) -> Self {
        Self::new("record", problem)
    }

    /// The same without the values that the message repeats.
    pub fn without_values(&self) -> Self {
        // A single sign, such as `_`, belongs to the message and not to the record.
        Self { problem: masked(&self.problem, |value| value.len() == 1), ..self.clone() }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field)?;
        if let Some(element) = self.element {
            write!(f, "[{element}]")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for RecordError {}

/// `problem` with stars for the parts between backticks that may not be shown.
fn masked(problem: &str, may_be_shown: impl Fn(&str) -> bool) -> String {
    let parts = problem.split('`').enumerate();
    let parts = parts.map(|(nth, part)| match nth % 2 == 0 || may_be_shown(part) {
        true => part,
        false => "***",
    });
    parts.collect::<Vec<_>>().join("`")
}

/// The same error with the backticks of its value replaced: they would hide where the value ends.
fn quotable(error: RateError) -> RateError {
    let plain = |value: String| value.replace('`', "'");
    match error {
        RateError::Form(value) => RateError::Form(plain(value)),
        RateError::Quota(value) => RateError::Quota(plain(value)),
        RateError::Unit(value) => RateError::Unit(plain(value)),
        RateError::Algorithm(value) => RateError::Algorithm(plain(value)),
        RateError::By(value) => RateError::By(plain(value)),
        RateError::Name(value) => RateError::Name(plain(value)),
        RateError::Member(value) => RateError::Member(plain(value)),
        RateError::Duplicate(value) => RateError::Duplicate(plain(value)),
        error @ (RateError::TooLarge(..)
        | RateError::NoBucket
        | RateError::Burst(..)
        | RateError::TooMany(_)) => error,
    }
}

/// Collects the faults of one field.
pub(super) struct Faults<'a> {
    field: &'static str,
    found: &'a mut Vec<RecordError>,
}

impl<'a> Faults<'a> {
    pub(super) fn of(field: &'static str, found: &'a mut Vec<RecordError>) -> Self {
        Self { field, found }
    }

    /// Notes that the field is wrong.
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.found.push(RecordError::new(self.field, problem));
    }

    /// Notes that an element of the field is wrong.
    pub(super) fn add_at(&mut self, element: usize, problem: impl Into<String>) {
        let error = RecordError::new(self.field, problem);
        self.found.push(RecordError { element: Some(element), ..error });
    }

    /// Notes that a limit in the field is wrong; `element` when the field is a list.
    pub(super) fn add_rate(&mut self, element: Option<usize>, error: RateError) {
        let error = RecordError::new(self.field, quotable(error).to_string());
        self.found.push(RecordError { element, ..error });
    }

    /// Notes that `value` is of the wrong kind; `allowed` follows the word `write`.
    pub(super) fn add_kind(&mut self, value: &Value, allowed: &str) {
        self.add(instead(is_a(value), allowed));
    }
}

/// The message of a fault: the reason, and what to write instead.
pub(super) fn instead(reason: &str, allowed: &str) -> String {
    format!("{reason}; write {allowed}")
}

/// The kind of a value that stands where another kind is needed, for messages.
pub(super) fn is_a(value: &Value) -> &'static str {
    match value {
        Value::Null => "is empty",
        Value::Bool(_) => "is a boolean",
        Value::Number(_) => "is a number",
        Value::String(_) => "is a single text",
        Value::Array(_) => "is a list",
        Value::Object(_) => "is a mapping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_repeats_no_long_value_and_stays_on_its_line() {
        let shown = |value: &str| {
            RecordError::new("limits", format!("`{value}` is not a rate: write N/day")).to_string()
        };
        assert_eq!(shown("often"), "limits: `often` is not a rate: write N/day");
        for value in ["tg_0123456789ABCDEFGHIJKLMNOPQRSTUV10DJZz", "5/day\nINFO all is well"] {
            assert_eq!(shown(value), "limits: `***` is not a rate: write N/day");
        }
        let error = RecordError::new("limits", "`often` is not a name: use letters, `_` or `-`");
        let error = RecordError { element: Some(2), ..error }.without_values();
        assert_eq!(error.to_string(), "limits[2]: `***` is not a name: use letters, `_` or `-`");

        let mut found = Vec::new();
        Faults::of("limits", &mut found).add_rate(None, RateError::Form("x`hunter2`y".into()));
        assert!(!found[0].without_values().to_string().contains("hunter2"), "{}", found[0]);
    }
}
