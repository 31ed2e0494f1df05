//! Questions for quota that wait to be asked together. How they are asked is the business of `takes`.

use std::sync::atomic::AtomicBool;

use fred::error::Error;
use fred::types::Key;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::store::Grant;

/// What one subject asks for, as `scripts/take.lua` reads it.
pub(super) struct Question {
    /// The counters of its limits.
    pub(super) keys: Vec<Key>,
    /// What its limits are, in MessagePack.
    pub(super) limits: Vec<u8>,
    /// The fewest units it has a use for.
    pub(super) least: u64,
    /// How many units it asks for.
    pub(super) wanted: u64,
}

/// The questions that go with the next calls of a connection.
#[derive(Default)]
pub(super) struct Takes {
    pub(super) waiting: Mutex<Vec<Take>>,
    /// Whether several subjects cannot be asked about in one call, because the server, or one of those
    /// it stands for, does not hold the keys of all of them.
    pub(super) apart: AtomicBool,
}

/// A question, until when it is waited for, and where its answer goes.
pub(super) struct Take {
    pub(super) question: Question,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// `None` where only a call of its own can tell more.
pub(super) type Answer = Result<Option<Grant>, Error>;
