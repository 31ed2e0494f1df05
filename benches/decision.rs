//! The cost of decisions whose data is in memory: a decision of the ledger from units that it holds, and decisions about
//! credentials; the search for a route; and the cost of a token that is seen for the first time. `cargo bench --bench decision`. It must not know
//! Pingora or Redis; `load` measures requests.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::Criterion;
use futures_util::FutureExt;
use http::{HeaderMap, header};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::json;
use support::Signer;
use tollgate::auth::cache::{CacheRules, Records, Revocations, StoreCache};
use tollgate::auth::guard::GuardedClient;
use tollgate::auth::jwt::{Issuer, JwtRules, JwtVerifier};
use tollgate::auth::sources::Sources;
use tollgate::auth::verification::{Algorithm, VerificationKey};
use tollgate::auth::{AuthRules, Authenticator, Stored};
use tollgate::base::clock::{Clock, ManualClock, SystemClock, UnixTime};
use tollgate::limit::ledger::{FailurePolicy, Ledger, SyncMode, Terms, Weight};
use tollgate::quota::Limit;
use tollgate::route::host_pattern::HostPattern;
use tollgate::route::table::{Found, Matcher, RouteTable};
use tollgate::store::memory::MemoryQuota;
use tollgate::store::{KeptRecord, RecordReader, StoreError, StoredRecord};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An error, as text for the person who started the bench.
type Failure = Box<dyn Error>;

/// How many decisions are made before leases that were asked for can arrive.
const DECISIONS_BETWEEN_FLIGHTS: u64 = 64;

/// Routes of one table.
const ROUTES: usize = 10_000;

/// Tokens of one algorithm.
const TOKENS: usize = 1_000;

const SECRET: &[u8] = b"signs the tokens of the decision bench and nothing else, 64 byte";

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default().configure_from_args();
    ledger(&mut criterion)?;
    credential(&mut criterion)?;
    first_verification(&mut criterion)?;
    routes(&mut criterion);
    criterion.final_summary();
    Ok(())
}

/// Leased mode, a limit that is never reached.
fn ledger(criterion: &mut Criterion) -> Result<(), Failure> {
    let clock = Arc::new(SystemClock::default());
    let store = Arc::new(MemoryQuota::new(Arc::clone(&clock), 10));
    let ledger = Arc::new(Ledger::new(store, clock, 10));
    let subject: Arc<str> = "token:bench".into();
    let limits: Arc<[Limit]> = [Limit::parse("1000000000/minute")?].into();
    let terms = Terms { sync: SyncMode::Leased, on_failure: FailurePolicy::Deny, gateways: 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    criterion.bench_function("ledger, tokens in hand", |bencher| {
        bencher.iter_custom(|decisions| {
            runtime.block_on(async {
                let started = Instant::now();
                for nth in 0..decisions {
                    let decision =
                        ledger.admit(black_box(&subject), &limits, Weight::ONE, terms).await;
                    assert!(decision.is_ok_and(|decision| decision.admitted));
                    if nth % DECISIONS_BETWEEN_FLIGHTS == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                started.elapsed()
            })
        });
    });
    Ok(())
}

/// A token of about 300 bytes that was verified before, and an opaque key; the records of both in memory.
fn credential(criterion: &mut Criterion) -> Result<(), Failure> {
    let clock = SystemClock::default();
    let key = VerificationKey::from_secret(Algorithm::Hs256, None, SECRET)?;
    let rules = AuthRules { jwt: Arc::new(verifier(key)), records: HashMap::new() };
    let token = encode(&Header::default(), &claims(0), &EncodingKey::from_secret(SECRET))?;
    let authenticator = Authenticator::new(Some(stored()));
    let sources = Sources::default();
    for (name, credential) in [
        ("credential, verified before", token),
        ("credential, opaque key", "tg_0123456789ABCDEFGHIJKLMNOPQRSTUV10DJZz".to_owned()),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {credential}").parse()?);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let sent = sources.sent(black_box(&headers), None).ok().flatten();
                let principal = authenticator
                    .authenticate(
                        &rules,
                        &sent.unwrap_or_default(),
                        GuardedClient::ANY,
                        clock.now(),
                        &clock,
                    )
                    .now_or_never();
                assert!(principal.is_some_and(|principal| principal.is_ok()));
            });
        });
    }
    Ok(())
}

/// Tokens seen for the first time, next to the library that made them; and to the signature alone.
fn first_verification(criterion: &mut Criterion) -> Result<(), Failure> {
    for (name, algorithm) in [
        ("HS256", jsonwebtoken::Algorithm::HS256),
        ("RS256", jsonwebtoken::Algorithm::RS256),
        ("ES256", jsonwebtoken::Algorithm::ES256),
        ("EdDSA", jsonwebtoken::Algorithm::EdDSA),
    ] {
        let signer = Signer::new(name);
        let ours = Algorithm::named(name).ok_or("an algorithm")?;
        let pem = if signer.secret().is_none() { signer.pem() } else { String::new() };
        let key = || match signer.secret() {
            Some(secret) => VerificationKey::from_secret(ours, None, secret),
            None => VerificationKey::from_public(ours, None, &pem),
        };
        let theirs = match (signer.secret(), name) {
            (Some(secret), _) => DecodingKey::from_secret(secret),
            (None, "RS256") => DecodingKey::from_rsa_pem(pem.as_bytes())?,
            (None, "ES256") => DecodingKey::from_ec_pem(pem.as_bytes())?,
            (None, _) => DecodingKey::from_ed_pem(pem.as_bytes())?,
        };
        let tokens: Vec<String> = (0..TOKENS).map(|nth| signer.token(None, &claims(nth))).collect();
        let mut next = (0..TOKENS).cycle();
        let mut token = || &tokens[next.next().unwrap_or(0)];
        let parts: Vec<(&str, Vec<u8>)> = tokens
            .iter()
            .filter_map(|token| token.rsplit_once('.'))
            .map(|(message, signature)| {
                (message, URL_SAFE_NO_PAD.decode(signature).unwrap_or_default())
            })
            .collect();
        let mut part = (0..TOKENS).cycle();
        let alone = key()?;
        criterion.bench_function(&format!("{name}: signature alone"), |bencher| {
            bencher.iter(|| {
                let (message, signature) = &parts[part.next().unwrap_or(0)];
                assert!(alone.verify(message.as_bytes(), signature));
            });
        });
        let clock = ManualClock::new(UnixTime::from_secs(1_000_000));
        criterion.bench_function(&format!("{name}: first verification"), |bencher| {
            bencher.iter_custom(|count| {
                let (mut left, mut elapsed) =
                    (usize::try_from(count).unwrap_or(usize::MAX), Duration::ZERO);
                while left > 0 {
                    let runtime = tokio::runtime::Builder::new_current_thread().build();
                    // A verifier that has verified none of the tokens.
                    let verifier = key().map(verifier);
                    let started = Instant::now();
                    for token in tokens.iter().take(left) {
                        let claims = match (&verifier, &runtime) {
                            (Ok(verifier), Ok(runtime)) => {
                                let verify = verifier.verify(token, GuardedClient::ANY, &clock);
                                runtime.block_on(verify).ok()
                            }
                            _ => None,
                        };
                        assert!(claims.is_some());
                    }
                    elapsed += started.elapsed();
                    left = left.saturating_sub(TOKENS);
                }
                elapsed
            });
        });
        let mut validation = Validation::new(algorithm);
        validation.validate_aud = false;
        criterion.bench_function(&format!("{name}: jsonwebtoken::decode"), |bencher| {
            bencher.iter(|| {
                assert!(decode::<serde_json::Value>(token(), &theirs, &validation).is_ok());
            });
        });
    }
    Ok(())
}

/// The search for a route among 10,000: routes that differ in their prefixes, in their hosts, and in the names that they
/// serve all hosts of.
fn routes(criterion: &mut Criterion) {
    type Case =
        (&'static str, fn(usize) -> (String, Option<String>), fn(usize) -> (String, String));
    let cases: [Case; 3] = [
        (
            "10,000 routes, by prefix",
            |nth| (format!("/api/v1/service-{nth}"), None),
            |nth| ("api.example.com".into(), format!("/api/v1/service-{nth}/users/7/orders")),
        ),
        (
            "10,000 routes, by host",
            |nth| ("/api".into(), Some(format!("tenant-{nth}.example.com"))),
            |nth| (format!("tenant-{nth}.example.com"), "/api/v1/users/7/orders".into()),
        ),
        (
            "10,000 routes, by wildcard",
            |nth| ("/api".into(), Some(format!("*.tenant-{nth}.example.com"))),
            |nth| (format!("eu.tenant-{nth}.example.com"), "/api/v1/users/7/orders".into()),
        ),
    ];
    for (name, route, request) in cases {
        let matcher = |nth| {
            let (prefix, host) = route(nth);
            let host = host.and_then(|host| HostPattern::parse(&host));
            (Matcher { prefix, host, methods: vec!["GET".into()] }, nth)
        };
        let table = RouteTable::new((0..ROUTES).map(matcher), false);
        let requests: Vec<_> = (0..ROUTES).map(request).collect();
        let mut next = (0..ROUTES).cycle();
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let nth = next.next().unwrap_or(0);
                let (host, path) = &requests[nth];
                let found = table.find(|| Some(host), black_box(path), "GET");
                assert_eq!(found, Found::Route(&nth));
            });
        });
    }
}

fn claims(nth: usize) -> serde_json::Value {
    json!({
        "api_key": "bench",
        "exp": 4_000_000_000_u64,
        "iss": "https://accounts.example.com/",
        "sub": "b7e0a2f1-5a55-4c0e-9f0b-6f0a3b1f6a11",
        "jti": format!("01890a5d-ac96-774b-bcce-{nth:012}"),
        "scope": "read write",
    })
}

fn verifier(key: VerificationKey) -> JwtVerifier {
    let rules = JwtRules { leeway: Duration::ZERO, require_record: true };
    JwtVerifier::new(vec![Issuer { keys: vec![key], ..Issuer::default() }], rules)
}

/// A store in which every token has a record.
struct Everyone;

#[async_trait]
impl RecordReader for Everyone {
    async fn read(&self, _: &str) -> Result<Option<KeptRecord>, StoreError> {
        let record = StoredRecord::Json(r#"{"plan":"pro"}"#.into());
        Ok(Some(KeptRecord { record, expires_in: None }))
    }

    async fn is_revoked(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
}

fn stored() -> Stored {
    let (store, clock) = (Arc::new(Everyone), Arc::new(SystemClock::default()));
    let rules =
        CacheRules { ttl: Duration::from_secs(3_600), entries: 100_000, max_stale: Duration::ZERO };
    Stored {
        records: StoreCache::new(Records(store.clone()), clock.clone(), rules, |_| {}),
        revocations: StoreCache::new(Revocations(store), clock, rules, |_| {}),
    }
}
