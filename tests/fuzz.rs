//! The parsers of credentials, key sets and records, fed with the committed corpus, changed at random.
//! Any client may send credentials, any issuer key sets, and any program that reaches Redis may write records.
//! `make fuzz` runs the test at length; a failure prints the seed that repeats the run (`TOLLGATE_FUZZ_SEED`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, header};
use tollgate::auth::guard::GuardedClient;
use tollgate::auth::jwks;
use tollgate::auth::jwt::{Issuer, JwtRules, JwtVerifier};
use tollgate::auth::sources::Sources;
use tollgate::auth::verification::{Algorithm, VerificationKey};
use tollgate::auth::{AuthRules, Authenticator};
use tollgate::base::clock::{Clock, ManualClock, UnixTime};
use tollgate::quota;
use tollgate::record::key;
use tollgate::record::{RateRule, TokenRecord};
use tollgate::store::StoredRecord;

/// Changed inputs a target is run with, unless `TOLLGATE_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 30_000;

/// Longest input.
const MAX_INPUT: usize = 16 << 10;

/// Runs `target` with every input of the corpus, then with changed ones.
fn fuzz(corpus: &str, words: &[&str], mut target: impl FnMut(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz").join(corpus);
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let inputs: Vec<Vec<u8>> = names.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(inputs.len() >= 5, "the corpus is missing");
    for input in &inputs {
        target(input);
    }
    let first = number("TOLLGATE_FUZZ_SEED");
    let seeds = first.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let runs = if first.is_some() { 1 } else { number("TOLLGATE_FUZZ_RUNS").unwrap_or(RUNS) };
    for seed in seeds..seeds + runs {
        let input = changed(&inputs, words, &mut Rng::with_seed(seed));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input)));
        if let Err(panic) = result {
            eprintln!("TOLLGATE_FUZZ_SEED={seed}: {:?}", String::from_utf8_lossy(&input));
            std::panic::resume_unwind(panic);
        }
    }
}

/// An input of the corpus, changed in a single place or several.
fn changed(inputs: &[Vec<u8>], words: &[&str], random: &mut Rng) -> Vec<u8> {
    let mut input = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..20)).min(input.len());
        match random.u8(..8) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => input.insert(at, random.u8(..)),
            3 => drop(input.drain(at..end)),
            4 => {
                let word = words[random.usize(..words.len())];
                drop(input.splice(at..end, word.bytes()));
            }
            5 => {
                let other = &inputs[random.usize(..inputs.len())];
                let from = random.usize(..=other.len());
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            6 => {
                let again = input[at..end].repeat(random.usize(1..50));
                drop(input.splice(at..at, again));
            }
            _ => input.truncate(at),
        }
    }
    input.truncate(MAX_INPUT);
    input
}

#[test]
fn no_credential_opens_the_door_but_the_right_ones() {
    let secret = b"fuzz-0123456789abcdef0123456789abcdef";
    let key = VerificationKey::from_secret(Algorithm::Hs256, None, secret).unwrap();
    let issuers = vec![Issuer { keys: vec![key], ..Issuer::default() }];
    let jwt_rules = JwtRules { leeway: Duration::ZERO, require_record: false };
    let right = "tg_0123456789ABCDEFGHIJKLMNOPQRSTUV10DJZz";
    let id = key::hash(right).unwrap();
    let record = TokenRecord::read(&id, &StoredRecord::Json("{}".into())).unwrap();
    let rules = AuthRules {
        jwt: Arc::new(JwtVerifier::new(issuers, jwt_rules)),
        records: HashMap::from([(id, Arc::new(record))]),
    };
    let (authenticator, sources) = (Authenticator::new(None), Sources::default());
    let clock = ManualClock::new(UnixTime::from_secs(1_000_000));
    let words = ["Bearer ", ".", "..", "tg_", "eyJ", "eyJhbGciOiJub25lIn0", "=", " ", "\t", "e30"];
    let mut opened = 0;
    fuzz("credential", &words, |input| {
        let Ok(value) = HeaderValue::from_bytes(input) else { return };
        for name in [header::AUTHORIZATION, header::HeaderName::from_static("x-api-key")] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.clone());
            let Ok(Some(sent)) = sources.sent(&headers, None) else { continue };
            let answer = authenticator
                .authenticate(&rules, &sent, GuardedClient::ANY, clock.now(), &clock)
                .now_or_never()
                .unwrap();
            if answer.is_ok() {
                opened += 1;
                let text = value.to_str().unwrap();
                let credential = text.rsplit([' ', '\t']).find(|part| !part.is_empty()).unwrap();
                assert_eq!(credential, right, "{text}");
            }
        }
    });
    assert!(opened > 0, "the right one never came");
}

#[test]
fn a_record_is_understood_whole_or_refused() {
    let id: Arc<str> = "k".into();
    let words = [
        "\"rate_limit\":",
        "\"limits\":",
        "\"expires_at\":",
        "\"allowed_routes\":",
        "\"disabled\":",
        "true",
        "null",
        "1/second",
        "{\"rate\":",
        "\"burst\":",
        "[",
        "]",
        "}",
        ",",
        "1e999",
        "-",
        "0",
        "\"by\":\"route\"",
        "18446744073709551616",
        "2030-01-01T00:00:00Z",
        "\\u0000",
        "\"",
    ];
    let mut understood = 0;
    fuzz("record", &words, |input| {
        let text = String::from_utf8_lossy(input).into_owned();
        let Ok(record) = TokenRecord::read(&id, &StoredRecord::Json(text.clone())) else { return };
        understood += 1;
        assert_eq!((record.id(), &*record.subject), ("k", "token:k"));
        for name in [&record.grant.plan, &record.grant.organization_id].into_iter().flatten() {
            assert!(name.as_str().bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
        }
        match &record.grant.rate {
            Some(RateRule::Bare(quota)) => assert!(*quota > 0),
            Some(RateRule::Limits(own)) => {
                let groups = own.groups(quota::Algorithm::FixedWindow);
                let mut limits = groups.iter().flat_map(|group| group.limits.iter());
                assert!(limits.all(|limit| limit.quota > 0 && limit.window > Duration::ZERO));
            }
            None => {}
        }
        // The same record as a hash, whose fields are the members' texts.
        // A member that is passed over may hold a number that no type can.
        let Ok(members) = serde_json::from_str(&text) else { return };
        let members: serde_json::Map<String, serde_json::Value> = members;
        let fields = members.into_iter().filter(|(_, value)| !value.is_null());
        let fields: HashMap<String, String> = fields
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect();
        if fields.values().all(|text| !text.is_empty()) {
            assert_eq!(TokenRecord::read(&id, &StoredRecord::Fields(fields)), Ok(record));
        }
    });
    assert!(understood > 0, "no record was understood");
}

#[test]
fn a_set_of_keys_is_read_or_refused() {
    let words = [
        "\"kty\":",
        "\"RSA\"",
        "\"EC\"",
        "\"OKP\"",
        "\"oct\"",
        "\"crv\":\"P-521\"",
        "\"alg\":",
        "\"none\"",
        "\"kid\":",
        "\"x\":",
        "AQAB",
        "\"e\":\"\"",
        "\"n\":\"AA\"",
        "\"key_ops\":[\"verify\"]",
        "{",
        "}",
        ",",
    ];
    let url = jwks::Source::Url("https://issuer.example/".parse().unwrap());
    let mut read = 0;
    fuzz("keys", &words, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(keys) = jwks::read(text, &url) else { return };
        read += 1;
        for key in keys {
            assert!(!key.algorithm().is_symmetric(), "a published secret");
            assert!(!key.verify(b"message", b"signature"));
        }
    });
    assert!(read > 0, "no set was read");
}
