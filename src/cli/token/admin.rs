//! The records in Redis, for a command that runs once and ends: each call waits for its answer.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};

use super::create::MAX_TTL;
use crate::base::clock::SystemClock;
use crate::base::clock::UnixTime;
use crate::base::secret::Secret;
use crate::cli::Failure;
use crate::store::open::shown_url;
use crate::store::{self, NewRecord, PageMark, RecordStore, Remote, StoreError, StoredRecord};

/// The deadline of one call: longer than on the request path, for someone is waiting anyway.
const DEADLINE: Duration = Duration::from_secs(3);

/// The keys that Redis looks at in one call while ids are searched.
const SEARCHED_KEYS: usize = 500;

/// The token records of one Redis.
pub struct Admin {
    runtime: Runtime,
    store: Arc<dyn RecordStore>,
    place: String,
}

/// Some of the records, by id, and where the next ones start.
pub struct RecordPage {
    /// In no order; a record may be on two pages.
    pub records: Vec<(String, StoredRecord)>,
    /// `None` on the last page.
    pub next: Option<PageMark>,
}

impl Admin {
    /// Starts connecting; the first call waits for it.
    ///
    /// # Errors
    /// [`Failure::Usage`] when `url` does not name a Redis.
    pub fn connect(url: &Secret) -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Internal(format!("no runtime: {error}")))?;
        let remote = Remote { url: url.clone(), timeout: DEADLINE };
        let clock = Arc::new(SystemClock::default());
        let opened = store::open(Some(&remote), clock, Arc::new(|_, _, _| {}))
            .map_err(|error| Failure::Usage(format!("the URL of Redis {error}")))?;
        runtime.block_on(async { opened.membership.start() });
        Ok(Self { runtime, store: opened.records, place: shown_url(url) })
    }

    /// Where the records are, without the password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The store itself, for calls of which many are under way together: see [`Admin::wait`].
    pub fn store(&self) -> &dyn RecordStore {
        &*self.store
    }

    /// Waits for `work`, which may call the [store](Admin::store).
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// What a call without an answer means to a command.
    pub fn failure(&self, error: &StoreError) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.place))
    }

    /// Writes the record of `id`; it is gone by itself at `expires`.
    pub fn put(
        &self,
        id: &str,
        fields: &[(String, String)],
        expires: Option<UnixTime>,
    ) -> Result<(), Failure> {
        let record = NewRecord { id: id.to_owned(), fields: fields.to_vec(), expires_at: expires };
        self.answer(self.store.put(&record))
    }

    /// The record of `id`.
    pub fn record(&self, id: &str) -> Result<Option<StoredRecord>, Failure> {
        self.answer(async { self.store.record(id).await.or_else(unreadable) })
    }

    /// How long Redis keeps the record of `id`, where its key has an expiry.
    pub fn kept_for(&self, id: &str) -> Result<Option<Duration>, Failure> {
        self.answer(self.store.kept_for(id))
    }

    /// Lets the record of `id` expire at `expires`; see [`store::RecordWriter::shorten`].
    pub fn shorten(
        &self,
        id: &str,
        expires: UnixTime,
        before: &StoredRecord,
        after: &StoredRecord,
    ) -> Result<bool, Failure> {
        self.answer(self.store.shorten(id, expires, before, after))
    }

    /// Deletes the record of `id`; whether there was one.
    pub fn delete(&self, id: &str) -> Result<bool, Failure> {
        self.answer(self.store.delete(id))
    }

    /// Revokes the token `id`, which needs no record, for as long as a token may live.
    pub fn revoke(&self, id: &str) -> Result<(), Failure> {
        self.answer(self.store.revoke(id, MAX_TTL))
    }

    /// The ids that start with `beginning`, which is letters and digits.
    pub fn ids(&self, beginning: &str) -> Result<BTreeSet<String>, Failure> {
        let mut ids = BTreeSet::new();
        let mut start = Some(self.store.first_page());
        while let Some(at) = start {
            let page = self.answer(self.store.page(&at, beginning, SEARCHED_KEYS))?;
            ids.extend(page.ids);
            start = page.next;
        }
        Ok(ids)
    }

    /// A page of records, for which Redis looks at about `keys` keys; all of them are read in one round.
    pub fn page(&self, start: &PageMark, keys: usize) -> Result<RecordPage, Failure> {
        self.answer(async {
            let page = self.store.page(start, "", keys).await?;
            let ids: BTreeSet<String> = page.ids.into_iter().collect();
            let answers = join_all(ids.iter().map(|id| self.store.record(id))).await;
            let mut records = Vec::new();
            for (id, answer) in ids.into_iter().zip(answers) {
                // A record that went away in the meantime is not one any more.
                records.extend(answer.or_else(unreadable)?.map(|record| (id, record)));
            }
            Ok(RecordPage { records, next: page.next })
        })
    }

    fn answer<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, Failure> {
        self.wait(call).map_err(|error| match error {
            StoreError::PageMark(error) => Failure::Usage(format!("--start {error}")),
            error => self.failure(&error),
        })
    }
}

/// A key that holds neither a hash nor a string, or no text, is shown as such: it must not hide the others.
fn unreadable(error: StoreError) -> Result<Option<StoredRecord>, StoreError> {
    match error {
        StoreError::Unreadable(text) => Ok(Some(StoredRecord::Json(text))),
        other => Err(other),
    }
}
