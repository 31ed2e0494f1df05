//! Listing the records of a store, page by page. No more than one page is in memory: there may be millions.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::Tokens;
use super::find::{FoundRecord, read};
use crate::store::{PageMark, StoreError};

/// The ids that a store looks at for one page, at most.
const MAX_IDS: usize = 500;

/// The ids that a store looks at for one page, at least. Where records are few among many other keys, a smaller number
/// would cost a call for every few ids.
const MIN_IDS: usize = 100;

/// A part of the records of a store.
#[derive(Clone, Debug)]
pub struct RecordPage {
    /// Records by id. A record may be on two pages.
    pub records: Vec<FoundRecord>,
    /// Where the next page starts; `None` on the last page.
    pub next: Option<PageMark>,
}

impl Tokens {
    /// Where the first page of the store's records starts; `None` without a store.
    pub fn first_page(&self) -> Option<PageMark> {
        self.store().map(|store| store.first_page())
    }

    /// A page of about `wanted` records of the store, which are all read in one round. Records of the configuration
    /// are on no page.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer, or never made the mark.
    pub async fn page(&self, start: &PageMark, wanted: usize) -> Result<RecordPage, StoreError> {
        let Some(store) = self.store() else {
            return Ok(RecordPage { records: Vec::new(), next: None });
        };
        let page = store.page(start, "", wanted.clamp(MIN_IDS, MAX_IDS)).await?;
        let ids: BTreeSet<String> = page.ids.into_iter().collect();
        let answers = join_all(ids.iter().map(|id| read(store, id))).await;
        let mut records = Vec::with_capacity(answers.len());
        for answer in answers {
            // A record that went away in the meantime is not listed any more.
            records.extend(answer?);
        }
        Ok(RecordPage { records, next: page.next })
    }
}
