//! `tollgate token create`: a new record, and the JWT or key that is its credential.
//!
//! The record goes to Redis; where a configuration has none, the entry to paste into it is printed.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use clap::{Args, ValueEnum};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::issue::{Issued, Kept};
use super::records::StoreArguments;
use crate::auth::issuer::{IssuerKey, IssuerRules, KeyMaterial};
use crate::auth::verification;
use crate::base::clock::{Clock as _, SystemClock, UnixTime};
use crate::base::secret::Secret;
use crate::cli::{Failure, hidden};
use crate::config::Config;
use crate::quota::rate::MAX_QUOTA;
use crate::quota::rule::{LimitRule, rule_set};
use crate::record::field::{self, is_claim};
use crate::record::stored::texts;
use crate::record::{StoredRecord, TokenRecord, key};
use crate::route::written::{PATTERN, check_pattern};

/// The variable that holds the signing secret where no configuration does.
const SECRET_VARIABLE: &str = "TOLLGATE_JWT_SECRET";

/// The shortest secret HS256 may have, in bytes (RFC 7518 section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// The longest life of a token: ten years.
pub(super) const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Arguments of `tollgate token create`.
#[derive(Args, Debug)]
pub struct CreateArguments {
    /// N/second, N/minute, N/hour or N/day, repeatable; or N alone, over the gateway's default window
    #[arg(long = "limit", value_name = "LIMIT", value_parser = limit)]
    limits: Vec<LimitArgument>,
    /// The plan that gives the limits, where the token has none of its own
    #[arg(long)]
    plan: Option<String>,
    /// The organization it belongs to
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// The only paths it may ask for, separated by commas; a trailing * matches the rest
    #[arg(long, value_name = "PATH", value_delimiter = ',', value_parser = route)]
    routes: Vec<String>,
    /// How long it lives: 30m, 24h, 90days
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ttl)]
    ttl: Duration,
    /// What kind of credential it is
    #[arg(long, value_enum, default_value_t = Kind::Jwt)]
    kind: Kind,
    #[command(flatten)]
    store: StoreArguments,
    /// The HS256 secret to sign with, instead of the configuration's; better in TOLLGATE_JWT_SECRET
    #[arg(long, value_parser = hidden)]
    secret: Option<Secret>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Kinds of credentials that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A signed JWT that names the record
    Jwt,
    /// A random key; Redis and configurations hold its SHA-256 only
    Key,
}

/// What `--limit` takes.
#[derive(Clone, Debug)]
enum LimitArgument {
    /// A number: over the window that the gateway is configured with.
    Bare(u64),
    /// A rate with its own window.
    Rate(LimitRule),
}

/// Makes the token and stores its record.
///
/// # Errors
/// [`Failure::Usage`] when the arguments do not go together, [`Failure::Unavailable`] when Redis
/// does not take the record.
pub fn run(arguments: &CreateArguments) -> Result<String, Failure> {
    let records = match arguments.kind {
        Kind::Jwt => arguments.store.open()?,
        // The first key of a configuration is made before there is one that is valid.
        Kind::Key => arguments.store.open_if_named()?,
    };
    let config = records.config.as_ref();
    known_plan(arguments.plan.as_deref(), config)?;
    let now = SystemClock::default().now();
    let expires = expiry(now, arguments.ttl);
    let record = |id: &str| new_record(arguments, key::public_id(id), now);
    let stateless = arguments.kind == Kind::Jwt && records.are_claims();
    let (id, credential) = match arguments.kind {
        Kind::Jwt => {
            let claims = if stateless { grant(record("")?) } else { Map::new() };
            new_jwt(arguments.secret.as_ref(), config, &claims, now, expires)?
        }
        Kind::Key if arguments.secret.is_some() => {
            return Err(Failure::Usage("--secret signs JWTs: a key is not signed".into()));
        }
        Kind::Key => new_key()?,
    };
    let record = record(&id)?;
    must_be_readable(&id, &record)?;
    let kept = match &records.admin {
        _ if stateless => Kept::InClaims,
        None => Kept::Nowhere,
        Some(admin) => {
            admin.put(&id, &texts(&record), Some(expires))?;
            Kept::In(admin.place().to_owned())
        }
    };
    let issued = Issued { id, record, credential, kept, config };
    if arguments.json { issued.to_json() } else { issued.to_text() }
}

/// A new id, and the JWT that names it and claims `grant`.
///
/// # Errors
/// [`Failure::Usage`] when there is nothing to sign with.
pub(super) fn new_jwt(
    secret: Option<&Secret>,
    config: Option<&Config>,
    grant: &Map<String, Value>,
    now: UnixTime,
    expires: UnixTime,
) -> Result<(String, Secret), Failure> {
    let jwt = signing(secret, config)?;
    let id = Uuid::now_v7().to_string();
    let credential = sign(&jwt, &id, grant, now, expires)?;
    Ok((id, credential))
}

/// What `jwt` claims to be granted, so that another token can claim the same. Only a token that is signed
/// with a key that signs here is believed: anybody can write another.
///
/// # Errors
/// [`Failure::Usage`] when there is nothing to sign with, [`Failure::Data`] when `jwt` is not believed.
pub(super) fn granted(
    jwt: &Secret,
    secret: Option<&Secret>,
    config: Option<&Config>,
) -> Result<Map<String, Value>, Failure> {
    let issuer = signing(secret, config)?;
    let claims = issuer.keys.iter().filter_map(signing_key).find_map(|(_, algorithm, secret)| {
        let mut validation = Validation::new(algorithm);
        // Whether and where it is valid does not change what it was granted.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let key = DecodingKey::from_secret(secret.expose().as_bytes());
        jsonwebtoken::decode::<Map<String, Value>>(jwt.expose(), &key, &validation).ok()
    });
    let Some(claims) = claims else {
        return Err(Failure::Data("no key that signs here has signed the credential on standard input, so what it claims is not believed: give its api_key instead, and the new token claims nothing of it".into()));
    };
    let mut granted = claims.claims;
    granted.retain(|name, _| is_claim(name));
    Ok(granted)
}

/// The claims that stand for a record; `exp` says when they end.
fn grant(mut record: Map<String, Value>) -> Map<String, Value> {
    record.retain(|name, _| is_claim(name) && name != field::EXPIRES_AT);
    record
}

/// A new key, and the hash that its record is stored under.
///
/// # Errors
/// [`Failure::Internal`] when the system has no randomness.
pub(super) fn new_key() -> Result<(String, Secret), Failure> {
    let key =
        key::generate().map_err(|error| Failure::Internal(format!("no randomness: {error}")))?;
    let hash = key::hash_of_written(key.expose())
        .map_err(|error| Failure::Internal(format!("the new key {error}")))?;
    Ok((hash.as_ref().to_owned(), key))
}

/// Refuses what a gateway would not understand, such as names that fit no header field.
fn must_be_readable(id: &str, record: &Map<String, Value>) -> Result<(), Failure> {
    let stored = StoredRecord::Fields(texts(record).into_iter().collect());
    TokenRecord::read(&id.into(), &stored)
        .map(drop)
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// A JWT (RFC 7519) that names `api_key` and claims `grant`, signed with the first key of `jwt` and valid for it.
///
/// # Errors
/// [`Failure::Usage`] when `jwt` has no key, [`Failure::Internal`] when signing fails.
pub fn sign(
    issuer: &IssuerRules,
    api_key: &str,
    grant: &Map<String, Value>,
    issued: UnixTime,
    expires: UnixTime,
) -> Result<Secret, Failure> {
    let Some((kid, algorithm, secret)) = issuer.keys.iter().find_map(signing_key) else {
        return Err(Failure::Usage(
            "auth.jwt.keys has no secret: a token needs one to be signed with".into(),
        ));
    };
    let mut header = Header::new(algorithm);
    header.kid = kid;
    let claims = Claims {
        api_key,
        iat: issued.as_secs(),
        exp: expires.as_secs(),
        iss: issuer.name.as_deref(),
        aud: issuer.audience.as_deref(),
        grant,
    };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret.expose().as_bytes()))
        .map(Secret::new)
        .map_err(|error| Failure::Internal(format!("signing the token: {error}")))
}

/// Only who has a secret can sign: public keys verify the tokens of others.
fn signing_key(key: &IssuerKey) -> Option<(Option<String>, Algorithm, &Secret)> {
    let KeyMaterial::Secret(secret) = key.material() else { return None };
    Some((key.kid().map(str::to_owned), key.algorithm().name().parse().ok()?, secret))
}

/// The claims of a token (contract section 5; RFC 7519 section 4.1).
#[derive(Serialize)]
struct Claims<'a> {
    api_key: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(flatten)]
    grant: &'a Map<String, Value>,
}

/// A new record, in the form that configurations and stores hold.
fn new_record(
    arguments: &CreateArguments,
    api_key: &str,
    now: UnixTime,
) -> Result<Map<String, Value>, Failure> {
    let (rate_limit, limits) = record_limits(&arguments.limits)?;
    let list = |values: &[String]| (!values.is_empty()).then(|| Value::from(values));
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let fields = [
        (field::API_KEY, Some(api_key.into())),
        (field::RATE_LIMIT, rate_limit.map(Value::from)),
        (field::LIMITS, list(&limits)),
        (field::EXPIRES_AT, Some(rfc3339(expiry(now, arguments.ttl)).into())),
        (field::ALLOWED_ROUTES, list(&arguments.routes)),
        (field::PLAN, text(&arguments.plan)),
        (field::ORGANIZATION_ID, text(&arguments.organization)),
        (field::NAME, text(&arguments.name)),
    ];
    Ok(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
}

/// The keys and claims to sign with: `--secret`, else the configuration, else the environment.
fn signing(secret: Option<&Secret>, config: Option<&Config>) -> Result<IssuerRules, Failure> {
    let signs = |issuer: &&IssuerRules| issuer.keys.iter().any(|key| signing_key(key).is_some());
    let configured = config.and_then(|config| config.live.auth.jwt.issuers.iter().find(signs));
    let secret = match (secret, configured) {
        (None, Some(issuer)) => return Ok(issuer.clone()),
        (Some(secret), _) => secret.clone(),
        (None, _) => std::env::var(SECRET_VARIABLE).map(Secret::new).map_err(|_| {
            let message = format!("no key to sign with: give -c FILE with auth.jwt.keys, --secret, or {SECRET_VARIABLE}");
            Failure::Usage(message)
        })?,
    };
    if secret.expose().len() < MIN_SECRET_BYTES {
        let message = format!(
            "the secret is shorter than {MIN_SECRET_BYTES} bytes: make one with tollgate secret"
        );
        return Err(Failure::Usage(message));
    }
    let material = KeyMaterial::Secret(secret);
    let key = IssuerKey::new(verification::Algorithm::Hs256, None, material)
        .map_err(|error| Failure::Usage(format!("the secret {error}")))?;
    let issuer = configured.cloned().unwrap_or_default();
    Ok(IssuerRules { keys: vec![key], ..issuer })
}

/// Refuses a plan that the configuration, if there is one, does not have.
pub(super) fn known_plan(plan: Option<&str>, config: Option<&Config>) -> Result<(), Failure> {
    let (Some(plan), Some(config)) = (plan, config) else {
        return Ok(());
    };
    if config.live.plans.contains_key(plan) {
        return Ok(());
    }
    let known: Vec<&str> = config.live.plans.keys().map(String::as_str).collect();
    let known = if known.is_empty() {
        "it has none".to_owned()
    } else {
        format!("it has {}", known.join(", "))
    };
    Err(Failure::Usage(format!("the configuration has no plan `{plan}`: {known}")))
}

/// The record's `rate_limit` or `limits`.
fn record_limits(arguments: &[LimitArgument]) -> Result<(Option<u64>, Vec<String>), Failure> {
    if let [LimitArgument::Bare(quota)] = arguments {
        return Ok((Some(*quota), Vec::new()));
    }
    let rates: Option<Vec<LimitRule>> = arguments
        .iter()
        .map(|argument| match argument {
            LimitArgument::Bare(_) => None,
            LimitArgument::Rate(limit) => Some(limit.clone()),
        })
        .collect();
    let Some(rates) = rates else {
        return Err(Failure::Usage(
            "--limit with a bare number stands alone: write N/second, N/minute, N/hour or N/day"
                .into(),
        ));
    };
    let rates =
        rule_set(rates, false).map_err(|error| Failure::Usage(format!("--limit: {error}")))?;
    Ok((None, rates.iter().map(LimitRule::to_string).collect()))
}

/// When a token made at `now` expires: whole seconds, as `exp` has them.
pub(super) fn expiry(now: UnixTime, ttl: Duration) -> UnixTime {
    UnixTime::from_secs(now.as_secs().saturating_add(ttl.as_secs()))
}

/// A time as RFC 3339 writes it, in UTC and whole seconds.
pub(super) fn rfc3339(time: UnixTime) -> String {
    let time =
        i64::try_from(time.as_secs()).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
    time.unwrap_or(DateTime::<chrono::Utc>::MAX_UTC).to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn limit(text: &str) -> Result<LimitArgument, String> {
    match text.parse() {
        Ok(quota) if (1..=MAX_QUOTA).contains(&quota) => Ok(LimitArgument::Bare(quota)),
        Ok(_) => Err(format!("write a whole number from 1 to {MAX_QUOTA}")),
        Err(_) => {
            LimitRule::parse(text).map(LimitArgument::Rate).map_err(|error| error.to_string())
        }
    }
}

fn route(text: &str) -> Result<String, String> {
    check_pattern(text).map(|()| text.to_owned()).map_err(|error| error.instead(PATTERN))
}

pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write 30m, 24h or 90days"))?;
    if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
        return Err("write a time from 1s to 10years".into());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: CreateArguments,
    }

    fn arguments(words: &[&str]) -> CreateArguments {
        Line::try_parse_from([&["create"], words].concat()).unwrap().arguments
    }

    const NOW: UnixTime = UnixTime::from_millis(1_700_000_000_999);

    fn record(words: &[&str]) -> Result<Map<String, Value>, Failure> {
        new_record(&arguments(words), "k1", NOW)
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn jwt(kid: Option<&str>, issuer: Option<&str>) -> IssuerRules {
        let material = KeyMaterial::Secret(Secret::new(KEY));
        let algorithm = verification::Algorithm::Hs256;
        let keys = vec![IssuerKey::new(algorithm, kid.map(str::to_owned), material).unwrap()];
        IssuerRules { keys, name: issuer.map(str::to_owned), ..IssuerRules::default() }
    }

    #[test]
    fn a_record_is_a_hash_of_texts() {
        let words = [
            "--limit", "5/second", "--limit", "100/day", "--routes", "/a,/b/*", "--plan", "basic",
            "--name", "ci",
        ];
        assert_eq!(
            texts(&record(&words).unwrap()),
            [
                ("allowed_routes", r#"["/a","/b/*"]"#),
                ("api_key", "k1"),
                ("expires_at", "2023-11-15T22:13:20Z"),
                ("limits", r#"["5/second","100/day"]"#),
                ("name", "ci"),
                ("plan", "basic"),
            ]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
        );
        let bare = record(&["--limit", "100", "--ttl", "1s", "--organization", "o"]).unwrap();
        let bare = texts(&bare);
        assert!(bare.contains(&("rate_limit".into(), "100".into())));
        assert!(bare.contains(&("expires_at".into(), "2023-11-14T22:13:21Z".into())));
        assert!(bare.contains(&("organization_id".into(), "o".into())));
    }

    #[test]
    fn limits_that_do_not_go_together_are_refused() {
        for words in [
            ["--limit", "100", "--limit", "5/second"],
            ["--limit", "100", "--limit", "200"],
            ["--limit", "5/second", "--limit", "6/second"],
        ] {
            assert!(matches!(record(&words), Err(Failure::Usage(_))), "{words:?}");
        }
    }

    #[test]
    fn what_no_gateway_could_read_is_refused() {
        let read = |words: &[&str]| must_be_readable("k1", &record(words)?);
        assert!(read(&["--organization", "acme", "--limit", "5"]).is_ok());
        for words in [["--organization", "caf\u{e9}"], ["--plan", "a\nb"]] {
            assert!(matches!(read(&words), Err(Failure::Usage(_))), "{words:?}");
        }
    }

    #[test]
    fn arguments_are_checked_where_they_are_read() {
        for (text, ok) in [
            ("/", true),
            ("/a/*", true),
            ("*", true),
            ("a", false),
            ("/a*b", false),
            ("/ a", false),
            ("/a//b", false),
            ("/a/../b", false),
            ("", false),
        ] {
            assert_eq!(route(text).is_ok(), ok, "{text:?}");
        }
        for (text, ok) in [
            ("1s", true),
            ("90days", true),
            ("0s", false),
            ("500ms", false),
            ("100years", false),
            ("1", false),
        ] {
            assert_eq!(ttl(text).is_ok(), ok, "{text:?}");
        }
        for (text, ok) in
            [("1", true), ("0", false), ("-1", false), ("1/minute", true), ("1/week", false)]
        {
            assert_eq!(limit(text).is_ok(), ok, "{text:?}");
        }
    }

    #[test]
    fn the_credential_verifies_and_says_what_the_configuration_asks_for() {
        let jwt = jwt(Some("2026"), Some("me"));
        let now = SystemClock::default().now();
        let credential =
            sign(&jwt, "k1", &Map::new(), now, expiry(now, Duration::from_secs(60))).unwrap();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&["me"]);
        let key = DecodingKey::from_secret(KEY.as_bytes());
        let token = jsonwebtoken::decode::<Value>(credential.expose(), &key, &validation).unwrap();
        assert_eq!(token.header.kid.as_deref(), Some("2026"));
        assert_eq!(token.claims["api_key"], "k1");
        assert_eq!(token.claims["exp"], now.as_secs() + 60);
        assert_eq!(token.claims["iat"], now.as_secs());
    }

    #[test]
    fn claims_nobody_asked_for_are_absent() {
        let credential = sign(&jwt(None, None), "k1", &Map::new(), NOW, NOW).unwrap();
        let part =
            |n| URL_SAFE_NO_PAD.decode(credential.expose().split('.').nth(n).unwrap()).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&part(0)).unwrap(),
            serde_json::json!({"alg":"HS256","typ":"JWT"})
        );
        assert_eq!(
            serde_json::from_slice::<Value>(&part(1)).unwrap(),
            serde_json::json!({"api_key":"k1","exp":1_700_000_000,"iat":1_700_000_000})
        );
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(matches!(signing(Some(&Secret::new("short")), None), Err(Failure::Usage(_))));
    }
}
