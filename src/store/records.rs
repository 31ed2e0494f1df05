//! The traits that read, write, list and watch token records and revocations.
//!
//! These traits and types know ids, fields and expiries as plain data, and not the meaning of a record.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{NewRecord, StoreError, StoredRecord};
use crate::base::clock::UnixTime;

/// The longest text of a page mark, in bytes.
const MAX_MARK: usize = 256;

/// All traits of a store of records together.
pub trait RecordStore: RecordReader + RecordWriter + RecordLister + RecordWatch {}

impl<T: RecordReader + RecordWriter + RecordLister + RecordWatch + ?Sized> RecordStore for T {}

/// Reads token records and revocations.
#[async_trait]
pub trait RecordReader: Send + Sync {
    /// The record of `id` and its remaining life, read at one moment; `None` when there is no record.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] when the store's value is no record, or is larger than a record may be. Any other
    /// [`StoreError`] when the store did not answer in time: whether there is a record is not known then.
    async fn read(&self, id: &str) -> Result<Option<KeptRecord>, StoreError>;

    /// The record of `id`, or `None` when there is none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn record(&self, id: &str) -> Result<Option<StoredRecord>, StoreError> {
        Ok(self.read(id).await?.map(|kept| kept.record))
    }

    /// How long the store keeps the record of `id`; `None` where no expiry is set.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn kept_for(&self, id: &str) -> Result<Option<Duration>, StoreError> {
        Ok(self.read(id).await?.and_then(|kept| kept.expires_in))
    }

    /// Whether the token `id`, which needs no record, is revoked.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time.
    async fn is_revoked(&self, id: &str) -> Result<bool, StoreError>;
}

/// Writes token records and revocations.
///
/// A call that ends with an error may have been carried out nevertheless.
#[async_trait]
pub trait RecordWriter: Send + Sync {
    /// Writes a record and replaces the record that was there.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time.
    async fn put(&self, record: &NewRecord) -> Result<(), StoreError>;

    /// Writes many records, each whole or not at all, and returns an outcome for each, in the same order. A record
    /// that is there and differs is overwritten only with `replace`. A record that is there and equal gets the new
    /// expiry. No two of `records` may have the same id.
    ///
    /// A record whose outcome is an error may be written or not: writing it again changes nothing then.
    async fn import(
        &self,
        records: &[NewRecord],
        replace: bool,
    ) -> Vec<Result<Imported, StoreError>>;

    /// Lets the record of `id` expire at `expires_at`, unless it expires sooner. The record was read as `before`,
    /// and `after` is the same with another `expires_at`. Returns false, and writes nothing, if the record has changed
    /// since it was read.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time.
    async fn shorten(
        &self,
        id: &str,
        expires_at: UnixTime,
        before: &StoredRecord,
        after: &StoredRecord,
    ) -> Result<bool, StoreError>;

    /// Deletes the record of `id`; whether there was one.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time.
    async fn delete(&self, id: &str) -> Result<bool, StoreError>;

    /// Revokes the token `id`, which needs no record, for as long as `life`, in whole seconds.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time.
    async fn revoke(&self, id: &str, life: Duration) -> Result<(), StoreError>;
}

/// Lists the ids of records, page by page.
#[async_trait]
pub trait RecordLister: Send + Sync {
    /// Where the first page starts.
    fn first_page(&self) -> PageMark;

    /// A page of the ids that start with `prefix`, which is letters and digits or empty. The page starts at the
    /// [first](Self::first_page) id, or at the mark that the page before it names. The store looks at about `size`
    /// ids for one page, and at fewer where more would keep other callers waiting.
    ///
    /// A record that is there from the first page to the last is on at least one page.
    ///
    /// # Errors
    /// [`StoreError::PageMark`] when this store has never made the mark, any other [`StoreError`] when the store
    /// did not answer in time.
    async fn page(&self, start: &PageMark, prefix: &str, size: usize)
    -> Result<IdPage, StoreError>;
}

/// Watches for changed records.
pub trait RecordWatch: Send + Sync {
    /// Calls `on_change` whenever a record or revocation has changed, and when such a change may have been missed.
    /// Call this once, before the store [starts](super::Membership::start).
    fn on_record_change(&self, on_change: OnRecordChange);
}

/// A record, and for how long the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptRecord {
    /// The record.
    pub record: StoredRecord,
    /// The time from the read to the expiry of the record in the store; `None` where no expiry is set.
    pub expires_in: Option<Duration>,
}

/// The outcome of importing a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// There was no record before.
    Written,
    /// There was another record, which was replaced.
    Replaced,
    /// The same record was there already.
    Unchanged,
    /// There is another record, and nothing was written.
    Differs,
    /// The record to import has expired, and nothing was written.
    Expired,
}

/// A part of the ids that a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdPage {
    /// Ids in no order. A page in the middle of a listing may be empty, and an id may be on two pages.
    pub ids: Vec<String>,
    /// Where the next page starts; `None` on the last page.
    pub next: Option<PageMark>,
}

/// Where a page starts, in a form that only the store understands which made the mark. Callers print it and read it
/// back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMark(Box<str>);

impl PageMark {
    /// A mark with this text: up to 256 visible ASCII characters.
    pub(super) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string().into())
    }

    /// The text of the mark.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PageMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no page mark of any store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not where a page starts: write what the page before it said")]
pub struct PageMarkError;

impl FromStr for PageMark {
    type Err = PageMarkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=MAX_MARK).contains(&text.len());
        match fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(text.into())),
            false => Err(PageMarkError),
        }
    }
}

/// A change that a store tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordChange<'a> {
    /// The record of this id was changed or deleted.
    Of(&'a str),
    /// The revocation of this id was made or deleted.
    Revocation(&'a str),
    /// Any record or revocation may have changed: all were deleted, or the connection that tells of changes was lost.
    Unknown,
}

/// Called when records have changed.
pub type OnRecordChange = Arc<dyn Fn(RecordChange<'_>) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_mark_is_one_word() {
        let mark: PageMark = "5461.18446744073709551615".parse().unwrap();
        assert_eq!(mark.to_string().parse(), Ok(mark));
        for text in ["", " ", "a b", "a\n", "\u{fc}", &"1".repeat(MAX_MARK + 1)] {
            assert_eq!(text.parse::<PageMark>(), Err(PageMarkError), "{text:?}");
        }
    }
}
