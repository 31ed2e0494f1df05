//! Messages from accounts to the store: units that go back, and reports of units that the store has not counted.

use std::sync::Arc;

use super::entry::SubjectEntry;
use super::lease_list::LeaseList;
use crate::base::clock::Clock;
use crate::base::task::detach;
use crate::store::{Adjustment, QuotaStore, StoreError};
use crate::telemetry::metrics::METRICS;

/// The store, the clock and the list of leases, which every flight needs.
pub(super) struct Exchange {
    pub(super) store: Arc<dyn QuotaStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) leases: LeaseList,
}

impl Exchange {
    /// Gives units back in the background. No request waits for it. If it fails, the units stay counted until their
    /// window ends.
    pub(super) fn send_back(
        self: &Arc<Self>,
        entry: &Arc<SubjectEntry>,
        adjustment: Option<Adjustment>,
    ) {
        let Some(adjustment) = adjustment else { return };
        let (exchange, entry) = (Arc::clone(self), Arc::clone(entry));
        detach(async move {
            let _ = exchange.give_back(&entry, &adjustment).await;
        });
    }

    /// Gives back units.
    pub(super) async fn give_back(
        &self,
        entry: &SubjectEntry,
        adjustment: &Adjustment,
    ) -> Result<(), StoreError> {
        let returned = adjustment.changes.iter().map(|(_, by)| -by).max().unwrap_or(0);
        let id = Adjustment::new_id();
        self.store.adjust(&entry.subject, &entry.limits, adjustment, id).await?;
        METRICS.limit_returned.inc_by(u64::try_from(returned).unwrap_or(0));
        Ok(())
    }

    /// Reports units that the store has not counted. Reports are sent before more units are taken.
    pub(super) async fn report(&self, entry: &SubjectEntry) -> Result<(), StoreError> {
        loop {
            let report = entry.state.lock().account.report(&entry.limits);
            let Some((id, adjustment)) = report else { return Ok(()) };
            self.store.adjust(&entry.subject, &entry.limits, &adjustment, id).await?;
            let now = self.clock.monotonic();
            entry.state.lock().account.reported(id, &entry.limits, now);
        }
    }
}
