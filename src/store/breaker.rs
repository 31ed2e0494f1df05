//! When to stop asking a store that does not answer: the breaker is closed until several calls in a row have failed,
//! and open until a call succeeds.
//!
//! Pure state, with time passed in: it knows neither stores nor clocks, and never waits.

use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
pub const FAILURES_TO_OPEN: u32 = 3;

/// Counts failures in a row, whatever the operation.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    opened: Option<Instant>,
}

/// A change of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Calls are refused from now on.
    Opened,
    /// Calls are let through again, after having been refused for this long.
    Closed(Duration),
}

impl Breaker {
    /// Whether calls are refused. Only a probe may ask the store then.
    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    /// The store answered.
    pub fn succeeded(&mut self, now: Instant) -> Option<Transition> {
        self.failures = 0;
        let opened = self.opened.take()?;
        Some(Transition::Closed(now.saturating_duration_since(opened)))
    }

    /// The store did not answer, or cannot serve.
    pub fn failed(&mut self, now: Instant) -> Option<Transition> {
        self.failures = self.failures.saturating_add(1);
        if self.is_open() || self.failures < FAILURES_TO_OPEN {
            return None;
        }
        self.opened = Some(now);
        Some(Transition::Opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_open_and_one_success_closes() {
        let start = Instant::now();
        let opened = Some(Transition::Opened);
        let closed = |secs| Some(Transition::Closed(Duration::from_secs(secs)));
        // (did the call succeed, seconds since the start, the transition, open afterwards)
        let steps = [
            (false, 0, None, false),
            (false, 1, None, false),
            (true, 2, None, false),
            (false, 3, None, false),
            (false, 4, None, false),
            (false, 5, opened, true),
            (false, 6, None, true),
            (true, 9, closed(4), false),
            (true, 10, None, false),
            (false, 11, None, false),
            (false, 12, None, false),
            (false, 13, opened, true),
        ];
        let mut breaker = Breaker::default();
        for (succeeded, secs, transition, open) in steps {
            let now = start + Duration::from_secs(secs);
            let seen = if succeeded { breaker.succeeded(now) } else { breaker.failed(now) };
            assert_eq!((seen, breaker.is_open()), (transition, open), "at {secs} s");
        }
    }
}
