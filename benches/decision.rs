//! What a decision costs when everything it needs is in memory: one by the ledger from tokens in hand, one about a token
//! that was verified before. `cargo bench --bench decision`. It must not know Pingora or Redis; `load` measures requests.

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use futures_util::FutureExt;
use http::{HeaderMap, header};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tollgate::auth::jwt::{Issuer, JwtRules, JwtVerifier};
use tollgate::auth::record::TokenRecord;
use tollgate::auth::verification::{Algorithm, VerificationKey};
use tollgate::auth::{AuthRules, Authenticator};
use tollgate::clock::{Clock, SystemClock};
use tollgate::limit::ledger::{FailurePolicy, Ledger, Sync, Terms};
use tollgate::quota::Limit;
use tollgate::store::StoredRecord;
use tollgate::store::memory::MemoryQuota;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Anything that went wrong, in words for the person who started the bench.
type Failure = Box<dyn Error>;

/// So many decisions are made before leases that were asked for get a chance to arrive.
const DECISIONS_BETWEEN_FLIGHTS: u64 = 64;

const SECRET: &[u8] = b"signs the tokens of the decision bench and nothing else, 64 byte";

fn main() -> Result<(), Failure> {
    let mut criterion = Criterion::default().configure_from_args();
    ledger(&mut criterion)?;
    credential(&mut criterion)?;
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
    let terms = Terms { sync: Sync::Leased, on_failure: FailurePolicy::Deny, gateways: 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    criterion.bench_function("ledger, tokens in hand", |bencher| {
        bencher.iter_custom(|decisions| {
            runtime.block_on(async {
                let started = Instant::now();
                for nth in 0..decisions {
                    let decision = ledger.admit(black_box(&subject), &limits, terms).await;
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

/// A token of about 300 bytes that was verified before, its record in memory.
fn credential(criterion: &mut Criterion) -> Result<(), Failure> {
    let clock = SystemClock::default();
    let id: Arc<str> = "bench".into();
    let record = TokenRecord::read(&id, &StoredRecord::Json(json!({"plan": "pro"}).to_string()))?;
    let key = VerificationKey::from_secret(Algorithm::Hs256, None, SECRET)?;
    let issuer = Issuer { keys: vec![key], ..Issuer::default() };
    let jwt_rules = JwtRules { leeway: Duration::ZERO, require_record: true };
    let rules = AuthRules {
        jwt: Arc::new(JwtVerifier::new(vec![issuer], jwt_rules)),
        records: HashMap::from([(id, Arc::new(record))]),
    };
    let claims = json!({
        "api_key": "bench",
        "exp": 4_000_000_000_u64,
        "iss": "https://accounts.example.com/",
        "sub": "b7e0a2f1-5a55-4c0e-9f0b-6f0a3b1f6a11",
        "jti": "01890a5d-ac96-774b-bcce-b302099a8057",
        "scope": "read write",
    });
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse()?);
    let authenticator = Authenticator::new(None);
    criterion.bench_function("credential, verified before", |bencher| {
        bencher.iter(|| {
            let principal =
                authenticator.authenticate(&rules, black_box(&headers), clock.now()).now_or_never();
            assert!(principal.is_some_and(|principal| principal.is_ok()));
        });
    });
    Ok(())
}
