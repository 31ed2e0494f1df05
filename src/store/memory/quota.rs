//! Counters in this process.
//!
//! It counts like the Redis scripts do, for as long as the process lives. Memory is bounded: a counter is dropped
//! when it says no more than a new counter would. Beyond a fixed number of subjects a new subject is refused, because
//! forgetting a live counter would hand out its quota twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::base::clock::{Clock, UnixTime};
use crate::quota::Limit;
use crate::quota::counter::Counter;
use crate::quota::rate::MAX_QUOTA;
use crate::store::{Adjustment, Grant, QuotaStore, StoreError};

/// How many ended subjects a call drops at most, so that no call pays for all of them.
const DROPPED_PER_CALL: usize = 2;

/// Quota counted in this process.
pub struct MemoryQuota<C> {
    clock: C,
    max_subjects: usize,
    counters: Mutex<Counters>,
}

#[derive(Default)]
struct Counters {
    /// The counters of each subject.
    subjects: HashMap<Arc<str>, SmallVec<[LimitCounter; 2]>>,
    /// Each subject once, by a time not later than when its last counter is gone.
    ends: BinaryHeap<Reverse<(UnixTime, Arc<str>)>>,
}

/// A limit's counter. Limits of the same name, window and algorithm share it: a changed quota keeps the count.
struct LimitCounter {
    name: Arc<str>,
    window: Duration,
    counter: Counter,
    gone_at: UnixTime,
}

impl LimitCounter {
    fn belongs_to(&self, limit: &Limit) -> bool {
        self.window == limit.window && self.name == limit.name && self.counter.fits(limit)
    }
}

impl<C: Clock> MemoryQuota<C> {
    /// Counts by `clock`, for at most `max_subjects` subjects at a time.
    pub fn new(clock: C, max_subjects: usize) -> Self {
        Self { clock, max_subjects, counters: Mutex::default() }
    }

    fn take_now(
        &self,
        subject: &str,
        limits: &[Limit],
        least: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        let now = self.clock.now();
        let mut counters = self.counters.lock();
        counters.drop_ended(now, DROPPED_PER_CALL);

        let kept = counters.subjects.get_mut(subject).map(SmallVec::as_mut_slice);
        let kept = kept.unwrap_or_default();
        for known in kept.iter_mut() {
            known.counter.heed(now);
        }
        let room = |limit: &Limit| match kept.iter().find(|kept| kept.belongs_to(limit)) {
            Some(kept) => kept.counter.room(limit, now),
            None => limit.capacity(),
        };
        let room = limits.iter().map(room).fold(wanted.min(MAX_QUOTA), u64::min);
        let granted = if room < least { 0 } else { room };
        if granted > 0 && !limits.is_empty() {
            self.change(&mut counters, subject, limits, now, |_, counter, limit| {
                counter.take(limit, now, granted);
            })?;
        }
        let kept = counters.subjects.get(subject).map(SmallVec::as_slice).unwrap_or_default();
        let standing = |limit: &Limit| match kept.iter().find(|kept| kept.belongs_to(limit)) {
            Some(kept) => kept.counter.standing(limit, now),
            None => Counter::new(limit).standing(limit, now),
        };
        Ok(Grant { granted, now, standings: limits.iter().map(standing).collect() })
    }

    /// Calls `change` with the counter of each limit; a missing counter is made.
    fn change(
        &self,
        counters: &mut Counters,
        subject: &str,
        limits: &[Limit],
        now: UnixTime,
        mut change: impl FnMut(usize, &mut Counter, &Limit),
    ) -> Result<(), StoreError> {
        if !counters.subjects.contains_key(subject) {
            self.make_room(counters, now)?;
            let subject: Arc<str> = subject.into();
            counters.subjects.insert(Arc::clone(&subject), SmallVec::new());
            counters.ends.push(Reverse((now, subject)));
        }
        let Some(kept) = counters.subjects.get_mut(subject) else { return Ok(()) };
        for (at, limit) in limits.iter().enumerate() {
            let place = kept.iter().position(|kept| kept.belongs_to(limit));
            let place = place.unwrap_or_else(|| {
                kept.retain(|kept| kept.gone_at > now);
                kept.push(LimitCounter {
                    name: Arc::clone(&limit.name),
                    window: limit.window,
                    counter: Counter::new(limit),
                    gone_at: now,
                });
                kept.len() - 1
            });
            if let Some(LimitCounter { counter, gone_at, .. }) = kept.get_mut(place) {
                change(at, counter, limit);
                *gone_at = counter.gone_at(limit).max(now);
            }
        }
        Ok(())
    }

    fn make_room(&self, counters: &mut Counters, now: UnixTime) -> Result<(), StoreError> {
        if counters.subjects.len() >= self.max_subjects {
            counters.drop_ended(now, usize::MAX);
        }
        if counters.subjects.len() >= self.max_subjects {
            return Err(StoreError::Failed(format!(
                "{} subjects are being counted, which is the most allowed",
                self.max_subjects
            )));
        }
        Ok(())
    }
}

impl Counters {
    /// Drops up to `most` subjects whose counters are all gone.
    fn drop_ended(&mut self, now: UnixTime, most: usize) {
        for _ in 0..most {
            let Some(Reverse((end, _))) = self.ends.peek() else { return };
            if *end > now {
                return;
            }
            let Some(Reverse((_, subject))) = self.ends.pop() else { return };
            let kept = self.subjects.get(&subject);
            let last = kept.and_then(|kept| kept.iter().map(|kept| kept.gone_at).max());
            match last {
                Some(last) if last > now => self.ends.push(Reverse((last, subject))),
                _ => {
                    self.subjects.remove(&subject);
                }
            }
        }
    }
}

#[async_trait]
impl<C: Clock> QuotaStore for MemoryQuota<C> {
    async fn take_at_least(
        &self,
        subject: &str,
        limits: &[Limit],
        least: u64,
        wanted: u64,
    ) -> Result<Grant, StoreError> {
        self.take_now(subject, limits, least, wanted)
    }

    /// A call within the process is never repeated, so `id` is not needed.
    async fn adjust(
        &self,
        subject: &str,
        limits: &[Limit],
        adjustment: &Adjustment,
        _id: u64,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut counters = self.counters.lock();
        let returns = adjustment.changes.iter().all(|(_, by)| *by <= 0);
        if returns && !counters.subjects.contains_key(subject) {
            return Ok(());
        }
        self.change(&mut counters, subject, limits, now, |at, counter, limit| {
            if let Some((mark, by)) = adjustment.changes.get(at) {
                counter.adjust(limit, now, *mark, *by);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::ManualClock;
    use crate::quota::Algorithm;

    fn quota(max_subjects: usize) -> MemoryQuota<ManualClock> {
        MemoryQuota::new(ManualClock::new(UnixTime::from_secs(1_000_000_020)), max_subjects)
    }

    fn left(grant: &Grant) -> Vec<u64> {
        grant.standings.iter().map(|standing| standing.left).collect()
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
            let grant = quota.take_now("a", &limits, 0, wanted).unwrap();
            (grant.granted, left(&grant))
        };
        assert_eq!(take(2), (2, vec![1, 3]));
        assert_eq!(take(2), (1, vec![0, 2]));
        assert_eq!(take(1), (0, vec![0, 2]));
        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(take(9), (2, vec![1, 0]));
        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(take(1), (0, vec![3, 0]));
        quota.clock.advance(Duration::from_secs(60));
        assert_eq!(take(1), (1, vec![2, 4]));
    }

    #[test]
    fn a_changed_quota_keeps_the_count() {
        let quota = quota(10);
        let take = |rate: &str| quota.take_now("a", &[Limit::parse(rate).unwrap()], 0, 4).unwrap();
        assert_eq!(take("10/minute").granted, 4);
        assert_eq!(take("2/minute").granted, 0);
        assert_eq!(take("6/minute").granted, 2);
    }

    #[test]
    fn subjects_are_bounded_and_dropped_when_their_windows_end() {
        let quota = quota(3);
        let second = [Limit::parse("1/second").unwrap()];
        let both = [Limit::parse("1/second").unwrap(), Limit::parse("5/minute").unwrap()];
        assert_eq!(quota.take_now("long", &both, 0, 1).unwrap().granted, 1);
        for subject in ["a", "b"] {
            assert_eq!(quota.take_now(subject, &second, 0, 1).unwrap().granted, 1);
        }
        let full = quota.take_now("c", &second, 0, 1).unwrap_err();
        assert!(matches!(full, StoreError::Failed(_)), "{full}");
        assert_eq!(
            quota.take_now("a", &second, 0, 1).unwrap().granted,
            0,
            "a known subject is still counted"
        );

        quota.clock.advance(Duration::from_secs(1));
        assert_eq!(quota.take_now("c", &second, 0, 1).unwrap().granted, 1);
        assert_eq!(left(&quota.take_now("long", &both, 0, 1).unwrap()), [0, 3]);
        quota.clock.advance(Duration::from_secs(60));
        for subject in ["x", "x", "x"] {
            quota.take_now(subject, &second, 0, 1).unwrap();
        }
        assert_eq!(subjects(&quota), 1);
    }

    #[test]
    fn a_take_that_grants_nothing_is_not_kept() {
        let quota = quota(10);
        let limits = [Limit::parse("1/minute").unwrap()];
        assert_eq!(quota.take_now("a", &limits, 0, 0).unwrap().granted, 0);
        assert_eq!(quota.take_now("b", &[], 0, 7).unwrap().granted, 7);
        assert_eq!(subjects(&quota), 0);
    }

    #[test]
    fn a_clock_that_is_set_back_refuses_for_no_longer_than_a_window() {
        for algorithm in [Algorithm::SlidingLog, Algorithm::TokenBucket { burst: 3 }] {
            let quota = quota(10);
            let limits = [Limit::parse("3/minute").unwrap().counted_by(algorithm).unwrap()];
            let take = || quota.take_now("a", &limits, 0, 9).unwrap().granted;
            assert_eq!((take(), take()), (3, 0));
            quota.clock.set(UnixTime::from_secs(1_000_000_020 - 7_200));
            assert_eq!(take(), 0);
            quota.clock.advance(Duration::from_secs(60));
            assert_eq!(take(), 3, "{algorithm:?}");
        }
    }
}
