//! The standing of a limit: the units left, and the time until that changes.

use std::time::Duration;

use super::{Algorithm, Limit};
use crate::base::clock::UnixTime;

/// The standing of one limit of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Units that may be taken now.
    pub left: u64,
    /// When nothing is left, the time until a unit is left; otherwise the time until the whole quota is left, if nothing
    /// more is taken. For a fixed window, the time until its end.
    pub reset_after: Duration,
}

impl Standing {
    /// An estimate of the time until `units` are left of `limit`, if nothing more is taken. It is exact for a fixed window
    /// and close for a bucket; the counts of other algorithms are assumed to shrink evenly.
    pub fn wait_for(&self, limit: &Limit, units: u64) -> Duration {
        let missing = units.saturating_sub(self.left);
        if missing == 0 {
            return Duration::ZERO;
        }
        // When nothing is left, the first unit comes at the reset.
        let refill = |units: u64| {
            let micros = units as f64 * limit.window_micros() as f64 / limit.quota as f64;
            Duration::from_micros(micros.ceil() as u64)
        };
        match (limit.algorithm, self.left) {
            (Algorithm::FixedWindow, _) => self.reset_after,
            (Algorithm::TokenBucket { .. }, 0) => self.reset_after + refill(missing - 1),
            (Algorithm::TokenBucket { .. }, _) => refill(missing),
            (_, 0) => self.reset_after,
            (_, left) => {
                let used = limit.capacity().saturating_sub(left).max(missing);
                self.reset_after.mul_f64(missing as f64 / used as f64)
            }
        }
    }

    /// The standing of `limit` at `now`, if this was its standing at `then` and nothing was taken since. At least as many
    /// units are left as it says.
    pub fn later(self, limit: &Limit, then: UnixTime, now: UnixTime) -> Self {
        let elapsed = now - then;
        let rest = self.reset_after.saturating_sub(elapsed);
        let window_rest = || limit.window_end(now) - now;
        match limit.algorithm {
            Algorithm::FixedWindow if elapsed >= self.reset_after => {
                Self { left: limit.quota, reset_after: window_rest() }
            }
            Algorithm::TokenBucket { burst } => {
                let micros = elapsed.as_micros() as f64;
                let refilled = micros * limit.quota as f64 / limit.window_micros() as f64;
                let left = self.left.saturating_add(refilled as u64).min(burst);
                Self { left, reset_after: rest }
            }
            Algorithm::SlidingWindow | Algorithm::SlidingLog if elapsed >= self.reset_after => {
                let all_is_back = self.left > 0 || elapsed >= limit.window * 2;
                let left = if all_is_back { limit.quota } else { 1 };
                Self { left, reset_after: window_rest() }
            }
            _ => Self { left: self.left, reset_after: rest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_never_better_than_the_truth() {
        use crate::quota::counter::Counter;
        let mut random = fastrand::Rng::with_seed(5);
        let minute = |algorithm| Limit::parse("30/minute").unwrap().counted_by(algorithm).unwrap();
        for algorithm in [
            Algorithm::FixedWindow,
            Algorithm::SlidingWindow,
            Algorithm::SlidingLog,
            Algorithm::TokenBucket { burst: 10 },
        ] {
            let limit = minute(algorithm);
            for _ in 0..2_000 {
                let mut counter = Counter::new(&limit);
                let mut then = UnixTime::from_secs(1_000_000_020);
                for _ in 0..5 {
                    then = then + Duration::from_micros(random.u64(..40_000_000));
                    let room = counter.room(&limit, then);
                    counter.take(&limit, then, random.u64(..=room));
                }
                let standing = counter.standing(&limit, then);
                let now = then + Duration::from_micros(random.u64(..150_000_000));
                let later = standing.later(&limit, then, now);
                let truth = counter.room(&limit, now);
                assert!(later.left <= truth, "{algorithm:?}: {standing:?} {later:?} {truth}");
                if standing.left == 0 {
                    let reset = then + standing.reset_after;
                    assert!(counter.room(&limit, reset) > 0, "{algorithm:?}: {standing:?}");
                    let early = UnixTime::from_micros(reset.as_micros() - 2_000);
                    assert!(early < then || counter.room(&limit, early) == 0, "{algorithm:?}");
                }
            }
        }
    }

    #[test]
    fn the_wait_for_several_units_ends_when_they_are_there() {
        use crate::quota::counter::Counter;
        let mut random = fastrand::Rng::with_seed(6);
        let then = UnixTime::from_secs(1_000_000_020);
        for algorithm in [Algorithm::FixedWindow, Algorithm::TokenBucket { burst: 10 }] {
            let limit = Limit::parse("30/minute").unwrap().counted_by(algorithm).unwrap();
            for _ in 0..1_000 {
                let mut counter = Counter::new(&limit);
                counter.take(&limit, then, random.u64(1..=limit.capacity()));
                let now = then + Duration::from_micros(random.u64(..50_000_000));
                let standing = counter.standing(&limit, now);
                let units = random.u64(1..=limit.capacity());
                let ready = now + standing.wait_for(&limit, units);
                assert!(counter.room(&limit, ready) >= units, "{algorithm:?} {standing:?} {units}");
            }
        }
        for algorithm in [Algorithm::SlidingWindow, Algorithm::SlidingLog] {
            let limit = Limit::parse("30/minute").unwrap().counted_by(algorithm).unwrap();
            let standing = Standing { left: 10, reset_after: Duration::from_secs(40) };
            assert_eq!(standing.wait_for(&limit, 10), Duration::ZERO);
            assert_eq!(standing.wait_for(&limit, 20), Duration::from_secs(20));
            assert_eq!(standing.wait_for(&limit, 30), Duration::from_secs(40));
            let nothing = Standing { left: 0, ..standing };
            assert_eq!(nothing.wait_for(&limit, 20), nothing.reset_after, "asked again then");
        }
    }
}
