//! Issuers and their keys. A key is made ready once, and its secret is never part of a fault.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::scalar::Leaf;
use super::super::{Auth, Jwt};
use super::{deadline, each, need, tokens};
use crate::auth::cache::CacheRules;
use crate::auth::guard::FailureRate;
use crate::auth::issuer::{IssuerKey, IssuerRules, KeyMaterial};
use crate::auth::jwks::{self, JwksRules, Source};
use crate::auth::jwt::JwtRules;
use crate::auth::sources::{Source as CredentialSource, Sources};
use crate::base::files::read_text;
use crate::base::secret::Secret;
use crate::quota::Algorithm;

/// The default of `auth.max_failures`: invalid credentials of a client address that are answered with 401.
const MAX_FAILURES: FailureRate = FailureRate { failures: 100, window: Duration::from_secs(60) };

/// Largest secret file, in bytes.
const MAX_SECRET_FILE: u64 = 64 << 10;

/// The checks of tokens, and the rules of the record cache.
pub(super) fn compile(
    written: file::Auth,
    plans: &tokens::Plans,
    algorithm: Algorithm,
    report: &mut Report,
) -> (Auth, CacheRules) {
    let at = KeyPath::top("auth");
    let cache = written.cache.unwrap_or_default();
    let cache = CacheRules {
        ttl: deadline(cache.ttl, 15 * 60),
        entries: super::count(cache.entries.map(|n| n.0.0), 100_000),
        max_stale: cache.max_stale.map_or(Duration::from_secs(5 * 60), |span| span.0.0),
    };
    let auth = Auth {
        jwt: jwt(written.jwt.unwrap_or_default(), &at.key("jwt"), report),
        tokens: tokens::compile(written.tokens, plans, algorithm, &at.key("tokens"), report),
        max_failures: written.max_failures.map_or(Some(MAX_FAILURES), |rate| rate.0.0),
        sources: sources(written.from, &at.key("from"), report),
    };
    (auth, cache)
}

/// The places of credentials: by default the two fields.
fn sources(
    written: file::List<Leaf<CredentialSource>>,
    at: &KeyPath,
    report: &mut Report,
) -> Sources {
    if written.is_none() {
        return Sources::default();
    }
    if written.as_ref().is_some_and(Vec::is_empty) {
        report.fault(at, "is empty; write at least one place, such as authorization");
    }
    Sources::new(each(written, at, report))
}

fn jwt(written: file::Jwt, at: &KeyPath, report: &mut Report) -> Jwt {
    let mut issuers = Vec::new();
    let unlisted = file::JwtIssuer {
        issuer: written.issuer,
        audience: written.audience,
        keys: written.keys,
        jwks: written.jwks,
    };
    if has_keys(&unlisted) {
        issuers.push(issuer(unlisted, at, report));
    } else {
        for (name, written) in [("issuer", &unlisted.issuer), ("audience", &unlisted.audience)] {
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
        if !has_keys(&written) && !report.has_fault_within(&at) {
            report.fault(&at, "has no keys; write keys or jwks");
        }
        let issuer = issuer(written, &at, report);
        if issuer.name.is_some() && issuers.iter().any(|other| other.name == issuer.name) {
            report.fault(&at.key("issuer"), "is that of another issuer; write each issuer once");
        }
        issuers.push(issuer);
    }
    let rules = JwtRules {
        leeway: written.leeway.map_or(Duration::ZERO, |span| span.0.0),
        require_record: written.require_record.is_none_or(|required| required.0),
    };
    Jwt { issuers, rules }
}

/// Whether any key or set of keys is written.
fn has_keys(written: &file::JwtIssuer) -> bool {
    written.keys.as_ref().is_some_and(|keys| !keys.is_empty()) || written.jwks.is_some()
}

fn issuer(written: file::JwtIssuer, at: &KeyPath, report: &mut Report) -> IssuerRules {
    IssuerRules {
        name: written.issuer.map(|text| text.0),
        audience: written.audience.map(|text| text.0),
        keys: keys(written.keys, &at.key("keys"), report),
        jwks: written.jwks.and_then(|written| jwks(written, &at.key("jwks"), report)),
    }
}

fn keys(written: file::List<file::JwtKey>, at: &KeyPath, report: &mut Report) -> Vec<IssuerKey> {
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
        match IssuerKey::new(algorithm, kid.clone(), material) {
            Ok(key) => {
                // A JWK may bring its own kid.
                check_kid(&mut kids, &key.kid().map(str::to_owned), &at, report);
                keys.push(key);
            }
            Err(error) => {
                report.fault(&at.key(source), error);
                check_kid(&mut kids, &kid, &at, report);
            }
        }
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
            // Nothing is missing where a value was written and refused.
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
