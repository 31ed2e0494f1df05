//! Questions for quota that wait to be sent together. The file `takes` sends them.

use std::sync::atomic::AtomicBool;

use fred::error::Error;
use fred::types::Key;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::store::Grant;

/// A question for the quota of a subject, as `scripts/take.lua` reads it.
pub(super) struct Question {
    /// The counters of the subject's limits.
    pub(super) keys: Vec<Key>,
    /// The limits, in MessagePack.
    pub(super) limits: Vec<u8>,
    /// The fewest units that are of use.
    pub(super) least: u64,
    /// The units that are asked for.
    pub(super) wanted: u64,
}

/// The questions that go with the next calls of a connection.
#[derive(Default)]
pub(super) struct Takes {
    pub(super) waiting: Mutex<Vec<Take>>,
    /// Whether each call may ask for one subject only, because the server (or a server behind it) does not hold the
    /// keys of all subjects.
    pub(super) apart: AtomicBool,
}

/// A question with its deadline and the receiver of its answer.
pub(super) struct Take {
    pub(super) question: Question,
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// `None` where the question must be sent again in a call of its own.
pub(super) type Answer = Result<Option<Grant>, Error>;
