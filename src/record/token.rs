//! Reading a token record, or the claims that stand for one, by the table of fields.

use std::sync::Arc;

use serde_json::Value;

use super::error::{Faults, RecordError};
use super::field::{self, API_KEY, Field, OUTER_SPACE};
use super::grant::{Draft, Grant, HeaderText, has_outer_space};
use super::key::public_id;
use super::members::Members;
use super::stored::StoredRecord;
use crate::base::text::Text;

/// The largest record that is read from a store, in bytes: the length of the longest line that can be imported.
const MAX_RECORD: usize = 64 << 10;

/// The prefix of a token's subject.
const SUBJECT: &str = "token:";

/// A token's record, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRecord {
    /// The subject whose quota a request of this token uses: `token:<id>`, or that of the token that it goes on for.
    pub subject: Text,
    /// The id, where the subject is that of another token.
    own_id: Option<Box<str>>,
    /// Whether the token is refused.
    pub disabled: bool,
    /// The rights and limits of the token.
    pub grant: Grant,
}

impl TokenRecord {
    /// Reads the record stored under `token:<id>`. Unknown fields are skipped.
    ///
    /// # Errors
    /// [`RecordError`] names the first field that cannot be understood: a limit or an expiry that is
    /// misread must not become one that is missing.
    pub fn read(id: &Arc<str>, stored: &StoredRecord) -> Result<Self, RecordError> {
        let draft = match stored {
            StoredRecord::Json(text) => {
                must_be_small(text.len())?;
                let known = |name: &str| field::named(name).map(|field| field.name);
                let members = Members::read(text.as_bytes(), known)
                    .map_err(|error| RecordError::of_record(error.to_string()))?;
                Draft::read(|field| members.get(field.name).cloned())
            }
            StoredRecord::Fields(fields) => {
                let text = |field: &Field| fields.get(field.name);
                must_be_small(field::FIELDS.iter().filter_map(text).map(String::len).sum())?;
                Draft::read(|field| text(field).and_then(|text| field.of_text(text)))
            }
        };
        draft.map_err(first)?.named(id)
    }

    /// The record of a token that has none in the store: its claims decide.
    ///
    /// # Errors
    /// [`RecordError`] when the token cannot be named in a header field.
    pub fn saying_nothing(api_key: &Arc<str>) -> Result<Self, RecordError> {
        Draft::default().named(api_key)
    }

    /// The key of the record: a JWT's `api_key`, or the hash of an opaque key.
    pub fn key(&self) -> &str {
        self.own_id.as_deref().unwrap_or_else(|| self.counts_as())
    }

    /// The token's public id: printable ASCII.
    pub fn id(&self) -> &str {
        public_id(self.key())
    }

    /// How large the record is, in bytes, as far as that differs from record to record of one id.
    pub fn bytes(&self) -> usize {
        let names = self.own_id.as_ref().map_or(0, |id| id.len() + self.subject.len());
        self.grant.bytes() + names
    }

    /// The id of the token whose counters this token uses: its own, unless it came from a rotation.
    pub fn counts_as(&self) -> &str {
        self.subject.strip_prefix(SUBJECT).unwrap_or_default()
    }
}

fn must_be_small(bytes: usize) -> Result<(), RecordError> {
    match bytes > MAX_RECORD {
        true => Err(RecordError::of_record("is larger than 64 KiB")),
        false => Ok(()),
    }
}

impl Grant {
    /// Reads the claims of a JWT; `claim` gives the claim of a name.
    ///
    /// # Errors
    /// [`RecordError`] names the first claim that cannot be understood.
    pub fn claimed(claim: impl Fn(&str) -> Option<Value>) -> Result<Self, RecordError> {
        let value = |field: &Field| field.is_claim.then(|| claim(field.name)).flatten();
        Draft::read(value).map(|draft| draft.grant).map_err(first)
    }
}

impl Draft {
    /// Reads the fields of a record; `value` gives the value of a field in JSON's types.
    ///
    /// # Errors
    /// Every fault, field by field; at least one.
    pub fn read(value: impl Fn(&Field) -> Option<Value>) -> Result<Self, Vec<RecordError>> {
        let (mut draft, mut found) = (Self::default(), Vec::new());
        for field in &field::FIELDS {
            if let Some(value) = value(field) {
                field.read(value, &mut draft, &mut Faults::of(field.name, &mut found));
            }
        }
        match found.is_empty() {
            true => Ok(draft),
            false => Err(found),
        }
    }

    /// The record, which is stored under `token:<id>`.
    ///
    /// # Errors
    /// [`RecordError`] when it repeats another id, or when a header field cannot hold `id`.
    pub fn named(self, id: &str) -> Result<TokenRecord, RecordError> {
        if self.api_key.is_some_and(|own| own != id && own != public_id(id)) {
            return Err(RecordError::new(API_KEY, "differs from the key it is stored under"));
        }
        if !HeaderText::can_hold(id) {
            return Err(RecordError::new(API_KEY, "is not printable; write printable ASCII text"));
        }
        if has_outer_space(id) {
            return Err(RecordError::new(API_KEY, OUTER_SPACE));
        }
        let Self { disabled, grant, counts_as, .. } = self;
        let counts_as = counts_as.filter(|other| other != id);
        let own_id = counts_as.is_some().then(|| id.into());
        let subject = Text::from(&*format!("{SUBJECT}{}", counts_as.as_deref().unwrap_or(id)));
        Ok(TokenRecord { subject, own_id, disabled, grant })
    }
}

fn first(faults: Vec<RecordError>) -> RecordError {
    let unknown = || RecordError::of_record("cannot be read");
    faults.into_iter().next().unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::UnixTime;
    use crate::quota::Algorithm;
    use crate::quota::Limit;
    use crate::record::RateRule;

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
            (r#"{"organization_id":" "}"#, "organization_id"),
            (r#"{"organization_id":" acme"}"#, "organization_id"),
            (r#"{"organization_id":"acme "}"#, "organization_id"),
            (r#"{"disabled":"perhaps"}"#, "disabled"),
            (r#"{"limits":[{"rate":"5/minute","rate":"9/minute"}]}"#, "record"),
            (r#"{"limits":["1/minute"],"rate_limit":5}"#, "limits"),
            (r#"{"expires_at":1893456000000}"#, "expires_at"),
            (r#"{"expires_at":1.5}"#, "expires_at"),
            (r#"{"expires_at":""}"#, "expires_at"),
            (r#"{"expires_at":"1969-12-31T23:59:59Z"}"#, "expires_at"),
            (r#"{"allowed_routes":["/a b"]}"#, "allowed_routes"),
            (r#"{"allowed_routes":["/a","/%61pi"]}"#, "allowed_routes"),
            (r#"{"allowed_routes":["/api/*/x"]}"#, "allowed_routes"),
            (r#"{"allowed_routes":["api/*"]}"#, "allowed_routes"),
            (r#"{"plan":"a b"}"#, "plan"),
            (r#"{"name":7}"#, "name"),
            (r#"{"name":"a\nb"}"#, "name"),
            (r#"{"disabled":1}"#, "disabled"),
        ] {
            assert_eq!(json(text).unwrap_err().field, field, "{text}");
        }
    }

    #[test]
    fn an_error_says_where_what_and_what_is_allowed() {
        for (text, message) in [
            (
                r#"{"expires_at":1893456000000}"#,
                "expires_at: is after the year 9999, as milliseconds are where seconds are meant; write a time as RFC 3339 has it, such as 2030-01-31T12:00:00Z, or seconds since 1970",
            ),
            (
                r#"{"allowed_routes":["/a","api/*"]}"#,
                "allowed_routes[1]: does not start with `/`; write a path, a path with `*` at its end, or `*` for all",
            ),
            (
                r#"{"allowed_routes":["/%61pi"]}"#,
                "allowed_routes[0]: is not in canonical form; write `/api`",
            ),
            (
                r#"{"limits":["9/day","often"]}"#,
                "limits[1]: `often` is not a rate: write N/second, N/minute, N/hour or N/day",
            ),
            (
                r#"{"organization_id":7}"#,
                "organization_id: is a number; write printable ASCII text (quote numbers)",
            ),
            ("\"tg_0123456789ABCDEFGHIJKLMNOPQRSTUV10DJZz\"", "record: is not a JSON object"),
        ] {
            assert_eq!(json(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn what_says_nothing_is_absent() {
        let nothing = json("{}").unwrap();
        for name in ["plan", "organization_id", "name"] {
            assert_eq!(json(&format!(r#"{{"{name}":""}}"#)), Ok(nothing.clone()), "{name}");
        }
        for field in &field::FIELDS {
            let name = field.name;
            assert_eq!(json(&format!(r#"{{"{name}":null}}"#)), Ok(nothing.clone()), "{name}");
            assert_eq!(hash(&[(name, "")]), Ok(nothing.clone()), "{name}");
        }
    }

    #[test]
    fn the_largest_time_is_the_last_that_can_be_written() {
        assert!(json(r#"{"expires_at":253402300799}"#).is_ok());
        assert!(json(r#"{"expires_at":"9999-12-31T23:59:59.999Z"}"#).is_ok());
        assert!(json(r#"{"expires_at":253402300800}"#).is_err());
        // The first day of 1978, in milliseconds, and a day before it.
        assert!(json(r#"{"expires_at":253411200000}"#).is_err());
    }

    #[test]
    fn a_record_is_small() {
        let name = "x".repeat(MAX_RECORD);
        let text = format!(r#"{{"name":"{name}"}}"#);
        assert_eq!(json(&text).unwrap_err().to_string(), "record: is larger than 64 KiB");
        assert!(hash(&[("name", &name)]).is_ok());
        assert!(hash(&[("name", &name), ("plan", "a")]).is_err());
    }
}
