//! Keys and static tokens. Secrets come and go here without being looked at, but for their length.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::{
    Auth, FailureRate, Jwt, JwtIssuer, JwtKey, KeyMaterial, StaticToken, TokenCache,
};
use super::{deadline, each, limits, need};
use crate::auth::jwks::{self, JwksRules, Source};
use crate::base::files::read_text;
use crate::base::secret::Secret;
use crate::quota::Algorithm;
use crate::quota::rule::{LimitRule, Written, rule_set};
use crate::record::key;

/// Plans by name; a plan with a fault has no limits.
type Plans = [(String, Option<Arc<[LimitRule]>>)];

/// Invalid credentials of one client address that are answered with 401, where nothing else is said.
const MAX_FAILURES: FailureRate = FailureRate { failures: 100, window: Duration::from_secs(60) };

/// Largest secret file, in bytes.
const MAX_SECRET_FILE: u64 = 64 << 10;

pub(super) fn compile(
    written: file::Auth,
    plans: &Plans,
    algorithm: Algorithm,
    report: &mut Report,
) -> Auth {
    let at = KeyPath::top("auth");
    let cache = written.cache.unwrap_or_default();
    Auth {
        jwt: jwt(written.jwt.unwrap_or_default(), &at.key("jwt"), report),
        tokens: tokens(written.tokens, plans, algorithm, &at.key("tokens"), report),
        cache: TokenCache {
            ttl: deadline(cache.ttl, 15 * 60),
            entries: super::count(cache.entries.map(|n| n.0.0), 100_000),
            max_stale: cache.max_stale.map_or(Duration::from_secs(5 * 60), |span| span.0.0),
        },
        max_failures: written.max_failures.map_or(Some(MAX_FAILURES), |rate| rate.0.0),
    }
}

fn jwt(written: file::Jwt, at: &KeyPath, report: &mut Report) -> Jwt {
    let mut issuers = Vec::new();
    let only = file::JwtIssuer {
        issuer: written.issuer,
        audience: written.audience,
        keys: written.keys,
        jwks: written.jwks,
    };
    if only.keys.as_ref().is_some_and(|keys| !keys.is_empty()) || only.jwks.is_some() {
        issuers.push(issuer(only, at, report));
    } else {
        for (name, written) in [("issuer", &only.issuer), ("audience", &only.audience)] {
            if written.is_some() && !report.has_fault_within(&at.key("keys")) {
                report.fault(
                    &at.key(name),
                    "is for the tokens of keys or jwks beside it; write those, or it under issuers",
                );
            }
        }
    }
    for (i, written) in written.issuers.unwrap_or_default().into_iter().enumerate() {
        let at = at.key("issuers").index(i);
        let written = written.unwrap_or_default();
        if written.issuer.is_none() {
            report.fault(&at.key("issuer"), "is missing; write the iss of its tokens");
        }
        let has_keys = written.keys.as_ref().is_some_and(|keys| !keys.is_empty());
        if !has_keys && written.jwks.is_none() && !report.has_fault_within(&at) {
            report.fault(&at, "has no keys; write keys or jwks");
        }
        let issuer = issuer(written, &at, report);
        if issuer.issuer.is_some() && issuers.iter().any(|known| known.issuer == issuer.issuer) {
            report.fault(&at.key("issuer"), "is that of another issuer; write each issuer once");
        }
        issuers.push(issuer);
    }
    Jwt {
        issuers,
        leeway: written.leeway.map_or(Duration::ZERO, |span| span.0.0),
        require_record: written.require_record.is_none_or(|required| required.0),
    }
}

fn issuer(written: file::JwtIssuer, at: &KeyPath, report: &mut Report) -> JwtIssuer {
    JwtIssuer {
        issuer: written.issuer.map(|text| text.0),
        audience: written.audience.map(|text| text.0),
        keys: keys(written.keys, &at.key("keys"), report),
        jwks: written.jwks.and_then(|written| jwks(written, &at.key("jwks"), report)),
    }
}

fn keys(written: file::List<file::JwtKey>, at: &KeyPath, report: &mut Report) -> Vec<JwtKey> {
    let mut keys = Vec::new();
    let mut kids = BTreeSet::new();
    for (i, key) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(mut key) = key else {
            report.fault(&at, "is empty; write { algorithm, secret } or { algorithm, public_key }");
            continue;
        };
        let kid = key.kid.take().map(|kid| kid.0);
        let algorithm = need(key.algorithm.take(), &at.key("algorithm"), report);
        let material = material(key, &at, report);
        let (Some(algorithm), Some((material, source))) = (algorithm, material) else {
            check_kid(&mut kids, &kid, &at, report);
            continue;
        };
        let mut key = JwtKey { algorithm, material, kid };
        match key.verification_key() {
            // A JWK may bring its own.
            Ok(ready) => key.kid = ready.kid().map(str::to_owned),
            Err(error) => report.fault(&at.key(source), error),
        }
        check_kid(&mut kids, &key.kid, &at, report);
        keys.push(key);
    }
    keys
}

fn check_kid(
    kids: &mut BTreeSet<Option<String>>,
    kid: &Option<String>,
    at: &KeyPath,
    report: &mut Report,
) {
    if !kids.insert(kid.clone()) {
        let message = match kid {
            Some(_) => "is the kid of another key; write each kid once",
            None => "is missing; write a kid: only one key may go without",
        };
        report.fault(&at.key("kid"), message);
    }
}

fn jwks(written: file::Jwks, at: &KeyPath, report: &mut Report) -> Option<JwksRules> {
    let source = match (written.url, written.file) {
        (Some(url), None) => Source::Url(url.0.0),
        (None, Some(path)) => {
            let source = Source::File(path.0.into());
            if let Err(error) = jwks::check(&source) {
                let message =
                    format!("cannot be used: {error}; write the path of a JSON Web Key Set");
                report.fault(&at.key("file"), message);
            }
            source
        }
        (Some(_), Some(_)) => {
            report.fault(&at.key("file"), "stands beside url; write one of the two");
            return None;
        }
        (None, None) => {
            if !report.is_broken(&at.key("url")) && !report.is_broken(&at.key("file")) {
                report.fault(&at.key("url"), "is missing; write url or file");
            }
            return None;
        }
    };
    Some(JwksRules {
        source,
        refresh: written.refresh.map_or(Duration::from_secs(5 * 60), |span| span.0.0),
        timeout: written.timeout.map_or(Duration::from_secs(5), |span| span.0.0),
    })
}

fn public(text: &Secret) -> KeyMaterial {
    KeyMaterial::Public(text.expose().to_owned())
}

/// The key and the name it was written under.
fn material(
    written: file::JwtKey,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(KeyMaterial, &'static str)> {
    let mut given = [
        ("secret", written.secret.map(|secret| Ok(KeyMaterial::Secret(secret.0)))),
        ("secret_file", written.secret_file.map(|file| Err(file.0))),
        ("public_key", written.public_key.map(|text| Ok(public(&text.0)))),
        ("public_key_file", written.public_key_file.map(|file| Err(file.0))),
    ]
    .into_iter()
    .filter_map(|(name, given)| Some((name, given?)));
    let first = given.next();
    if let (Some((first, _)), Some((second, _))) = (&first, given.next()) {
        report.fault(&at.key(second), format!("stands beside {first}; write one of the two"));
        return None;
    }
    match first {
        Some((name, Ok(material))) => Some((material, name)),
        Some((name, Err(path))) => match read_secret(&path) {
            Ok(secret) if name == "secret_file" => Some((KeyMaterial::Secret(secret), name)),
            Ok(text) => Some((public(&text), name)),
            Err(error) => {
                let message =
                    format!("cannot be read: {error}; write the path of a file with the key");
                report.fault(&at.key(name), message);
                None
            }
        },
        None => {
            let names = ["secret", "secret_file", "public_key", "public_key_file"];
            // All are silent when one was reported already.
            if !names.iter().any(|name| report.is_broken(&at.key(name))) {
                let message = "is missing; write secret or secret_file, or of a public key public_key or public_key_file";
                report.fault(&at.key("secret"), message);
            }
            None
        }
    }
}

/// The contents of a file without the line end that editors and `echo` leave.
fn read_secret(path: &str) -> std::io::Result<Secret> {
    let text = read_text(Path::new(path), MAX_SECRET_FILE)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line)))
}

fn tokens(
    written: file::List<file::Token>,
    plans: &Plans,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<StaticToken> {
    let mut tokens = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, token) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(token) = token else {
            report.fault(&at, "is empty; write a record with an api_key, key or key_sha256");
            continue;
        };
        let Some(token) = record(token, plans, algorithm, &at, report) else {
            continue;
        };
        let (token, named_by) = token;
        if !seen.insert(token.id.clone()) {
            report.fault(&at.key(named_by), "is that of another token; write each token once");
        }
        tokens.push(token);
    }
    tokens
}

/// One record as the JSON object a store would hold: absent fields are absent.
fn record(
    mut written: file::Token,
    plans: &Plans,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(StaticToken, &'static str)> {
    let named = token_id(&mut written, at, report);
    let api_key = written.api_key.map(|id| id.0.0);
    let mut object = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        object.extend(value.map(|value| (name.to_owned(), value)));
    };
    if written.rate_limit.is_some() && written.limits.is_some() {
        report.fault(&at.key("limits"), "stands beside rate_limit; write one of the two");
    }
    let limits = written.limits.map(|written| {
        let at = at.key("limits");
        let (written, rules): (Vec<_>, Vec<_>) =
            limits::each_written(Some(written), algorithm, false, &at, report).into_iter().unzip();
        if let Err(error) = rule_set(rules, false) {
            report.fault(&at, error);
        }
        written.iter().map(limit_json).collect::<Vec<_>>()
    });
    let routes = written.allowed_routes.map(|routes| {
        let routes = each(Some(routes), &at.key("allowed_routes"), report);
        routes.into_iter().map(|route| route.0).collect::<Vec<_>>()
    });
    let plan = written.plan.map(|plan| plan.0.0);
    if let Some(plan) = &plan
        && !plans.iter().any(|(name, _)| name == plan)
    {
        report.fault(&at.key("plan"), unknown("plan", plan, plans.iter().map(|(name, _)| name)));
    }
    put("api_key", api_key.as_deref().map(Value::from));
    put("rate_limit", written.rate_limit.map(|limit| json!(limit.0.0)));
    put("limits", limits.map(Value::from));
    put("expires_at", written.expires_at.map(|time| json!(time.0.0)));
    put("allowed_routes", routes.map(Value::from));
    put("plan", plan.map(Value::from));
    put("organization_id", written.organization_id.map(|id| json!(id.0.0)));
    put("name", written.name.map(|text| json!(text.0)));
    put("disabled", written.disabled.map(|disabled| json!(disabled.0)));
    let (id, named_by) = named?;
    Some((StaticToken { id, json: Value::Object(object).to_string() }, named_by))
}

/// What the record is known by, and the member that says so.
fn token_id(
    written: &mut file::Token,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(String, &'static str)> {
    let api_key = written.api_key.as_ref().map(|id| id.0.0.clone());
    let key = written.key.take().map(|key| key.0);
    let sha256 = written.key_sha256.take().map(|hash| hash.0);
    match (api_key, key, sha256) {
        (Some(id), None, None) => Some((id, "api_key")),
        (None, Some(key), None) => match key::hash_of_written(key.expose()) {
            Ok(hash) => Some((hash.as_ref().to_owned(), "key")),
            Err(error) => {
                report.fault(
                    &at.key("key"),
                    format!("{error}; `tollgate token create --kind key` makes one"),
                );
                None
            }
        },
        (None, None, Some(hash)) if key::is_hash(&hash.to_ascii_lowercase()) => {
            Some((hash.to_ascii_lowercase(), "key_sha256"))
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

/// A limit as a record has it.
fn limit_json(written: &Written) -> Value {
    if *written == (Written { rate: written.rate.clone(), ..Written::default() }) {
        return json!(written.rate);
    }
    let members = [
        ("rate", Some(json!(written.rate))),
        ("burst", written.burst.map(Value::from)),
        ("algorithm", written.algorithm.clone().map(Value::from)),
        ("by", written.by.clone().map(Value::from)),
        ("name", written.name.clone().map(Value::from)),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The message for a reference to something that does not exist.
pub(super) fn unknown<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a String>,
) -> String {
    let known: Vec<_> = known.map(String::as_str).collect();
    match known.as_slice() {
        [] => format!("names the {what} `{name}`, but there are none; write it under {what}s"),
        known => format!(
            "names the {what} `{name}`, which does not exist; write one of {}",
            known.join(", ")
        ),
    }
}
