//! The Redis store. Only this room names the Redis client.
//!
//! It keeps working through everything that happens to a Redis: away at the start, restarted, silent,
//! read-only, its scripts forgotten. It knows keys and commands, not what a record means.

mod client;
mod quota;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fred::types::Key;
use tokio::time::sleep;
use uuid::Uuid;

use self::client::{HEARTBEAT, RedisClient};
pub use self::tokens::TokenPage;
use crate::secret::Secret;
use crate::store::StoreError;

/// The sorted set of gateways by when they were last seen.
const GATEWAYS_KEY: &str = "tollgate:gateways";

/// How long a gateway counts after it was last seen.
const GATEWAY_LIFE: Duration = Duration::from_secs(10);

/// Heartbeats in a row that must fail before the connection is given up for a new one.
const FAILURES_TO_RECONNECT: u32 = 3;

/// Told of every operation: its name (`record`, `take`, `heartbeat`, `put`, `delete` or `list`), its
/// outcome (`ok` or [`StoreError::outcome`]) and how long it took.
pub type OnOperation = Arc<dyn Fn(&'static str, &'static str, Duration) + Send + Sync>;

/// Token records and quota in one Redis server, version 6.0 or newer.
///
/// Implements [`TokenStore`](crate::store::TokenStore) and [`QuotaStore`](crate::store::QuotaStore).
/// Every call answers within the timeout given to [`RedisStore::new`].
pub struct RedisStore {
    client: RedisClient,
    gateway: String,
    gateways: AtomicU32,
}

/// Why a URL does not name a Redis server. Never says what the URL holds: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// The text is not a URL.
    #[error("not a URL ({0}): write redis://[[user]:password@]host[:port][/database]")]
    Form(String),
    /// Another scheme.
    #[error("the URL must start with redis:// or rediss://")]
    Scheme,
    /// No host.
    #[error("the URL has no host: write redis://host[:port]")]
    Host,
    /// The path is not a database.
    #[error("the path of the URL is not a database: write a number from 0 to 255")]
    Database,
    /// Parameters that nothing would read.
    #[error("the URL may have no query and no fragment")]
    Query,
    /// A user without password, or broken percent-encoding.
    #[error(
        "the URL's credentials are incomplete or badly encoded: write user:password@ or :password@"
    )]
    Credentials,
    /// The system's certificates could not be read.
    #[error("no TLS: {0}")]
    Tls(String),
}

impl RedisStore {
    /// A store in the server `url` names. Nothing is connected before [`RedisStore::start`].
    ///
    /// `timeout` bounds every call, and `on_operation` hears of each.
    ///
    /// # Errors
    /// [`RedisUrlError`] says what a URL must look like.
    pub fn new(
        url: &Secret,
        timeout: Duration,
        on_operation: OnOperation,
    ) -> Result<Self, RedisUrlError> {
        Ok(Self {
            client: RedisClient::new(url, timeout, on_operation)?,
            gateway: Uuid::now_v7().simple().to_string(),
            gateways: AtomicU32::new(1),
        })
    }

    /// Connects in the background, and again whenever the connection is lost. Does not wait.
    ///
    /// Call it on the runtime where the connection shall live: it ends with that runtime or with the
    /// store. A second call does nothing.
    pub fn start(&self) {
        self.client.start();
    }

    /// Whether Redis has answered, and has not failed repeatedly since. Never waits.
    pub fn available(&self) -> bool {
        self.client.available()
    }

    /// Whether Redis has ever answered. Never waits.
    pub fn has_answered(&self) -> bool {
        self.client.has_answered()
    }

    /// Gateways seen on this Redis lately, this one included: at least 1, and the last count while
    /// Redis is away.
    pub fn gateways(&self) -> u32 {
        self.gateways.load(Ordering::Relaxed)
    }

    /// Asks Redis about once a second, and several times a second while it fails; never returns.
    ///
    /// Only this notices a silent Redis while nobody calls, lets calls through again after an outage,
    /// and counts the gateways. Run it once, beside [`RedisStore::start`].
    pub async fn run_probe(&self) {
        let mut failures = 0;
        loop {
            match self.heartbeat().await {
                Ok(gateways) => {
                    failures = 0;
                    self.gateways.store(gateways.max(1), Ordering::Relaxed);
                    tokio::select! {
                        () = sleep(between(800, 1_200)) => continue,
                        () = self.client.opened() => {}
                    }
                }
                Err(_) => failures += 1,
            }
            if failures >= FAILURES_TO_RECONNECT {
                failures = 0;
                self.client.abandon_connection();
            }
            sleep(between(100, 500)).await;
        }
    }

    async fn heartbeat(&self) -> Result<u32, StoreError> {
        let input = || {
            let life_ms = i64::try_from(GATEWAY_LIFE.as_millis()).unwrap_or(i64::MAX);
            (
                vec![Key::from_static_str(GATEWAYS_KEY)],
                vec![self.gateway.as_str().into(), life_ms.into()],
            )
        };
        self.client.probe("heartbeat", async |redis| redis.eval(HEARTBEAT, input).await).await
    }
}

fn between(least_ms: u64, most_ms: u64) -> Duration {
    Duration::from_millis(fastrand::u64(least_ms..=most_ms))
}
