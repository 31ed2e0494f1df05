//! The traits of a store: token records, quota, and whether the store answers. Memory and Redis keep the same
//! promises.
//!
//! A store hands out plain data; it knows neither HTTP nor the meaning of a record. Callers know the traits and
//! [`fn@open`], and never which store is behind them.

use async_trait::async_trait;
use smallvec::SmallVec;

use crate::base::clock::UnixTime;
use crate::quota::{Limit, Standing};

pub mod breaker;
pub mod membership;
pub mod memory;
pub mod open;
pub mod records;
pub mod redis;

pub use membership::{GatewayCount, Membership};
pub use open::{OnOperation, Remote, StoreUrl, StoreUrlError, Stores, open};
pub use records::{
    IdPage, Imported, KeptRecord, OnRecordChange, PageMark, RecordChange, RecordLister,
    RecordReader, RecordStore, RecordWatch, RecordWriter,
};

pub use crate::record::{NewRecord, StoredRecord};

/// Hands out quota.
#[async_trait]
pub trait QuotaStore: Send + Sync {
    /// Takes up to `wanted` units from every limit of `subject` at once, or no unit where any limit has less than
    /// `least` left.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time. Units that the store may have counted by then stay
    /// counted until the window ends: an error never leads to more than the limit.
    async fn take_at_least(
        &self,
        subject: &str,
        limits: &[Limit],
        least: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError>;

    /// Takes up to `wanted` units from every limit of `subject` at once.
    ///
    /// # Errors
    /// As [`QuotaStore::take_at_least`].
    async fn take(
        &self,
        subject: &str,
        limits: &[Limit],
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        self.take_at_least(subject, limits, 0, wanted).await
    }

    /// Changes the counts of `subject`: gives back units that were taken and not used, or counts units that were
    /// admitted while the store was away. A store whose answers may be lost remembers each `id` for a time: a second
    /// call with the same `id` changes nothing.
    ///
    /// Units are given back only where the store still counts them, and no count falls below 0. What was admitted is
    /// counted also where the store has no counter yet, unless it no longer matters. It depends on the algorithm:
    /// - fixed window: only a change of the present window is made;
    /// - sliding window: a change of the present window or of the one before it is made;
    /// - sliding log: units of the grant with this mark go back; units are added unless their time is a window's
    ///   length ago, and only as far as the log has room;
    /// - token bucket: units that have leaked out since the grant do not go back again, and none go back to a grant
    ///   later than the store's clock; units are added unless their time is a window's length ago, and only until
    ///   the bucket is full.
    ///
    /// In windows a count grows no further than twice the quota. A counter whose value cannot be read is left alone.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer in time. The counts may have changed or not.
    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        id: u64,
    ) -> Result<(), StoreError>;
}

/// Changes of counts, limit by limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustment {
    /// An entry for each limit, in the order of the limits: a time and the difference. The time is the
    /// [mark](Limit::mark) of a grant that is given back, or the end of the aligned window in which units were spent
    /// without the store, or [`Adjustment::PRESENT`].
    pub changes: SmallVec<[(UnixTime, i64); 2]>,
}

impl Adjustment {
    /// Stands for the window in which the store makes the change.
    pub const PRESENT: UnixTime = UnixTime::from_micros(0);

    /// An id for [`QuotaStore::adjust`] that no other adjustment has; a number that Lua holds exactly.
    pub fn new_id() -> u64 {
        fastrand::u64(1..1 << 53)
    }
}

/// The units that a store granted, and how the subject stands after the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Units granted: at most the wanted units, and 0 when any limit has too little left.
    pub granted: u64,
    /// The store's clock when it decided.
    pub now: UnixTime,
    /// How each limit stands, in the order of the limits asked with.
    pub standings: SmallVec<[Standing; 2]>,
}

/// Why a store gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer within the deadline.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The store has failed repeatedly and is not asked for the moment.
    #[error("not asked: it failed repeatedly and is being probed")]
    Open,
    /// The connection failed, or the store answered with an error.
    #[error("{0}")]
    Failed(String),
    /// This process was too busy to wait for the answer, so that the store may have answered in time.
    #[error("no answer within {0:?}, in which this gateway was too busy to read one")]
    HeldUp(std::time::Duration),
    /// The store answered that its value is no record, is too large, or holds bytes that are no text.
    #[error("{0}")]
    Unreadable(String),
    /// A page was asked for with a mark that this store never made.
    #[error(transparent)]
    PageMark(#[from] records::PageMarkError),
}

impl StoreError {
    /// A bounded word for metrics: `timeout`, `held_up`, `open` or `failed`.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::HeldUp(_) => "held_up",
            Self::Open => "open",
            Self::Failed(_) | Self::Unreadable(_) | Self::PageMark(_) => "failed",
        }
    }
}
