//! The limits of a record, as JSON writes them: `"N/unit"`, or an object with a `rate`.

use serde_json::{Map, Value, json};

use crate::quota::rule::{LimitRule, Written};
use crate::quota::{Limit, RateError};

/// Reads one limit.
pub(super) fn read(item: &Value) -> Result<LimitRule, RateError> {
    LimitRule::read(&written(item)?)
}

/// A valid limit in the spelling that is kept: without spaces, and as `N/unit` alone when it has no other member.
pub(super) fn canonical(item: Value) -> Value {
    match written(&item) {
        Ok(written) => object(written),
        Err(_) => item,
    }
}

fn written(item: &Value) -> Result<Written, RateError> {
    match item {
        Value::String(rate) => Ok(Written { rate: rate.clone(), ..Written::default() }),
        Value::Object(members) => written_members(members),
        other => Err(RateError::Form(other.to_string())),
    }
}

/// Reads the members of a limit; `null` counts as absent, as everywhere in a record.
fn written_members(members: &Map<String, Value>) -> Result<Written, RateError> {
    let mut written = Written::default();
    for (name, value) in members {
        if value.is_null() && MEMBERS.contains(&name.as_str()) {
            continue;
        }
        let text = || value.as_str().map(str::to_owned);
        match name.as_str() {
            "rate" => {
                written.rate = text().ok_or_else(|| RateError::Form(value.to_string()))?;
            }
            // A burst that is no whole number becomes 0, which every limit refuses.
            "burst" => written.burst = Some(whole(value).unwrap_or(0)),
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

const MEMBERS: [&str; 5] = ["rate", "burst", "algorithm", "by", "name"];

/// A whole number, which may be quoted, as that of `rate_limit` may be.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// A word, or an array of words.
fn words(value: &Value) -> Result<Vec<String>, RateError> {
    let word = |value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| RateError::By(value.to_string()))
    };
    match value {
        Value::Array(values) => values.iter().map(word).collect(),
        value => Ok(vec![word(value)?]),
    }
}

fn object(written: Written) -> Value {
    let rate = match Limit::parse(&written.rate) {
        Ok(limit) => format!("{}/{}", limit.quota, limit.name),
        Err(_) => written.rate.clone(),
    };
    if written == (Written { rate: written.rate.clone(), ..Written::default() }) {
        return json!(rate);
    }
    let members = [
        ("rate", Some(json!(rate))),
        ("burst", written.burst.map(Value::from)),
        ("algorithm", written.algorithm.map(Value::from)),
        ("by", written.by.map(Value::from)),
        ("name", written.name.map(Value::from)),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_one_spelling() {
        for (item, expected) in [
            (json!("5 / minute"), json!("5/minute")),
            (json!({ "rate": "5/minute", "by": null }), json!("5/minute")),
            (
                json!({ "rate": "5/minute", "burst": "7", "by": "ip" }),
                json!({ "rate": "5/minute", "burst": 7, "by": ["ip"] }),
            ),
        ] {
            let rule = read(&item).unwrap();
            assert_eq!(canonical(item), expected);
            assert_eq!(read(&expected), Ok(rule));
        }
    }
}
