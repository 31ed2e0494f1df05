//! The counter of one limit of one subject, as a store keeps it, and its arithmetic.
//!
//! The files in `store/redis/scripts/counting` compute the same, step by step. Every number here is a whole number that
//! Lua's doubles hold exactly, or a double that both sides compute by the same operations in the same order.
//!
//! A counter admits, for every order of calls without an upward adjustment:
//! - fixed window: at most the quota in each aligned window;
//! - sliding window: besides, at most the quota less the weighed count of the window before; so at most
//!   `quota * (1 + g)` in a stretch of a window's length of which the part `g` lies after a boundary;
//! - sliding log: at most the quota in any stretch of a window's length;
//! - token bucket: at most `burst + rate * t` in any stretch of length `t`.
//!
//! A clock may be set back. The count of a later window is then forgotten. Logs and buckets have marks instead of
//! windows: marks that are later than now count from now, see [`Counter::heed`].

use std::collections::VecDeque;
use std::time::Duration;

use super::{Algorithm, Limit, Standing};
use crate::base::clock::UnixTime;

/// A counter.
#[derive(Clone, Debug, PartialEq)]
pub enum Counter {
    /// Units in the window that ends at `end`.
    Fixed {
        /// When the window ends.
        end: UnixTime,
        /// Units counted in it.
        used: u64,
    },
    /// Units in the window that ends at `end`, and in the one before it.
    Sliding {
        /// When the window ends.
        end: UnixTime,
        /// Units counted in it.
        used: u64,
        /// Units counted in the window before.
        before: u64,
    },
    /// Units by the moments when they were granted.
    Log(Log),
    /// The level of the bucket at a moment.
    Bucket {
        /// The moment.
        at: UnixTime,
        /// Units in the bucket then.
        level: f64,
    },
}

impl Counter {
    /// A counter that has counted nothing.
    pub fn new(limit: &Limit) -> Self {
        let end = UnixTime::default();
        match limit.algorithm {
            Algorithm::FixedWindow => Self::Fixed { end, used: 0 },
            Algorithm::SlidingWindow => Self::Sliding { end, used: 0, before: 0 },
            Algorithm::SlidingLog => Self::Log(Log::default()),
            Algorithm::TokenBucket { .. } => Self::Bucket { at: end, level: 0.0 },
        }
    }

    /// Whether this counter has the algorithm of `limit`.
    pub fn fits(&self, limit: &Limit) -> bool {
        matches!(
            (self, limit.algorithm),
            (Self::Fixed { .. }, Algorithm::FixedWindow)
                | (Self::Sliding { .. }, Algorithm::SlidingWindow)
                | (Self::Log(_), Algorithm::SlidingLog)
                | (Self::Bucket { .. }, Algorithm::TokenBucket { .. })
        )
    }

    /// Heeds a clock that was set back: marks later than `now` become `now`. Otherwise their units would refuse
    /// requests until the clock has passed the marks again. Whether there were any.
    pub fn heed(&mut self, now: UnixTime) -> bool {
        match self {
            Self::Bucket { at, .. } if *at > now => {
                *at = now;
                true
            }
            Self::Log(log) => log.heed(now),
            Self::Fixed { .. } | Self::Sliding { .. } | Self::Bucket { .. } => false,
        }
    }

    /// The units that may be taken. To be asked after [`Counter::heed`].
    pub fn room(&self, limit: &Limit, now: UnixTime) -> u64 {
        match self {
            Self::Fixed { end, used } => {
                let used = if *end == limit.window_end(now) { *used } else { 0 };
                limit.quota.saturating_sub(used)
            }
            Self::Sliding { .. } => {
                let (used, before) = self.sliding(limit, now);
                let weighed = weigh(limit, before, rest_ms(limit, now));
                limit.quota.saturating_sub(used).saturating_sub(weighed)
            }
            Self::Log(log) => limit.quota.saturating_sub(log.counted(limit, now)),
            Self::Bucket { at, level } => {
                let room = (limit.capacity() as f64 - leaked(limit, *at, *level, now)).floor();
                room.max(0.0) as u64
            }
        }
    }

    /// Takes `units`, for which there is room.
    pub fn take(&mut self, limit: &Limit, now: UnixTime, units: u64) {
        if units == 0 {
            return;
        }
        let (used, before) = self.sliding(limit, now);
        match self {
            Self::Fixed { end, used } => {
                let present = limit.window_end(now);
                *used = units + if *end == present { *used } else { 0 };
                *end = present;
            }
            Self::Sliding { .. } => {
                *self = Self::Sliding { end: limit.window_end(now), used: used + units, before };
            }
            Self::Log(log) => {
                log.forget_old(limit, now);
                log.insert(now, units);
            }
            Self::Bucket { at, level } => {
                *level = leaked(limit, *at, *level, now) + units as f64;
                *at = now;
            }
        }
    }

    /// The standing of the limit.
    pub fn standing(&self, limit: &Limit, now: UnixTime) -> Standing {
        let left = self.room(limit, now);
        let window_rest = limit.window_end(now) - now;
        let reset_after = match self {
            Self::Fixed { .. } => window_rest,
            Self::Sliding { .. } => {
                let (used, before) = self.sliding(limit, now);
                match (left, used, before) {
                    (0, ..) => sliding_wait(limit, now, used, before),
                    (_, 0, 0) => Duration::ZERO,
                    (_, 0, _) => window_rest,
                    _ => window_rest + limit.window,
                }
            }
            Self::Log(log) => log.wait(limit, now, left),
            Self::Bucket { at, level } => {
                let level = leaked(limit, *at, *level, now);
                let above = if left == 0 { level - (limit.capacity() as f64 - 1.0) } else { level };
                drain(limit, above)
            }
        };
        Standing { left, reset_after }
    }

    /// With `by` below zero: gives back units that were taken under `mark`. With `by` above zero: counts units that were
    /// spent without this counter, in the aligned window that ends at `mark`. A mark of 0 stands for the present window.
    pub fn adjust(&mut self, limit: &Limit, now: UnixTime, mark: UnixTime, by: i64) {
        self.heed(now);
        let present = limit.window_end(now);
        let mark = if mark == UnixTime::default() { present } else { mark };
        let (now_used, now_before) = self.sliding(limit, now);
        let amount = by.unsigned_abs();
        match self {
            Self::Fixed { end, used } => {
                if by > 0 && *end != present && mark == present {
                    (*end, *used) = (present, 0);
                }
                if *end == mark && mark == present {
                    *used = changed(limit, *used, by);
                }
            }
            Self::Sliding { .. } => {
                let in_mark = |count: u64, is_its_window: bool| match is_its_window {
                    true => changed(limit, count, by),
                    false => count,
                };
                *self = Self::Sliding {
                    end: present,
                    used: in_mark(now_used, mark == present),
                    before: in_mark(now_before, mark + limit.window == present),
                };
            }
            Self::Log(log) => {
                log.forget_old(limit, now);
                if by < 0 {
                    log.remove(mark, amount);
                } else if mark + limit.window > now {
                    // A log never holds more units than its quota: more units would not refuse for longer.
                    log.insert(mark.min(now), amount.min(limit.quota.saturating_sub(log.total)));
                }
            }
            Self::Bucket { at, level } => {
                let present = leaked(limit, *at, *level, now);
                *level = if by < 0 && mark > now {
                    // The clock was set back: how much has leaked out since the grant is unknown.
                    present
                } else if by < 0 {
                    // Units that have leaked out since the grant are free already.
                    let gone = leak(limit, now - mark).ceil();
                    (present - (amount as f64 - gone).max(0.0)).max(0.0)
                } else if mark + limit.window > now {
                    (present + amount as f64).min(limit.capacity() as f64).max(present)
                } else {
                    present
                };
                *at = now;
            }
        }
    }

    /// The moment from which this counter equals a new counter.
    pub fn gone_at(&self, limit: &Limit) -> UnixTime {
        match self {
            Self::Fixed { end, .. } => *end,
            Self::Sliding { end, .. } => *end + limit.window,
            Self::Log(log) => {
                log.entries.back().map_or(UnixTime::default(), |(at, _)| *at + limit.window)
            }
            Self::Bucket { at, level } => *at + drain(limit, *level),
        }
    }

    /// The counts of a sliding window: in the present window, and in the window before it.
    fn sliding(&self, limit: &Limit, now: UnixTime) -> (u64, u64) {
        let Self::Sliding { end, used, before } = self else { return (0, 0) };
        let present = limit.window_end(now);
        if *end == present {
            (*used, *before)
        } else if *end + limit.window == present {
            (0, *used)
        } else {
            (0, 0)
        }
    }
}

/// The count of a window after a change. The count stops at twice the quota, where the window refuses everything
/// anyhow, so that the scripts' numbers stay exact.
fn changed(limit: &Limit, count: u64, by: i64) -> u64 {
    count.saturating_add_signed(by).min(count.max(limit.quota.saturating_mul(2)))
}

/// Milliseconds until the present window ends, rounded up.
fn rest_ms(limit: &Limit, now: UnixTime) -> u64 {
    limit.window_end(now).as_millis() - now.as_millis()
}

fn window_ms(limit: &Limit) -> u64 {
    limit.window_micros() / 1_000
}

/// The weight of `before`, of which the part `rest_ms` of a window still counts, rounded up.
fn weigh(limit: &Limit, before: u64, rest_ms: u64) -> u64 {
    (before * rest_ms).div_ceil(window_ms(limit))
}

/// The time until a full sliding window admits another request.
fn sliding_wait(limit: &Limit, now: UnixTime, used: u64, before: u64) -> Duration {
    let (window, rest) = (window_ms(limit), rest_ms(limit, now));
    // Another request fits when `count` weighs at most `spare`: then this much of its window is left.
    let fits = |spare: u64, count: u64| (spare * window).checked_div(count).unwrap_or(window);
    let wait = if used < limit.quota {
        rest.saturating_sub(fits(limit.quota - 1 - used, before))
    } else {
        rest + window.saturating_sub(fits(limit.quota - 1, used))
    };
    // The milliseconds are rounded up, and the present has a part of a millisecond behind it.
    let now_part = Duration::from_micros(now.as_micros() % 1_000);
    Duration::from_millis(wait).saturating_sub(now_part)
}

/// Moments with the units granted at each, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    entries: VecDeque<(UnixTime, u64)>,
    /// The sum of all entries.
    total: u64,
}

impl Log {
    /// The units that were granted within the last window's length.
    fn counted(&self, limit: &Limit, now: UnixTime) -> u64 {
        let old = self.entries.iter().take_while(|(at, _)| *at + limit.window <= now);
        self.total - old.map(|(_, units)| units).sum::<u64>()
    }

    /// Moves entries that are later than `now` to `now`.
    fn heed(&mut self, now: UnixTime) -> bool {
        let mut units = 0;
        while let Some((_, late)) = self.entries.pop_back_if(|(at, _)| *at > now) {
            units += late;
        }
        self.total -= units;
        self.insert(now, units);
        units > 0
    }

    fn forget_old(&mut self, limit: &Limit, now: UnixTime) {
        while let Some((at, units)) = self.entries.front()
            && *at + limit.window <= now
        {
            self.total -= units;
            self.entries.pop_front();
        }
    }

    /// Adds units to the entry of their moment, in order.
    fn insert(&mut self, at: UnixTime, units: u64) {
        if units == 0 {
            return;
        }
        self.total += units;
        let place = self.entries.partition_point(|(earlier, _)| *earlier < at);
        match self.entries.get_mut(place) {
            Some(entry) if entry.0 == at => entry.1 += units,
            _ => self.entries.insert(place, (at, units)),
        }
    }

    /// Removes units from the entry of their moment.
    fn remove(&mut self, at: UnixTime, units: u64) {
        let place = self.entries.partition_point(|(earlier, _)| *earlier < at);
        let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.0 == at) else { return };
        let removed = units.min(entry.1);
        entry.1 -= removed;
        self.total -= removed;
        if entry.1 == 0 {
            self.entries.remove(place);
        }
    }

    /// The time until a unit is free; when a unit is free already, the time until the log is empty.
    fn wait(&self, limit: &Limit, now: UnixTime, left: u64) -> Duration {
        let leaves = |at: &UnixTime| (*at + limit.window) - now;
        if left > 0 {
            return self.entries.back().map_or(Duration::ZERO, |(at, _)| leaves(at));
        }
        let mut rest = self.total;
        for (at, units) in &self.entries {
            rest -= units;
            if rest < limit.quota {
                return leaves(at);
            }
        }
        Duration::ZERO
    }
}

/// The units that leak out of a bucket in `elapsed`.
fn leak(limit: &Limit, elapsed: Duration) -> f64 {
    elapsed.as_micros() as f64 * limit.quota as f64 / limit.window_micros() as f64
}

/// The present level of a bucket that held `level` at `at`.
fn leaked(limit: &Limit, at: UnixTime, level: f64, now: UnixTime) -> f64 {
    (level - leak(limit, now - at)).max(0.0)
}

/// The time in which `level` leaks out.
fn drain(limit: &Limit, level: f64) -> Duration {
    let micros = (level * limit.window_micros() as f64 / limit.quota as f64).ceil();
    Duration::from_micros(micros.max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit of each algorithm.
    const EACH: [Algorithm; 4] = [
        Algorithm::FixedWindow,
        Algorithm::SlidingWindow,
        Algorithm::SlidingLog,
        Algorithm::TokenBucket { burst: 9 },
    ];

    fn limit(text: &str, algorithm: Algorithm) -> Limit {
        Limit::parse(text).unwrap().counted_by(algorithm).unwrap()
    }

    /// A model of a counter in its plainest form: every request by its moment, in exact numbers.
    struct Oracle {
        requests: Vec<u64>,
    }

    impl Oracle {
        /// The requests that fit at `now`.
        fn room(&self, limit: &Limit, now: u64) -> i128 {
            let window = i128::from(limit.window_micros());
            let (quota, now) = (i128::from(limit.quota), i128::from(now));
            let requests = || self.requests.iter().map(|at| i128::from(*at));
            let start = now - now % window;
            let within = |from: i128, to: i128| {
                requests().filter(|at| (from..to).contains(at)).count() as i128
            };
            match limit.algorithm {
                Algorithm::FixedWindow => quota - within(start, start + window),
                Algorithm::SlidingWindow => {
                    let before = within(start - window, start);
                    // The clock of sliding windows ticks in milliseconds.
                    let rest = start + window - (now - now % 1_000);
                    let weighed = (before * rest + window - 1) / window;
                    quota - within(start, start + window) - weighed
                }
                Algorithm::SlidingLog => quota - within(now - window + 1, now + 1),
                Algorithm::TokenBucket { burst } => {
                    // In parts of a request so small that every number is whole.
                    let (mut level, mut last) = (0, 0);
                    for at in requests() {
                        level = (level - (at - last) * quota).max(0) + window;
                        last = at;
                    }
                    level = (level - (now - last) * quota).max(0);
                    (i128::from(burst) * window - level).div_euclid(window)
                }
            }
        }
    }

    #[test]
    fn every_algorithm_agrees_with_its_definition() {
        let mut random = fastrand::Rng::with_seed(11);
        for algorithm in [
            Algorithm::FixedWindow,
            Algorithm::SlidingWindow,
            Algorithm::SlidingLog,
            Algorithm::TokenBucket { burst: 1 },
            Algorithm::TokenBucket { burst: 7 },
            Algorithm::TokenBucket { burst: 40 },
        ] {
            for text in ["1/second", "7/second", "20/minute", "3/minute"] {
                let limit = limit(text, algorithm);
                for _ in 0..60 {
                    let (mut counter, mut oracle) =
                        (Counter::new(&limit), Oracle { requests: vec![] });
                    let mut now = UnixTime::from_secs(1_000_000_000 + random.u64(..60));
                    for _ in 0..60 {
                        let most = limit.window_micros() / [2, 20, 200][random.usize(..3)];
                        now = now + Duration::from_micros(random.u64(..most));
                        let (room, truth) = (
                            counter.room(&limit, now),
                            oracle.room(&limit, now.as_micros()).max(0),
                        );
                        assert_eq!(
                            i128::from(room),
                            truth,
                            "{limit:?} at {now:?}: {oracle:?}",
                            oracle = oracle.requests
                        );
                        let requests = random.u64(..=room);
                        counter.take(&limit, now, requests);
                        oracle.requests.extend((0..requests).map(|_| now.as_micros()));
                    }
                }
            }
        }
    }

    #[test]
    fn a_counter_that_is_gone_says_nothing() {
        let mut random = fastrand::Rng::with_seed(12);
        for algorithm in EACH {
            let limit = limit("9/minute", algorithm);
            let mut counter = Counter::new(&limit);
            let mut now = UnixTime::from_secs(1_000_000_000);
            for _ in 0..1_000 {
                now = now + Duration::from_micros(random.u64(..40_000_000));
                let room = counter.room(&limit, now);
                counter.take(&limit, now, random.u64(..=room));
                let gone = counter.gone_at(&limit);
                assert_eq!(counter.room(&limit, gone), limit.capacity(), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn what_is_given_back_was_never_taken() {
        let mut random = fastrand::Rng::with_seed(13);
        for algorithm in EACH {
            let limit = limit("9/second", algorithm);
            for _ in 0..2_000 {
                let (mut counter, mut without) = (Counter::new(&limit), Counter::new(&limit));
                let mut now = UnixTime::from_secs(1_000_000_000);
                let mut lent = None;
                for _ in 0..12 {
                    now = now + Duration::from_micros(random.u64(..300_000));
                    let requests = random.u64(..=counter.room(&limit, now));
                    counter.take(&limit, now, requests);
                    match lent {
                        None if requests > 0 => lent = Some((limit.mark(now), requests)),
                        Some((mark, requests)) if random.u8(..4) == 0 => {
                            counter.adjust(&limit, now, mark, -(requests as i64));
                            lent = Some((mark, 0));
                        }
                        _ => without.take(&limit, now, requests),
                    }
                    let (room, most) = (counter.room(&limit, now), without.room(&limit, now));
                    assert!(room <= most, "{algorithm:?}: {counter:?} {without:?}");
                }
            }
        }
    }

    #[test]
    fn what_was_admitted_elsewhere_counts() {
        let now = UnixTime::from_secs(1_000_000_000);
        for algorithm in EACH {
            let limit = limit("9/minute", algorithm);
            let mut counter = Counter::new(&limit);
            counter.adjust(&limit, now, limit.window_end(now), 4);
            assert_eq!(counter.room(&limit, now), 5, "{algorithm:?}");
            counter.adjust(&limit, now, UnixTime::default(), 2);
            assert_eq!(counter.room(&limit, now), 3, "{algorithm:?}: the present window");
            counter.adjust(&limit, now, limit.window_end(now), 400);
            assert_eq!(counter.room(&limit, now), 0, "{algorithm:?}");
            counter.adjust(&limit, now, limit.window_end(now), i64::MAX);
            assert_eq!(counter.room(&limit, now), 0, "{algorithm:?}: beyond any number");
            let later = now + Duration::from_secs(3_600);
            counter.adjust(&limit, later, limit.window_end(now), 4);
            assert_eq!(counter.room(&limit, later), 9, "{algorithm:?}: long ago");
        }
    }

    #[test]
    fn after_a_clock_was_set_back_units_leave_as_if_they_had_just_come() {
        let minute = Limit::parse("6/minute").unwrap();
        for algorithm in [Algorithm::SlidingLog, Algorithm::TokenBucket { burst: 6 }] {
            let limit = minute.clone().counted_by(algorithm).unwrap();
            let at = |secs: u64| UnixTime::from_secs(1_000_000_000 + secs);
            let mut counter = Counter::new(&limit);
            counter.take(&limit, at(0), 2);
            counter.take(&limit, at(500), 6);
            assert!(!counter.heed(at(500)));
            // Set back by 400 s, seen by a refused request 10 s later.
            assert!(counter.heed(at(110)));
            assert!(!counter.heed(at(110)), "once");
            assert_eq!(counter.room(&limit, at(110)), 0);
            let wait = counter.standing(&limit, at(110)).reset_after;
            assert!(wait <= Duration::from_secs(60), "{wait:?}");
            assert!(counter.room(&limit, at(110) + wait) > 0);
            assert_eq!(counter.room(&limit, at(170)), 6, "all of it after a window");
            assert!(counter.gone_at(&limit) <= at(170));
            // Given back under a mark that is later than now: what has leaked meanwhile is not known.
            counter.adjust(&limit, at(110), at(500), -6);
            assert_eq!(counter.room(&limit, at(110)), 0);
        }
    }
}
