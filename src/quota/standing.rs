//! How a limit stands: what is left, and for how long that is so.

use std::time::Duration;

use super::{Algorithm, Limit};
use crate::base::clock::UnixTime;

/// How one limit of a subject stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that may be taken now.
    pub left: u64,
    /// Where nothing is left, the time until something is; otherwise the time until everything is,
    /// if nothing more is taken. A fixed window ends as it ends.
    pub reset_after: Duration,
}

impl Standing {
    /// How `limit`, which stood like this at `then`, stands at `now` if nothing was taken since: at
    /// least so much is left.
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
}
