//! Token records in Redis: read on the request path, written and listed by the command line.
//!
//! Records are written as hashes; hashes and strings holding JSON are both read.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Expiration, Key, Value};
use futures_util::future::join_all;

use super::RedisStore;
use super::client::{Connection, IMPORT, PUT, SHORTEN};
use super::keys::{RECORD_PREFIX, record_key, revocation_key};
use crate::base::clock::UnixTime;
use crate::store::{NewRecord, StoreError, StoredRecord, TokenStore};

/// How many keys Redis is asked to look at for one page, at most.
const PAGE_KEYS: usize = 500;

/// Records in one call of a script: Redis serves nobody else for about a millisecond.
const BATCH: usize = 64;

/// Some of the tokens there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenPage {
    /// Ids of tokens, in no order. May be empty in the middle of a listing, and an id may appear on
    /// two pages.
    pub ids: Vec<String>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<PageStart>,
}

/// Where a page of tokens starts; the default is the beginning. As text: `<slot>.<cursor>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStart {
    /// A slot of the cluster's node that the page is of.
    slot: u16,
    /// What that node said where to go on.
    cursor: u64,
}

impl fmt::Display for PageStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.cursor)
    }
}

impl FromStr for PageStart {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (slot, cursor) = text.split_once('.')?;
            Some(Self { slot: slot.parse().ok()?, cursor: cursor.parse().ok()? })
        };
        parse().ok_or("is not where a page starts: write what the page before it said")
    }
}

/// What became of a record that was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// There was none.
    Written,
    /// There was another, and it was to be replaced.
    Replaced,
    /// It was there already.
    Unchanged,
    /// There is another; nothing was written.
    Differs,
    /// This one has expired, and there is none or it was to be replaced; nothing was written.
    Expired,
}

#[async_trait]
impl TokenStore for RedisStore {
    async fn record(&self, id: &str) -> Result<Option<StoredRecord>, StoreError> {
        let record = async |redis: Arc<Connection>| {
            let key = record_key(id);
            redis.at_key(&key, async |session| read(&session.client, &key).await).await
        };
        self.client.call("record", record).await
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = async |redis: Arc<Connection>| {
            let key = revocation_key(id);
            redis.at_key(&key, async |session| session.client.exists(&key).await).await
        };
        self.client.call("revoked", revoked).await
    }
}

impl RedisStore {
    /// What is said of a record that holds bytes which are no text.
    pub const NOT_TEXT: &'static str = "NOTTEXT the record is not UTF-8";

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
            let arguments = std::iter::once(expiry(expires_at)).chain(pairs(fields)).collect();
            (vec![record_key(id)], arguments)
        };
        self.client.call("put", async |redis| redis.eval::<()>(PUT, input).await).await
    }

    /// Writes `records`, each as a whole and where nothing else is, or with `replace` whatever is
    /// there. Says of each what became of it, in their order.
    ///
    /// Many are written in one call where their keys need not share a slot.
    pub async fn import(
        &self,
        records: &[NewRecord],
        replace: bool,
    ) -> Vec<Result<Imported, StoreError>> {
        let most = if self.client.takes_any_keys() { BATCH } else { 1 };
        let batches = join_all(records.chunks(most).map(|batch| self.import_batch(batch, replace)));
        batches.await.into_iter().flatten().collect()
    }

    async fn import_batch(
        &self,
        batch: &[NewRecord],
        replace: bool,
    ) -> Vec<Result<Imported, StoreError>> {
        let input = || {
            let keys = batch.iter().map(|record| record_key(&record.id)).collect();
            let mut arguments = vec![Value::from(i64::from(replace))];
            for record in batch {
                arguments.push(expiry(record.expires_at));
                arguments.push((record.fields.len() * 2).to_string().into());
                arguments.extend(pairs(&record.fields));
            }
            (keys, arguments)
        };
        let import = async |redis: Arc<Connection>| redis.eval::<Vec<String>>(IMPORT, input).await;
        let answers = self.client.call("import", import).await;
        let of = |nth: usize| {
            let words = answers.as_ref().map_err(Clone::clone)?;
            let word = words.get(nth).map(String::as_str).unwrap_or_default();
            imported(word).ok_or_else(|| StoreError::Failed(format!("unexpected answer `{word}`")))
        };
        (0..batch.len()).map(of).collect()
    }

    /// Lets the record of `id` expire at `expires_at`, which `after` says, unless it does so sooner.
    /// `before` is what it was read as: the field `expires_at` of a hash, empty where there is none, or
    /// the whole of a string; whether it is so still. If not, nothing was done.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time; it may be done nevertheless.
    pub async fn shorten(
        &self,
        id: &str,
        expires_at: UnixTime,
        before: &str,
        after: &str,
    ) -> Result<bool, StoreError> {
        let input = || {
            let arguments = vec![expiry(Some(expires_at)), before.into(), after.into()];
            (vec![record_key(id)], arguments)
        };
        self.client.call("shorten", async |redis| redis.eval(SHORTEN, input).await).await
    }

    /// How long Redis keeps the record of `id`; `None` for as long as nobody deletes it.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time.
    pub async fn kept_for(&self, id: &str) -> Result<Option<Duration>, StoreError> {
        let left = async |redis: Arc<Connection>| {
            let key = record_key(id);
            redis.at_key(&key, async |session| session.client.pttl::<i64, _>(&key).await).await
        };
        let left_ms = self.client.call("expiry", left).await?;
        Ok(u64::try_from(left_ms).ok().map(Duration::from_millis))
    }

    /// Deletes the record of `id`; whether there was one.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time; the record may be gone nevertheless.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let delete = async |redis: Arc<Connection>| {
            let key = record_key(id);
            redis.at_key(&key, async |session| session.client.del(&key).await).await
        };
        self.client.call("delete", delete).await
    }

    /// Revokes the token `id`, which needs no record, for as long as `life`.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time; the token may be revoked nevertheless.
    pub async fn revoke(&self, id: &str, life: Duration) -> Result<(), StoreError> {
        let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let revoke = async |redis: Arc<Connection>| {
            let key = revocation_key(id);
            let expires = Some(Expiration::EX(seconds));
            redis
                .at_key(&key, async |session| {
                    session.client.set::<(), _, _>(&key, 1, expires.clone(), None, false).await
                })
                .await
        };
        self.client.call("revoke", revoke).await
    }

    /// A page of the tokens there are, starting where an earlier page said. The nodes of a cluster
    /// follow one another; tokens that move between nodes meanwhile may be missed.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time.
    pub async fn list(&self, start: PageStart) -> Result<TokenPage, StoreError> {
        self.page(start, "", PAGE_KEYS).await
    }

    /// The same of the tokens whose id starts with `beginning`, letters and digits; Redis looks at
    /// about `keys` keys, and not at more than it can without keeping others waiting.
    ///
    /// # Errors
    /// [`StoreError`] when Redis did not answer in time.
    pub async fn page(
        &self,
        start: PageStart,
        beginning: &str,
        keys: usize,
    ) -> Result<TokenPage, StoreError> {
        let pattern = format!("{RECORD_PREFIX}{beginning}*");
        let count = u32::try_from(keys.clamp(1, PAGE_KEYS)).ok();
        let page = async |redis: Arc<Connection>| {
            let scan = async |client: &Client| -> Result<(u64, Vec<Key>), Error> {
                client.scan_page(start.cursor.to_string(), pattern.as_str(), count, None).await
            };
            let (cursor, keys) =
                redis.at(|| start.slot, async |session| scan(&session.client).await).await?;
            let next = match cursor {
                0 => redis.node_after(start.slot).map(|slot| PageStart { slot, cursor }),
                cursor => Some(PageStart { cursor, ..start }),
            };
            let id = |key: &Key| {
                key.as_str().and_then(|key| key.strip_prefix(RECORD_PREFIX)).map(str::to_owned)
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
            let text: Option<String> = redis.get(key).await.map_err(not_text)?;
            Ok(text.map(StoredRecord::Json))
        }
        Err(error) => Err(not_text(error)),
    }
}

/// Names what the client says in words of its own.
fn not_text(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Parse => Error::new(ErrorKind::Parse, RedisStore::NOT_TEXT),
        _ => error,
    }
}

/// What became of a record, as the script says it.
fn imported(word: &str) -> Option<Imported> {
    Some(match word {
        "written" => Imported::Written,
        "replaced" => Imported::Replaced,
        "unchanged" => Imported::Unchanged,
        "differs" => Imported::Differs,
        "expired" => Imported::Expired,
        _ => return None,
    })
}

/// A time as scripts take it: milliseconds since the epoch, or nothing.
fn expiry(at: Option<UnixTime>) -> Value {
    at.map(|at| at.as_millis().to_string()).unwrap_or_default().into()
}

fn pairs(fields: &[(String, String)]) -> impl Iterator<Item = Value> {
    fields.iter().flat_map(|(name, value)| [name.as_str().into(), value.as_str().into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_page_starts_can_be_written_and_read() {
        let start = PageStart { slot: 5_461, cursor: u64::MAX };
        assert_eq!(start.to_string().parse(), Ok(start));
        assert_eq!("0.0".parse(), Ok(PageStart::default()));
        for text in ["", "7", "0.", ".7", "65536.0", "0.-1", "0.1.2"] {
            assert!(text.parse::<PageStart>().is_err(), "{text:?}");
        }
    }
}
