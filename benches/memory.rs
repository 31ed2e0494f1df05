//! The memory that a gateway needs: `cargo bench --bench memory`. A million subjects of the ledger, each of which has made a
//! single request, as at the worst moment of a flood of tokens (the ledger forgets idle subjects within seconds); a hundred
//! thousand verified JWTs of some 300 bytes, each with its record; and ten thousand idle connections of a running gateway.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use jsonwebtoken::{EncodingKey, Header, encode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tollgate::auth::cache::{CacheRules, Records, Revocations, StoreCache};
use tollgate::auth::guard::GuardedClient;
use tollgate::auth::jwt::{Issuer, JwtRules, JwtVerifier};
use tollgate::auth::verification::{Algorithm, VerificationKey};
use tollgate::auth::{AuthRules, Authenticator, Stored};
use tollgate::base::clock::{Clock, SystemClock, UnixTime};
use tollgate::limit::ledger::{FailurePolicy, Ledger, SyncMode, Terms, Weight};
use tollgate::quota::{Limit, Standing};
use tollgate::store::{
    Adjustment, Grant, KeptRecord, QuotaStore, RecordReader, StoreError, StoredRecord,
};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SECRET: &[u8] = b"signs the tokens of the memory bench and nothing else, 64 bytes.";
const TOKENS: usize = 100_000;
const SUBJECTS: usize = 1_000_000;
const CONNECTIONS: usize = 10_000;
const CONFIG: &str = r#"
server: { threads: 1 }
listeners: [ { address: "127.0.0.1:0" } ]
metrics: { address: none }
log: { access: false }
max_connections: 20000
max_connections_per_client: none
timeouts: { idle: 10m }
upstreams: { up: { endpoints: [ "http://127.0.0.1:1" ] } }
routes: [ { prefix: /, upstream: up, auth: none } ]
"#;
/// Subjects beyond the bound, which must need no memory.
const BEYOND: usize = 500_000;

/// Grants everything and keeps nothing, so that only the ledger's memory is seen.
struct Generous;

#[async_trait]
impl QuotaStore for Generous {
    async fn take_at_least(
        &self,
        _: &str,
        limits: &[Limit],
        _: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        let standing = Standing { left: 1_000, reset_after: Duration::from_secs(60) };
        let standings = limits.iter().map(|_| standing).collect();
        Ok(Grant { granted: wanted, now: UnixTime::from_secs(1_700_000_000), standings })
    }

    async fn adjust(&self, _: &str, _: &[Limit], _: &Adjustment, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    connections()?;
    tokens()?;
    subjects()
}

/// Idle connections of a gateway with one thread: what each costs, and what is left a minute after they have closed.
fn connections() -> Result<(), Box<dyn Error>> {
    let limit =
        Rlimit { current: getrlimit(Resource::Nofile).maximum, ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit)?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("tollgate.yaml");
    std::fs::write(&config, CONFIG)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let mut gateway =
        Ended(command.arg("run").arg("-c").arg(&config).stdout(Stdio::piped()).spawn()?);
    let mut log = BufReader::new(gateway.0.stdout.take().ok_or("no log")?);
    let mut line = String::new();
    let address = loop {
        line.clear();
        if log.read_line(&mut line)? == 0 {
            return Err("the gateway has ended".into());
        }
        if let Some((_, address)) = line.split_once("listening on ") {
            break address.split('"').next().unwrap_or_default().to_owned();
        }
    };
    let statm = format!("/proc/{}/statm", gateway.0.id());
    let ask = |connection: &mut TcpStream| -> Result<(), Box<dyn Error>> {
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut answer = [0; 1024];
        let mut read = 0;
        while !answer[..read].ends_with(b"}\n") {
            read += connection.read(&mut answer[read..])?;
        }
        Ok(())
    };
    // The memory that the first connections need belongs to none of them.
    let mut first = TcpStream::connect(&*address)?;
    for _ in 0..100 {
        ask(&mut first)?;
    }
    let before = resident_bytes_of(&statm)?;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = TcpStream::connect(&*address)?;
        ask(&mut connection)?;
        idle.push(connection);
    }
    let full = resident_bytes_of(&statm)?;
    drop(idle);
    std::thread::sleep(Duration::from_secs(60));
    let after = resident_bytes_of(&statm)?;
    let each = full.saturating_sub(before) as f64 / CONNECTIONS as f64 / 1024.0;
    println!("{CONNECTIONS} idle connections: {each:.1} KiB each");
    println!(
        "a minute after they have closed: {:.0} % of before",
        after as f64 / before as f64 * 100.0
    );
    Ok(())
}

/// A process that ends with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Verified tokens and their records.
fn tokens() -> Result<(), Box<dyn Error>> {
    let key = VerificationKey::from_secret(Algorithm::Hs256, None, SECRET)?;
    let issuer = Issuer { keys: vec![key], ..Issuer::default() };
    let jwt_rules = JwtRules { leeway: Duration::ZERO, require_record: true };
    let rules = AuthRules {
        jwt: Arc::new(JwtVerifier::new(vec![issuer], jwt_rules)),
        records: HashMap::new(),
    };
    let (store, clock) = (Arc::new(Everyone), Arc::new(SystemClock::default()));
    let cache_rules =
        CacheRules { ttl: Duration::from_secs(3_600), entries: TOKENS, max_stale: Duration::ZERO };
    let authenticator = Authenticator::new(Some(Stored {
        records: StoreCache::new(Records(store.clone()), clock.clone(), cache_rules, |_| {}),
        revocations: StoreCache::new(Revocations(store), clock.clone(), cache_rules, |_| {}),
    }));
    let signing = EncodingKey::from_secret(SECRET);
    let token = |nth: usize| {
        let claims = json!({
            "api_key": format!("01890a5d-ac96-774b-bcce-{nth:012}"),
            "exp": 4_000_000_000_u64,
            "iat": 1_700_000_000,
            "iss": "https://accounts.example.com/",
            "sub": format!("b7e0a2f1-5a55-4c0e-9f0b-{nth:012}"),
        });
        encode(&Header::default(), &claims, &signing)
    };
    let before = resident_bytes()?;
    for nth in 0..TOKENS {
        let claims = rules.jwt.verify(&token(nth)?, GuardedClient::ANY, &*clock).now_or_never();
        claims.ok_or("a verification that waits")??;
    }
    let verified = resident_bytes()?;
    for nth in 0..TOKENS {
        let token = token(nth)?;
        let principal = authenticator
            .authenticate(&rules, token.as_bytes(), GuardedClient::ANY, clock.now(), &*clock)
            .now_or_never();
        principal.ok_or("a store that waits")??;
    }
    let full = resident_bytes()?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    println!(
        "{TOKENS} verified tokens of {} bytes: {:.1} MB",
        token(0)?.len(),
        megabytes(verified - before)
    );
    println!("with their records: {:.1} MB", megabytes(full - before));
    // Memory that is freed now would be counted for the next measurement.
    std::mem::forget((authenticator, rules));
    Ok(())
}

/// A store in which every token has a record.
struct Everyone;

#[async_trait]
impl RecordReader for Everyone {
    async fn read(&self, _: &str) -> Result<Option<KeptRecord>, StoreError> {
        let text = r#"{"plan":"premium","organization_id":"acme"}"#;
        Ok(Some(KeptRecord { record: StoredRecord::Json(text.into()), expires_in: None }))
    }

    async fn is_revoked(&self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// Subjects of the ledger.
fn subjects() -> Result<(), Box<dyn Error>> {
    let clock = Arc::new(SystemClock::default());
    let ledger = Arc::new(Ledger::new(Arc::new(Generous), clock, SUBJECTS));
    let limits: Arc<[Limit]> = [Limit::parse("1000/minute")?].into();
    let terms = Terms { sync: SyncMode::Exact, on_failure: FailurePolicy::Deny, gateways: 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let ask = |from: usize, to: usize| {
        runtime.block_on(async {
            for nth in from..to {
                // As long as a token that is named by a UUID.
                let subject = format!("token:01890a5d-ac96-774b-bcce-{nth:012}");
                ledger.admit(&subject, &limits, Weight::ONE, terms).await?;
            }
            Ok::<_, StoreError>(())
        })
    };
    let before = resident_bytes()?;
    ask(0, SUBJECTS)?;
    let full = resident_bytes()?;
    ask(SUBJECTS, SUBJECTS + BEYOND)?;
    let beyond = resident_bytes()?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("{} subjects: {:.0} MiB", ledger.subjects(), mib(full - before));
    println!("bytes a subject: {}", (full - before) / SUBJECTS);
    println!("{BEYOND} more, beyond the bound: {:.1} MiB", mib(beyond.saturating_sub(full)));
    Ok(())
}

/// Memory of this process that is in RAM (proc(5), statm).
fn resident_bytes() -> Result<usize, Box<dyn Error>> {
    resident_bytes_of("/proc/self/statm")
}

/// The same of the process with this statm.
fn resident_bytes_of(statm: &str) -> Result<usize, Box<dyn Error>> {
    const PAGE_BYTES: usize = 4096;
    let statm = std::fs::read_to_string(statm)?;
    let pages: usize = statm.split(' ').nth(1).ok_or("no second field in statm")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
