//! The embedded store: records from the configuration, windows in this process.
//!
//! It counts like the Redis script does, for as long as the process lives. Memory is bounded: counters
//! are dropped when their windows have ended, and beyond a fixed number of subjects a new one is
//! refused, because forgetting a live counter would hand out its quota twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{Adjustment, Grant, QuotaStore, StoreError, StoredRecord, TokenStore};
use crate::clock::{Clock, UnixTime};
use crate::quota::Limit;
use crate::quota::algorithm::{grantable, window_end};
use crate::quota::rate::MAX_QUOTA;

/// How many ended subjects one call drops at most, so that no call pays for all of them.
const DROPPED_PER_CALL: usize = 2;

/// Quota counted in this process.
pub struct MemoryQuota<C> {
    clock: C,
    max_subjects: usize,
    counters: Mutex<Counters>,
}

#[derive(Default)]
struct Counters {
    /// The windows of every subject that was granted anything lately.
    subjects: HashMap<Arc<str>, SmallVec<[Window; 2]>>,
    /// Each subject once, by a time not later than the end of its last window.
    ends: BinaryHeap<Reverse<(UnixTime, Arc<str>)>>,
}

/// A counter of one limit. Limits of one name and window share it, whatever their quota: a changed
/// quota keeps the count.
struct Window {
    name: Arc<str>,
    length: Duration,
    end: UnixTime,
    used: u64,
}

impl<C: Clock> MemoryQuota<C> {
    /// Counts by `clock`, for at most `max_subjects` subjects with a window that has not ended.
    pub fn new(clock: C, max_subjects: usize) -> Self {
        Self { clock, max_subjects, counters: Mutex::default() }
    }

    fn take_now(&self, subject: &str, limits: &[Limit], wanted: u64) -> Result<Grant, StoreError> {
        let now = self.clock.now();
        let mut counters = self.counters.lock();
        counters.drop_ended(now, DROPPED_PER_CALL);

        let windows = counters.subjects.get(subject).map(SmallVec::as_slice).unwrap_or_default();
        let mut used: SmallVec<[u64; 4]> =
            limits.iter().map(|limit| counted(windows, limit, now)).collect();
        let quotas = limits.iter().map(|limit| limit.quota);
        let granted = grantable(wanted.min(MAX_QUOTA), quotas.zip(used.iter().copied()));

        if granted > 0 && !limits.is_empty() {
            if !counters.subjects.contains_key(subject) {
                self.admit(&mut counters, subject, limits, now)?;
            }
            if let Some(windows) = counters.subjects.get_mut(subject) {
                for (limit, used) in limits.iter().zip(&mut used) {
                    *used += granted;
                    count(windows, limit, now, *used);
                }
            }
        }
        Ok(Grant { granted, now, used })
    }

    /// Makes room for a new subject.
    fn admit(
        &self,
        counters: &mut Counters,
        subject: &str,
        limits: &[Limit],
        now: UnixTime,
    ) -> Result<(), StoreError> {
        if counters.subjects.len() >= self.max_subjects {
            counters.drop_ended(now, usize::MAX);
        }
        if counters.subjects.len() >= self.max_subjects {
            return Err(StoreError::Failed(format!(
                "{} subjects are being counted, which is the most allowed",
                self.max_subjects
            )));
        }
        let subject: Arc<str> = subject.into();
        let end = limits.iter().map(|limit| window_end(now, limit.window)).max().unwrap_or(now);
        counters.subjects.insert(Arc::clone(&subject), SmallVec::new());
        counters.ends.push(Reverse((end, subject)));
        Ok(())
    }
}

impl Counters {
    /// Drops up to `most` subjects whose windows have all ended.
    fn drop_ended(&mut self, now: UnixTime, most: usize) {
        for _ in 0..most {
            let Some(Reverse((end, _))) = self.ends.peek() else { return };
            if *end > now {
                return;
            }
            let Some(Reverse((_, subject))) = self.ends.pop() else { return };
            let last = self
                .subjects
                .get(&subject)
                .and_then(|windows| windows.iter().map(|window| window.end).max());
            match last {
                Some(last) if last > now => self.ends.push(Reverse((last, subject))),
                _ => {
                    self.subjects.remove(&subject);
                }
            }
        }
    }
}

/// What `limit` has counted in its present window.
fn counted(windows: &[Window], limit: &Limit, now: UnixTime) -> u64 {
    let end = window_end(now, limit.window);
    windows
        .iter()
        .find(|window| window.counts(limit) && window.end == end)
        .map_or(0, |window| window.used)
}

/// Sets what `limit` has counted in its present window.
fn count(windows: &mut SmallVec<[Window; 2]>, limit: &Limit, now: UnixTime, used: u64) {
    let end = window_end(now, limit.window);
    match windows.iter_mut().find(|window| window.counts(limit)) {
        Some(window) => (window.end, window.used) = (end, used),
        None => {
            windows.retain(|window| window.end > now);
            windows.push(Window { name: Arc::clone(&limit.name), length: limit.window, end, used });
        }
    }
}

impl Window {
    fn counts(&self, limit: &Limit) -> bool {
        self.length == limit.window && self.name == limit.name
    }
}

#[async_trait]
impl<C: Clock> QuotaStore for MemoryQuota<C> {
    async fn take(
        &self,
        subject: &str,
        limits: &[Limit],
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        self.take_now(subject, limits, wanted)
    }

    /// A call within the process is made once: `id` has nothing to guard.
    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        _id: u64,
    ) -> Result<(), StoreError> {
        let mut counters = self.counters.lock();
        let Some(windows) = counters.subjects.get_mut(subject) else { return Ok(()) };
        for (limit, (end, by)) in limits.iter().zip(&adjustment.windows) {
            let present = windows.iter_mut().find(|window| window.counts(limit));
            if let Some(window) = present.filter(|window| window.end == *end) {
                window.used = window.used.saturating_add_signed(*by);
            }
        }
        Ok(())
    }
}

/// Token records that do not change.
#[derive(Debug, Default)]
pub struct MemoryTokens {
    records: HashMap<String, StoredRecord>,
}

impl MemoryTokens {
    /// The records of `(id, JSON object)`; the last one of an id counts.
    pub fn new(records: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            records: records.into_iter().map(|(id, json)| (id, StoredRecord::Json(json))).collect(),
        }
    }
}

#[async_trait]
impl TokenStore for MemoryTokens {
    async fn record(&self, id: &str) -> Result<Option<StoredRecord>, StoreError> {
        Ok(self.records.get(id).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn quota(max_subjects: usize) -> MemoryQuota<ManualClock> {
        MemoryQuota::new(ManualClock::new(UnixTime::from_secs(1_000_000_020)), max_subjects)
    }

    fn subjects(quota: &MemoryQuota<ManualClock>) -> usize {
        let counters = quota.counters.lock();
        assert_eq!(counters.ends.len(), counters.subjects.len());
        counters.subjects.len()
    }

    #[test]
    fn a_window_starts_anew_when_it_ends() {
        let quota = quota(10);
        let limits = [Limit::parse("3/second").unwrap(), Limit::parse("5/minute").unwrap()];
        let take = |wanted| {
            let grant = quota.take_now("a", &limits, wanted).unwrap();
            (grant.granted, grant.used.to_vec())
        };
        assert_eq!(take(2), (2, vec![2, 2]));
        assert_eq!(take(2), (1, vec![3, 3]));
        assert_eq!(take(1), (0, vec![3, 3]));
        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(take(9), (2, vec![2, 5]));
        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(take(1), (0, vec![0, 5]));
        quota.clock.advance(Duration::from_secs(60));
        assert_eq!(take(1), (1, vec![1, 1]));
    }

    #[test]
    fn a_changed_quota_keeps_the_count() {
        let quota = quota(10);
        let take = |rate: &str| quota.take_now("a", &[Limit::parse(rate).unwrap()], 4).unwrap();
        assert_eq!(take("10/minute").granted, 4);
        assert_eq!((take("2/minute").granted, take("2/minute").used[0]), (0, 4));
        assert_eq!(take("6/minute").granted, 2);
    }

    #[test]
    fn subjects_are_bounded_and_dropped_when_their_windows_end() {
        let quota = quota(3);
        let second = [Limit::parse("1/second").unwrap()];
        let both = [Limit::parse("1/second").unwrap(), Limit::parse("5/minute").unwrap()];
        assert_eq!(quota.take_now("long", &both, 1).unwrap().granted, 1);
        for subject in ["a", "b"] {
            assert_eq!(quota.take_now(subject, &second, 1).unwrap().granted, 1);
        }
        let full = quota.take_now("c", &second, 1).unwrap_err();
        assert!(matches!(full, StoreError::Failed(_)), "{full}");
        assert_eq!(
            quota.take_now("a", &second, 1).unwrap().granted,
            0,
            "a known subject is still counted"
        );

        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(quota.take_now("c", &second, 1).unwrap().granted, 1);
        assert_eq!(quota.take_now("long", &both, 1).unwrap().used.to_vec(), [1, 2]);
        quota.clock.advance(Duration::from_secs(60));
        for subject in ["x", "x", "x"] {
            quota.take_now(subject, &second, 1).unwrap();
        }
        assert_eq!(subjects(&quota), 1);
    }

    #[test]
    fn what_grants_nothing_is_not_kept() {
        let quota = quota(10);
        let limits = [Limit::parse("1/minute").unwrap()];
        assert_eq!(quota.take_now("a", &limits, 0).unwrap().granted, 0);
        assert_eq!(quota.take_now("b", &[], 7).unwrap().granted, 7);
        assert_eq!(subjects(&quota), 0);
    }
}
