//! The table of the fields that a token record has. A field is added by adding it here.

use chrono::DateTime;
use serde_json::Value;

use super::error::{Faults, instead, is_a};
use super::grant::{Draft, HeaderText, RateRule};
use super::limits;
use super::members;
use crate::base::clock::UnixTime;
use crate::quota::rate::MAX_QUOTA;
use crate::quota::rule::{LimitRule, rule_set};
use crate::route::pattern::PathPatterns;
use crate::route::written::{PATTERN, WrittenError, check_pattern};

/// The id that a record is stored under, or its public form.
pub const API_KEY: &str = "api_key";
/// A number of requests in each window of the configured length, or a rate.
pub const RATE_LIMIT: &str = "rate_limit";
/// Limits with windows of their own.
pub const LIMITS: &str = "limits";
/// When the token stops being valid.
pub const EXPIRES_AT: &str = "expires_at";
/// The paths that the token may use.
pub const ALLOWED_ROUTES: &str = "allowed_routes";
/// The plan whose limits apply where the record has none.
pub const PLAN: &str = "plan";
/// The organization that the token belongs to.
pub const ORGANIZATION_ID: &str = "organization_id";
/// The token's name, for people.
pub const NAME: &str = "name";
/// Whether the token is refused.
pub const DISABLED: &str = "disabled";
/// The id of the token whose counters a rotated token goes on with.
pub const COUNTS_AS: &str = "counts_as";

/// Every field, in the order in which fields are read and listed.
pub static FIELDS: [Field; 10] = [
    Field::new(API_KEY, Form::Text, api_key),
    Field::new(RATE_LIMIT, Form::Scalar, rate_limit).claimed().spelled(number),
    Field::new(LIMITS, Form::List, own_limits).claimed().spelled(limits_in_one_spelling),
    Field::new(EXPIRES_AT, Form::Scalar, expires_at).claimed(),
    Field::new(ALLOWED_ROUTES, Form::List, allowed_routes).claimed(),
    Field::new(PLAN, Form::Text, plan).claimed(),
    Field::new(ORGANIZATION_ID, Form::Text, organization_id).claimed(),
    Field::new(NAME, Form::Text, name),
    Field::new(DISABLED, Form::Scalar, disabled),
    Field::new(COUNTS_AS, Form::Text, counts_as).kept_by_stores(),
];

/// The last second that RFC 3339 can write: the end of the year 9999. A number beyond it is no count of seconds. A count
/// of milliseconds is beyond it from 1978 on.
const LATEST: UnixTime = UnixTime::from_secs(253_402_300_799);

/// A field of a record.
pub struct Field {
    /// Its name, which is the same in every shape.
    pub name: &'static str,
    /// Whether a JWT may claim it.
    pub is_claim: bool,
    /// Whether only the record of a store may have it. A configuration, an import and a JWT may not: the author of one
    /// record must not use up the quota of another token.
    pub is_of_store: bool,
    /// The form of its value in a shape that has only texts.
    form: Form,
    /// Puts the value into a draft, or says what is wrong with it.
    read: fn(Value, &mut Draft, &mut Faults<'_>),
    /// Brings a valid value into the spelling that is kept.
    spell: fn(Value) -> Value,
}

/// The form of a value in a shape that has only texts: a hash, or a cell of CSV.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The text itself.
    Text,
    /// A number or boolean as JSON writes it; anything else is text.
    Scalar,
    /// A JSON array; in a cell also values with `;` between them.
    List,
}

impl Field {
    const fn new(
        name: &'static str,
        form: Form,
        read: fn(Value, &mut Draft, &mut Faults<'_>),
    ) -> Self {
        Self {
            name,
            is_claim: false,
            is_of_store: false,
            form,
            read,
            spell: std::convert::identity,
        }
    }

    const fn claimed(self) -> Self {
        Self { is_claim: true, ..self }
    }

    const fn kept_by_stores(self) -> Self {
        Self { is_of_store: true, ..self }
    }

    const fn spelled(self, spell: fn(Value) -> Value) -> Self {
        Self { spell, ..self }
    }

    /// Puts `value` into `draft`, unless it counts as absent: `null` does, and for a field that is text the empty text.
    pub(super) fn read(&self, value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
        let is_absent = value.is_null() || (self.form == Form::Text && value.as_str() == Some(""));
        if !is_absent {
            (self.read)(value, draft, faults);
        }
    }

    /// The value that stands as `text` in a hash. An empty text counts as absent: a hash has no `null`.
    pub fn of_text(&self, text: &str) -> Option<Value> {
        match self.form {
            _ if text.is_empty() => None,
            Form::Text => Some(text.into()),
            Form::Scalar | Form::List => {
                Some(members::value(text).unwrap_or_else(|| Value::from(text)))
            }
        }
    }

    /// The value that stands in a cell of CSV.
    ///
    /// # Errors
    /// The form to write instead.
    pub fn of_cell(&self, cell: &str) -> Result<Option<Value>, &'static str> {
        if self.form != Form::List || cell.is_empty() {
            return Ok(self.of_text(cell));
        }
        if cell.trim_start().starts_with('[') {
            let list = members::value(cell).filter(Value::is_array);
            return list.map(Some).ok_or("write values with ; between them, or a JSON array");
        }
        let values = cell.split(';').map(str::trim).filter(|value| !value.is_empty());
        Ok(Some(values.map(Value::from).collect()))
    }

    /// The value that stands in YAML as `value`: a variable of the environment puts text where a number or
    /// boolean may be.
    pub fn of_yaml(&self, value: Value) -> Value {
        let scalar = |text: &str| {
            members::value(text).filter(|value| value.is_number() || value.is_boolean())
        };
        match &value {
            Value::String(text) if self.form == Form::Scalar => scalar(text).unwrap_or(value),
            _ => value,
        }
    }

    /// The value of a hash's `text` that is shown to people; `None` when the text itself is shown.
    pub(super) fn shown(&self, text: &str) -> Option<Value> {
        match self.form {
            Form::Text => None,
            Form::Scalar | Form::List => serde_json::from_str(text).ok(),
        }
    }

    /// A valid `value` in the spelling that is kept.
    pub fn canonical(&self, value: Value) -> Value {
        (self.spell)(value)
    }
}

/// The field called `name`.
pub fn named(name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name)
}

/// Whether a JWT may claim the field called `name`.
pub fn is_claim(name: &str) -> bool {
    named(name).is_some_and(|field| field.is_claim)
}

/// Whether `name` can be the name of a plan in the configuration.
pub fn is_plan_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// The names that [`is_plan_name`] allows, for messages.
pub const PLAN_NAME: &str = "a name of 1 to 64 letters, digits, `_`, `-` or `.`";

/// The texts that a header field can hold, for messages.
const PRINTABLE: &str = "printable ASCII text (quote numbers)";

/// The texts that can be shown to people, for messages.
const TEXT: &str = "text (quote numbers)";

/// An upstream reads a field's value without the spaces around it (RFC 9110 section 5.5), so two ids that differ in them
/// would be one id to the upstream and two to the limits.
pub(super) const OUTER_SPACE: &str = "begins or ends with a space";

fn api_key(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    match value {
        Value::String(text) => draft.api_key = Some(text),
        other => faults.add_kind(&other, PRINTABLE),
    }
}

/// Reads `N`, `"N"` or `"N/unit"`.
fn rate_limit(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    let allowed =
        format!("a whole number from 1 to {MAX_QUOTA}, or N/second, N/minute, N/hour or N/day");
    let quota = match &value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.contains('/') => {
            match LimitRule::parse(text) {
                Ok(rule) => draft.grant.rate = Some(RateRule::of([rule].into())),
                Err(error) => faults.add_rate(None, error),
            }
            return;
        }
        Value::String(text) => text.parse().ok(),
        other => return faults.add_kind(other, &allowed),
    };
    match quota {
        Some(quota) if (1..=MAX_QUOTA).contains(&quota) => {
            draft.grant.rate = Some(RateRule::Bare(quota));
        }
        Some(_) => faults.add(instead("is out of range", &allowed)),
        None => faults.add(instead("is not a whole number in range", &allowed)),
    }
}

fn number(value: Value) -> Value {
    let number = value.as_str().and_then(|text| text.parse::<u64>().ok());
    number.map_or(value, Value::from)
}

fn own_limits(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    let Value::Array(items) = value else {
        return faults.add_kind(&value, "a list");
    };
    if draft.grant.rate.is_some() {
        faults.add("stands beside rate_limit; write one of the two");
    }
    let mut rules = Vec::with_capacity(items.len());
    for (nth, item) in items.iter().enumerate() {
        match limits::read(item) {
            Ok(rule) => rules.push(rule),
            Err(error) => faults.add_rate(Some(nth), error),
        }
    }
    match rule_set(rules, false) {
        Ok(rules) => draft.grant.rate = Some(RateRule::of(rules)),
        Err(error) => faults.add_rate(None, error),
    }
}

fn limits_in_one_spelling(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(limits::canonical).collect(),
        other => other,
    }
}

/// Reads an RFC 3339 time, or whole seconds since the epoch.
fn expires_at(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    const ALLOWED: &str =
        "a time as RFC 3339 has it, such as 2030-01-31T12:00:00Z, or seconds since 1970";
    let time = match &value {
        Value::Number(number) if number.as_f64().is_some_and(|seconds| seconds < 0.0) => {
            Err("is before 1970")
        }
        Value::Number(number) => {
            number.as_u64().map(UnixTime::from_secs).ok_or("is not a whole number of seconds")
        }
        Value::String(text) => match DateTime::parse_from_rfc3339(text) {
            Ok(time) => u64::try_from(time.timestamp_micros())
                .map(UnixTime::from_micros)
                .map_err(|_| "is before 1970"),
            Err(_) => Err("is not a time"),
        },
        other => Err(is_a(other)),
    };
    match time {
        Ok(time) if time.as_secs() > LATEST.as_secs() => {
            let reason = "is after the year 9999, as milliseconds are where seconds are meant";
            faults.add(instead(reason, ALLOWED));
        }
        Ok(time) => draft.grant.expires_at = Some(time),
        Err(reason) => faults.add(instead(reason, ALLOWED)),
    }
}

/// Reads a list of path patterns.
fn allowed_routes(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    let Value::Array(items) = value else {
        return faults.add_kind(&value, "a list");
    };
    let mut patterns = Vec::with_capacity(items.len());
    for (nth, item) in items.into_iter().enumerate() {
        match item {
            Value::String(pattern) => match check_pattern(&pattern) {
                Ok(()) => patterns.push(pattern),
                // The canonical form comes from the record's value, so it stands between backticks.
                Err(WrittenError::Spelling(canonical)) => {
                    faults.add_at(nth, format!("is not in canonical form; write `{canonical}`"));
                }
                Err(error) => faults.add_at(nth, error.instead(PATTERN)),
            },
            other => faults.add_at(nth, instead(is_a(&other), PATTERN)),
        }
    }
    draft.grant.allowed_routes = Some(PathPatterns::new(patterns));
}

fn plan(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    match &value {
        Value::String(name) if is_plan_name(name) => draft.grant.plan = HeaderText::read(name),
        Value::String(_) => faults.add(instead("is not a name", PLAN_NAME)),
        other => faults.add_kind(other, PLAN_NAME),
    }
}

fn organization_id(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    match value.as_str().map(HeaderText::read) {
        Some(Some(id)) if id.has_outer_space() => faults.add(instead(OUTER_SPACE, PRINTABLE)),
        Some(Some(id)) => draft.grant.organization_id = Some(id),
        Some(None) => faults.add(instead("is not printable", PRINTABLE)),
        None => faults.add_kind(&value, PRINTABLE),
    }
}

/// A request does not need the name, so the name is checked and not kept.
fn name(value: Value, _: &mut Draft, faults: &mut Faults<'_>) {
    match value.as_str() {
        Some(text) if text.chars().any(char::is_control) => {
            faults.add(instead("holds a control character", TEXT));
        }
        Some(_) => {}
        None => faults.add_kind(&value, TEXT),
    }
}

/// Reads the id of a token.
fn counts_as(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    match value {
        Value::String(id) if HeaderText::can_hold(&id) => draft.counts_as = Some(id),
        Value::String(_) => faults.add(instead("is not printable", PRINTABLE)),
        other => faults.add_kind(&other, PRINTABLE),
    }
}

fn disabled(value: Value, draft: &mut Draft, faults: &mut Faults<'_>) {
    const ALLOWED: &str = "true or false";
    match value {
        Value::Bool(disabled) => draft.disabled = disabled,
        Value::String(_) => faults.add(instead("is not a boolean", ALLOWED)),
        other => faults.add_kind(&other, ALLOWED),
    }
}
