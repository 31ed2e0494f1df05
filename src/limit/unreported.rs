//! What a subject's requests have spent and the store has not counted yet: requests admitted while the store
//! was away, and what answers cost beyond what was reserved for them. Plain arithmetic, with time passed in.

use std::time::Duration;

use smallvec::SmallVec;

use super::decision::Charge;
use super::weight::Weight;
use crate::base::clock::{Moment, UnixTime};
use crate::quota::{Limit, Standing};
use crate::store::Adjustment;

/// Units that the store has not counted.
#[derive(Debug, Default)]
pub(super) struct Unreported {
    /// Admitted without the store, limit by limit.
    windows: SmallVec<[LocalWindow; 2]>,
    /// What answers cost beyond their reservation.
    owed: u64,
    /// When all of this refuses nothing any more.
    until: Moment,
    /// What is being reported: the same until the store has said that it counts it.
    report: Option<Report>,
}

/// Units admitted without the store in a window of a limit. Without the store every limit has fixed windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalWindow {
    end: UnixTime,
    used: u64,
}

/// An adjustment that may be sent any number of times under its id.
#[derive(Debug)]
struct Report {
    id: u64,
    adjustment: Adjustment,
    /// The debt in it; 0 where it reports windows.
    owed: u64,
}

impl Unreported {
    /// Decides a request without the store, which allows `allowances`, limit by limit. Returns the charge, and
    /// how the limits stand after it.
    pub(super) fn spend(
        &mut self,
        limits: &[Limit],
        allowances: &[u64],
        weight: Weight,
        store_now: UnixTime,
        now: Moment,
    ) -> (Charge, SmallVec<[Standing; 2]>) {
        let new = |limit: &Limit| LocalWindow { end: limit.window_end(store_now), used: 0 };
        if self.windows.is_empty() {
            self.windows = limits.iter().map(new).collect();
        }
        for (window, limit) in self.windows.iter_mut().zip(limits) {
            if window.end != limit.window_end(store_now) {
                *window = new(limit);
            }
        }
        let last_end = self.windows.iter().map(|window| window.end).max().unwrap_or(store_now);
        self.until = self.until.max(now + (last_end - store_now));
        let room = |(window, allowance): (&LocalWindow, &u64)| {
            allowance.saturating_sub(window.used).saturating_sub(self.owed)
        };
        let rooms: SmallVec<[u64; 2]> = self.windows.iter().zip(allowances).map(room).collect();
        let units = weight.units();
        let admitted = rooms.iter().all(|room| *room >= units);
        let spent = if admitted { units } else { 0 };
        self.windows.iter_mut().for_each(|window| window.used += spent);
        let standing = |(window, room): (&LocalWindow, &u64)| Standing {
            left: room - spent,
            reset_after: window.end - store_now,
        };
        let standings = self.windows.iter().zip(&rooms).map(standing).collect();
        let charge = match admitted {
            true => Charge::Local { units, ends: self.windows.iter().map(|w| w.end).collect() },
            false => Charge::None,
        };
        (charge, standings)
    }

    /// Takes back units that were charged in the windows with these ends.
    pub(super) fn take_back(&mut self, ends: &[UnixTime], units: u64) {
        for (window, end) in self.windows.iter_mut().zip(ends) {
            if window.end == *end {
                window.used = window.used.saturating_sub(units);
            }
        }
    }

    /// Adds a debt.
    pub(super) fn owe(&mut self, limits: &[Limit], units: u64, now: Moment) {
        self.owed = self.owed.saturating_add(units);
        let longest = limits.iter().map(|limit| limit.window).max();
        self.until = self.until.max(now + longest.unwrap_or(Duration::ZERO));
    }

    /// Whether answers cost more than the store knows.
    pub(super) fn owes(&self) -> bool {
        self.owed > 0
    }

    /// What the store should be told next, and the id under which it may be told any number of times.
    pub(super) fn report(&mut self, limits: &[Limit]) -> Option<(u64, Adjustment)> {
        if self.report.is_none() {
            let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
            let id = fastrand::u64(1..1 << 53);
            if self.windows.iter().any(|window| window.used > 0) {
                let change = |window: &LocalWindow| (window.end, signed(window.used));
                let changes = self.windows.iter().map(change).collect();
                self.report = Some(Report { id, adjustment: Adjustment { changes }, owed: 0 });
            } else if self.owed > 0 {
                // A limit that is used up to its capacity refuses everything: a larger debt would not count for more.
                let change =
                    |limit: &Limit| (Adjustment::PRESENT, signed(self.owed.min(limit.capacity())));
                let changes = limits.iter().map(change).collect();
                let owed = self.owed;
                self.report = Some(Report { id, adjustment: Adjustment { changes }, owed });
            }
        }
        self.report.as_ref().map(|report| (report.id, report.adjustment.clone()))
    }

    /// Notes that the store counts the report `id`; more may have been spent meanwhile.
    pub(super) fn reported(&mut self, id: u64) {
        let Some(report) = self.report.take_if(|report| report.id == id) else { return };
        if report.owed > 0 {
            self.owed = self.owed.saturating_sub(report.owed);
            return;
        }
        for (window, (end, by)) in self.windows.iter_mut().zip(&report.adjustment.changes) {
            if window.end == *end {
                window.used = window.used.saturating_sub(by.unsigned_abs());
            }
        }
    }

    /// Whether anything here would be missed.
    pub(super) fn is_open(&self, now: Moment) -> bool {
        let is_used = |window: &LocalWindow| window.used > 0;
        let unreported = self.report.is_some() || self.owed > 0 || self.windows.iter().any(is_used);
        unreported && now < self.until
    }
}
