//! Token records in Redis: read on the request path, written and listed by the command line.
//!
//! Records are written as hashes; hashes and strings holding JSON are both read.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Key, Value};

use super::RedisStore;
use super::client::{Connection, PUT};
use crate::clock::UnixTime;
use crate::store::{StoreError, StoredRecord, TokenStore};

/// What the keys of records start with.
pub(super) const PREFIX: &str = "token:";

/// What the keys of revocations start with.
pub(super) const REVOKED_PREFIX: &str = "revoked:";

/// How many keys Redis is asked to look at for one page.
const PAGE_KEYS: u32 = 500;

/// Some of the tokens there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenPage {
    /// Ids of tokens, in no order. May be empty in the middle of a listing, and an id may appear on
    /// two pages.
    pub ids: Vec<String>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<PageStart>,
}

/// Where a page of tokens starts; the default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStart {
    /// A slot of the cluster's node that the page is of.
    slot: u16,
    /// What that node said where to go on.
    cursor: u64,
}

#[async_trait]
impl TokenStore for RedisStore {
    async fn record(&self, id: &str) -> Result<Option<StoredRecord>, StoreError> {
        let record = async |redis: Arc<Connection>| {
            let key = key(id);
            redis.at_key(&key, async |session| read(&session.client, &key).await).await
        };
        self.client.call("record", record).await
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = async |redis: Arc<Connection>| {
            let key: Key = format!("{REVOKED_PREFIX}{id}").into();
            redis.at_key(&key, async |session| session.client.exists(&key).await).await
        };
        self.client.call("revoked", revoked).await
    }
}

impl RedisStore {
    /// Writes the record of `id`, replacing what was there, to be forgotten at `expires_at`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time; the record may be written nevertheless.
    pub async fn put(
        &self,
        id: &str,
        fields: &[(String, String)],
        expires_at: Option<UnixTime>,
    ) -> Result<(), StoreError> {
        let input = || {
            let expires_at = expires_at.map(|at| at.as_millis().to_string()).unwrap_or_default();
            let pairs = fields.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
            let arguments =
                std::iter::once(expires_at.as_str()).chain(pairs).map(Value::from).collect();
            (vec![key(id)], arguments)
        };
        self.client.call("put", async |redis| redis.eval::<()>(PUT, input).await).await
    }

    /// Deletes the record of `id`; whether there was one.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time; the record may be gone nevertheless.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let delete = async |redis: Arc<Connection>| {
            let key = key(id);
            redis.at_key(&key, async |session| session.client.del(&key).await).await
        };
        self.client.call("delete", delete).await
    }

    /// A page of the tokens there are, starting where an earlier page said. The nodes of a cluster
    /// follow one another; tokens that move between nodes meanwhile may be missed.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time.
    pub async fn list(&self, start: PageStart) -> Result<TokenPage, StoreError> {
        let page = async |redis: Arc<Connection>| {
            let (cursor, keys) =
                redis.at(|| start.slot, async |session| scan(&session.client, start).await).await?;
            let next = match cursor {
                0 => redis.node_after(start.slot).map(|slot| PageStart { slot, cursor }),
                cursor => Some(PageStart { cursor, ..start }),
            };
            let id = |key: &Key| {
                key.as_str().and_then(|key| key.strip_prefix(PREFIX)).map(str::to_owned)
            };
            Ok(TokenPage { ids: keys.iter().filter_map(id).collect(), next })
        };
        self.client.call("list", page).await
    }
}

async fn read(redis: &Client, key: &Key) -> Result<Option<StoredRecord>, Error> {
    match redis.hgetall::<HashMap<String, String>, _>(key).await {
        Ok(fields) if fields.is_empty() => Ok(None),
        Ok(fields) => Ok(Some(StoredRecord::Fields(fields))),
        Err(error) if error.details().starts_with("WRONGTYPE") => {
            let text: Option<String> = redis.get(key).await?;
            Ok(text.map(StoredRecord::Json))
        }
        Err(error) => Err(error),
    }
}

async fn scan(redis: &Client, start: PageStart) -> Result<(u64, Vec<Key>), Error> {
    redis.scan_page(start.cursor.to_string(), format!("{PREFIX}*"), Some(PAGE_KEYS), None).await
}

fn key(id: &str) -> Key {
    format!("{PREFIX}{id}").into()
}
