//! An entry of the ledger: the account of a subject, and the requests that wait for the store's answer.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::account::Account;
use super::decision::Decision;
use super::weight::Weight;
use crate::base::clock::Moment;
use crate::base::text::Text;
use crate::quota::Limit;
use crate::store::StoreError;

/// The answer to a waiting request.
pub(super) type Outcome = Result<Decision, StoreError>;

/// A subject under a set of limits. There may be a million of them: see the test of its size.
pub(super) struct SubjectEntry {
    pub(super) subject: Text,
    pub(super) limits: Arc<[Limit]>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) account: Account,
    /// Whether the ledger finds the entry again.
    pub(super) remembered: bool,
    /// Whether a flight is under way.
    pub(super) in_flight: bool,
    /// When the list of leases looks at the entry.
    pub(super) listed_at: Moment,
    /// The requests that the next question to the store asks for, in order of arrival.
    pub(super) waiting: Vec<Waiter>,
}

/// A request that waits for a flight.
pub(super) struct Waiter {
    pub(super) weight: Weight,
    pub(super) answer: oneshot::Sender<Outcome>,
}

impl SubjectEntry {
    pub(super) fn new(subject: &str, limits: &Arc<[Limit]>, remembered: bool) -> Self {
        let state = State {
            account: Account::default(),
            remembered,
            in_flight: false,
            listed_at: Moment::NEVER,
            waiting: Vec::new(),
        };
        Self { subject: subject.into(), limits: Arc::clone(limits), state: Mutex::new(state) }
    }
}

impl State {
    /// Gives a waiter its decision. If its request has gone, the units are left to the next request.
    pub(super) fn hand(&mut self, waiter: Waiter, decision: Decision) {
        if let Err(Ok(decision)) = waiter.answer.send(Ok(decision)) {
            let units = decision.charge.units();
            // Nothing has come between spending and taking back: the marks are the same.
            self.account.take_back(&decision.charge, units);
        }
    }

    /// Tells every waiter of a failure.
    pub(super) fn fail_waiters(&mut self, error: &StoreError) {
        for waiter in self.waiting.drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        // Counted by reference it takes 16 bytes more, and mimalloc has a class of 256 bytes.
        assert!(size_of::<SubjectEntry>() <= 240, "{}", size_of::<SubjectEntry>());
    }
}
