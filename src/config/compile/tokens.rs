//! The records of tokens that stand in the file. The room `record` alone knows the values that a field may have.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Number, Value};

use super::super::StaticToken;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::unknown;
use crate::quota::Algorithm;
use crate::quota::rule::LimitSet;
use crate::record::field::{API_KEY, FIELDS, Field, LIMITS, PLAN};
use crate::record::identity::{Identity, known, known_names};
use crate::record::{Draft, Grant, RateRule, RecordError};

/// Plans by name; a plan with a fault has no limits.
pub(super) type Plans = [(String, Option<LimitSet>)];

/// The records, each id once.
pub(super) fn compile(
    written: file::List<file::Token>,
    plans: &Plans,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<StaticToken> {
    let mut tokens = Vec::new();
    let mut ids = BTreeSet::new();
    for (i, token) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(token) = token else {
            report.fault(&at, "is empty; write a record with an api_key, key or key_sha256");
            continue;
        };
        let Some((token, named_by)) = record(&token, plans, algorithm, &at, report) else {
            continue;
        };
        if !ids.insert(Arc::clone(&token.id)) {
            report.fault(&at.key(named_by), "is that of another token; write each token once");
        }
        tokens.push(token);
    }
    tokens
}

/// One record, and the key that names its token.
fn record(
    written: &file::Token,
    plans: &Plans,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(StaticToken, &'static str)> {
    for name in written.keys().filter(|name| known(name).is_none()) {
        let message = format!("is not a known key; known are {}", known_names());
        report.fault(&at.key(name), message);
    }
    let identity = Identity::read(|name| written.get(name).map(json));
    let identity = identity.map_err(|error| fault(&error, at, report)).ok();
    let draft = Draft::read(|field| value(written, field));
    let draft = draft.map_err(|errors| errors.iter().for_each(|error| fault(error, at, report)));
    let draft = draft.ok()?;
    check(&draft.grant, plans, algorithm, at, report);
    let Identity { id, named_by } = identity?;
    let record = draft.named(&id).map_err(|error| fault(&error, at, report)).ok()?;
    let mut fields: Map<String, Value> = FIELDS
        .iter()
        .filter_map(|field| Some((field.name.to_owned(), field.canonical(value(written, field)?))))
        .filter(|(_, value)| !value.is_null() && value.as_str() != Some(""))
        .collect();
    if named_by == API_KEY {
        fields.insert(API_KEY.into(), id.as_str().into());
    }
    Some((StaticToken { id: id.into(), record: Arc::new(record), fields }, named_by))
}

/// The value of a field, as it is written. The `api_key` is read as the token's identity.
fn value(written: &file::Token, field: &Field) -> Option<Value> {
    let value = written.get(field.name).filter(|_| field.name != API_KEY)?;
    Some(field.of_yaml(json(value)))
}

/// The checks that need the rest of the configuration: the plan exists, and the configured algorithm can count the
/// limits.
fn check(grant: &Grant, plans: &Plans, algorithm: Algorithm, at: &KeyPath, report: &mut Report) {
    if let Some(plan) = grant.plan.as_ref().map(|plan| plan.as_str())
        && !plans.iter().any(|(name, _)| name == plan)
    {
        report.fault(&at.key(PLAN), unknown("plan", plan, plans.iter().map(|(name, _)| name)));
    }
    if let Some(RateRule::Limits(own)) = &grant.rate {
        for (i, rule) in own.rules().iter().enumerate() {
            if let Err((_, error)) = rule.limit(algorithm, false) {
                report.fault(&at.key(LIMITS).index(i), error);
            }
        }
    }
}

fn fault(error: &RecordError, at: &KeyPath, report: &mut Report) {
    let at = match (error.field, error.element) {
        ("record", _) => at.clone(),
        (field, None) => at.key(field),
        (field, Some(element)) => at.key(field).index(element),
    };
    report.fault(&at, &error.problem);
}

/// The same value in JSON's types.
fn json(value: &serde_yaml::Value) -> Value {
    use serde_yaml::Value as Yaml;
    match value {
        Yaml::Null | Yaml::Tagged(_) => Value::Null,
        Yaml::Bool(value) => (*value).into(),
        Yaml::Number(number) => {
            let float = || number.as_f64().and_then(Number::from_f64);
            let number = number.as_u64().map(Number::from).or(number.as_i64().map(Number::from));
            // JSON has no infinity. The largest number stands for it here: no field accepts either of them.
            number.or_else(float).or(Number::from_f64(f64::MAX)).map_or(Value::Null, Value::Number)
        }
        Yaml::String(text) => text.as_str().into(),
        Yaml::Sequence(values) => values.iter().map(json).collect(),
        Yaml::Mapping(members) => {
            let member =
                |(name, value): (&Yaml, &Yaml)| Some((name.as_str()?.to_owned(), json(value)));
            members.iter().filter_map(member).collect()
        }
    }
}
