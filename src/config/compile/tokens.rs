//! The records of tokens that stand in the file.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::StaticToken;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::{each, limits, unknown};
use crate::auth::key;
use crate::auth::record::{Grant, Name, RateRule, TokenRecord};
use crate::quota::Algorithm;
use crate::quota::rule::{LimitRule, rule_set};
use crate::route::pattern::PathPatterns;

/// Plans by name; a plan with a fault has no limits.
pub(super) type Plans = [(String, Option<Arc<[LimitRule]>>)];

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
        let Some(mut token) = token else {
            report.fault(&at, "is empty; write a record with an api_key, key or key_sha256");
            continue;
        };
        let id = token_id(&mut token, &at, report);
        let fields = fields(&token);
        let disabled = token.disabled.as_ref().is_some_and(|disabled| disabled.0);
        let grant = grant(token, plans, algorithm, &at, report);
        let Some((id, named_by)) = id else { continue };
        if !ids.insert(Arc::clone(&id)) {
            report.fault(&at.key(named_by), "is that of another token; write each token once");
        }
        match TokenRecord::new(&id, disabled, grant) {
            Ok(record) => tokens.push(StaticToken { id, record: Arc::new(record), fields }),
            Err(error) => report.fault(&at.key(named_by), error.problem),
        }
    }
    tokens
}

/// What the record grants.
fn grant(
    written: file::Token,
    plans: &Plans,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Grant {
    if written.rate_limit.is_some() && written.limits.is_some() {
        report.fault(&at.key("limits"), "stands beside rate_limit; write one of the two");
    }
    let limits = written.limits.and_then(|written| {
        let at = at.key("limits");
        let rules = limits::each_rule(Some(written), algorithm, false, &at, report);
        rule_set(rules, false).map_err(|error| report.fault(&at, error)).ok()
    });
    let allowed_routes = written.allowed_routes.map(|routes| {
        let routes = each(Some(routes), &at.key("allowed_routes"), report);
        PathPatterns::new(routes.into_iter().map(|route| route.0).collect())
    });
    let plan = written.plan.map(|plan| plan.0.0);
    if let Some(plan) = &plan
        && !plans.iter().any(|(name, _)| name == plan)
    {
        report.fault(&at.key("plan"), unknown("plan", plan, plans.iter().map(|(name, _)| name)));
    }
    let mut name = |field: &'static str, text: Option<String>| {
        let name = Name::new(field, &text?);
        name.map_err(|error| report.fault(&at.key(field), error.problem)).ok()
    };
    Grant {
        rate: limits
            .map(RateRule::limits)
            .or_else(|| written.rate_limit.map(|quota| RateRule::Bare(quota.0.0))),
        expires_at: written.expires_at.map(|at| at.0.time),
        allowed_routes,
        plan: name("plan", plan),
        organization_id: name("organization_id", written.organization_id.map(|id| id.0.0)),
    }
}

/// The id of the record, and the key that says it.
fn token_id(
    written: &mut file::Token,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(Arc<str>, &'static str)> {
    let api_key = written.api_key.as_ref().map(|id| id.0.0.as_str());
    let key = written.key.take().map(|key| key.0);
    let sha256 = written.key_sha256.take().map(|hash| hash.0);
    match (api_key, key, sha256) {
        (Some(id), None, None) => Some((id.into(), "api_key")),
        (None, Some(key), None) => match key::hash_of_written(key.expose()) {
            Ok(hash) => Some((hash, "key")),
            Err(error) => {
                report.fault(
                    &at.key("key"),
                    format!("{error}; `tollgate token create --kind key` makes one"),
                );
                None
            }
        },
        (None, None, Some(hash)) if key::is_hash(&hash.to_ascii_lowercase()) => {
            Some((hash.to_ascii_lowercase().into(), "key_sha256"))
        }
        (None, None, Some(_)) => {
            let message =
                "is not a SHA-256; write its 64 hexadecimal digits, as sha256sum prints them";
            report.fault(&at.key("key_sha256"), message);
            None
        }
        (None, None, None) => {
            let names = ["api_key", "key", "key_sha256"];
            if !names.iter().any(|name| report.is_broken(&at.key(name))) {
                let message = "is missing; write the api_key of a JWT, or the key or key_sha256 of an opaque key";
                report.fault(&at.key("api_key"), message);
            }
            None
        }
        _ => {
            report
                .fault(at, "names more than one of api_key, key and key_sha256; write one of them");
            None
        }
    }
}

/// The fields as they are written, without credentials: only commands that show records read them.
fn fields(written: &file::Token) -> Map<String, Value> {
    let file::Token {
        api_key,
        // Credentials are not shown.
        key: _,
        key_sha256: _,
        rate_limit,
        limits,
        expires_at,
        allowed_routes,
        plan,
        organization_id,
        name,
        disabled,
    } = written;
    let limits = limits.as_ref().map(|limits| limits.iter().flatten().map(limit).collect());
    let routes = allowed_routes.as_ref();
    let routes = routes.map(|routes| routes.iter().flatten().map(|route| json!(route.0.0)));
    members([
        ("api_key", api_key.as_ref().map(|id| json!(id.0.0))),
        ("rate_limit", rate_limit.as_ref().map(|quota| json!(quota.0.0))),
        ("limits", limits),
        ("expires_at", expires_at.as_ref().map(|time| json!(time.0.text))),
        ("allowed_routes", routes.map(Iterator::collect)),
        ("plan", plan.as_ref().map(|plan| json!(plan.0.0))),
        ("organization_id", organization_id.as_ref().map(|id| json!(id.0.0))),
        ("name", name.as_ref().map(|name| json!(name.0))),
        ("disabled", disabled.as_ref().map(|disabled| json!(disabled.0))),
    ])
}

/// A limit as it is written: `N/unit`, or an object.
fn limit(written: &file::Limit) -> Value {
    let file::Limit { rate, burst, algorithm, by, name } = written;
    let rate = rate.as_ref().map(|rate| json!(format!("{}/{}", rate.0.quota, rate.0.name)));
    match (rate, burst, algorithm, by, name) {
        (Some(rate), None, None, None, None) => rate,
        (rate, burst, algorithm, by, name) => Value::Object(members([
            ("rate", rate),
            ("burst", burst.as_ref().map(|burst| json!(burst.0.0))),
            ("algorithm", algorithm.as_ref().map(|algorithm| json!(algorithm.0.name()))),
            ("by", by.as_ref().map(|by| json!(by.words()))),
            ("name", name.as_ref().map(|name| json!(name.0))),
        ])),
    }
}

/// An object of the members that have a value.
fn members<const N: usize>(members: [(&str, Option<Value>); N]) -> Map<String, Value> {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use crate::auth::record::TokenRecord;
    use crate::config::parse;
    use crate::store::StoredRecord;

    #[test]
    fn a_record_of_the_file_grants_what_the_same_record_of_a_store_grants() {
        let environment = std::iter::empty::<(String, String)>().collect();
        for (token, json) in [
            ("{ api_key: a }", r#"{"api_key":"a"}"#),
            ("{ api_key: a, rate_limit: 7 }", r#"{"api_key":"a","rate_limit":7}"#),
            ("{ api_key: a, limits: [] }", r#"{"api_key":"a","limits":[]}"#),
            ("{ key: abc, disabled: true }", r#"{"disabled":true}"#),
            (
                "{ api_key: a, name: n, plan: basic, organization_id: o 1, disabled: false }",
                r#"{"api_key":"a","disabled":false,"name":"n","organization_id":"o 1","plan":"basic"}"#,
            ),
            (
                "{ api_key: a, expires_at: 2030-01-31T12:00:00.5+01:00, allowed_routes: [ /x/*, /y ] }",
                r#"{"allowed_routes":["/x/*","/y"],"api_key":"a","expires_at":"2030-01-31T12:00:00.5+01:00"}"#,
            ),
            (
                "{ api_key: a, limits: [ 5 / second, { rate: 9/day }, { rate: 5/minute, burst: 2, by: [ ip, route ], name: x },
                   { rate: 7/hour, algorithm: token_bucket, by: token }, { rate: 8/hour, algorithm: sliding_log, name: log } ] }",
                r#"{"api_key":"a","limits":["5/second","9/day",{"burst":2,"by":["ip","route"],"name":"x","rate":"5/minute"},{"algorithm":"token_bucket","by":["token"],"rate":"7/hour"},{"algorithm":"sliding_log","name":"log","rate":"8/hour"}]}"#,
            ),
        ] {
            let text = format!(
                "auth: {{ tokens: [ {token} ] }}\nplans: {{ basic: {{ limits: [ 1/minute ] }} }}"
            );
            let config = parse(&text, "t.yaml", &environment).unwrap();
            let written = &config.live.auth.tokens[0];
            assert_eq!(serde_json::to_string(&written.fields).unwrap(), json);
            let stored = TokenRecord::read(&written.id, &StoredRecord::Json(json.into())).unwrap();
            assert_eq!(*written.record, stored, "{token}");
        }
    }
}
