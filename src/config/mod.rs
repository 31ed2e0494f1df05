//! The configuration as valid values. What people write is in `file`; nothing here can be wrong.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;
use serde_json::{Map, Value};
use url::Url;

use crate::auth::jwks::JwksRules;
use crate::auth::verification::{self, KeyError, VerificationKey};
use crate::base::secret::Secret;
use crate::quota::Algorithm;
use crate::quota::rule::LimitRule;
use crate::record::TokenRecord;
use crate::record::key::is_hash;

mod address;
mod compile;
mod environment;
mod fault;
mod file;
mod key_path;
mod load;
mod location;
mod matching;
mod scalar;
mod structure;
mod words;

pub use environment::Environment;
pub use fault::Faults;
pub use load::{load, parse};

/// Everything the configuration file and the environment say, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process: threads and shutdown.
    pub server: Server,
    /// Where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// Where Prometheus scrapes; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged and how.
    pub log: Log,
    /// Deadlines towards the client.
    pub timeouts: ClientTimeouts,
    /// Largest request body, in bytes.
    pub max_body: u64,
    /// Client connections open at the same time.
    pub max_connections: usize,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The shared store; `None` for the embedded one.
    pub redis: Option<Redis>,
    /// How tokens are checked.
    pub auth: Auth,
    /// Named sets of limits that records refer to.
    pub plans: BTreeMap<String, Arc<[LimitRule]>>,
    /// How limits behave.
    pub limits: Limits,
    /// Where requests go, by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Which requests go where; every `upstream` of theirs exists.
    pub routes: Vec<Route>,
}

/// Pingora's `ServerConf` keys that concern a gateway in the foreground, by their own names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Worker threads; never 0 here (0 in the file is one per core).
    pub threads: usize,
    /// Seconds from SIGTERM on in which `/ready` says no and requests are still accepted.
    pub grace_period_seconds: u64,
    /// Seconds that requests in flight may take after that.
    pub graceful_shutdown_timeout_seconds: u64,
    /// Idle upstream connections kept, per worker thread pool.
    pub upstream_keepalive_pool_size: usize,
    /// The socket over which a successor takes the listeners.
    pub upgrade_sock: String,
}

/// One address clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `host:port`; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// Whether console text is coloured.
    pub color: LogColor,
    /// Whether each request gets a line.
    pub access: bool,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Console,
}

/// When console text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogColor {
    /// When the output is a terminal and `NO_COLOR` is unset.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Deadlines towards the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// From the first byte of a request to the end of its header.
    pub header: Duration,
    /// Between two reads of a request body.
    pub read: Duration,
    /// For one write of an answer.
    pub write: Duration,
    /// Between two requests on a connection.
    pub idle: Duration,
}

/// The shared store.
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis://` or `rediss://`, with user, password and database; secret because of the password.
    pub url: Secret,
    /// Deadline of one operation.
    pub timeout: Duration,
}

/// How tokens are checked.
#[derive(Clone, Debug)]
pub struct Auth {
    /// How a JWT is verified.
    pub jwt: Jwt,
    /// Records kept in the configuration; looked up before any store.
    pub tokens: Vec<StaticToken>,
    /// The record cache.
    pub cache: TokenCache,
    /// Invalid credentials that one client address may send in a time; `None` for any number.
    pub max_failures: Option<FailureRate>,
}

/// How many invalid credentials of one client address are answered with 401 in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// So many.
    pub failures: u32,
    /// In this time: a second, a minute or an hour.
    pub window: Duration,
}

impl Auth {
    /// Whether a token could be valid without any store.
    fn may_know_a_token(&self) -> bool {
        !self.jwt.issuers.is_empty() || self.tokens.iter().any(|token| is_hash(&token.id))
    }
}

/// How a JWT is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// Those whose tokens are accepted; their names differ.
    pub issuers: Vec<JwtIssuer>,
    /// Clock difference that is forgiven on `exp` and `nbf`.
    pub leeway: Duration,
    /// Whether a token needs a record besides its claims.
    pub require_record: bool,
}

/// Who makes tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtIssuer {
    /// The `iss` of its tokens; without one it is for every token that no other issuer is for.
    pub issuer: Option<String>,
    /// The `aud` its tokens must name.
    pub audience: Option<String>,
    /// Its keys, of which `kid` selects; one key without a `kid` fits every token.
    pub keys: Vec<JwtKey>,
    /// Where it publishes keys.
    pub jwks: Option<JwksRules>,
}

/// One verification key. The key fixes the algorithm; the token never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtKey {
    /// The algorithm.
    pub algorithm: verification::Algorithm,
    /// The key itself, which fits the algorithm.
    pub material: KeyMaterial,
    /// The key's id.
    pub kid: Option<String>,
}

/// What verifies signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// A shared secret.
    Secret(Secret),
    /// A public key, in PEM or as a JWK.
    Public(String),
}

impl JwtKey {
    /// The key, ready to verify.
    ///
    /// # Errors
    /// [`KeyError`] when it does not fit the algorithm.
    pub fn verification_key(&self) -> Result<VerificationKey, KeyError> {
        let (algorithm, kid) = (self.algorithm, self.kid.clone());
        match &self.material {
            KeyMaterial::Secret(secret) => {
                VerificationKey::from_secret(algorithm, kid, secret.expose().as_bytes())
            }
            KeyMaterial::Public(text) => VerificationKey::from_public(algorithm, kid, text),
        }
    }
}

/// A record kept in the configuration.
#[derive(Clone, Debug)]
pub struct StaticToken {
    /// The id of the record: a JWT's `api_key`, or the hexadecimal SHA-256 of an opaque key.
    pub id: Arc<str>,
    /// The record.
    pub record: Arc<TokenRecord>,
    /// The fields as they are written, for commands that show them.
    pub fields: Map<String, Value>,
}

/// The record cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCache {
    /// How long a record is used without asking the store again.
    pub ttl: Duration,
    /// Most records kept.
    pub entries: usize,
    /// How long past `ttl` a record is still used while the store is away.
    pub max_stale: Duration,
}

/// How limits behave.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The limits of a token whose record and plan name none; empty for none.
    pub default: Arc<[LimitRule]>,
    /// How limits count that do not say so themselves; a bucket's burst is the limit's quota.
    pub algorithm: Algorithm,
    /// The window of a bare `rate_limit: N` in a record, in whole seconds.
    pub window: Duration,
    /// Who decides: the store each time, or this process from shares paid for ahead.
    pub sync: LimitSync,
    /// What happens while the store is away.
    pub on_store_failure: OnStoreFailure,
    /// Which rate fields answers carry.
    pub headers: RateHeaders,
    /// Most requests of one token at the same time, in one process; `None` for any number.
    pub max_in_flight: Option<isize>,
}

/// Who decides about limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitSync {
    /// The store, each time.
    Exact,
    /// This process, from small shares paid for ahead.
    Leased,
}

/// What happens to known tokens while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// This process counts by itself.
    Local,
    /// Everything is admitted.
    Allow,
    /// Everything is answered with 503.
    Deny,
}

/// Which rate fields answers carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateHeaders {
    /// `RateLimit-Policy` and `RateLimit`.
    Standard,
    /// `X-RateLimit-*`.
    Legacy,
    /// Standard and legacy.
    Both,
    /// Neither.
    None,
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The servers; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Deadlines towards them.
    pub timeouts: UpstreamTimeouts,
    /// How many other attempts a request may take.
    pub retries: usize,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http://host:port` or `https://host:port`, without path, query or user.
    pub url: Url,
    /// Its share of the requests, relative to its siblings; 1 to 100.
    pub weight: u32,
}

/// Deadlines towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// To establish a connection.
    pub connect: Duration,
    /// Between two reads.
    pub read: Duration,
    /// For one write.
    pub write: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

/// Which requests go where.
#[derive(Clone, Debug)]
pub struct Route {
    /// The canonical path prefix, matched by whole segments; starts with `/`.
    pub prefix: String,
    /// The only host it serves, lower case, without port; `None` for any.
    pub host: Option<String>,
    /// The only methods it serves, upper case; empty for any.
    pub methods: Vec<String>,
    /// The upstream's name; it exists.
    pub upstream: String,
    /// Whether a token is needed.
    pub auth: RouteAuth,
    /// Limits besides the token's; none that counts by token or organization where no token is needed.
    pub limits: Arc<[LimitRule]>,
    /// Most requests at the same time, in one process; `None` for any number.
    pub max_in_flight: Option<isize>,
    /// Whether `prefix` is cut off before forwarding.
    pub strip_prefix: bool,
    /// Whether the client's credential reaches the upstream.
    pub forward_credential: bool,
    /// Changes to the request's fields.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields.
    pub response_headers: HeaderRules,
}

/// Whether a route needs a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAuth {
    /// A valid token.
    Required,
    /// Nothing.
    None,
}

/// Changes to header fields: first `remove`, then `set`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Fields that replace those of the same name.
    pub set: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Fields that go.
    pub remove: Vec<http::HeaderName>,
}
