//! The Redis store: one server, the primary behind Sentinels, or a cluster. Only this room names the
//! Redis client.
//!
//! The store keeps working whatever happens to Redis: away at the start, restarted, silent, read-only, failed over,
//! or its scripts forgotten. It knows keys and commands, not the meaning of a record.

mod client;
mod cluster;
mod errors;
mod keys;
mod node;
mod patience;
mod questions;
mod quota;
mod records;
mod scripts;
mod takes;
mod url;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::types::Key;
use futures_util::future::join_all;
use tokio::time::sleep;
use uuid::Uuid;

use self::client::{HEARTBEAT, RedisClient};
pub(super) use self::url::FORMS as URL_FORMS;
pub use self::url::{RedisUrl, RedisUrlError};
use crate::store::{GatewayCount, Membership, OnOperation, StoreError};

/// How long a gateway counts after it was last seen.
const GATEWAY_LIFE: Duration = Duration::from_secs(10);

/// Token records and quota in Redis, version 6.0 or newer. Every call answers within the timeout given to
/// [`RedisStore::new`].
pub struct RedisStore {
    client: RedisClient,
    /// The name of this gateway in the set of gateways.
    gateway: String,
    gateways: Arc<GatewayCount>,
}

impl RedisStore {
    /// A store in the servers `url` names. Nothing is connected before [`Membership::start`].
    ///
    /// `timeout` bounds every call, and `on_operation` is called after each.
    pub fn new(url: &RedisUrl, timeout: Duration, on_operation: OnOperation) -> Self {
        Self::with_prefix(url, timeout, "", on_operation)
    }

    /// The same with keys whose names start with `prefix`.
    pub fn with_prefix(
        url: &RedisUrl,
        timeout: Duration,
        prefix: &str,
        on_operation: OnOperation,
    ) -> Self {
        Self {
            client: RedisClient::new(url, timeout, prefix, on_operation),
            gateway: Uuid::now_v7().simple().to_string(),
            gateways: Arc::default(),
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
            // A FLUSHALL deletes this entry too, and the client library does not pass on what Redis tells of a FLUSHALL.
            self.client.doubt_records();
        }
        Ok(gateways)
    }
}

#[async_trait]
impl Membership for RedisStore {
    fn start(&self) {
        self.client.start();
    }

    /// About once a second, and several times a second while Redis fails. In a cluster it asks each node.
    async fn run_probe(&self) {
        loop {
            let keys = self.client.gateways_keys();
            let answers = join_all(keys.iter().map(|key| self.heartbeat(key))).await;
            if let Some(gateways) = answers.iter().flatten().max() {
                self.gateways.set(*gateways);
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

    fn available(&self) -> bool {
        self.client.available()
    }

    fn has_answered(&self) -> bool {
        self.client.has_answered()
    }

    fn open_breakers(&self) -> usize {
        self.client.open_breakers()
    }

    fn gateways(&self) -> &Arc<GatewayCount> {
        &self.gateways
    }
}

fn between(least_ms: u64, most_ms: u64) -> Duration {
    Duration::from_millis(fastrand::u64(least_ms..=most_ms))
}
