//! A flight asks the store for the units of a subject until no request waits. A subject has at most one flight at a
//! time.
//!
//! It asks for the sum of the weights that wait, in one question, and serves a grant in order of arrival. Where the
//! store has less, a request that the rest does not pay for is refused, and smaller requests behind it may still be
//! served: the store has no more units at that moment, so waiting behind the large request would not help them. No
//! request starves: each has its answer from the flight that asked for it, and a grant that could serve no request is
//! not taken at all. Units that are left over after a request was refused go back at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::account::Asked;
use super::entry::{Outcome, State, SubjectEntry, Waiter};
use super::exchange::Exchange;
use super::weight::Weight;
use crate::base::clock::Moment;
use crate::store::{Grant, StoreError};
use crate::telemetry::metrics::METRICS;

/// How often a grant may come too late before the store counts as failing.
const MAX_LATE_GRANTS: usize = 3;

/// A flight that has not landed.
pub(super) type FlightFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asks the store for one subject.
pub(super) struct Flight {
    exchange: Arc<Exchange>,
    entry: Arc<SubjectEntry>,
    lease: Option<LeaseTerms>,
    /// Whether the flight has ended. The next flight may have departed by then.
    landed: bool,
}

/// The terms of a lease.
#[derive(Clone, Copy)]
pub(super) struct LeaseTerms {
    /// The weight of the requests that the lease is to pay for.
    pub(super) weight: Weight,
    /// How many processes share the limits.
    pub(super) gateways: u32,
}

/// The outcome of a question.
enum Answer {
    /// Its waiters have their decisions.
    Served,
    /// The grant could not be spent any more when it came: its waiters wait again.
    TooLate,
    /// The store did not answer: its waiters know.
    Failed,
}

impl Flight {
    /// A flight for `entry`, which must have no other flight under way. With `lease`, the flight takes a lease too.
    pub(super) fn new(
        exchange: &Arc<Exchange>,
        entry: &Arc<SubjectEntry>,
        lease: Option<LeaseTerms>,
    ) -> Self {
        let (exchange, entry) = (Arc::clone(exchange), Arc::clone(entry));
        Self { exchange, entry, lease, landed: false }
    }

    /// Asks until no request waits and no debt is unknown to the store, or the store does not answer.
    pub(super) async fn run(mut self) {
        let mut late = 0;
        loop {
            let answer = self.ask().await;
            // A grant that comes so late that its window may have ended is worth nothing.
            late = if matches!(answer, Answer::TooLate) { late + 1 } else { 0 };
            let mut state = self.entry.state.lock();
            if late >= MAX_LATE_GRANTS {
                state.fail_waiters(&StoreError::Failed("its answers come too late".into()));
            }
            let reports = state.account.owes() && !matches!(answer, Answer::Failed);
            if state.waiting.is_empty() && !reports {
                state.in_flight = false;
                self.landed = true;
                return;
            }
        }
    }

    /// Asks once: for all requests that wait now, and for a lease.
    async fn ask(&self) -> Answer {
        let Self { exchange, entry, .. } = self;
        let sent_at = exchange.clock.monotonic();
        let (waiters, wanted, asked, owes) = {
            let mut state = entry.state.lock();
            let waiters = self.still_waiting(&mut state, sent_at);
            let sum: u64 = waiters.iter().map(|waiter| waiter.weight.units()).sum();
            let ahead = self.lease.map_or(0, |LeaseTerms { weight, gateways }| {
                state.account.lease(&entry.limits, weight, sent_at, gateways)
            });
            let lightest = waiters.iter().map(|waiter| waiter.weight.units()).min().unwrap_or(1);
            // Fewer units than the lightest request lacks would serve no request.
            let least = lightest.saturating_sub(state.account.spendable(sent_at)).max(1);
            let weight = self.lease.map_or(Weight::ONE, |lease| lease.weight);
            let asked = Asked { least, weight, sent_at };
            (waiters, sum + ahead, asked, state.account.owes())
        };
        if wanted == 0 && !owes {
            return Answer::Served;
        }
        let reported = exchange.report(entry).await;
        if wanted == 0 {
            return if reported.is_ok() { Answer::Served } else { Answer::Failed };
        }
        let (subject, limits) = (&entry.subject, &entry.limits);
        let answer = match reported {
            Ok(()) => exchange.store.take_at_least(subject, limits, asked.least, wanted).await,
            Err(error) => Err(error),
        };
        let ahead_only = waiters.is_empty();
        let flights = if ahead_only { &METRICS.flights_ahead } else { &METRICS.flights_waited };
        flights.inc();
        match answer {
            Ok(grant) => self.serve(waiters, &asked, &grant),
            Err(error) => {
                for waiter in waiters {
                    let _ = waiter.answer.send(Err(error.clone()));
                }
                Answer::Failed
            }
        }
    }

    /// Takes out the waiters. Waiters that the last answer can serve get their decision.
    fn still_waiting(&self, state: &mut State, now: Moment) -> Vec<Waiter> {
        let limits = &self.entry.limits;
        let waiters = std::mem::take(&mut state.waiting);
        let unserved = |waiter: Waiter| match state.account.decide(limits, waiter.weight, now) {
            Some(decision) => {
                state.hand(waiter, decision);
                None
            }
            None => Some(waiter),
        };
        waiters.into_iter().filter_map(unserved).collect()
    }

    /// Books a grant and decides the requests it was asked for.
    fn serve(&self, waiters: Vec<Waiter>, asked: &Asked, grant: &Grant) -> Answer {
        let Self { exchange, entry, .. } = self;
        let limits = &entry.limits;
        let now = exchange.clock.monotonic();
        METRICS.limit_granted.inc_by(grant.granted);
        let sum: u64 = waiters.iter().map(|waiter| waiter.weight.units()).sum();
        if grant.granted > sum {
            METRICS.limit_lease.observe((grant.granted - sum) as f64);
        }
        let mut state = entry.state.lock();
        let stale = state.account.receive(limits, asked, grant, now);
        let worthless = state.account.take_worthless(now);
        let (answer, rest) = if worthless.is_some() {
            let later = std::mem::replace(&mut state.waiting, waiters);
            state.waiting.extend(later);
            (Answer::TooLate, None)
        } else {
            let mut is_short = false;
            for waiter in waiters {
                let decision = state.account.spend(limits, waiter.weight, now);
                is_short |= !decision.admitted;
                state.hand(waiter, decision);
            }
            // Other gateways may use the units that were too few here.
            let unused = if is_short { grant.granted } else { 0 };
            (Answer::Served, state.account.take_remainder(unused))
        };
        exchange.leases.note(entry, &mut state);
        drop(state);
        for adjustment in [stale, worthless, rest] {
            exchange.send_back(entry, adjustment);
        }
        answer
    }
}

impl Drop for Flight {
    /// The next flight can depart, however this flight ends.
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let mut state = self.entry.state.lock();
        state.in_flight = false;
        // A waiter whose sender is dropped learns that the flight was lost.
        state.waiting.clear();
    }
}

/// A request's wait for a flight. When the request goes away, an answer it has not read is left to other requests.
pub(super) struct Waiting<'a> {
    pub(super) exchange: &'a Arc<Exchange>,
    pub(super) entry: &'a Arc<SubjectEntry>,
    pub(super) answer: oneshot::Receiver<Outcome>,
    /// The flight that departed for this request. A task of its own would cost two more wake-ups.
    pub(super) flight: Option<FlightFuture>,
}

impl Waiting<'_> {
    /// The answer.
    pub(super) async fn outcome(&mut self) -> Outcome {
        poll_fn(|cx| {
            if let Some(flight) = &mut self.flight
                && flight.as_mut().poll(cx).is_ready()
            {
                self.flight = None;
            }
            let lost = |_| Err(StoreError::Failed("the flight was lost".into()));
            Pin::new(&mut self.answer).poll(cx).map(|outcome| outcome.unwrap_or_else(lost))
        })
        .await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // The flight goes on for the other waiters, and its grant must not be lost.
        if let Some(flight) = self.flight.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(flight);
        }
        // Closed first: an answer that came after a look into an open channel would be lost.
        self.answer.close();
        if let Ok(Ok(decision)) = self.answer.try_recv() {
            let units = decision.charge.units();
            let elsewhere = self.entry.state.lock().account.take_back(&decision.charge, units);
            self.exchange.send_back(self.entry, elsewhere);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{ManualClock, UnixTime};
    use crate::limit::decision::Charge;
    use crate::quota::Limit;
    use crate::store::memory::MemoryQuota;

    #[test]
    fn a_decision_handed_to_a_request_that_goes_away_is_not_lost() {
        let clock = Arc::new(ManualClock::new(UnixTime::from_secs(6_000)));
        let store = Arc::new(MemoryQuota::new(Arc::clone(&clock), 1));
        let exchange = Arc::new(Exchange { store, clock, leases: Default::default() });
        let weight = Weight::new(3).unwrap();
        let limits: Arc<[Limit]> = Arc::new([]);
        for _ in 0..10_000 {
            let entry = Arc::new(SubjectEntry::new("s", &limits, true));
            let (sender, answer) = oneshot::channel();
            let charge = Charge::Store { units: 3, marks: Default::default() };
            entry.state.lock().account.take_back(&charge, 3);
            let start = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (exchange, entry) = (&exchange, &entry);
                    let waiting = Waiting { exchange, entry, answer, flight: None };
                    start.wait();
                    drop(waiting);
                });
                start.wait();
                let mut state = entry.state.lock();
                let decision = state.account.spend(&entry.limits, weight, Moment::default());
                state.hand(Waiter { weight, answer: sender }, decision);
            });
            assert_eq!(entry.state.lock().account.held(), 3);
        }
    }
}
