//! Time as an argument: wall-clock instants and where they come from.
//!
//! Windows and expiries are points on the wall clock. A duration is measured with `std::time::Instant` at the place
//! where it passes.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// The point `micros` microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The point `millis` milliseconds after the epoch; saturates.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// The point `secs` seconds after the epoch; saturates.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole seconds since the epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl Add<Duration> for UnixTime {
    type Output = Self;

    /// Saturates at the largest value.
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(micros(rhs)))
    }
}

impl Sub for UnixTime {
    type Output = Duration;

    /// The time from `rhs` to `self`; zero when `self` is not later.
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(rhs.0))
    }
}

/// A point in time by a clock that never goes back, in microseconds since some fixed point in the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than every other moment.
    pub const NEVER: Self = Self(u64::MAX);
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Saturates at the largest value.
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(micros(rhs)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// The time from `rhs` to `self`; zero when `self` is not later.
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(rhs.0))
    }
}

/// A [`Moment`] that threads share; it starts at the earliest moment.
#[derive(Debug, Default)]
pub struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    /// The moment.
    pub fn load(&self) -> Moment {
        Moment(self.0.load(Ordering::Relaxed))
    }

    /// Sets it to `moment`.
    pub fn store(&self, moment: Moment) {
        self.0.store(moment.0, Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A source of the present time.
pub trait Clock: Send + Sync + 'static {
    /// The present, by this clock. It may jump, either way.
    fn now(&self) -> UnixTime;

    /// The present, by a clock that never goes back.
    fn monotonic(&self) -> Moment;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> UnixTime {
        (**self).now()
    }

    fn monotonic(&self) -> Moment {
        (**self).monotonic()
    }
}

/// The operating system's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that others take")]
    fn now(&self) -> UnixTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Moment {
        Moment::default() + self.started.elapsed()
    }
}

/// A clock that only its owner moves, for tests and simulations.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_us: AtomicU64,
    monotonic_us: AtomicU64,
}

impl ManualClock {
    /// A clock that reads `now`.
    pub fn new(now: UnixTime) -> Self {
        Self { now_us: AtomicU64::new(now.0), monotonic_us: AtomicU64::new(0) }
    }

    /// Lets `by` pass.
    pub fn advance(&self, by: Duration) {
        let by = micros(by);
        self.now_us.fetch_add(by, Ordering::SeqCst);
        self.monotonic_us.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets the wall clock, as an operator or a time server does; the monotonic clock goes on.
    pub fn set(&self, now: UnixTime) {
        self.now_us.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixTime {
        UnixTime(self.now_us.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Moment {
        Moment(self.monotonic_us.load(Ordering::SeqCst))
    }
}
