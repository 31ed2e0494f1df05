//! Records and revocations kept in this process.
//!
//! An expired record is passed over, and dropped when room is needed. Beyond a fixed number of entries a new record
//! or revocation is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::base::clock::{Clock, UnixTime};
use crate::store::records::PageMarkError;
use crate::store::{
    IdPage, Imported, KeptRecord, NewRecord, OnRecordChange, PageMark, RecordChange, RecordLister,
    RecordReader, RecordWatch, RecordWriter, StoreError, StoredRecord,
};

/// The field of a record that says when it expires.
const EXPIRES_AT: &str = "expires_at";

/// Records and revocations kept in this process.
pub struct MemoryRecords<C> {
    clock: C,
    max_entries: usize,
    table: Mutex<Table>,
    on_change: OnceLock<OnRecordChange>,
}

#[derive(Default)]
struct Table {
    records: HashMap<String, Kept>,
    /// The ids of the records by their serial numbers: pages follow this order.
    order: BTreeMap<u64, String>,
    next_serial: u64,
    /// Revoked ids, and until when.
    revoked: HashMap<String, UnixTime>,
}

struct Kept {
    serial: u64,
    fields: HashMap<String, String>,
    expires_at: Option<UnixTime>,
}

impl Kept {
    fn has_expired(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

impl<C: Clock> MemoryRecords<C> {
    /// Expires by `clock`, and keeps at most `max_entries` records and revocations.
    pub fn new(clock: C, max_entries: usize) -> Self {
        Self { clock, max_entries, table: Mutex::default(), on_change: OnceLock::new() }
    }

    fn tell(&self, change: RecordChange<'_>) {
        if let Some(on_change) = self.on_change.get() {
            on_change(change);
        }
    }

    fn write(
        &self,
        table: &mut Table,
        record: &NewRecord,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let fields = record.fields.iter().cloned().collect();
        if let Some(kept) = table.records.get_mut(&record.id) {
            (kept.fields, kept.expires_at) = (fields, record.expires_at);
            return Ok(());
        }
        table.make_room(self.max_entries, now)?;
        let serial = table.next_serial;
        table.next_serial += 1;
        table.order.insert(serial, record.id.clone());
        let kept = Kept { serial, fields, expires_at: record.expires_at };
        table.records.insert(record.id.clone(), kept);
        Ok(())
    }

    fn import_one(&self, record: &NewRecord, replace: bool) -> Result<Imported, StoreError> {
        let now = self.clock.now();
        let fields: HashMap<_, _> = record.fields.iter().cloned().collect();
        let expired = record.expires_at.is_some_and(|at| at <= now);
        let mut table = self.table.lock();
        let outcome = match table.record(&record.id, now) {
            Some(kept) if kept.fields == fields => {
                if !expired {
                    kept.expires_at = record.expires_at;
                }
                return Ok(Imported::Unchanged);
            }
            Some(_) if !replace => return Ok(Imported::Differs),
            _ if expired => return Ok(Imported::Expired),
            Some(_) => Imported::Replaced,
            None => Imported::Written,
        };
        self.write(&mut table, record, now)?;
        Ok(outcome)
    }
}

impl Table {
    /// The record of `id`, if it has not expired.
    fn record(&mut self, id: &str, now: UnixTime) -> Option<&mut Kept> {
        self.records.get_mut(id).filter(|kept| !kept.has_expired(now))
    }

    fn remove(&mut self, id: &str) -> Option<Kept> {
        let kept = self.records.remove(id)?;
        self.order.remove(&kept.serial);
        Some(kept)
    }

    /// Drops expired entries when the table is full, and refuses a new entry when the table is still full.
    fn make_room(&mut self, most: usize, now: UnixTime) -> Result<(), StoreError> {
        let is_full = |table: &Self| table.records.len() + table.revoked.len() >= most;
        if !is_full(self) {
            return Ok(());
        }
        self.records.retain(|_, kept| !kept.has_expired(now));
        self.order.retain(|_, id| self.records.contains_key(id));
        self.revoked.retain(|_, until| *until > now);
        match is_full(self) {
            true => Err(StoreError::Failed(format!(
                "{most} records and revocations are kept, which is the most allowed"
            ))),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl<C: Clock> RecordReader for MemoryRecords<C> {
    async fn read(&self, id: &str) -> Result<Option<KeptRecord>, StoreError> {
        let now = self.clock.now();
        let mut table = self.table.lock();
        Ok(table.record(id, now).map(|kept| KeptRecord {
            record: StoredRecord::Fields(kept.fields.clone()),
            expires_in: kept.expires_at.map(|at| at - now),
        }))
    }

    async fn is_revoked(&self, id: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        Ok(self.table.lock().revoked.get(id).is_some_and(|until| *until > now))
    }
}

#[async_trait]
impl<C: Clock> RecordWriter for MemoryRecords<C> {
    async fn put(&self, record: &NewRecord) -> Result<(), StoreError> {
        let now = self.clock.now();
        {
            let mut table = self.table.lock();
            self.write(&mut table, record, now)?;
        }
        self.tell(RecordChange::Of(&record.id));
        Ok(())
    }

    async fn import(
        &self,
        records: &[NewRecord],
        replace: bool,
    ) -> Vec<Result<Imported, StoreError>> {
        let import = |record: &NewRecord| {
            let outcome = self.import_one(record, replace);
            if matches!(outcome, Ok(Imported::Written | Imported::Replaced | Imported::Unchanged)) {
                self.tell(RecordChange::Of(&record.id));
            }
            outcome
        };
        records.iter().map(import).collect()
    }

    async fn shorten(
        &self,
        id: &str,
        expires_at: UnixTime,
        before: &StoredRecord,
        after: &StoredRecord,
    ) -> Result<bool, StoreError> {
        // Records are kept as fields here, so a text is no record that was read from here.
        let (StoredRecord::Fields(before), StoredRecord::Fields(after)) = (before, after) else {
            return Ok(false);
        };
        {
            let mut table = self.table.lock();
            let Some(kept) = table.record(id, self.clock.now()) else { return Ok(false) };
            let text = |fields: &HashMap<String, String>| {
                fields.get(EXPIRES_AT).cloned().unwrap_or_default()
            };
            if text(&kept.fields) != text(before) {
                return Ok(false);
            }
            kept.fields.insert(EXPIRES_AT.into(), text(after));
            kept.expires_at = Some(kept.expires_at.map_or(expires_at, |at| at.min(expires_at)));
        }
        self.tell(RecordChange::Of(id));
        Ok(true)
    }

    async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let removed = self.table.lock().remove(id);
        let was_there = removed.is_some_and(|kept| !kept.has_expired(now));
        if was_there {
            self.tell(RecordChange::Of(id));
        }
        Ok(was_there)
    }

    async fn revoke(&self, id: &str, life: Duration) -> Result<(), StoreError> {
        let now = self.clock.now();
        let until = now + Duration::from_secs(life.as_secs());
        {
            let mut table = self.table.lock();
            if !table.revoked.contains_key(id) {
                table.make_room(self.max_entries, now)?;
            }
            table.revoked.insert(id.to_owned(), until);
        }
        self.tell(RecordChange::Revocation(id));
        Ok(())
    }
}

#[async_trait]
impl<C: Clock> RecordLister for MemoryRecords<C> {
    fn first_page(&self) -> PageMark {
        PageMark::new(0)
    }

    async fn page(
        &self,
        start: &PageMark,
        prefix: &str,
        size: usize,
    ) -> Result<IdPage, StoreError> {
        let first: u64 = start.as_str().parse().map_err(|_| PageMarkError)?;
        let now = self.clock.now();
        let table = self.table.lock();
        let mut following = table.order.range(first..);
        let is_listed = |id: &&String| {
            id.starts_with(prefix)
                && table.records.get(*id).is_some_and(|kept| !kept.has_expired(now))
        };
        let looked_at = following.by_ref().take(size.max(1)).map(|(_, id)| id);
        let ids = looked_at.filter(is_listed).cloned().collect();
        Ok(IdPage { ids, next: following.next().map(|(serial, _)| PageMark::new(serial)) })
    }
}

impl<C: Clock> RecordWatch for MemoryRecords<C> {
    fn on_record_change(&self, on_change: OnRecordChange) {
        let _ = self.on_change.set(on_change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::ManualClock;

    fn record(id: &str, expires_secs: Option<u64>) -> NewRecord {
        NewRecord {
            id: id.into(),
            fields: vec![("plan".into(), "basic".into())],
            expires_at: expires_secs.map(UnixTime::from_secs),
        }
    }

    #[tokio::test]
    async fn entries_are_bounded_and_expired_ones_make_room() {
        let store = MemoryRecords::new(ManualClock::new(UnixTime::from_secs(100)), 3);
        store.put(&record("a", Some(110))).await.unwrap();
        store.put(&record("b", None)).await.unwrap();
        store.revoke("c", Duration::from_secs(20)).await.unwrap();
        let refused = store.put(&record("d", None)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Failed(_)), "{refused}");
        assert!(matches!(store.import(&[record("d", None)], true).await[..], [Err(_)]));
        assert!(store.revoke("d", Duration::from_secs(1)).await.is_err());
        store.put(&record("b", None)).await.unwrap();
        store.revoke("c", Duration::from_secs(20)).await.unwrap();

        store.clock.advance(Duration::from_secs(10));
        assert_eq!(store.record("a").await.unwrap(), None);
        assert!(store.page(&store.first_page(), "", 9).await.unwrap().ids == ["b"]);
        store.put(&record("d", None)).await.unwrap();
        assert!(store.is_revoked("c").await.unwrap());
        store.clock.advance(Duration::from_secs(10));
        assert!(!store.is_revoked("c").await.unwrap());
        assert!(store.table.lock().order.len() == 2);
    }
}
