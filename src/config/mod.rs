//! The configuration as valid values. The written form is in `file`; every value here is valid.
//!
//! A value that belongs to another room has that room's type, so that nothing is translated later. Keys that
//! are read only at the start are kept apart from keys that a reload puts into effect.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;
use log::LevelFilter;
use serde_json::{Map, Value};

use crate::auth::cache::CacheRules;
use crate::auth::guard::FailureRate;
use crate::auth::issuer::IssuerRules;
use crate::auth::jwt::JwtRules;
use crate::auth::sources::Sources;
use crate::base::net::NetworkRules;
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::Algorithm;
use crate::quota::rule::LimitSet;
use crate::record::TokenRecord;
use crate::record::key::is_hash;
use crate::route::coding::Coding;
use crate::route::cors::Cors;
use crate::route::headers::{Deprecated, HeaderRules};
use crate::route::mirror::Mirror;
use crate::route::split::Split;
use crate::route::table::Matcher;
use crate::store::StoreUrl;
use crate::telemetry::log_output::{LogColor, LogFormat};
use crate::tls::server::TlsServer;
use crate::upstream::rules::{Deadlines, UpstreamRules};

mod address;
mod compile;
mod cross_origin;
pub mod entry;
mod environment;
mod fault;
mod file;
mod key_path;
mod load;
mod location;
mod matching;
mod moment;
mod overlap;
mod request;
mod scalar;
mod structure;
mod words;

pub use environment::Environment;
pub use fault::Faults;
pub use load::{load, parse};

/// Everything the configuration file and the environment say, checked.
#[derive(Debug)]
pub struct Config {
    /// The keys that keep their first value until the process is started again.
    pub startup: StartupConfig,
    /// The keys that a reload puts into effect.
    pub live: LiveConfig,
}

impl Config {
    /// Refuses a configuration without routes, which `source` holds: it would answer every request with 404, and is
    /// what is left of a file that was emptied or cut off.
    ///
    /// # Errors
    /// [`Faults`] with the one fault.
    pub fn must_have_routes(&self, source: &str) -> Result<(), Faults> {
        match self.live.routes.is_empty() {
            true => Err(Faults::of_file(
                source,
                "routes: is missing; write at least one route, such as { prefix: /, upstream: NAME }",
            )),
            false => Ok(()),
        }
    }
}

/// The keys that are only read when the process starts.
#[derive(Clone, Debug)]
pub struct StartupConfig {
    /// `server`: threads and shutdown.
    pub server: Server,
    /// `listeners`: where clients connect; at least one.
    pub listeners: Vec<Listener>,
    /// `metrics`: where Prometheus scrapes; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// `log.format`.
    pub log_format: LogFormat,
    /// `log.color`.
    pub log_color: LogColor,
    /// `redis`: the shared store; `None` for the embedded one.
    pub redis: Option<Redis>,
    /// `auth.cache`: the cache of records and revocations.
    pub token_cache: CacheRules,
}

impl StartupConfig {
    /// The keys of `other` that differ, as they are written in the file.
    pub fn changed_keys(&self, other: &Self) -> Vec<&'static str> {
        // Without `..`: a new key does not compile until it is compared here.
        let Self { server, listeners, metrics, log_format, log_color, redis, token_cache } = self;
        [
            ("server", *server != other.server),
            ("listeners[].address", *listeners != other.listeners),
            ("metrics", *metrics != other.metrics),
            ("log.format", *log_format != other.log_format),
            ("log.color", *log_color != other.log_color),
            ("redis", *redis != other.redis),
            ("auth.cache", *token_cache != other.token_cache),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// The keys that a reload puts into effect.
#[derive(Debug)]
pub struct LiveConfig {
    /// `log.level`: the least severe level that is written.
    pub log_level: LevelFilter,
    /// `log.access`: whether each request gets a line.
    pub access_log: bool,
    /// The rules of the listeners, in the order of [`StartupConfig::listeners`].
    pub listeners: Vec<ListenerRules>,
    /// Deadlines towards the client.
    pub timeouts: ClientTimeouts,
    /// Largest request body, in bytes.
    pub max_body: u64,
    /// Client connections open at the same time.
    pub max_connections: usize,
    /// Client connections of one client open at the same time; `None` for any number.
    pub max_connections_per_client: Option<isize>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Fields of requests that pass although the gateway would remove them.
    pub pass_fields: Vec<HeaderName>,
    /// Whether routes are chosen as a careless server reads the path.
    pub fold_paths: bool,
    /// How tokens are checked.
    pub auth: Auth,
    /// Named sets of limits that records refer to.
    pub plans: BTreeMap<String, LimitSet>,
    /// How limits behave.
    pub limits: Limits,
    /// Servers that requests go to, by name.
    pub upstreams: BTreeMap<String, Arc<UpstreamRules>>,
    /// Which requests go where.
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
    /// Idle upstream connections kept, by all worker threads together.
    pub upstream_keepalive_pool_size: usize,
    /// The Unix socket over which a successor takes the listeners; `None` for one in a private directory.
    pub upgrade_sock: Option<String>,
}

/// One address clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `host:port`; port 0 lets the kernel choose.
    pub address: SocketAddr,
}

/// What a listener does with its connections.
#[derive(Clone, Debug)]
pub struct ListenerRules {
    /// The TLS that clients speak; `None` for none.
    pub tls: Option<Arc<TlsServer>>,
    /// Whether clients may speak HTTP/2.
    pub http2: bool,
    /// Whether trusted proxies say whose connection they pass on.
    pub proxy_protocol: bool,
    /// The number of the listener with TLS that requests are sent to; `None`: they are served.
    pub redirect_to: Option<usize>,
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
    /// Between two bytes in a tunnel, such as a WebSocket.
    pub tunnel: Duration,
}

/// The shared store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Where it is, with user, password and database.
    pub url: StoreUrl,
    /// Deadline of one operation.
    pub timeout: Duration,
    /// What the names of all keys start with.
    pub prefix: String,
}

/// How tokens are checked.
#[derive(Debug)]
pub struct Auth {
    /// How a JWT is verified.
    pub jwt: Jwt,
    /// Records kept in the configuration, each id once; looked up before any store.
    pub tokens: Vec<StaticToken>,
    /// Invalid credentials that one client address may send; `None` for any number.
    pub max_failures: Option<FailureRate>,
    /// The places of a request in which a credential may stand.
    pub sources: Sources,
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
    /// Issuers whose tokens are accepted; their names differ.
    pub issuers: Vec<IssuerRules>,
    /// The rules for the tokens of every issuer.
    pub rules: JwtRules,
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

/// How limits behave.
#[derive(Debug)]
pub struct Limits {
    /// The limits of a token whose record and plan name none; empty for none.
    pub default: LimitSet,
    /// The algorithm of limits that name none; the burst of a bucket is then the limit's quota.
    pub algorithm: Algorithm,
    /// The window of a bare `rate_limit: N` in a record, in whole seconds.
    pub window: Duration,
    /// Whether the store decides each time, or this process from shares paid for ahead.
    pub sync: SyncMode,
    /// How limits are decided while the store is away.
    pub on_store_failure: FailurePolicy,
    /// Which rate fields answers carry.
    pub headers: RateHeaders,
    /// Most requests of one token at the same time, in one process; `None` for any number.
    pub max_in_flight: Option<isize>,
    /// The treatment of a token whose plan is not configured.
    pub unknown_plan: UnknownPlan,
}

/// How a token is limited that has no limits of its own and a plan that is not configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownPlan {
    /// The token is refused.
    Refuse,
    /// The default limits apply.
    Default,
}

/// Which requests go where.
#[derive(Debug)]
pub struct Route {
    /// The requests it serves.
    pub matcher: Matcher,
    /// The upstreams that its requests go to, with their shares.
    pub upstreams: Split<Arc<UpstreamRules>>,
    /// Whether a token is needed.
    pub auth_required: bool,
    /// The networks whose clients are let in.
    pub networks: NetworkRules,
    /// Limits besides the token's; none that counts by token or organization where no token is needed.
    pub limits: LimitSet,
    /// Most requests at the same time, in one process; `None` for any number.
    pub max_in_flight: Option<isize>,
    /// Largest request body, in bytes; `None` for that of all routes.
    pub max_body: Option<u64>,
    /// What stands for the prefix when the request is forwarded; `None` for the prefix itself.
    pub replacement: Option<String>,
    /// Whether the client's credential reaches the upstream.
    pub forward_credential: bool,
    /// Whether an answer's paths get the prefix that was replaced.
    pub rewrite_answers: bool,
    /// Changes to the request's fields.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields.
    pub response_headers: HeaderRules,
    /// Deadlines that narrow those of the upstreams.
    pub deadlines: Deadlines,
    /// How long nothing may pass in a tunnel or a stream; `None`: as long as everywhere.
    pub idle: Option<Duration>,
    /// What answers tell of the route's end.
    pub deprecated: Option<Deprecated>,
    /// The copies of its requests.
    pub mirror: Option<Mirror<Arc<UpstreamRules>>>,
    /// How scripts of other origins may use the route.
    pub cors: Option<Cors>,
    /// The codings in which answers may be sent; empty for none.
    pub codings: Vec<Coding>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list of README.
    const STARTUP_KEYS: [(&str, &str); 7] = [
        ("server", "server: { threads: 77 }"),
        ("listeners[].address", "listeners: [ { address: 127.0.0.1:1 } ]"),
        ("metrics", "metrics: { address: none }"),
        ("log.format", "log: { format: console }"),
        ("log.color", "log: { color: never }"),
        ("redis", "redis: { url: \"redis://127.0.0.1\" }"),
        ("auth.cache", "auth: { cache: { ttl: 7s } }"),
    ];

    #[test]
    fn keys_that_need_a_restart_are_noticed_and_no_others() {
        let read = |text: &str| {
            let environment = std::iter::empty::<(String, String)>().collect();
            parse(text, "t.yaml", &environment).unwrap().startup
        };
        let before = read("");
        for (key, text) in STARTUP_KEYS {
            assert_eq!(before.changed_keys(&read(text)), [key]);
        }
        for text in [
            "log: { level: debug, access: false }",
            "timeouts: { header: 9s }\nmax_body: 1KiB\nmax_connections: 7\nmax_connections_per_client: 7",
            "auth: { max_failures: none, jwt: { leeway: 7s } }\nlimits: { default: [] }",
            "plans: { a: { limits: [] } }\nupstreams: { a: { endpoints: [ http://a ] } }",
        ] {
            assert!(before.changed_keys(&read(text)).is_empty(), "{text}");
        }
    }
}
