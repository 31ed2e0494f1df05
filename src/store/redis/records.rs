//! Token records in Redis: read by requests, written and listed where tokens are managed.
//!
//! Records are written as hashes; hashes and strings holding JSON are both read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{HashesInterface, KeysInterface};
use fred::types::{Expiration, Key, Value};
use futures_util::future::join_all;

use super::RedisStore;
use super::client::{Connection, IMPORT, PUT, SHORTEN};
use super::errors::{Cause, no_record};
use super::keys::{RECORD_PREFIX, record_key, revocation_key};
use crate::base::clock::UnixTime;
use crate::store::records::PageMarkError;
use crate::store::{
    IdPage, Imported, NewRecord, OnRecordChange, PageMark, RecordLister, RecordReader, RecordWatch,
    RecordWriter, StoreError, StoredRecord,
};

/// How many keys Redis is asked to look at for one page, at most.
const PAGE_KEYS: usize = 500;

/// Records in one call of a script: Redis answers nothing else for about a millisecond.
const BATCH: usize = 64;

#[async_trait]
impl RecordReader for RedisStore {
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

#[async_trait]
impl RecordWriter for RedisStore {
    async fn put(&self, record: &NewRecord) -> Result<(), StoreError> {
        let input = || {
            let fields = pairs(&record.fields);
            let arguments = std::iter::once(expiry(record.expires_at)).chain(fields).collect();
            (vec![record_key(&record.id)], arguments)
        };
        self.client.call("put", async |redis| redis.eval::<()>(PUT, input).await).await
    }

    /// A call writes many records where their keys need not share a slot.
    async fn import(
        &self,
        records: &[NewRecord],
        replace: bool,
    ) -> Vec<Result<Imported, StoreError>> {
        let most = if self.client.takes_any_keys() { BATCH } else { 1 };
        let batches = join_all(records.chunks(most).map(|batch| self.import_batch(batch, replace)));
        batches.await.into_iter().flatten().collect()
    }

    async fn shorten(
        &self,
        id: &str,
        expires_at: UnixTime,
        before: &StoredRecord,
        after: &StoredRecord,
    ) -> Result<bool, StoreError> {
        let (before, after) = match (before, after) {
            (StoredRecord::Fields(before), StoredRecord::Fields(after)) => {
                let text = |fields: &HashMap<String, String>| {
                    fields.get("expires_at").cloned().unwrap_or_default()
                };
                (text(before), text(after))
            }
            (StoredRecord::Json(before), StoredRecord::Json(after)) => {
                (before.clone(), after.clone())
            }
            // The key never holds both shapes.
            _ => return Ok(false),
        };
        let input = || {
            let arguments =
                vec![expiry(Some(expires_at)), before.as_str().into(), after.as_str().into()];
            (vec![record_key(id)], arguments)
        };
        self.client.call("shorten", async |redis| redis.eval(SHORTEN, input).await).await
    }

    async fn kept_for(&self, id: &str) -> Result<Option<Duration>, StoreError> {
        let left = async |redis: Arc<Connection>| {
            let key = record_key(id);
            redis.at_key(&key, async |session| session.client.pttl::<i64, _>(&key).await).await
        };
        let left_ms = self.client.call("expiry", left).await?;
        Ok(u64::try_from(left_ms).ok().map(Duration::from_millis))
    }

    async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let delete = async |redis: Arc<Connection>| {
            let key = record_key(id);
            redis.at_key(&key, async |session| session.client.del(&key).await).await
        };
        self.client.call("delete", delete).await
    }

    async fn revoke(&self, id: &str, life: Duration) -> Result<(), StoreError> {
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
}

#[async_trait]
impl RecordLister for RedisStore {
    fn first_page(&self) -> PageMark {
        ScanStart::default().mark()
    }

    /// The nodes of a cluster follow one another. A record that moves between nodes meanwhile may be missed.
    async fn page(
        &self,
        start: &PageMark,
        prefix: &str,
        size: usize,
    ) -> Result<IdPage, StoreError> {
        let start = ScanStart::read(start).ok_or(PageMarkError)?;
        let pattern = format!("{RECORD_PREFIX}{prefix}*");
        let count = u32::try_from(size.clamp(1, PAGE_KEYS)).ok();
        let page = async |redis: Arc<Connection>| {
            let scan = async |client: &Client| -> Result<(u64, Vec<Key>), Error> {
                client.scan_page(start.cursor.to_string(), pattern.as_str(), count, None).await
            };
            let (cursor, keys) =
                redis.at(|| start.slot, async |session| scan(&session.client).await).await?;
            let next = match cursor {
                0 => redis.node_after(start.slot).map(|slot| ScanStart { slot, cursor }),
                cursor => Some(ScanStart { cursor, ..start }),
            };
            let id = |key: &Key| {
                key.as_str().and_then(|key| key.strip_prefix(RECORD_PREFIX)).map(str::to_owned)
            };
            Ok(IdPage {
                ids: keys.iter().filter_map(id).collect(),
                next: next.map(ScanStart::mark),
            })
        };
        self.client.call("list", page).await
    }
}

/// By client-side caching of Redis, in broadcast mode.
impl RecordWatch for RedisStore {
    fn on_record_change(&self, on_change: OnRecordChange) {
        self.client.on_record_change(on_change);
    }
}

impl RedisStore {
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
}

/// Where a scan goes on. Its page mark is `<slot>.<cursor>`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ScanStart {
    /// A slot of the cluster's node that is scanned.
    slot: u16,
    /// The cursor that this node returned.
    cursor: u64,
}

impl ScanStart {
    fn mark(self) -> PageMark {
        PageMark::new(format_args!("{}.{}", self.slot, self.cursor))
    }

    fn read(mark: &PageMark) -> Option<Self> {
        let (slot, cursor) = mark.as_str().split_once('.')?;
        Some(Self { slot: slot.parse().ok()?, cursor: cursor.parse().ok()? })
    }
}

async fn read(redis: &Client, key: &Key) -> Result<Option<StoredRecord>, Error> {
    match redis.hgetall::<HashMap<String, String>, _>(key).await {
        Ok(fields) if fields.is_empty() => Ok(None),
        Ok(fields) => Ok(Some(StoredRecord::Fields(fields))),
        Err(error) if Cause::of(&error) == Cause::WrongType => {
            let text: Option<String> = redis.get(key).await.map_err(no_record)?;
            Ok(text.map(StoredRecord::Json))
        }
        Err(error) => Err(no_record(error)),
    }
}

/// The outcome for a record, from the word of the script.
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
    fn where_a_scan_goes_on_can_be_written_and_read() {
        let start = ScanStart { slot: 5_461, cursor: u64::MAX };
        assert_eq!(ScanStart::read(&start.mark()), Some(start));
        assert_eq!(ScanStart::read(&PageMark::new("0.0")), Some(ScanStart::default()));
        for text in ["7", "0.", ".7", "65536.0", "0.-1", "0.1.2", "here"] {
            assert_eq!(ScanStart::read(&PageMark::new(text)), None, "{text:?}");
        }
    }
}
