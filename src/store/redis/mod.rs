//! The Redis store: one server, the primary behind Sentinels, or a cluster. Only this room names the
//! Redis client.
//!
//! It keeps working through everything that happens to a Redis: away at the start, restarted, silent,
//! read-only, failed over, its scripts forgotten. It knows keys and commands, not what a record means.

mod client;
mod cluster;
mod keys;
mod node;
pub(crate) mod place;
mod questions;
mod quota;
mod scripts;
mod takes;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fred::types::Key;
use futures_util::future::join_all;
use tokio::time::sleep;
use uuid::Uuid;

use self::client::{HEARTBEAT, RedisClient};
pub use self::place::RedisUrlError;
pub use self::tokens::{Imported, PageStart, TokenPage};
use crate::base::secret::Secret;
use crate::store::StoreError;

/// The sorted set of gateways by when they were last seen; in a cluster each node has one.
const GATEWAYS_KEY: &str = "tollgate:gateways";

/// How long a gateway counts after it was last seen.
const GATEWAY_LIFE: Duration = Duration::from_secs(10);

/// Told of every operation: its name (`record`, `revoked`, `take`, `adjust`, `heartbeat`, or what the command line
/// does: `put`, `import`, `shorten`, `expiry`, `delete`, `revoke` or `list`), its outcome (`ok` or [`StoreError::outcome`]) and how long it took.
pub type OnOperation = Arc<dyn Fn(&'static str, &'static str, Duration) + Send + Sync>;

/// What Redis says about records and revocations that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordChange<'a> {
    /// The record of this id was changed or deleted.
    Of(&'a str),
    /// The key that revokes this id was made or deleted.
    Revocation(&'a str),
    /// Any of them may have been: all were deleted, or the connection that would have told was lost.
    Unknown,
}

/// Told of changed records.
pub type OnRecordChange = Arc<dyn Fn(RecordChange<'_>) + Send + Sync>;

/// Token records and quota in Redis, version 6.0 or newer.
///
/// Implements [`TokenStore`](crate::store::TokenStore) and [`QuotaStore`](crate::store::QuotaStore).
/// Every call answers within the timeout given to [`RedisStore::new`].
pub struct RedisStore {
    client: RedisClient,
    gateway: String,
    gateways: AtomicU32,
}

impl RedisStore {
    /// A store in the servers `url` names. Nothing is connected before [`RedisStore::start`].
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

    /// Tells `on_change` whenever the record or revocation of a token has changed (client-side caching of Redis, in
    /// broadcast mode), and when such a change may have been missed. To be called before
    /// [`RedisStore::start`], once.
    pub fn on_record_change(&self, on_change: OnRecordChange) {
        self.client.on_record_change(on_change);
    }

    /// Connects in the background, and again whenever the connection is lost. Does not wait.
    ///
    /// Call it on the runtime where the connection shall live: it ends with that runtime or with the
    /// store. A second call does nothing.
    pub fn start(&self) {
        self.client.start();
    }

    /// Whether Redis has answered, and has not failed repeatedly since; of a cluster, whether any node
    /// has. Never waits.
    pub fn available(&self) -> bool {
        self.client.available()
    }

    /// How many connections are not asked because they failed repeatedly; there is one, or one for each
    /// node of a cluster. Never waits.
    pub fn open_breakers(&self) -> usize {
        self.client.open_breakers()
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
    /// and counts the gateways. In a cluster it asks each node. Run it once, beside
    /// [`RedisStore::start`].
    pub async fn run_probe(&self) {
        loop {
            let keys = self.client.keys(GATEWAYS_KEY);
            let answers = join_all(keys.iter().map(|key| self.heartbeat(key))).await;
            if let Some(gateways) = answers.iter().flatten().max() {
                self.gateways.store((*gateways).max(1), Ordering::Relaxed);
            }
            if !answers.is_empty() && answers.iter().all(Result::is_ok) {
                tokio::select! {
                    () = sleep(between(800, 1_200)) => continue,
                    () = self.client.opened() => {}
                }
            }
            sleep(between(100, 500)).await;
        }
    }

    async fn heartbeat(&self, key: &Key) -> Result<u32, StoreError> {
        let input = || {
            let life_ms = i64::try_from(GATEWAY_LIFE.as_millis()).unwrap_or(i64::MAX);
            (vec![key.clone()], vec![self.gateway.as_str().into(), life_ms.into()])
        };
        let beat = async |redis: Arc<client::Connection>| redis.eval(HEARTBEAT, input).await;
        let (gateways, added): (u32, u32) = self.client.probe("heartbeat", beat).await?;
        if added > 0 {
            // Whoever deletes everything deletes this too: the library does not pass on what Redis says then.
            self.client.doubt_records();
        }
        Ok(gateways)
    }
}

fn between(least_ms: u64, most_ms: u64) -> Duration {
    Duration::from_millis(fastrand::u64(least_ms..=most_ms))
}
