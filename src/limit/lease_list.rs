//! The leases of the ledger, by the time of their next check for disuse.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::entry::{State, SubjectEntry};
use crate::base::clock::Moment;

#[derive(Default)]
pub(super) struct LeaseList(Mutex<BinaryHeap<Lease>>);

/// An entry that holds a lease, and the time of its next check.
struct Lease(Reverse<Moment>, Arc<SubjectEntry>);

impl LeaseList {
    /// Schedules the check of the lease that `entry` holds.
    pub(super) fn note(&self, entry: &Arc<SubjectEntry>, state: &mut State) {
        if let Some(at) = state.account.idle_at()
            && at < state.listed_at
        {
            state.listed_at = at;
            self.0.lock().push(Lease(Reverse(at), Arc::clone(entry)));
        }
    }

    /// Takes out the entries whose check is due.
    pub(super) fn take_due(&self, now: Moment) -> Vec<Arc<SubjectEntry>> {
        let mut leases = self.0.lock();
        let mut due = Vec::new();
        while leases.peek().is_some_and(|lease| lease.0.0 <= now) {
            due.extend(leases.pop().map(|lease| lease.1));
        }
        due
    }
}

impl Ord for Lease {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Lease {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Lease {}
