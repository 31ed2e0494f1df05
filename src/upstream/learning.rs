//! What an upstream learns about its endpoints from the attempts of a request. The proxy tells how each attempt ends.
//!
//! A client must not be able to put endpoints out of use, so that an attempt is judged beside the other attempts of its
//! request. This file must not know how an endpoint is chosen.

use std::time::Instant;

use super::attempt::{Attempt, AttemptEnd, Failure};
use super::breaker::{Pass, Verdict};
use super::pool::Upstream;

impl Upstream {
    /// Notes that the attempt has a new connection.
    pub fn connected(&self, attempt: &Attempt) {
        if attempt.pass != Pass::Freely
            && let Some(endpoint) = attempt.endpoint.and_then(|at| self.endpoint(at))
        {
            endpoint.reached(attempt.pass);
        }
    }

    /// Records that the header of an answer with this `status` to the last of the `attempts` has arrived. It decides about
    /// an attempt on trial, which would otherwise keep other requests away for as long as its answer takes.
    pub fn answer_began(&self, attempts: &mut [Attempt], status: u16, now: Instant) {
        let Some((attempt, before)) = attempts.split_last_mut() else { return };
        attempt.status = Some(status);
        if attempt.pass != Pass::Freely {
            self.learn(attempt, self.verdict(attempt, AttemptEnd::Answered), now);
            attempt.pass = Pass::Freely;
        }
        // The request can be answered: endpoints that did not are at fault.
        if !self.is_failure(status) {
            before.iter_mut().for_each(|failed| self.judge(failed, Verdict::Bad, now));
        }
    }

    fn is_failure(&self, status: u16) -> bool {
        self.rules().breaker.statuses.contain(status)
    }

    /// Records that the last of the `attempts` has ended in this way, at `now`.
    ///
    /// A request that reached an endpoint and got no answer may itself be the cause. So nothing is said about the endpoint
    /// until another one has had the request, or until no other gets it. If two endpoints fail, the request is the cause.
    pub fn attempt_ended(&self, attempts: &mut [Attempt], end: AttemptEnd, now: Instant) {
        let Some((attempt, before)) = attempts.split_last_mut() else { return };
        self.ends(attempt, end, now);
        if !attempt.may_be_of_request() {
            return self.judge(attempt, self.verdict(attempt, end), now);
        }
        for failed in before.iter_mut().filter(|failed| failed.may_be_of_request()) {
            self.judge(failed, Verdict::Nothing, now);
            if failed.endpoint != attempt.endpoint {
                self.judge(attempt, Verdict::Nothing, now);
            }
        }
    }

    /// Records that the last address took no connection, and that the attempt goes on at another.
    pub fn address_failed(&self, attempt: &mut Attempt, end: AttemptEnd, now: Instant) {
        attempt.is_judged = true;
        self.ends(attempt, end, now);
    }

    /// Records that no other endpoint gets the request of these `attempts`.
    pub fn settle(&self, attempts: &mut [Attempt], now: Instant) {
        for failed in attempts.iter_mut().filter(|failed| failed.may_be_of_request()) {
            if let Some((_, end)) = failed.end {
                self.judge(failed, self.verdict(failed, end), now);
            }
        }
    }

    fn ends(&self, attempt: &mut Attempt, end: AttemptEnd, now: Instant) {
        attempt.end = Some((now.saturating_duration_since(attempt.started), end));
        if self.counts_requests()
            && let Some(endpoint) = attempt.endpoint.and_then(|at| self.endpoint(at))
        {
            endpoint.request_ends();
        }
        if let Some(first_byte) = attempt.first_byte {
            self.metrics.seconds.observe(first_byte.as_secs_f64());
        }
    }

    /// Lets the endpoint's breaker learn about an attempt, once.
    fn judge(&self, attempt: &mut Attempt, verdict: Verdict, now: Instant) {
        if !attempt.is_judged {
            attempt.is_judged = true;
            self.learn(attempt, verdict, now);
        }
    }

    fn learn(&self, attempt: &Attempt, verdict: Verdict, now: Instant) {
        if let Some(endpoint) = attempt.endpoint.and_then(|at| self.endpoint(at)) {
            endpoint.learn(attempt.pass, verdict, &self.rules().breaker, attempt.started, now);
        }
    }

    /// What an attempt that ends in this way says about its endpoint, as far as it alone can say something.
    fn verdict(&self, attempt: &Attempt, end: AttemptEnd) -> Verdict {
        match end {
            AttemptEnd::Answered
                if attempt.status.is_some_and(|status| self.is_failure(status)) =>
            {
                Verdict::Bad
            }
            AttemptEnd::Answered => Verdict::Good,
            AttemptEnd::Failed(Failure::ConnectRefused | Failure::ConnectFailed) => {
                Verdict::Unreachable
            }
            AttemptEnd::Failed(failure) if failure.is_of_connection() => Verdict::Bad,
            AttemptEnd::Failed(_) | AttemptEnd::Stale | AttemptEnd::Abandoned => Verdict::Nothing,
        }
    }
}
