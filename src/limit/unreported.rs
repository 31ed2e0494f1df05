//! Units that a subject's requests have spent and that no grant of the store is known to count yet: those of requests admitted while
//! the store was away, and the cost of answers beyond their reservation. Plain arithmetic, with time passed in.

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
    /// The debt: the cost of answers beyond their reservation.
    owed: u64,
    /// Debts that were reported, and when the last of them was. They refuse requests here until a grant shows that
    /// the store counts them.
    reported_debt: (u64, Moment),
    /// When these units refuse no request any more.
    until: Moment,
    /// The report under way. It stays the same until the store has said that it counts it.
    report: Option<Report>,
}

/// Units admitted without the store in a window of a limit. Without the store every limit has fixed windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalWindow {
    end: UnixTime,
    used: u64,
    /// The part of `used` that was reported. It stays in `used` until a grant shows that the store counts it: a store
    /// that takes reports and grants nothing must not refill the window.
    reported: u64,
}

impl LocalWindow {
    fn unreported(&self) -> u64 {
        self.used.saturating_sub(self.reported)
    }
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
    /// Decides a request without the store, within `allowances`, limit by limit. Returns the charge, and how the
    /// limits stand after it.
    pub(super) fn spend(
        &mut self,
        limits: &[Limit],
        allowances: &[u64],
        weight: Weight,
        store_now: UnixTime,
        now: Moment,
    ) -> (Charge, SmallVec<[Standing; 2]>) {
        let new =
            |limit: &Limit| LocalWindow { end: limit.window_end(store_now), used: 0, reported: 0 };
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
        let (reported_debt, reported_at) = self.reported_debt;
        let room = |((window, limit), allowance): ((&LocalWindow, &Limit), &u64)| {
            let debt = if now < reported_at + limit.window { reported_debt } else { 0 };
            allowance.saturating_sub(window.used).saturating_sub(self.owed).saturating_sub(debt)
        };
        let windows = self.windows.iter().zip(limits);
        let rooms: SmallVec<[u64; 2]> = windows.zip(allowances).map(room).collect();
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
                window.used = window.used.saturating_sub(units).max(window.reported);
            }
        }
    }

    /// Adds a debt.
    pub(super) fn owe(&mut self, limits: &[Limit], units: u64, now: Moment) {
        self.owed = self.owed.saturating_add(units);
        self.hold(limits, now);
    }

    /// Whether there is a debt.
    pub(super) fn owes(&self) -> bool {
        self.owed > 0
    }

    /// The next report, with the id under which it may be sent any number of times.
    pub(super) fn report(&mut self, limits: &[Limit]) -> Option<(u64, Adjustment)> {
        if self.report.is_none() {
            let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
            let id = Adjustment::new_id();
            if self.windows.iter().any(|window| window.unreported() > 0) {
                let change = |window: &LocalWindow| (window.end, signed(window.unreported()));
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
    pub(super) fn reported(&mut self, id: u64, limits: &[Limit], now: Moment) {
        let Some(report) = self.report.take_if(|report| report.id == id) else { return };
        if report.owed > 0 {
            self.owed = self.owed.saturating_sub(report.owed);
            self.reported_debt = (self.reported_debt.0.saturating_add(report.owed), now);
            self.hold(limits, now);
            return;
        }
        for (window, (end, by)) in self.windows.iter_mut().zip(&report.adjustment.changes) {
            if window.end == *end {
                window.reported = window.reported.saturating_add(by.unsigned_abs());
            }
        }
    }

    /// Notes that the store has granted after the reports: its answer counts what was reported.
    pub(super) fn granted(&mut self) {
        self.reported_debt = (0, Moment::default());
        for window in &mut self.windows {
            window.used = window.unreported();
            window.reported = 0;
        }
    }

    /// Keeps these units for the longest window of `limits`.
    fn hold(&mut self, limits: &[Limit], now: Moment) {
        let longest = limits.iter().map(|limit| limit.window).max();
        self.until = self.until.max(now + longest.unwrap_or(Duration::ZERO));
    }

    /// Whether units here still count.
    pub(super) fn is_open(&self, now: Moment) -> bool {
        let is_used = |window: &LocalWindow| window.used > 0;
        let counts = self.report.is_some()
            || self.owed > 0
            || self.reported_debt.0 > 0
            || self.windows.iter().any(is_used);
        counts && now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::NEVER;

    fn limits() -> [Limit; 2] {
        ["8/second", "100/minute"].map(|text| Limit::parse(text).unwrap())
    }

    fn change(report: Option<(u64, Adjustment)>) -> (u64, [i64; 2]) {
        let (id, adjustment) = report.unwrap();
        (id, [0, 1].map(|at| adjustment.changes[at].1))
    }

    #[test]
    fn a_debt_that_grows_while_it_is_reported_is_reported_again() {
        let (limits, mut unreported) = (limits(), Unreported::default());
        unreported.owe(&limits, 5, NOW);
        let (id, five) = change(unreported.report(&limits));
        unreported.owe(&limits, 3, NOW);
        assert_eq!((id, five), change(unreported.report(&limits)), "the same until it is known");
        unreported.reported(id + 1, &limits, NOW);
        assert_eq!((id, [5, 5]), change(unreported.report(&limits)), "another report's answer");
        unreported.reported(id, &limits, NOW);
        assert!(unreported.owes());
        let (next, three) = change(unreported.report(&limits));
        assert_eq!(three, [3, 3]);
        assert_ne!(next, id);
        unreported.reported(next, &limits, NOW);
        assert!(!unreported.owes() && unreported.report(&limits).is_none());
    }

    #[test]
    fn a_debt_counts_for_no_more_than_fills_a_limit() {
        let (limits, mut unreported) = (limits(), Unreported::default());
        unreported.owe(&limits, u64::MAX, NOW);
        unreported.owe(&limits, u64::MAX, NOW);
        let (id, changes) = change(unreported.report(&limits));
        assert_eq!(changes, [8, 100]);
        unreported.reported(id, &limits, NOW);
        assert!(!unreported.owes());
    }

    #[test]
    fn requests_and_debts_are_reported_apart() {
        let (limits, mut unreported) = (limits(), Unreported::default());
        let store_now = UnixTime::from_secs(1_000_000_020);
        let two = Weight::new(2).unwrap();
        let now = Moment::default();
        unreported.owe(&limits, 3, now);
        let (charge, standings) = unreported.spend(&limits, &[8, 50], two, store_now, now);
        assert_eq!(charge.units(), 2);
        assert_eq!(standings.iter().map(|s| s.left).collect::<Vec<_>>(), [3, 45]);
        let four = Weight::new(4).unwrap();
        let (charge, _) = unreported.spend(&limits, &[8, 50], four, store_now, now);
        assert_eq!(charge, Charge::None, "all of a weight or nothing");
        let (id, changes) = change(unreported.report(&limits));
        assert_eq!(changes, [2, 2]);
        unreported.reported(id, &limits, now);
        let (id, adjustment) = unreported.report(&limits).unwrap();
        let mark = Adjustment::PRESENT;
        assert_eq!(adjustment.changes[..], [(mark, 3), (mark, 3)]);
        assert!(unreported.is_open(now));
        assert!(!unreported.is_open(now + Duration::from_secs(61)), "its windows are over");
        unreported.reported(id, &limits, now);
        assert!(unreported.is_open(now), "until a grant shows that the store counts it");
        unreported.granted();
        assert!(!unreported.is_open(now));
    }
}
