//! The breaker of an endpoint. It is closed until several requests in a row have failed. Then it is open: the endpoint
//! gets no requests while others work. After a time one request is let through, on trial: if it succeeds the breaker closes,
//! and if it fails the breaker stays open. A request that is on trial for longer than the pause gives its place to another:
//! a client that sends slowly must not keep an endpoint out of use.
//!
//! An endpoint that refuses connections is tried again soon, because that costs nothing and it may be back at any moment.
//!
//! Pure state without a lock, with time passed in. A request looks at one word of memory, and writes to none while
//! nothing fails. This file must not know endpoints, nor what a failure is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rules::BreakerRules;

/// No request has to wait.
const CLOSED: u64 = 0;

/// Set while a request is on trial.
const ON_TRIAL: u64 = 1 << 63;

/// Set while the endpoint takes no connections, as far as anybody knows.
const UNREACHABLE: u64 = 1 << 62;

/// Where the number of a trial begins.
const NUMBER: u32 = 42;

/// The bits of a number, before they are shifted.
const NUMBERS: u64 = (1 << 20) - 1;

/// The time until which the breaker is open, or until which the request has the only trial.
const UNTIL: u64 = (1 << NUMBER) - 1;

/// The pause of an endpoint that has refused connections. It is doubled with each trial that is refused, up to the pause of
/// the rules.
const SOON: Duration = Duration::from_millis(250);

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    /// Times are counted from here.
    made: Instant,
    state: AtomicU64,
    /// Failures in a row.
    failures: AtomicU32,
    /// Trials that were refused, in a row.
    refusals: AtomicU32,
    /// The number of the last trial.
    trials: AtomicU64,
    /// When it closed for the last time.
    closed_at: AtomicU64,
}

/// How a request passes the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The breaker is closed.
    Freely,
    /// The breaker is open, and the request with this number decides whether it closes. The breaker must be told how it
    /// ended.
    OnTrial(u64),
    /// The breaker is open, and no other endpoint is left. An answer closes the breaker.
    Anyway,
}

/// What a request says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint works.
    Good,
    /// The endpoint has failed.
    Bad,
    /// The endpoint has failed: it takes no connections, and says so at once.
    Unreachable,
    /// Nothing, as when the client has left.
    Nothing,
}

/// What a breaker lets a request do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is closed: requests pass.
    Closed,
    /// It is open, and one request may pass, on trial.
    Due,
    /// It is open for this time. A request may pass if no other endpoint is left.
    Open(Duration),
    /// It is open for this time, and the endpoint takes no connections.
    Unreachable(Duration),
}

/// A change that is worth a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint gets no requests from now on, after so many failures, for this time.
    Opened(u32, Duration),
    /// The endpoint gets requests again.
    Closed,
}

impl Breaker {
    /// A closed breaker that exists from `now` on.
    pub fn new(now: Instant) -> Self {
        let zero = || AtomicU64::new(CLOSED);
        let (failures, refusals) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { made: now, state: zero(), failures, refusals, trials: zero(), closed_at: zero() }
    }

    /// `now` as a value of the state: milliseconds, and never [`CLOSED`].
    fn at(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.made).as_millis();
        u64::try_from(passed).unwrap_or(0).saturating_add(1) & UNTIL
    }

    fn state(&self) -> u64 {
        self.state.load(Ordering::Relaxed)
    }

    /// Whether the endpoint gets requests without a trial.
    pub fn is_closed(&self) -> bool {
        self.state() == CLOSED
    }

    /// What a request may do at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let state = self.state();
        if state == CLOSED {
            return Standing::Closed;
        }
        let left = Duration::from_millis((state & UNTIL).saturating_sub(self.at(now)));
        match state & UNREACHABLE != 0 {
            _ if left.is_zero() => Standing::Due,
            true => Standing::Unreachable(left),
            false => Standing::Open(left),
        }
    }

    /// Lets a request pass at `now`, if one may pass.
    pub fn pass(&self, rules: &BreakerRules, now: Instant) -> Option<Pass> {
        let state = self.state();
        if state == CLOSED {
            return Some(Pass::Freely);
        }
        if state & UNTIL > self.at(now) {
            return None;
        }
        let number = self.trials.fetch_add(1, Ordering::Relaxed) & NUMBERS;
        let trial = self.after(rules.open_for, now) | ON_TRIAL | (number << NUMBER);
        self.exchange(state, trial | state & UNREACHABLE).then_some(Pass::OnTrial(number))
    }

    /// Ends the trial with this number, unless another trial has begun.
    fn end_trial(&self, number: u64, next: u64) {
        let state = self.state();
        if Self::is_trial(state, number) {
            self.exchange(state, next);
        }
    }

    fn is_trial(state: u64, number: u64) -> bool {
        state & ON_TRIAL != 0 && (state >> NUMBER) & NUMBERS == number
    }

    /// Notes that a request that passed in this way has a new connection. Others may follow it if no endpoint is left.
    pub fn reached(&self, pass: Pass) {
        let state = self.state();
        if let Pass::OnTrial(number) = pass
            && Self::is_trial(state, number)
        {
            self.exchange(state, state & !UNREACHABLE);
        }
    }

    /// Lets the next request be on trial at `now`, because there is a sign that the endpoint works.
    pub fn try_now(&self, now: Instant) {
        let state = self.state();
        if state != CLOSED && state & ON_TRIAL == 0 {
            self.exchange(state, self.at(now));
        }
    }

    /// Follows `rules` that have replaced others: it closes if it may not be open, and is open no longer than they say.
    pub fn follow(&self, rules: &BreakerRules, now: Instant) {
        let state = self.state();
        let longest = self.after(rules.open_for, now);
        if rules.failures.is_none() {
            self.close(now);
        } else if state != CLOSED && state & UNTIL > longest {
            self.exchange(state, state & !UNTIL | longest);
        }
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
            (Pass::Freely | Pass::Anyway, Verdict::Nothing) => None,
            (Pass::Freely, Verdict::Good) => {
                if self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                None
            }
            (Pass::Freely | Pass::Anyway, Verdict::Bad | Verdict::Unreachable) => {
                self.failed(verdict, rules, began, now)
            }
            (Pass::OnTrial(number), Verdict::Nothing) => {
                // The next request is on trial at once.
                self.end_trial(number, self.at(now) | self.state() & UNREACHABLE);
                None
            }
            (Pass::OnTrial(_) | Pass::Anyway, Verdict::Good) => {
                self.close(now).then_some(Transition::Closed)
            }
            (Pass::OnTrial(number), Verdict::Bad | Verdict::Unreachable) => {
                self.end_trial(number, self.until(verdict, rules, now).0);
                None
            }
        }
    }

    fn close(&self, now: Instant) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.refusals.store(0, Ordering::Relaxed);
        self.closed_at.store(self.at(now), Ordering::Relaxed);
        self.state.swap(CLOSED, Ordering::Relaxed) != CLOSED
    }

    fn failed(
        &self,
        verdict: Verdict,
        rules: &BreakerRules,
        began: Instant,
        now: Instant,
    ) -> Option<Transition> {
        let most = rules.failures?;
        let state = self.state();
        if state != CLOSED {
            if verdict == Verdict::Unreachable && state & (ON_TRIAL | UNREACHABLE) == 0 {
                self.exchange(state, self.until(verdict, rules, now).0);
            }
            return None;
        }
        // A request that began before the endpoint recovered says nothing about the endpoint since.
        if self.at(began) < self.closed_at.load(Ordering::Relaxed) {
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < most {
            return None;
        }
        let (until, pause) = self.until(verdict, rules, now);
        self.exchange(CLOSED, until).then_some(Transition::Opened(failures, pause))
    }

    /// The state of a breaker that is open because of `verdict`, and for how long it is.
    fn until(&self, verdict: Verdict, rules: &BreakerRules, now: Instant) -> (u64, Duration) {
        if verdict != Verdict::Unreachable {
            return (self.after(rules.open_for, now), rules.open_for);
        }
        let refusals = self.refusals.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = (SOON * (1 << refusals)).min(rules.open_for);
        (self.after(pause, now) | UNREACHABLE, pause)
    }

    fn after(&self, pause: Duration, now: Instant) -> u64 {
        self.at(now + pause)
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
        use Pass::{Anyway, Freely, OnTrial};
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
            (2, Some(Freely), Bad, Some(Transition::Opened(3, rules.open_for))),
            (2, None, Bad, None),
            (11, None, Bad, None),
            (12, Some(OnTrial(0)), Bad, None),
            (21, None, Bad, None),
            (22, Some(OnTrial(1)), Nothing, None),
            (22, Some(OnTrial(2)), Good, Some(Transition::Closed)),
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
        // A request that got in although the breaker was open closes it, or changes nothing.
        let now = start + Duration::from_secs(23);
        for _ in 0..3 {
            breaker.learn(Freely, Bad, &rules, now, now);
        }
        let open = breaker.standing(now);
        assert_eq!(open, Standing::Open(rules.open_for));
        for verdict in [Bad, Nothing] {
            assert_eq!(breaker.learn(Anyway, verdict, &rules, now, now), None);
            assert_eq!(breaker.standing(now), open);
        }
        let closed = breaker.learn(Anyway, Good, &rules, now, now);
        assert_eq!((closed, breaker.is_closed()), (Some(Transition::Closed), true));
    }

    #[test]
    fn an_endpoint_that_refuses_connections_is_tried_soon_and_then_less_often() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        let refused = |pass, now| breaker.learn(pass, Verdict::Unreachable, &rules, now, now);
        assert_eq!(refused(Pass::Freely, start), Some(Transition::Opened(1, SOON)));
        let mut now = start;
        for (trial, millis) in
            [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000].into_iter().enumerate()
        {
            let pause = Duration::from_millis(millis);
            assert_eq!(breaker.standing(now), Standing::Unreachable(pause));
            now += pause;
            let pass = breaker.pass(&rules, now);
            assert_eq!(pass, Some(Pass::OnTrial(trial as u64)));
            assert_eq!(breaker.standing(now), Standing::Unreachable(rules.open_for));
            refused(pass.unwrap(), now);
        }
        // It is there again: others may follow the trial before it has an answer.
        now += rules.open_for;
        let pass = breaker.pass(&rules, now).unwrap();
        breaker.reached(pass);
        assert_eq!(breaker.standing(now), Standing::Open(rules.open_for));
        breaker.learn(pass, Verdict::Good, &rules, now, now);
        assert_eq!(refused(Pass::Freely, now), Some(Transition::Opened(1, SOON)), "from the start");
    }

    #[test]
    fn signs_and_rules_shorten_the_pause() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.try_now(start);
        assert!(breaker.is_closed());
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        let shorter = BreakerRules { open_for: Duration::from_secs(3), ..rules.clone() };
        breaker.follow(&shorter, start);
        assert_eq!(breaker.standing(start), Standing::Open(shorter.open_for));
        breaker.try_now(start);
        assert_eq!(breaker.standing(start), Standing::Due);
        breaker.follow(&BreakerRules { failures: None, ..rules }, start);
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_trial_that_was_superseded_does_not_end_the_next() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        let later = start + rules.open_for;
        let first = breaker.pass(&rules, later).unwrap();
        let later = later + rules.open_for;
        let second = breaker.pass(&rules, later).unwrap();
        assert_ne!(first, second);
        for verdict in [Verdict::Bad, Verdict::Unreachable, Verdict::Nothing] {
            breaker.learn(first, verdict, &rules, start, later);
            assert_eq!(breaker.pass(&rules, later), None, "the second goes on");
        }
        let closed = breaker.learn(second, Verdict::Good, &rules, later, later);
        assert_eq!(closed, Some(Transition::Closed));
    }

    #[test]
    fn one_request_at_a_time_is_on_trial() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        assert_eq!(breaker.standing(start), Standing::Open(rules.open_for));
        let later = start + Duration::from_secs(11);
        assert_eq!(breaker.standing(later), Standing::Due);
        assert_eq!(breaker.pass(&rules, later), Some(Pass::OnTrial(0)));
        assert_eq!(breaker.pass(&rules, later), None);
        assert_eq!(breaker.standing(later), Standing::Open(rules.open_for));
        assert!(!breaker.is_closed());
        // The request takes long, and another gets its chance. Either may close the breaker.
        let much_later = later + Duration::from_secs(10);
        assert_eq!(breaker.standing(much_later), Standing::Due);
        assert_eq!(breaker.pass(&rules, much_later), Some(Pass::OnTrial(1)));
        assert_eq!(breaker.pass(&rules, much_later), None);
        let closed = breaker.learn(Pass::OnTrial(0), Verdict::Good, &rules, later, much_later);
        assert_eq!((closed, breaker.is_closed()), (Some(Transition::Closed), true));
        assert_eq!(breaker.learn(Pass::OnTrial(1), Verdict::Bad, &rules, later, much_later), None);
        assert!(breaker.is_closed(), "the trial is over");
    }

    #[test]
    fn late_failures_of_an_outage_do_not_open_it_again() {
        let start = Instant::now();
        let (breaker, rules) = (Breaker::new(start), rules(1));
        breaker.learn(Pass::Freely, Verdict::Bad, &rules, start, start);
        let later = start + Duration::from_secs(11);
        assert_eq!(breaker.pass(&rules, later), Some(Pass::OnTrial(0)));
        breaker.learn(Pass::OnTrial(0), Verdict::Good, &rules, later, later);
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
