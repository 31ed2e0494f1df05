//! Changes that the store told of, so that an answer from before a change is not used after it.
//!
//! A change of a known id is counted. When a change may have been missed, an era ends: every answer of the era is
//! in doubt. This file knows neither what is stored nor how it is loaded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::base::clock::Moment;

/// Counters of changes. Ids share a counter by their hash, and a change of an id discards the loads under way of
/// every id with the same counter.
const COUNTERS: usize = 64;

/// Eras whose end is remembered.
pub(super) const MAX_ERAS: usize = 16;

/// The changes that the store told of.
pub(super) struct Changes {
    hasher: RandomState,
    era: AtomicU64,
    /// Eras and when they ended, the latest last. An era that is missing ended later than the eras before it.
    ends: Mutex<VecDeque<(u64, Moment)>>,
    counters: [AtomicU64; COUNTERS],
}

impl Changes {
    /// No change yet.
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            era: AtomicU64::new(0),
            ends: Mutex::default(),
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The number of the counter for the changes of `id`.
    pub(super) fn counter_of(&self, id: &str) -> u8 {
        const { assert!(COUNTERS <= 256) };
        (self.hasher.hash_one(id) % COUNTERS as u64) as u8
    }

    /// The counter for the changes of `id`.
    pub(super) fn counter(&self, id: &str) -> &AtomicU64 {
        &self.counters[usize::from(self.counter_of(id))]
    }

    /// The count of the counter with this number.
    pub(super) fn count(&self, counter: u8) -> u64 {
        self.counters[usize::from(counter)].load(Ordering::Acquire)
    }

    /// The present era.
    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// Ends the present era, and counts a change of every id. Ends that are longer ago than `max_stale` are
    /// forgotten.
    pub(super) fn end_era(&self, now: Moment, max_stale: Duration) {
        {
            let mut ends = self.ends.lock();
            ends.push_back((self.era.fetch_add(1, Ordering::AcqRel), now));
            // Answers of an era that ended so long ago are not used any more.
            while ends.front().is_some_and(|(_, end)| now - *end > max_stale) {
                ends.pop_front();
            }
            if ends.len() > MAX_ERAS {
                ends.remove(1);
            }
        }
        for counter in &self.counters {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// When `era` ended, or an earlier time; `None` when its end is forgotten.
    pub(super) fn end_of(&self, era: u64) -> Option<Moment> {
        let ends = self.ends.lock();
        ends.iter().rev().find(|(ended, _)| *ended <= era).map(|(_, end)| *end)
    }

    /// How many eras have an end that is remembered.
    #[cfg(test)]
    pub(super) fn remembered_eras(&self) -> usize {
        self.ends.lock().len()
    }
}
