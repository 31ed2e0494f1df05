//! A limit and how people write it: `100/minute`.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::UnixTime;

/// The largest quota accepted: counts stay exact in Lua's doubles with room to spare.
pub const MAX_QUOTA: u64 = 1_000_000_000_000;

/// The largest quota of a sliding window: a count times the milliseconds of a day stays below 2^53.
pub const MAX_SLIDING_QUOTA: u64 = 100_000_000;

/// The largest quota of a sliding log, which keeps an entry for each request.
pub const MAX_LOG_QUOTA: u64 = 100_000;

/// The most limits that a set may hold.
pub const MAX_LIMITS: usize = 8;

/// The longest time for which units granted by a log or a bucket may be spent.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// A full bucket drains within this time: its microseconds stay below 2^53.
const MAX_DRAIN: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A bucket holds at least the units that its rate gives in this part of a second. A smaller bucket would overflow
/// between two requests, and would never let its whole rate through.
const LEAST_BURSTS_PER_SECOND: u64 = 10;

/// The way in which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// At most `quota` in every window, windows aligned to the epoch.
    FixedWindow,
    /// As fixed windows, plus a weighed count of the window before: the part that a window ending now would still
    /// cover.
    SlidingWindow,
    /// At most `quota` in any stretch of a window's length. The store makes every decision.
    SlidingLog,
    /// A bucket of `burst` tokens that refills by `quota` in every window, evenly (the generic cell
    /// rate algorithm, ITU-T I.371, as a leaky bucket of continuous state).
    TokenBucket {
        /// Most requests at once.
        burst: u64,
    },
}

/// At most `quota` requests in `window`, as `algorithm` counts them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// The name of the limit in headers, keys and metrics.
    pub name: Arc<str>,
    /// Requests a window admits; at least 1.
    pub quota: u64,
    /// Length of a window, in whole seconds.
    pub window: Duration,
    /// The way in which requests are counted.
    pub algorithm: Algorithm,
}

/// Why a written limit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The text is not `N/unit`.
    #[error("`{0}` is not a rate: write N/second, N/minute, N/hour or N/day")]
    Form(String),
    /// N is not in range.
    #[error("`{0}` is not a quota: write a whole number from 1 to {MAX_QUOTA}")]
    Quota(String),
    /// The unit is not one of the four.
    #[error("`{0}` is not a unit: use second, minute, hour or day")]
    Unit(String),
    /// The quota is too large for the algorithm.
    #[error("a {0} counts at most {1} requests: write a smaller rate or another algorithm")]
    TooLarge(&'static str, u64),
    /// A burst for an algorithm without bucket.
    #[error("burst belongs to token_bucket: leave the burst or the algorithm out")]
    NoBucket,
    /// A burst that is out of range.
    #[error("burst must be a whole number from {0} (a tenth of a second of the rate) to {1}")]
    Burst(u64, u64),
    /// An unknown algorithm.
    #[error(
        "`{0}` is not an algorithm: use fixed_window, sliding_window, sliding_log or token_bucket"
    )]
    Algorithm(String),
    /// An unknown or repeated word for what a limit counts by.
    #[error("`{0}` is not something to count by: use token, organization, ip or route, each once")]
    By(String),
    /// A name with other characters, or of another length, than names have.
    #[error("`{0}` is not a name: use 1 to 32 letters, digits, `_` or `-`")]
    Name(String),
    /// An unknown member of a limit.
    #[error("a limit has no `{0}`: write rate, burst, algorithm, by or name")]
    Member(String),
    /// Two limits of a set have the same name.
    #[error("two limits are called `{0}`: a set may hold one limit of each name")]
    Duplicate(String),
    /// A set with more limits than a decision may touch.
    #[error("{0} limits in one set: at most {MAX_LIMITS} are allowed")]
    TooMany(usize),
}

impl Algorithm {
    /// The names that [`Algorithm::named`] knows.
    pub const NAMES: [&str; 4] = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"];

    /// Reads the name of an algorithm; a bucket's burst is `burst`.
    ///
    /// # Errors
    /// [`RateError::Algorithm`].
    pub fn named(name: &str, burst: u64) -> Result<Self, RateError> {
        Ok(match name {
            "fixed_window" => Self::FixedWindow,
            "sliding_window" => Self::SlidingWindow,
            "sliding_log" => Self::SlidingLog,
            "token_bucket" => Self::TokenBucket { burst },
            other => return Err(RateError::Algorithm(other.into())),
        })
    }

    /// The name people write.
    pub fn name(self) -> &'static str {
        match self {
            Self::FixedWindow => "fixed_window",
            Self::SlidingWindow => "sliding_window",
            Self::SlidingLog => "sliding_log",
            Self::TokenBucket { .. } => "token_bucket",
        }
    }
}

impl Limit {
    /// `quota` requests in each fixed `window` of whole seconds, named after the window.
    ///
    /// # Errors
    /// [`RateError::Quota`] when `quota` is 0 or above [`MAX_QUOTA`].
    pub fn per(quota: u64, window: Duration) -> Result<Self, RateError> {
        if quota == 0 || quota > MAX_QUOTA {
            return Err(RateError::Quota(quota.to_string()));
        }
        let name = match window.as_secs() {
            1 => "second".into(),
            60 => "minute".into(),
            3_600 => "hour".into(),
            86_400 => "day".into(),
            secs => format!("{secs}s").into(),
        };
        Ok(Self { name, quota, window, algorithm: Algorithm::FixedWindow })
    }

    /// Reads `N/second`, `N/minute`, `N/hour` or `N/day`: a fixed window.
    ///
    /// # Errors
    /// [`RateError`] says which part is wrong and what is allowed.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        let (quota, unit) = text.split_once('/').ok_or_else(|| RateError::Form(text.into()))?;
        let (quota, unit) = (quota.trim(), unit.trim());
        let quota: u64 = match quota.parse() {
            Ok(quota) if quota > 0 && quota <= MAX_QUOTA => quota,
            _ => return Err(RateError::Quota(quota.into())),
        };
        let window = match unit {
            "second" => 1,
            "minute" => 60,
            "hour" => 3_600,
            "day" => 86_400,
            other => return Err(RateError::Unit(other.into())),
        };
        Self::per(quota, Duration::from_secs(window))
    }

    /// The same rate, counted by `algorithm`.
    ///
    /// # Errors
    /// [`RateError::TooLarge`] and [`RateError::Burst`] where the rate does not suit it.
    pub fn counted_by(self, algorithm: Algorithm) -> Result<Self, RateError> {
        match algorithm {
            Algorithm::SlidingWindow if self.quota > MAX_SLIDING_QUOTA => {
                return Err(RateError::TooLarge(algorithm.name(), MAX_SLIDING_QUOTA));
            }
            Algorithm::SlidingLog if self.quota > MAX_LOG_QUOTA => {
                return Err(RateError::TooLarge(algorithm.name(), MAX_LOG_QUOTA));
            }
            Algorithm::TokenBucket { burst } => {
                let windows = MAX_DRAIN.as_secs() / self.window.as_secs().max(1);
                let least = self.quota / self.window.as_secs().max(1) / LEAST_BURSTS_PER_SECOND;
                let least = least.max(1);
                let most = self.quota.saturating_mul(windows).clamp(least, MAX_QUOTA);
                if !(least..=most).contains(&burst) {
                    return Err(RateError::Burst(least, most));
                }
            }
            _ => {}
        }
        Ok(Self { algorithm, ..self })
    }

    /// When the aligned window that holds `now` ends.
    pub fn window_end(&self, now: UnixTime) -> UnixTime {
        let length = self.window_micros();
        let start = now.as_micros() - now.as_micros() % length;
        UnixTime::from_micros(start.saturating_add(length))
    }

    /// The window's length in microseconds; never 0.
    pub fn window_micros(&self) -> u64 {
        u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// The largest number of requests that can be left.
    pub fn capacity(&self) -> u64 {
        match self.algorithm {
            Algorithm::TokenBucket { burst } => burst,
            _ => self.quota,
        }
    }

    /// Whether a process may keep a grant for later requests. A grant of a log must be spent at once.
    pub fn may_be_leased(&self) -> bool {
        self.algorithm != Algorithm::SlidingLog
    }

    /// The mark under which a grant made at `now` is counted and given back: the end of its window, or the moment itself
    /// for an algorithm without windows.
    pub fn mark(&self, now: UnixTime) -> UnixTime {
        match self.algorithm {
            Algorithm::FixedWindow | Algorithm::SlidingWindow => self.window_end(now),
            Algorithm::SlidingLog | Algorithm::TokenBucket { .. } => now,
        }
    }

    /// The mark of two grants that are held together; `None` when they must be kept apart.
    pub fn merged_mark(&self, a: UnixTime, b: UnixTime) -> Option<UnixTime> {
        match self.algorithm {
            // Of the earlier grant the least can be given back.
            Algorithm::TokenBucket { .. } => Some(a.min(b)),
            _ => (a == b).then_some(a),
        }
    }

    /// The time in which a grant made at `now` may be spent. A grant of a window may be spent until the window ends.
    ///
    /// Without windows, requests that spend an old grant come on top of the units granted since. So this time is the
    /// whole difference between granting and admitting: a log admits its quota in any window less this time, and a
    /// bucket admits its burst and the refill of any stretch plus this time.
    pub fn spendable_for(&self, now: UnixTime) -> Duration {
        match self.algorithm {
            Algorithm::FixedWindow | Algorithm::SlidingWindow => self.window_end(now) - now,
            Algorithm::SlidingLog | Algorithm::TokenBucket { .. } => {
                (self.window / 8).min(MAX_HOLD)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_or_refused_with_a_reason() {
        let ok = |text: &str| {
            let limit = Limit::parse(text).unwrap();
            (limit.quota, limit.window.as_secs(), limit.name.to_string())
        };
        assert_eq!(ok("100/minute"), (100, 60, "minute".into()));
        assert_eq!(ok("1/second"), (1, 1, "second".into()));
        assert_eq!(ok("10000 / day"), (10_000, 86_400, "day".into()));
        for (text, error) in [
            ("100", RateError::Form("100".into())),
            ("0/minute", RateError::Quota("0".into())),
            ("-1/minute", RateError::Quota("-1".into())),
            ("1.5/minute", RateError::Quota("1.5".into())),
            ("1000000000000000000/second", RateError::Quota("1000000000000000000".into())),
            ("1/fortnight", RateError::Unit("fortnight".into())),
            ("/minute", RateError::Quota(String::new())),
        ] {
            assert_eq!(Limit::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_rate_must_suit_its_algorithm() {
        let by = |text: &str, algorithm| Limit::parse(text).unwrap().counted_by(algorithm);
        let bucket = |burst| Algorithm::TokenBucket { burst };
        assert!(by("1000000000000/day", Algorithm::FixedWindow).is_ok());
        assert!(by("100000000/day", Algorithm::SlidingWindow).is_ok());
        assert!(by("100000001/day", Algorithm::SlidingWindow).is_err());
        assert!(by("100000/day", Algorithm::SlidingLog).is_ok());
        assert!(by("100001/day", Algorithm::SlidingLog).is_err());
        assert_eq!(by("5/minute", bucket(0)), Err(RateError::Burst(1, 262_800_000)));
        assert!(by("5/minute", bucket(1)).is_ok());
        assert_eq!(by("1000/second", bucket(99)), Err(RateError::Burst(100, MAX_QUOTA)));
        assert!(by("1000/second", bucket(100)).is_ok());
        assert!(by("1000/second", bucket(MAX_QUOTA + 1)).is_err());
    }

    #[test]
    fn windows_align_to_the_epoch() {
        let minute = Limit::parse("1/minute").unwrap();
        let end = |micros| minute.window_end(UnixTime::from_micros(micros)).as_micros();
        assert_eq!(end(0), 60_000_000);
        assert_eq!(end(59_999_999), 60_000_000);
        assert_eq!(end(60_000_000), 120_000_000);
    }
}
