//! Decides requests, subject by subject, from what this process holds.
//!
//! Every admission spends what an account holds. When an account holds too little, a flight asks the store for
//! what the waiting requests weigh, and requests that come later wait for its next question. In leased mode a flight
//! also takes what the next moments will need, and the next flight departs before that is used up, so that no
//! request waits; what lies unused goes back. When the store grants nothing, its answer says until
//! when, and requests are refused from memory. Refusals consume nothing.
//!
//! A request may be settled once its true cost is known: what was not used goes back to the account, and what was
//! used beyond the reservation is spent at once or owed, and reported to the store before anything more is taken.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::account::fits;
pub use super::decision::{Decision, LimitState};
use super::entry::{Outcome, SubjectEntry, Waiter};
use super::exchange::Exchange;
use super::flight::{Flight, FlightFuture, LeaseTerms, Waiting};
use super::lease_list::LeaseList;
use super::subjects::Subjects;
pub use super::weight::Weight;
use crate::base::clock::{Clock, Moment};
use crate::base::task::detach;
use crate::quota::Limit;
use crate::store::{QuotaStore, StoreError};
use crate::telemetry::metrics::METRICS;

#[cfg(test)]
mod tests;

/// Most requests that wait for one subject's flights; more are told that the store is behind.
const MAX_WAITING: usize = 10_000;

/// How many adjustments go to the store at once when everything is surrendered.
const SURRENDER_AT_ONCE: usize = 256;

/// How requests are decided while the store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// This process counts by itself, up to its share of the limit.
    Local,
    /// Everything is admitted, uncounted.
    Allow,
    /// Nothing is admitted.
    Deny,
}

/// Where decisions are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// In the store, each time.
    Exact,
    /// In this process, from small shares that are paid for ahead.
    Leased,
}

/// The terms of a decision, besides the limits.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Where decisions are made.
    pub sync: SyncMode,
    /// How requests are decided while the store is away.
    pub on_failure: FailurePolicy,
    /// How many processes share the limits.
    pub gateways: u32,
}

/// The ledger of one process.
pub struct Ledger {
    subjects: Subjects,
    exchange: Arc<Exchange>,
}

/// The state of a request after the first look at its account.
enum Start {
    Decided(Decision),
    /// The flight is the request's own if it departed for it.
    Waits(oneshot::Receiver<Outcome>, Option<FlightFuture>),
}

impl Ledger {
    /// A ledger over `store` that keeps at most `max_subjects` subjects in memory.
    pub fn new(store: Arc<dyn QuotaStore>, clock: Arc<dyn Clock>, max_subjects: usize) -> Self {
        let exchange = Exchange { store, clock, leases: LeaseList::default() };
        Self { subjects: Subjects::new(max_subjects), exchange: Arc::new(exchange) }
    }

    /// Decides a request of `subject` that spends `weight` of each of `limits`, and counts it if it is admitted. A
    /// weight that a limit can never hold is refused without asking the store.
    ///
    /// # Errors
    /// [`StoreError`] when the store did not answer and the policy is to deny.
    pub async fn admit(
        &self,
        subject: &str,
        limits: &Arc<[Limit]>,
        weight: Weight,
        terms: Terms,
    ) -> Result<Decision, StoreError> {
        if limits.is_empty() {
            return Ok(Decision::unknown(limits));
        }
        let entry = self.subjects.entry(subject, limits);
        match self.decide(&entry, weight, terms).await {
            Ok(decision) => Ok(decision),
            Err(error) => match terms.on_failure {
                FailurePolicy::Deny => Err(error),
                FailurePolicy::Allow => Ok(Decision::unknown(limits)),
                FailurePolicy::Local => {
                    let clock = &self.exchange.clock;
                    let (now, wall) = (clock.monotonic(), clock.now());
                    let mut state = entry.state.lock();
                    // An entry that is not remembered cannot count.
                    if !state.remembered {
                        return Err(error);
                    }
                    Ok(state.account.spend_locally(limits, weight, now, wall, terms.gateways))
                }
            },
        }
    }

    /// Takes back a decision of `subject` that admitted a request which is not made after all.
    pub fn put_back(&self, subject: &str, decision: &mut Decision) {
        self.settle(subject, decision, 0);
    }

    /// Settles a decision of `subject` once its request is known to have used `actual` units: unused units are there
    /// for other requests, and units beyond the reservation are owed. A debt counts in the window in which the store
    /// hears of it, and refuses what follows there; a log or a bucket counts no more of it than fills them.
    ///
    /// A decision is settled once: settling it again changes nothing, and neither does settling a decision that
    /// admitted nothing or was not counted. Call it within a runtime.
    pub fn settle(&self, subject: &str, decision: &mut Decision, actual: u64) {
        let charge = std::mem::take(&mut decision.charge);
        let reserved = charge.units();
        if reserved == 0 || reserved == actual {
            return;
        }
        let (unused, excess) = (reserved.saturating_sub(actual), actual.saturating_sub(reserved));
        for (limit, state) in decision.limits.iter().zip(&mut decision.states) {
            let remaining = state.remaining.saturating_add(unused).saturating_sub(excess);
            state.remaining = remaining.min(limit.quota);
        }
        let exchange = &self.exchange;
        let entry = self.subjects.entry(subject, &decision.limits);
        let mut state = entry.state.lock();
        let mut elsewhere = None;
        if unused > 0 {
            elsewhere = state.account.take_back(&charge, unused);
        } else {
            state.account.owe(&entry.limits, excess, exchange.clock.monotonic());
        }
        exchange.leases.note(&entry, &mut state);
        // A flight that is under way reports the debt before it lands.
        let departs = state.account.owes() && !state.in_flight;
        state.in_flight |= departs;
        drop(state);
        exchange.send_back(&entry, elsewhere);
        if departs {
            detach(Flight::new(exchange, &entry, None).run());
        }
    }

    /// Gives back leases that lie unused. Called several times a second.
    pub fn expire_leases(&self) {
        let now = self.exchange.clock.monotonic();
        for entry in self.exchange.leases.take_due(now) {
            let mut state = entry.state.lock();
            let idle = state.account.take_idle(now);
            state.listed_at = Moment::NEVER;
            self.exchange.leases.note(&entry, &mut state);
            drop(state);
            self.exchange.send_back(&entry, idle);
        }
    }

    /// Gives all held units back, and reports the units that the store has not counted, before the process ends.
    pub async fn surrender(&self) {
        for some in self.subjects.all().chunks(SURRENDER_AT_ONCE) {
            join_all(some.iter().map(|entry| async move {
                let held = entry.state.lock().account.take_all();
                // A report that fails now is lost with the process.
                if let Some(held) = held {
                    let _ = self.exchange.give_back(entry, &held).await;
                }
                let _ = self.exchange.report(entry).await;
            }))
            .await;
        }
    }

    /// Forgets idle subjects. Called now and then.
    pub fn sweep(&self) {
        let now = self.exchange.clock.monotonic();
        let mut held = 0;
        let mut idle = Vec::new();
        self.subjects.retain(|entry| {
            let mut state = entry.state.lock();
            // Units that a cancelled request has left are in no list of leases.
            if let Some(adjustment) = state.account.take_idle(now) {
                idle.push((Arc::clone(entry), adjustment));
            }
            held += state.account.held();
            state.in_flight
                || !state.waiting.is_empty()
                || !state.account.is_idle(now)
                || Arc::strong_count(entry) > 1
        });
        for (entry, adjustment) in idle {
            self.exchange.send_back(&entry, Some(adjustment));
        }
        METRICS.limit_held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// Subjects in memory.
    pub fn subjects(&self) -> usize {
        self.subjects.len()
    }

    /// Units held over all subjects.
    pub fn held(&self) -> u64 {
        self.subjects.all().iter().map(|entry| entry.state.lock().account.held()).sum()
    }

    async fn decide(&self, entry: &Arc<SubjectEntry>, weight: Weight, terms: Terms) -> Outcome {
        match self.start(entry, weight, terms)? {
            Start::Decided(decision) => Ok(decision),
            Start::Waits(answer, flight) => {
                let mut waiting = Waiting { exchange: &self.exchange, entry, answer, flight };
                waiting.outcome().await
            }
        }
    }

    /// Decides from what is held, or lets the request wait; lets a flight depart where it is due.
    fn start(
        &self,
        entry: &Arc<SubjectEntry>,
        weight: Weight,
        terms: Terms,
    ) -> Result<Start, StoreError> {
        // Some limits cannot be leased.
        let is_leased =
            terms.sync == SyncMode::Leased && entry.limits.iter().all(Limit::may_be_leased);
        let now = self.exchange.clock.monotonic();
        let mut state = entry.state.lock();
        if is_leased && fits(&entry.limits, weight) {
            state.account.note_demand(weight, now);
        }
        let worthless = state.account.take_worthless(now);
        let mut start = match state.account.decide(&entry.limits, weight, now) {
            Some(decision) => Start::Decided(decision),
            None if state.waiting.len() >= MAX_WAITING => {
                drop(state);
                self.exchange.send_back(entry, worthless);
                return Err(StoreError::Failed("too many requests wait for it".into()));
            }
            None => {
                let (sender, answer) = oneshot::channel();
                state.waiting.push(Waiter { weight, answer: sender });
                Start::Waits(answer, None)
            }
        };
        let is_due = || match start {
            Start::Waits(..) => true,
            Start::Decided(_) => {
                is_leased && state.account.runs_low(&entry.limits, weight, now, terms.gateways)
            }
        };
        let departs = !state.in_flight && is_due();
        state.in_flight |= departs;
        drop(state);
        self.exchange.send_back(entry, worthless);
        if departs {
            let lease = is_leased.then_some(LeaseTerms { weight, gateways: terms.gateways });
            let flight = Flight::new(&self.exchange, entry, lease).run();
            match &mut start {
                Start::Waits(_, own) => *own = Some(Box::pin(flight)),
                Start::Decided(_) => detach(flight),
            }
        }
        Ok(start)
    }
}
