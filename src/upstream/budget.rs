//! The budget of an upstream's retries. When many requests fail, a retry for each would double the load on servers that
//! are in trouble already. So retries may only be a share of the requests of the last seconds, and a few more, because a
//! share of few requests is nothing. Requests that are under way count as well: they may have begun long ago, and when a
//! server dies, all of its requests fail in the same moment.
//!
//! Counts by the second, without a lock, with time passed in. A request costs two additions and a subtraction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How many seconds are looked at.
const SECONDS: u32 = 10;

/// Retries that are allowed for each of these seconds, whatever the share.
const ALWAYS: u64 = 3;

/// More than [`SECONDS`], so that no second is overwritten that is looked at.
const SLOTS: usize = 16;

/// Requests and retries of the last seconds.
#[derive(Debug)]
pub struct Budget {
    /// Seconds are counted from here.
    made: Instant,
    requests: Counts,
    retries: Counts,
    /// Requests under way.
    in_flight: AtomicU64,
}

/// Numbers by the second. Each slot holds the number of its second in the upper half, and the count in the lower half.
#[derive(Debug, Default)]
struct Counts([AtomicU64; SLOTS]);

impl Counts {
    fn slot(&self, second: u32) -> &AtomicU64 {
        // The index is below the number of slots.
        &self.0[second as usize % SLOTS]
    }

    fn add(&self, second: u32) {
        let slot = self.slot(second);
        let seen = slot.load(Ordering::Relaxed);
        if seen >> 32 == u64::from(second) {
            slot.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Of several threads that meet a new second, the first begins its slot.
        let first = (u64::from(second) << 32) + 1;
        if slot.compare_exchange(seen, first, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(&self, second: u32) -> u32 {
        let seen = self.slot(second).load(Ordering::Relaxed);
        if seen >> 32 == u64::from(second) { seen as u32 } else { 0 }
    }

    fn recent(&self, second: u32) -> u64 {
        let first = second.saturating_sub(SECONDS - 1);
        (first..=second).map(|second| u64::from(self.of(second))).sum()
    }
}

impl Budget {
    /// A budget that exists from `now` on.
    pub fn new(now: Instant) -> Self {
        let (requests, retries) = (Counts::default(), Counts::default());
        Self { made: now, requests, retries, in_flight: AtomicU64::new(0) }
    }

    fn second(&self, now: Instant) -> u32 {
        // The second 0 is the state of a slot without requests.
        let passed = now.saturating_duration_since(self.made).as_secs();
        u32::try_from(passed).unwrap_or(u32::MAX - 1) + 1
    }

    /// Counts a request that begins.
    pub fn request_begins(&self, now: Instant) {
        self.requests.add(self.second(now));
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that was counted when it began has ended.
    pub fn request_ends(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes one retry, if `percent` of the requests allow it.
    pub fn take_retry(&self, percent: u32, now: Instant) -> bool {
        let second = self.second(now);
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let share = self.requests.recent(second).max(in_flight) * u64::from(percent) / 100;
        let allowed = self.retries.recent(second) < share + ALWAYS * u64::from(SECONDS);
        if allowed {
            self.retries.add(second);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(budget: &Budget, percent: u32, now: Instant) -> usize {
        (0..1_000).filter(|_| budget.take_retry(percent, now)).count()
    }

    fn request(budget: &Budget, now: Instant) {
        budget.request_begins(now);
        budget.request_ends();
    }

    #[test]
    fn requests_that_began_long_ago_count_while_they_last() {
        let start = Instant::now();
        let budget = Budget::new(start);
        (0..400).for_each(|_| budget.request_begins(start));
        let later = start + Duration::from_secs(60);
        assert_eq!(taken(&budget, 50, later), 230);
        (0..400).for_each(|_| budget.request_ends());
        assert_eq!(taken(&budget, 50, later + Duration::from_secs(60)), 30);
    }

    #[test]
    fn retries_are_a_share_of_the_last_seconds_and_three_a_second_always() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let budget = Budget::new(start);
        for second in 0..20 {
            (0..100).for_each(|_| request(&budget, after(second)));
        }
        assert_eq!(taken(&budget, 20, after(19)), 230, "20 % of 1000, and 30");
        assert_eq!(taken(&budget, 20, after(20)), 0, "they are used up");
        assert_eq!(taken(&budget, 20, after(60)), 30, "there were no requests");
        (0..100).for_each(|_| request(&budget, after(61)));
        assert_eq!(taken(&budget, 0, after(61)), 0);
        assert_eq!(taken(&budget, 50, after(61)), 50);
        assert_eq!(taken(&budget, 0, after(71)), 30);
    }

    #[test]
    fn threads_lose_no_request() {
        let now = Instant::now();
        let budget = Budget::new(now);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| request(&budget, now)));
            }
        });
        assert_eq!(budget.requests.recent(1), 4_000);
    }
}
