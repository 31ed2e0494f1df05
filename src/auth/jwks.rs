//! Sets of an issuer's keys (RFC 7517 section 5), kept fresh from a file or an https URL.
//!
//! A set is fetched before the first request needs it, then at intervals in the background. A token that names an
//! unknown key leads to one more fetch, which all waiting requests share, at most every ten seconds. A fetch that
//! fails leaves the set as it was.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use flate2::read::MultiGzDecoder;
use log::{info, warn};
use parking_lot::Mutex;
use rustls::crypto::ring;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};
use url::Url;

use super::verification::{Jwk, VerificationKey};
use crate::base::files::read_text;
use crate::base::task::detach;

/// Largest set that is read, in bytes.
const MAX_BYTES: u64 = 256 << 10;

/// Most keys of a set.
const MAX_KEYS: usize = 100;

/// How long after one fetch an unknown `kid` may lead to another.
const REFETCH: Duration = Duration::from_secs(10);

/// How much longer a request waits for a fetch than the fetch may take.
const MARGIN: Duration = Duration::from_millis(500);

/// How long after a failure the next try is, at first; the time doubles up to a minute, and to `refresh`.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Where a set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// An https URL, whose redirects are not followed.
    Url(Url),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // What follows the path may hold a key.
            Self::Url(url) => write!(f, "{}{}", url.origin().ascii_serialization(), url.path()),
        }
    }
}

/// Where a set comes from and how often it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksRules {
    /// Where the set comes from.
    pub source: Source,
    /// How long a set is used before it is fetched again, give or take a tenth.
    pub refresh: Duration,
    /// How long a fetch may take.
    pub timeout: Duration,
}

/// The keys of a set, and its generation.
#[derive(Debug, Default)]
pub struct KeySet {
    /// The keys that can be used.
    pub keys: Vec<VerificationKey>,
    /// How many sets differed from the set before; 0 before the first set.
    pub generation: u32,
    text: String,
}

/// Why there is no new set.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(String);

/// A set of keys that keeps itself fresh.
pub struct Jwks {
    rules: JwksRules,
    current: ArcSwap<KeySet>,
    state: Mutex<State>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    on_fetch: fn(bool),
}

#[derive(Default)]
struct State {
    fetching: bool,
    began: Option<Instant>,
    due: Option<Instant>,
    failures: u32,
    fetched: bool,
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Jwks {
    /// A set that has not been fetched yet; `on_fetch` is told of each fetch whether it succeeded.
    pub fn new(rules: JwksRules, on_fetch: fn(bool)) -> Self {
        let (current, state) = (ArcSwap::default(), Mutex::default());
        Self { rules, current, state, ended: watch::Sender::new(0), on_fetch }
    }

    /// The same set, to be fetched by other rules from the same source.
    pub fn with_rules(&self, rules: JwksRules) -> Self {
        let (known, state) = (self.current.load_full(), self.state.lock());
        let state = State { fetched: state.fetched, failures: state.failures, ..State::default() };
        let (current, state) = (ArcSwap::new(known), Mutex::new(state));
        Self { rules, current, state, ended: watch::Sender::new(0), on_fetch: self.on_fetch }
    }

    /// The rules of this set.
    pub fn rules(&self) -> &JwksRules {
        &self.rules
    }

    /// The set of the last fetch that succeeded.
    pub fn current(&self) -> arc_swap::Guard<Arc<KeySet>> {
        self.current.load()
    }

    /// Whether the issuer may have keys that are not known: the last fetch failed, or no fetch has ended.
    pub fn is_in_doubt(&self) -> bool {
        let state = self.state.lock();
        !state.fetched || state.failures > 0
    }

    /// Whether the last set that was fetched has no key that can be used.
    pub fn is_empty(&self) -> bool {
        self.state.lock().fetched && self.current.load().keys.is_empty()
    }

    /// Fetches if a fetch is due.
    pub async fn refresh(self: &Arc<Self>) {
        self.fetch_if(|state, now| state.due.is_none_or(|due| due <= now)).await;
    }

    /// Fetches before a new policy decides requests: a URL if a fetch is due, and a file always, since it may have
    /// changed.
    pub async fn learn(self: &Arc<Self>) {
        match self.rules.source {
            Source::Url(_) => self.refresh().await,
            Source::File(_) => self.fetch_if(|_, _| true).await,
        }
    }

    async fn fetch_if(self: &Arc<Self>, may: impl Fn(&State, Instant) -> bool) {
        if let Some(fetch) = self.begin(may) {
            fetch.run().await;
        }
    }

    /// Fetches because a token names an unknown key, unless a fetch began just now, and waits for the fetch to end.
    /// False when the fetch did not end in time.
    pub async fn refetch(self: &Arc<Self>) -> bool {
        let mut ended = self.ended.subscribe();
        let may = |state: &State, now: Instant| {
            state.began.is_none_or(|began| now.duration_since(began) >= REFETCH)
        };
        match self.begin(may) {
            // A task of its own, because the request that asks may go away.
            Some(fetch) => detach(fetch.run()),
            None if !self.state.lock().fetching => return true,
            None => {}
        }
        // The fetch ends at the timeout, or a little later.
        timeout(self.rules.timeout + MARGIN, ended.changed()).await.is_ok()
    }

    fn begin(self: &Arc<Self>, may: impl Fn(&State, Instant) -> bool) -> Option<Fetch> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.fetching || !may(&state, now) {
            return None;
        }
        state.fetching = true;
        state.began = Some(now);
        Some(Fetch(Arc::clone(self)))
    }

    fn fetched(&self, text: Result<String, FetchError>) {
        let set = text.and_then(|text| {
            if self.state.lock().fetched && self.current.load().text == text {
                return Ok(None);
            }
            Ok(Some((read(&text, &self.rules.source)?, text)))
        });
        let mut state = self.state.lock();
        let wait = match &set {
            Ok(_) => self.rules.refresh,
            Err(_) => RETRY
                .saturating_mul(1 << state.failures.min(10))
                .min(MAX_RETRY)
                .min(self.rules.refresh),
        };
        state.due = Some(Instant::now() + wait.mul_f64(0.9 + 0.2 * fastrand::f64()));
        let source = &self.rules.source;
        match set {
            Ok(set) => {
                if let Some((keys, text)) = set {
                    match keys.len() {
                        0 => warn!(
                            "keys of {source}: none can be used, so that no token is valid by them"
                        ),
                        usable => info!("keys of {source}: {usable} that can be used"),
                    }
                    let generation = self.current.load().generation.wrapping_add(1);
                    self.current.store(Arc::new(KeySet { keys, generation, text }));
                } else if state.failures > 0 {
                    info!("keys of {source} can be fetched again");
                }
                state.failures = 0;
                state.fetched = true;
                (self.on_fetch)(true);
            }
            Err(error) => {
                if state.failures == 0 {
                    let known = self.current.load().keys.len();
                    warn!("keys of {source} cannot be fetched, {known} known ones stay: {error}");
                }
                state.failures = state.failures.saturating_add(1);
                (self.on_fetch)(false);
            }
        }
    }
}

/// A fetch under way. Dropping it lets the next fetch begin, however this one ended.
struct Fetch(Arc<Jwks>);

impl Fetch {
    async fn run(self) {
        let rules = self.0.rules.clone();
        let fetch = tokio::task::spawn_blocking(move || fetch(&rules.source, rules.timeout));
        let text = fetch.await.unwrap_or_else(|died| Err(FetchError(died.to_string())));
        self.0.fetched(text);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.state.lock().fetching = false;
        self.0.ended.send_modify(|ended| *ended += 1);
    }
}

/// The text of the set. Blocks.
fn fetch(source: &Source, timeout: Duration) -> Result<String, FetchError> {
    match source {
        Source::File(path) => read_file(path),
        Source::Url(url) => get(url, timeout),
    }
}

fn read_file(path: &Path) -> Result<String, FetchError> {
    read_text(path, MAX_BYTES).map_err(|error| FetchError(error.to_string()))
}

fn get(url: &Url, timeout: Duration) -> Result<String, FetchError> {
    let failed = |error: ureq::Error| FetchError(error.to_string());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    let agent: Agent = Agent::config_builder()
        .https_only(true)
        .max_redirects(0)
        .timeout_global(Some(timeout))
        .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .into();
    let request = agent.get(url.as_str()).header("accept", "application/json");
    let mut answer = request.header("accept-encoding", "identity").call().map_err(failed)?;
    if answer.status() != 200 {
        return Err(FetchError(format!("http status: {}", answer.status().as_u16())));
    }
    // Some servers compress unasked (RFC 9110 section 8.4.1).
    let coding = answer.headers().get("content-encoding").map(|coding| coding.as_bytes());
    let is_coded_by =
        |name: &str| coding.is_some_and(|coding| coding.eq_ignore_ascii_case(name.as_bytes()));
    let is_gzip = is_coded_by("gzip") || is_coded_by("x-gzip");
    if coding.is_some() && !is_gzip && !is_coded_by("identity") {
        return Err(FetchError("compressed, and not with gzip".into()));
    }
    let body = answer.body_mut().with_config().limit(MAX_BYTES).reader();
    match is_gzip {
        true => read_body(MultiGzDecoder::new(body)),
        false => read_body(body),
    }
}

/// The text of a body, which may grow when it is decoded.
fn read_body(body: impl Read) -> Result<String, FetchError> {
    let mut text = String::new();
    let read = body.take(MAX_BYTES + 1).read_to_string(&mut text);
    match read.map_err(|error| FetchError(error.to_string()))? as u64 > MAX_BYTES {
        true => Err(FetchError(format!("larger than {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

/// Whether a set can be read from `source` now. Blocks; a URL is not fetched.
///
/// # Errors
/// [`FetchError`] says why not.
pub fn check(source: &Source) -> Result<(), FetchError> {
    match source {
        Source::File(path) => read(&read_file(path)?, source).map(drop),
        Source::Url(_) => Ok(()),
    }
}

/// Reads a set. Keys that cannot be used are passed over, because sets hold keys for other purposes too.
///
/// # Errors
/// [`FetchError`] when the text is no set.
pub fn read(text: &str, source: &Source) -> Result<Vec<VerificationKey>, FetchError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_str(text)
        .map_err(|error| FetchError(format!("not a JSON Web Key Set: {error}")))?;
    if set.keys.len() > MAX_KEYS {
        return Err(FetchError(format!("more than {MAX_KEYS} keys")));
    }
    let mut keys: Vec<VerificationKey> = Vec::new();
    for (nth, key) in set.keys.into_iter().enumerate() {
        let skipped = |why: &dyn std::fmt::Display| {
            warn!("keys of {source}: key {nth} is passed over: it {why}")
        };
        let jwk: Jwk = match serde_json::from_value(key) {
            Ok(jwk) => jwk,
            Err(error) => {
                skipped(&format!("is no JWK: {error}"));
                continue;
            }
        };
        if jwk.is_symmetric() && matches!(source, Source::Url(_)) {
            skipped(&"is a secret that was published");
            continue;
        }
        match jwk.key(None) {
            Err(error) => skipped(&error),
            // No token can name the later key. Keys without a kid are all tried.
            Ok(key) if key.kid().is_some() && keys.iter().any(|known| same_name(known, &key)) => {
                skipped(&"has the kid of an earlier one");
            }
            Ok(key) => keys.push(key),
        }
    }
    Ok(keys)
}

/// Whether no token could name one key and not the other. The first of such keys is used.
fn same_name(a: &VerificationKey, b: &VerificationKey) -> bool {
    (a.kid(), a.algorithm()) == (b.kid(), b.algorithm())
}
