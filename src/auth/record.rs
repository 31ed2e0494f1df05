//! What a token record says, and how it is read from either of its stored shapes.

use std::sync::Arc;

use chrono::DateTime;
use http::HeaderValue;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::key::public_id;
use super::members::Members;
use crate::base::clock::UnixTime;
use crate::base::text::Text;
use crate::quota::rate::MAX_QUOTA;
use crate::quota::rule::{Group, LimitRule, Written, groups, rule_set};
use crate::quota::{Algorithm, RateError};
use crate::route::pattern::PathPatterns;
use crate::store::StoredRecord;

/// What a limit takes, with the groups that are made of it, in bytes.
const RULE_BYTES: usize = 448;

/// What the subject of a token begins with.
const SUBJECT: &str = "token:";

/// The members that mean something besides those of a grant; others are passed over.
const OWN_MEMBERS: [&str; 2] = ["api_key", "disabled"];

/// A token's record, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRecord {
    /// Whose quota a request of this token uses: `token:<id>`.
    pub subject: Text,
    /// Whether the token is refused.
    pub disabled: bool,
    /// What it may do.
    pub grant: Grant,
}

/// What a record, or the claims of a JWT, grant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// The token's own limits.
    pub rate: Option<RateRule>,
    /// When the token stops being valid.
    pub expires_at: Option<UnixTime>,
    /// The paths it may use; `None` for all.
    pub allowed_routes: Option<PathPatterns>,
    /// The plan whose limits apply where there are no own ones.
    pub plan: Option<Name>,
    /// The organization the token belongs to.
    pub organization_id: Option<Name>,
}

/// Printable ASCII, ready to be sent in a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(HeaderValue);

impl Name {
    /// The text of `field`.
    ///
    /// # Errors
    /// [`RecordError`] when the text is not printable ASCII.
    pub fn new(field: &'static str, text: &str) -> Result<Self, RecordError> {
        field_value(field, text).map(Self)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Printable ASCII always is text.
        self.0.to_str().unwrap_or_default()
    }

    /// As the value of a header field.
    pub fn field(&self) -> &HeaderValue {
        &self.0
    }
}

/// Limits as a record or a claim states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateRule {
    /// `rate_limit: N`: N requests in each window of the configured length.
    Bare(u64),
    /// `rate_limit: N/unit` or `limits: [...]`.
    Limits(Arc<OwnLimits>),
}

impl RateRule {
    /// These limits, which are valid and can be decided together.
    pub fn limits(rules: Arc<[LimitRule]>) -> Self {
        Self::Limits(Arc::new(OwnLimits::new(rules)))
    }
}

/// Limits of a record or a claim, and the groups they make, kept from one request to the next.
#[derive(Debug)]
pub struct OwnLimits {
    rules: Arc<[LimitRule]>,
    groups: Mutex<Option<(Algorithm, Arc<[Group]>)>>,
}

impl OwnLimits {
    fn new(rules: Arc<[LimitRule]>) -> Self {
        Self { rules, groups: Mutex::default() }
    }

    /// The groups, counted by `default` where the limits do not say how.
    pub fn groups(&self, default: Algorithm) -> Arc<[Group]> {
        let mut made = self.groups.lock();
        match &*made {
            Some((algorithm, groups)) if *algorithm == default => Arc::clone(groups),
            _ => {
                let groups = groups(&self.rules, default, false);
                *made = Some((default, Arc::clone(&groups)));
                groups
            }
        }
    }
}

impl PartialEq for OwnLimits {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl Eq for OwnLimits {}

/// Which field of a record is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct RecordError {
    /// The field, or `record` for the whole.
    pub field: &'static str,
    /// What is wrong and what is allowed. Never holds a credential: records have none.
    pub problem: String,
}

fn fault(field: &'static str, problem: impl Into<String>) -> RecordError {
    RecordError { field, problem: problem.into() }
}

impl TokenRecord {
    /// Reads the record stored under `token:<id>`. Fields that are not known are passed over.
    ///
    /// # Errors
    /// [`RecordError`] names the first field that cannot be understood: a limit or an expiry that is
    /// misread must not become one that is missing.
    pub fn read(id: &Arc<str>, stored: &StoredRecord) -> Result<Self, RecordError> {
        match stored {
            StoredRecord::Json(text) => {
                let members = Members::read(text.as_bytes(), [&OWN_MEMBERS, &Grant::MEMBERS])
                    .map_err(|error| fault("record", error.to_string()))?;
                Self::from_members(id, |name| members.get(name).cloned())
            }
            StoredRecord::Fields(fields) => Self::from_members(id, |name| {
                let text = fields.get(name).filter(|text| !text.is_empty())?;
                // A hash keeps text only: arrays, numbers and booleans stand in it as JSON.
                Some(match name {
                    "limits" | "allowed_routes" | "rate_limit" | "disabled" | "expires_at" => {
                        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
                    }
                    _ => Value::String(text.clone()),
                })
            }),
        }
    }

    fn from_members(
        id: &Arc<str>,
        member: impl Fn(&str) -> Option<Value>,
    ) -> Result<Self, RecordError> {
        let member = |name: &str| member(name).filter(|value| !value.is_null());
        let public = public_id(id);
        if let Some(own) = text("api_key", member("api_key"))?
            && *own != **id
            && *own != *public
        {
            return Err(fault("api_key", "differs from the key it is stored under"));
        }
        let disabled = match member("disabled") {
            None => false,
            Some(Value::Bool(disabled)) => disabled,
            Some(Value::Number(number)) if number.as_u64() == Some(0) => false,
            Some(Value::Number(number)) if number.as_u64() == Some(1) => true,
            Some(_) => return Err(fault("disabled", "must be true or false")),
        };
        Self::new(id, disabled, Grant::read(member)?)
    }

    /// The record of a token that has none: everything is left to its claims.
    ///
    /// # Errors
    /// [`RecordError`] when the token cannot be named in a header field.
    pub fn saying_nothing(api_key: &Arc<str>) -> Result<Self, RecordError> {
        Self::new(api_key, false, Grant::default())
    }

    /// The record that is stored under `token:<id>`.
    ///
    /// # Errors
    /// [`RecordError`] when the token cannot be named in a header field.
    pub fn new(id: &Arc<str>, disabled: bool, grant: Grant) -> Result<Self, RecordError> {
        // It is sent in a header field.
        field_value("api_key", id)?;
        Ok(Self { subject: Text::from(&*format!("{SUBJECT}{id}")), disabled, grant })
    }

    /// The token's public id: printable ASCII.
    pub fn id(&self) -> &str {
        public_id(self.subject.strip_prefix(SUBJECT).unwrap_or_default())
    }
}

impl Grant {
    /// What a grant is made of.
    pub const MEMBERS: [&str; 6] =
        ["rate_limit", "limits", "expires_at", "allowed_routes", "plan", "organization_id"];

    /// How large it is, in bytes, as far as that differs from one to another.
    pub fn bytes(&self) -> usize {
        let Self { rate, allowed_routes, plan, organization_id, .. } = self;
        let names = [plan, organization_id].into_iter().flatten().map(|name| name.as_str().len());
        let routes = allowed_routes.as_ref().map_or(0, PathPatterns::bytes);
        let rules = match rate {
            Some(RateRule::Limits(own)) => own.rules.len() * RULE_BYTES,
            Some(RateRule::Bare(_)) | None => 0,
        };
        names.sum::<usize>() + routes + rules
    }

    /// Reads the members of a record or the claims of a JWT; `null` is as good as absent.
    ///
    /// # Errors
    /// [`RecordError`] names the first member that cannot be understood.
    pub fn read(member: impl Fn(&str) -> Option<Value>) -> Result<Self, RecordError> {
        let member = |name: &str| member(name).filter(|value| !value.is_null());
        let rate = match member("limits") {
            Some(limits) => Some(limits_rule("limits", limits)?),
            None => member("rate_limit").map(|value| rate_rule("rate_limit", value)).transpose()?,
        };
        Ok(Self {
            rate,
            expires_at: member("expires_at").map(|value| time("expires_at", value)).transpose()?,
            allowed_routes: member("allowed_routes")
                .map(|value| patterns("allowed_routes", value))
                .transpose()?,
            plan: name("plan", member("plan"))?,
            organization_id: name("organization_id", member("organization_id"))?,
        })
    }
}

fn name(field: &'static str, value: Option<Value>) -> Result<Option<Name>, RecordError> {
    let text = text(field, value)?;
    text.map(|text| Name::new(field, &text)).transpose()
}

fn text(field: &'static str, value: Option<Value>) -> Result<Option<Arc<str>>, RecordError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.into())),
        Some(_) => Err(fault(field, "must be text")),
    }
}

fn field_value(field: &'static str, text: &str) -> Result<HeaderValue, RecordError> {
    let visible = text.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    HeaderValue::from_str(text)
        .ok()
        .filter(|_| visible)
        .ok_or_else(|| fault(field, "must be printable ASCII"))
}

/// Reads `N`, `"N"` or `"N/unit"`.
fn rate_rule(field: &'static str, value: Value) -> Result<RateRule, RecordError> {
    let quota = match &value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.contains('/') => {
            let rule = LimitRule::parse(text).map_err(|error| fault(field, error.to_string()))?;
            return Ok(RateRule::limits([rule].into()));
        }
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match quota {
        Some(quota) if (1..=MAX_QUOTA).contains(&quota) => Ok(RateRule::Bare(quota)),
        _ => Err(fault(field, RateError::Quota(value.to_string()).to_string())),
    }
}

fn limits_rule(field: &'static str, value: Value) -> Result<RateRule, RecordError> {
    let Value::Array(items) = value else {
        return Err(fault(field, "must be an array of limits such as \"100/minute\""));
    };
    let rules = items.iter().map(|item| LimitRule::read(&written(item)?)).collect::<Result<_, _>>();
    let rules = rules.and_then(|rules| rule_set(rules, false));
    let rules = rules.map_err(|error| fault(field, error.to_string()))?;
    Ok(RateRule::limits(rules))
}

/// A limit as JSON has it: `"N/unit"`, or an object with a `rate`.
fn written(item: &Value) -> Result<Written, RateError> {
    match item {
        Value::String(rate) => Ok(Written { rate: rate.clone(), ..Written::default() }),
        Value::Object(members) => written_members(members),
        other => Err(RateError::Form(other.to_string())),
    }
}

fn written_members(members: &Map<String, Value>) -> Result<Written, RateError> {
    let mut written = Written::default();
    for (name, value) in members {
        let text = || value.as_str().map(str::to_owned);
        match name.as_str() {
            "rate" => {
                written.rate = text().ok_or_else(|| RateError::Form(value.to_string()))?;
            }
            // A burst of 0 is refused where bursts are known.
            "burst" => written.burst = Some(value.as_u64().unwrap_or(0)),
            "algorithm" => {
                let text = text().ok_or_else(|| RateError::Algorithm(value.to_string()))?;
                written.algorithm = Some(text);
            }
            "by" => written.by = Some(words(value)?),
            "name" => {
                written.name = Some(text().ok_or_else(|| RateError::Name(value.to_string()))?);
            }
            other => return Err(RateError::Member(other.into())),
        }
    }
    Ok(written)
}

/// One word, or an array of them.
fn words(value: &Value) -> Result<Vec<String>, RateError> {
    let word = |value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| RateError::By(value.to_string()))
    };
    match value {
        Value::Array(values) => values.iter().map(word).collect(),
        value => Ok(vec![word(value)?]),
    }
}

/// Reads an RFC 3339 time, or whole seconds since the epoch.
fn time(field: &'static str, value: Value) -> Result<UnixTime, RecordError> {
    let parsed = match &value {
        Value::Number(number) => number.as_u64().map(UnixTime::from_secs),
        Value::String(text) => DateTime::parse_from_rfc3339(text)
            .ok()
            .and_then(|time| u64::try_from(time.timestamp_micros()).ok())
            .map(UnixTime::from_micros),
        _ => None,
    };
    parsed.ok_or_else(|| {
        fault(field, "must be an RFC 3339 time such as 2030-01-31T12:00:00Z, or seconds since 1970")
    })
}

/// Reads an array of path patterns.
fn patterns(field: &'static str, value: Value) -> Result<PathPatterns, RecordError> {
    serde_json::from_value(value)
        .map(PathPatterns::new)
        .map_err(|_| fault(field, "must be an array of paths such as [\"/api/*\"]"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Limit;

    fn json(text: &str) -> Result<TokenRecord, RecordError> {
        TokenRecord::read(&"k".into(), &StoredRecord::Json(text.into()))
    }

    fn hash(fields: &[(&str, &str)]) -> Result<TokenRecord, RecordError> {
        let fields = fields.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        TokenRecord::read(&"k".into(), &StoredRecord::Fields(fields.collect()))
    }

    #[test]
    fn both_shapes_say_the_same() {
        let from_json = json(
            r#"{"api_key":"k","limits":["5/minute","9/day"],"expires_at":"2030-01-01T00:00:00Z",
                "allowed_routes":["/a/*"],"plan":"basic","organization_id":"org","disabled":false,"x":1}"#,
        );
        let from_hash = hash(&[
            ("api_key", "k"),
            ("limits", r#"["5/minute","9/day"]"#),
            ("expires_at", "2030-01-01T00:00:00Z"),
            ("allowed_routes", r#"["/a/*"]"#),
            ("plan", "basic"),
            ("organization_id", "org"),
            ("disabled", "false"),
            ("x", "1"),
        ]);
        assert_eq!(from_json, from_hash);
        let record = from_json.unwrap();
        assert_eq!(record.grant.expires_at, Some(UnixTime::from_secs(1_893_456_000)));
        assert!(record.grant.allowed_routes.unwrap().permit("/a/b"));
    }

    #[test]
    fn rates_have_three_spellings() {
        assert_eq!(json(r#"{"rate_limit":7}"#).unwrap().grant.rate, Some(RateRule::Bare(7)));
        assert_eq!(hash(&[("rate_limit", "7")]).unwrap().grant.rate, Some(RateRule::Bare(7)));
        let Some(RateRule::Limits(limits)) = hash(&[("rate_limit", "7/hour")]).unwrap().grant.rate
        else {
            panic!("a rate with a unit is a limit");
        };
        let groups = limits.groups(Algorithm::FixedWindow);
        assert_eq!(groups[0].limits[..], [Limit::parse("7/hour").unwrap()]);
    }

    #[test]
    fn a_limit_may_say_how_and_by_what_it_counts() {
        let text = r#"{"limits":["9/day",{"rate":"5/minute","burst":2,"by":["ip"],"name":"slow"},
            {"rate":"7/minute","algorithm":"sliding_log","by":"organization"}]}"#;
        let Some(RateRule::Limits(limits)) = json(text).unwrap().grant.rate else {
            panic!("limits")
        };
        let groups = limits.groups(Algorithm::SlidingWindow);
        let said: Vec<_> = groups
            .iter()
            .map(|group| (group.limits[0].name.to_string(), group.limits[0].algorithm))
            .collect();
        let expected = [
            ("day".to_owned(), Algorithm::SlidingWindow),
            ("slow".to_owned(), Algorithm::TokenBucket { burst: 2 }),
            ("minute-organization".to_owned(), Algorithm::SlidingLog),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error_that_names_the_field() {
        for (text, field) in [
            ("[]", "record"),
            ("{", "record"),
            ("{} {}", "record"),
            (r#"{"disabled":true,"disabled":false}"#, "record"),
            (r#"{"api_key":"other"}"#, "api_key"),
            (r#"{"rate_limit":0}"#, "rate_limit"),
            (r#"{"rate_limit":-1}"#, "rate_limit"),
            (r#"{"rate_limit":1.5}"#, "rate_limit"),
            (r#"{"rate_limit":"5/fortnight"}"#, "rate_limit"),
            (r#"{"limits":["1000000000000000000/second"]}"#, "limits"),
            (r#"{"limits":["1/minute","2/minute"]}"#, "limits"),
            (r#"{"limits":"1/minute"}"#, "limits"),
            (r#"{"limits":[{"burst":5}]}"#, "limits"),
            (r#"{"limits":[{"rate":5}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","burst":-1}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","burst":3,"algorithm":"sliding_log"}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","algorithm":"guess"}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","by":"planet"}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","by":[7]}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","name":"a b"}]}"#, "limits"),
            (r#"{"limits":[{"rate":"5/minute","unknown":1}]}"#, "limits"),
            (r#"{"limits":["1/minute",{"rate":"1/day","name":"minute"}]}"#, "limits"),
            (r#"{"expires_at":"tomorrow"}"#, "expires_at"),
            (r#"{"expires_at":-5}"#, "expires_at"),
            (r#"{"allowed_routes":"/a"}"#, "allowed_routes"),
            (r#"{"allowed_routes":[1]}"#, "allowed_routes"),
            (r#"{"plan":3}"#, "plan"),
            ("{\"organization_id\":\"a\\r\\nb\"}", "organization_id"),
            (r#"{"disabled":"perhaps"}"#, "disabled"),
        ] {
            assert_eq!(json(text).unwrap_err().field, field, "{text}");
        }
    }
}
