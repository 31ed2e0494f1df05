//! Finding a token by its name, and reading the record that a gateway would use.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{KeptIn, TokenName, Tokens};
use crate::record::key;
use crate::record::stored::fields;
use crate::store::{PageMark, RecordStore, StoreError, StoredRecord};

/// The ids that a store looks at in one call while a public id is searched.
const SEARCHED_IDS: usize = 500;

/// Why a token was not found, or not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FindError {
    /// There is no such token. The id may be a credential that was taken for an id.
    #[error("there is no such token")]
    Unknown {
        /// The id that was searched.
        id: String,
    },
    /// Several tokens have this public id.
    #[error("several tokens are called so: {}", ids.join(", "))]
    Ambiguous {
        /// Their ids.
        ids: Vec<String>,
    },
    /// The configuration holds the record, so only there it can be changed.
    #[error("the configuration holds the record")]
    Configured {
        /// The id of the record.
        id: String,
    },
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A record and where it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundRecord {
    /// The id under which the record is stored.
    pub id: String,
    /// Where.
    pub kept_in: KeptIn,
    /// Its fields. Of a record that cannot be read there is only `unreadable`, which says why.
    pub fields: Map<String, Value>,
}

impl Tokens {
    /// The id under which the record of `name` is stored. A record exists for certain only where a public id was
    /// searched and tokens need records.
    ///
    /// # Errors
    /// [`FindError::Unknown`] and [`FindError::Ambiguous`] when `name` fits none or several.
    pub async fn find(&self, name: &TokenName) -> Result<String, FindError> {
        let wanted = match name {
            TokenName::Id(id) => return Ok(id.clone()),
            TokenName::PublicId(wanted) => wanted,
        };
        let configured = self.rules.configured.iter();
        let mut ids: BTreeSet<String> = configured.map(|(id, _)| id.clone()).collect();
        let lower = wanted.to_ascii_lowercase();
        if let Some(store) = self.store() {
            ids.extend(ids_starting_with(store, &lower).await?);
            if read(store, wanted).await?.is_some() {
                ids.insert(wanted.clone());
            }
        }
        ids.retain(|id| {
            id == wanted || (key::is_hash(id) && (key::public_id(id) == lower || *id == lower))
        });
        match ids.pop_first() {
            None if self.claims_stand() => Ok(wanted.clone()),
            None => Err(FindError::Unknown { id: wanted.clone() }),
            Some(id) if ids.is_empty() => Ok(id),
            Some(first) => {
                Err(FindError::Ambiguous { ids: std::iter::once(first).chain(ids).collect() })
            }
        }
    }

    /// The record of `id` that a gateway would use.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer.
    pub async fn record(&self, id: &str) -> Result<Option<FoundRecord>, StoreError> {
        if let Some((_, record)) = self.rules.configured.iter().find(|(known, _)| known == id) {
            return Ok(Some(FoundRecord::configured(id, record)));
        }
        match self.store() {
            Some(store) => read(store, id).await,
            None => Ok(None),
        }
    }

    /// The records of the configuration, by id.
    pub fn configured(&self) -> Vec<FoundRecord> {
        let configured = self.rules.configured.iter();
        let mut found: Vec<_> =
            configured.map(|(id, record)| FoundRecord::configured(id, record)).collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// Whether the configuration holds the record of `id`.
    pub fn is_configured(&self, id: &str) -> bool {
        self.rules.configured.iter().any(|(known, _)| known == id)
    }
}

impl FoundRecord {
    /// A record that the store holds.
    pub fn stored(id: &str, record: &StoredRecord) -> Self {
        Self { id: id.to_owned(), kept_in: KeptIn::Store, fields: fields(record) }
    }

    fn configured(id: &str, fields: &Map<String, Value>) -> Self {
        Self { id: id.to_owned(), kept_in: KeptIn::Configuration, fields: fields.clone() }
    }

    /// The value of a key that is no record.
    fn unreadable(id: &str, problem: String) -> Self {
        let fields = Map::from_iter([("unreadable".to_owned(), Value::from(problem))]);
        Self { id: id.to_owned(), kept_in: KeptIn::Store, fields }
    }
}

/// The record of `id` in `store`. A value that is no record is shown as unreadable, so that it does not hide other
/// records.
pub(super) async fn read(
    store: &dyn RecordStore,
    id: &str,
) -> Result<Option<FoundRecord>, StoreError> {
    match store.record(id).await {
        Ok(record) => Ok(record.map(|record| FoundRecord::stored(id, &record))),
        Err(StoreError::Unreadable(problem)) => Ok(Some(FoundRecord::unreadable(id, problem))),
        Err(error) => Err(error),
    }
}

/// The ids that start with `prefix`, which is letters and digits.
async fn ids_starting_with(
    store: &dyn RecordStore,
    prefix: &str,
) -> Result<BTreeSet<String>, StoreError> {
    let mut ids = BTreeSet::new();
    let mut next: Option<PageMark> = Some(store.first_page());
    while let Some(mark) = next {
        let page = store.page(&mark, prefix, SEARCHED_IDS).await?;
        ids.extend(page.ids);
        next = page.next;
    }
    Ok(ids)
}
