//! The records in Redis, for a command that runs once and ends: each call waits for its answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Failure, check};
use crate::clock::UnixTime;
use crate::secret::Secret;
use crate::store::redis::{PageStart, RedisStore};
use crate::store::{StoreError, StoredRecord, TokenStore as _};

/// The deadline of one call: longer than on the request path, for someone is waiting anyway.
const DEADLINE: Duration = Duration::from_secs(3);

/// The token records of one Redis.
pub struct Admin {
    runtime: Runtime,
    store: RedisStore,
    place: String,
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
        let store = RedisStore::new(url, DEADLINE, Arc::new(|_, _, _| {}))
            .map_err(|error| Failure::Usage(format!("the URL of Redis {error}")))?;
        runtime.block_on(async { store.start() });
        Ok(Self { runtime, store, place: check::place(url) })
    }

    /// Where the records are, without the password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Writes the record of `id`; it is gone by itself at `expires`.
    pub fn put(
        &self,
        id: &str,
        fields: &[(String, String)],
        expires: UnixTime,
    ) -> Result<(), Failure> {
        self.answer(self.runtime.block_on(self.store.put(id, fields, Some(expires))))
    }

    /// The record of `id`.
    pub fn record(&self, id: &str) -> Result<Option<StoredRecord>, Failure> {
        self.answer(self.runtime.block_on(self.store.record(id)).or_else(unreadable))
    }

    /// Deletes the record of `id`; whether there was one.
    pub fn delete(&self, id: &str) -> Result<bool, Failure> {
        self.answer(self.runtime.block_on(self.store.delete(id)))
    }

    /// All records, by id.
    pub fn list(&self) -> Result<Vec<(String, StoredRecord)>, Failure> {
        self.answer(self.runtime.block_on(self.pages()))
    }

    async fn pages(&self) -> Result<Vec<(String, StoredRecord)>, StoreError> {
        let mut seen = BTreeSet::new();
        let mut records = Vec::new();
        let mut start = Some(PageStart::default());
        while let Some(at) = start {
            let page = self.store.list(at).await?;
            start = page.next;
            let fresh: Vec<String> =
                page.ids.into_iter().filter(|id| seen.insert(id.clone())).collect();
            let answers = join_all(fresh.iter().map(|id| self.store.record(id))).await;
            for (id, answer) in fresh.into_iter().zip(answers) {
                // A record that went away in the meantime is not one any more.
                records.extend(answer.or_else(unreadable)?.map(|record| (id, record)));
            }
        }
        Ok(records)
    }

    fn answer<T>(&self, result: Result<T, StoreError>) -> Result<T, Failure> {
        result.map_err(|error| Failure::Unavailable(format!("{}: {error}", self.place)))
    }
}

/// A key that holds neither a hash nor a string is shown as such: it must not hide the others.
fn unreadable(error: StoreError) -> Result<Option<StoredRecord>, StoreError> {
    match error {
        StoreError::Failed(text) if text.starts_with("WRONGTYPE") => {
            Ok(Some(StoredRecord::Json(text)))
        }
        other => Err(other),
    }
}
