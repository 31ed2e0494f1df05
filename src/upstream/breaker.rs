//! The breaker of an endpoint. It is closed until several requests in a row have failed. Then it is open: the endpoint
//! gets no requests. After a time one request is let through, on trial: if it succeeds the breaker closes, and if it
//! fails the breaker is open for the same time again. A request that is on trial for longer than that
//! time gives its place to another: a client that sends slowly must not keep an endpoint out of use.
//!
//! Pure state without a lock, with time passed in. A request looks at one word of memory, and writes to none while
//! nothing fails. This file must not know endpoints, nor what a failure is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rules::BreakerRules;

/// No request has to wait.
const CLOSED: u64 = 0;

/// Set while a request is on trial. The other bits are the time until which the breaker is open, or until which the request
/// has the only trial.
const ON_TRIAL: u64 = 1 << 63;

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    /// Times are counted from here.
    made: Instant,
    state: AtomicU64,
    /// Failures in a row.
    failures: AtomicU32,
    /// When it closed for the last time.
    closed_at: AtomicU64,
}

/// How a request passes the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The breaker is closed.
    Freely,
    /// The breaker is open, and this request decides whether it closes. The breaker must be told how it ended.
    OnTrial,
}

/// What a request says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint works.
    Good,
    /// The endpoint has failed.
    Bad,
    /// Nothing, as when the client has left.
    Nothing,
}

/// A change that is worth a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint gets no requests from now on, after so many failures.
    Opened(u32),
    /// The endpoint gets requests again.
    Closed,
}

impl Breaker {
    /// A closed breaker that exists from `now` on.
    pub fn new(now: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        Self { made: now, state: zero(), failures: AtomicU32::new(0), closed_at: zero() }
    }

    /// `now` as a value of the state: milliseconds, and never [`CLOSED`].
    fn at(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.made).as_millis();
        u64::try_from(passed).unwrap_or(0).saturating_add(1)
    }

    /// Whether the endpoint gets requests without a trial.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Relaxed) == CLOSED
    }

    /// How long until a request may pass; `None` when one may pass now. While a request is on trial, nobody knows how
    /// long, and the time is zero.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let state = self.state.load(Ordering::Relaxed);
        let left = (state & !ON_TRIAL).saturating_sub(self.at(now));
        match state {
            CLOSED => None,
            _ if left == 0 => None,
            _ if state & ON_TRIAL != 0 => Some(Duration::ZERO),
            _ => Some(Duration::from_millis(left)),
        }
    }

    /// Lets a request pass at `now`, if one may pass.
    pub fn pass(&self, rules: &BreakerRules, now: Instant) -> Option<Pass> {
        match self.state.load(Ordering::Relaxed) {
            CLOSED => Some(Pass::Freely),
            state if state & !ON_TRIAL > self.at(now) => None,
            state => {
                let trial = self.until(rules, now) | ON_TRIAL;
                self.exchange(state, trial).then_some(Pass::OnTrial)
            }
        }
    }

    /// Ends the trial, if a request is on trial; whether one was.
    fn end_trial(&self, next: u64) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        state & ON_TRIAL != 0 && self.exchange(state, next)
    }

    /// Learns at `now` about a request that passed in this way, and `began` then.
    pub fn learn(
        &self,
        pass: Pass,
        verdict: Verdict,
        rules: &BreakerRules,
        began: Instant,
        now: Instant,
    ) -> Option<Transition> {
        match (pass, verdict) {
            (Pass::Freely, Verdict::Nothing) => None,
            (Pass::Freely, Verdict::Good) => {
                if self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                None
            }
            (Pass::Freely, Verdict::Bad) => self.failed(rules, began, now),
            (Pass::OnTrial, Verdict::Nothing) => {
                // The next request is on trial at once.
                self.end_trial(self.at(now));
                None
            }
            (Pass::OnTrial, Verdict::Good) => {
                self.failures.store(0, Ordering::Relaxed);
                self.closed_at.store(self.at(now), Ordering::Relaxed);
                self.end_trial(CLOSED).then_some(Transition::Closed)
            }
            (Pass::OnTrial, Verdict::Bad) => {
                self.end_trial(self.until(rules, now));
                None
            }
        }
    }

    fn failed(&self, rules: &BreakerRules, began: Instant, now: Instant) -> Option<Transition> {
        let most = rules.failures?;
        // A request that began before the endpoint recovered says nothing about the endpoint since.
        if !self.is_closed() || self.at(began) < self.closed_at.load(Ordering::Relaxed) {
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let opens = failures >= most && self.exchange(CLOSED, self.until(rules, now));
        opens.then_some(Transition::Opened(failures))
    }

    fn until(&self, rules: &BreakerRules, now: Instant) -> u64 {
        self.at(now + rules.open_for) & !ON_TRIAL
    }

    fn exchange(&self, from: u64, to: u64) -> bool {
        self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(failures: u32) -> BreakerRules {
        let open_for = Duration::from_secs(10);
        BreakerRules { failures: Some(failures), open_for, statuses: Default::default() }
    }

    #[test]
    fn failures_in_a_row_open_and_one_request_decides_whether_it_closes() {
        use Pass::{Freely, OnTrial};
        use Verdict::{Bad, Good, Nothing};
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(3));
        // (when in seconds, how the request passes, what it says, the transition)
        let steps = [
            (0, Some(Freely), Bad, None),
            (0, Some(Freely), Bad, None),
            (0, Some(Freely), Good, None),
            (1, Some(Freely), Bad, None),
            (1, Some(Freely), Nothing, None),
            (1, Some(Freely), Bad, None),
            (2, Some(Freely), Bad, Some(Transition::Opened(3))),
            (2, None, Bad, None),
            (11, None, Bad, None),
            (12, Some(OnTrial), Bad, None),
            (21, None, Bad, None),
            (22, Some(OnTrial), Nothing, None),
            (22, Some(OnTrial), Good, Some(Transition::Closed)),
            (22, Some(Freely), Bad, None),
            (22, Some(Freely), Good, None),
        ];
        for (nth, (seconds, pass, verdict, transition)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(breaker.pass(&rules, now), pass, "{nth}");
            if let Some(pass) = pass {
                assert_eq!(breaker.learn(pass, verdict, &rules, now, now), transition, "{nth}");
            }
        }
    }

    #[test]
    fn one_request_at_a_time_is_on_trial() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        assert_eq!(breaker.wait(start), Some(Duration::from_secs(10)));
        let later = start + Duration::from_secs(11);
        assert_eq!(breaker.wait(later), None);
        assert_eq!(breaker.pass(&rules, later), Some(Pass::OnTrial));
        assert_eq!(
            (breaker.pass(&rules, later), breaker.wait(later)),
            (None, Some(Duration::ZERO))
        );
        assert!(!breaker.is_closed());
        // The request takes long, and another gets its chance. Either may close the breaker.
        let much_later = later + Duration::from_secs(10);
        assert_eq!(breaker.wait(much_later), None);
        assert_eq!(breaker.pass(&rules, much_later), Some(Pass::OnTrial));
        assert_eq!(breaker.pass(&rules, much_later), None);
        let closed = breaker.learn(Pass::OnTrial, Verdict::Good, &rules, later, much_later);
        assert_eq!((closed, breaker.is_closed()), (Some(Transition::Closed), true));
        assert_eq!(breaker.learn(Pass::OnTrial, Verdict::Bad, &rules, later, much_later), None);
        assert!(breaker.is_closed(), "the trial is over");
    }

    #[test]
    fn late_failures_of_an_outage_do_not_open_it_again() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        let later = start + Duration::from_secs(11);
        assert_eq!(breaker.pass(&rules, later), Some(Pass::OnTrial));
        breaker.learn(Pass::OnTrial, Verdict::Good, &rules, later, later);
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, later);
        assert!(breaker.is_closed(), "the request began before the endpoint recovered");
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, later, later);
        assert!(!breaker.is_closed());
    }

    #[test]
    fn without_a_number_of_failures_it_never_opens() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), BreakerRules { failures: None, ..rules(1) });
        for _ in 0..1_000 {
            breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        }
        assert!(breaker.is_closed());
    }
}
