//! Token records in Redis: read by requests, written and listed where tokens are managed.
//!
//! Records are written as hashes; hashes and strings holding JSON are both read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::KeysInterface;
use fred::types::{Expiration, Key, Value};
use futures_util::future::join_all;

use super::RedisStore;
use super::client::{Connection, IMPORT, PUT, READ, SHORTEN};
use crate::base::clock::UnixTime;
use crate::store::records::PageMarkError;
use crate::store::{
    IdPage, Imported, KeptRecord, NewRecord, OnRecordChange, PageMark, RecordLister, RecordReader,
    RecordWatch, RecordWriter, StoreError, StoredRecord,
};

/// Most fields of a record that is read. A larger record is unreadable, so that no record holds up Redis or this
/// process for long.
const MAX_FIELDS: i64 = 1_000;

/// Most bytes of a record that is read: of all names and values, or of the JSON.
const MAX_BYTES: i64 = 256 << 10;

/// How many keys Redis is asked to look at for one page, at most.
const PAGE_KEYS: usize = 500;

/// Records in one call of a script: Redis answers nothing else for about a millisecond.
const BATCH: usize = 64;

#[async_trait]
impl RecordReader for RedisStore {
    async fn read(&self, id: &str) -> Result<Option<KeptRecord>, StoreError> {
        let input =
            || (vec![self.client.keys.record(id)], vec![MAX_FIELDS.into(), MAX_BYTES.into()]);
        let read = async |redis: Arc<Connection>| redis.eval::<Value>(READ, input).await;
        // Read outside of the call: an unreadable record is an answer, and says nothing about the server.
        kept_record(self.client.read("record", read).await?)
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = async |redis: Arc<Connection>| {
            let key = self.client.keys.revocation(id);
            redis.at_key(&key, async |session| session.client.exists(&key).await).await
        };
        self.client.read("revoked", revoked).await
    }
}

#[async_trait]
impl RecordWriter for RedisStore {
    async fn put(&self, record: &NewRecord) -> Result<(), StoreError> {
        let input = || {
            let fields = pairs(&record.fields);
            let arguments = std::iter::once(expiry(record.expires_at)).chain(fields).collect();
            (vec![self.client.keys.record(&record.id)], arguments)
        };
        self.client.write("put", async |redis| redis.eval::<()>(PUT, input).await).await
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
            (vec![self.client.keys.record(id)], arguments)
        };
        self.client.write("shorten", async |redis| redis.eval(SHORTEN, input).await).await
    }

    async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let delete = async |redis: Arc<Connection>| {
            let key = self.client.keys.record(id);
            redis.at_key(&key, async |session| session.client.del(&key).await).await
        };
        self.client.write("delete", delete).await
    }

    async fn revoke(&self, id: &str, life: Duration) -> Result<(), StoreError> {
        let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let revoke = async |redis: Arc<Connection>| {
            let key = self.client.keys.revocation(id);
            let expires = Some(Expiration::EX(seconds));
            redis
                .at_key(&key, async |session| {
                    session.client.set::<(), _, _>(&key, 1, expires.clone(), None, false).await
                })
                .await
        };
        self.client.write("revoke", revoke).await
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
        let records = self.client.keys.records();
        let pattern = format!("{records}{prefix}*");
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
                key.as_str().and_then(|key| key.strip_prefix(records)).map(str::to_owned)
            };
            Ok(IdPage {
                ids: keys.iter().filter_map(id).collect(),
                next: next.map(ScanStart::mark),
            })
        };
        self.client.read("list", page).await
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
            let keys = batch.iter().map(|record| self.client.keys.record(&record.id)).collect();
            let mut arguments = vec![Value::from(i64::from(replace))];
            for record in batch {
                arguments.push(expiry(record.expires_at));
                arguments.push((record.fields.len() * 2).to_string().into());
                arguments.extend(pairs(&record.fields));
            }
            (keys, arguments)
        };
        let import = async |redis: Arc<Connection>| redis.eval::<Vec<String>>(IMPORT, input).await;
        let answers = self.client.write("import", import).await;
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

/// Reads the answer of `scripts/read.lua`.
fn kept_record(answer: Value) -> Result<Option<KeptRecord>, StoreError> {
    let unexpected = || StoreError::Failed("unexpected answer to the read of a record".into());
    let unreadable = |problem: String| Err(StoreError::Unreadable(problem));
    let Value::Array(mut parts) = answer else { return Err(unexpected()) };
    let content = (parts.len() == 3).then(|| parts.pop()).flatten();
    let [left_ms, kind] = parts.as_slice() else { return Err(unexpected()) };
    let left_ms = left_ms.as_i64().ok_or_else(unexpected)?;
    let record = match (kind.as_str().as_deref(), content) {
        (Some("none"), _) => return Ok(None),
        (Some("hash"), Some(Value::Array(pairs))) => StoredRecord::Fields(fields(pairs)?),
        (Some("string"), Some(text)) => match text {
            Value::Bytes(_) => return unreadable("the text is not UTF-8".into()),
            text => StoredRecord::Json(text.into_string().ok_or_else(unexpected)?),
        },
        (Some("large"), Some(size)) => {
            let size = size.into_string().unwrap_or_default();
            return unreadable(format!(
                "is too large, with {size}; a record has up to {MAX_FIELDS} fields and {MAX_BYTES} bytes"
            ));
        }
        (Some(kind), None) => {
            return unreadable(format!("WRONGTYPE the key holds a {kind}, not a hash or a string"));
        }
        _ => return Err(unexpected()),
    };
    let expires_in = u64::try_from(left_ms).ok().map(Duration::from_millis);
    Ok(Some(KeptRecord { record, expires_in }))
}

/// The fields of a hash, from names and values in turn.
fn fields(pairs: Vec<Value>) -> Result<HashMap<String, String>, StoreError> {
    let mut fields = HashMap::with_capacity(pairs.len() / 2);
    let mut pairs = pairs.into_iter();
    while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
        let text = |value: Value| match value {
            Value::Bytes(_) => None,
            value => value.into_string(),
        };
        let Some(name) = text(name) else {
            return Err(StoreError::Unreadable("the name of a field is not UTF-8".into()));
        };
        let Some(value) = text(value) else {
            return Err(StoreError::Unreadable(format!("the field `{name}` is not UTF-8")));
        };
        fields.insert(name, value);
    }
    Ok(fields)
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
    fn answers_about_records_are_read_strictly() {
        let array = |values: Vec<Value>| Value::Array(values);
        let hash = |pairs: Vec<Value>| array(vec![1_500.into(), "hash".into(), array(pairs)]);
        let binary = || Value::Bytes(b"\xff".as_slice().into());
        let kept = kept_record(hash(vec!["plan".into(), "basic".into()])).unwrap().unwrap();
        assert_eq!(kept.expires_in, Some(Duration::from_millis(1_500)));
        assert!(matches!(kept.record, StoredRecord::Fields(fields) if fields["plan"] == "basic"));
        let json = array(vec![(-1).into(), "string".into(), "{}".into()]);
        let kept = kept_record(json).unwrap().unwrap();
        assert_eq!((kept.record, kept.expires_in), (StoredRecord::Json("{}".into()), None));
        assert_eq!(kept_record(array(vec![(-2).into(), "none".into()])).unwrap(), None);
        for (answer, problem) in [
            (hash(vec!["note".into(), binary()]), "the field `note` is not UTF-8"),
            (hash(vec![binary(), "x".into()]), "the name of a field"),
            (array(vec![(-1).into(), "string".into(), binary()]), "not UTF-8"),
            (array(vec![(-1).into(), "zset".into()]), "WRONGTYPE the key holds a zset"),
            (array(vec![(-1).into(), "large".into(), "1001 fields".into()]), "1001 fields"),
        ] {
            match kept_record(answer) {
                Err(StoreError::Unreadable(text)) => assert!(text.contains(problem), "{text}"),
                other => panic!("{problem}: {other:?}"),
            }
        }
        for answer in [Value::Null, array(vec![]), array(vec![1.into(), "hash".into(), "x".into()])]
        {
            assert!(matches!(kept_record(answer), Err(StoreError::Failed(_))));
        }
    }

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
