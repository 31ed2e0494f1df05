//! The account of a subject: the units that this process holds, and the store's last answer. Plain arithmetic, with
//! time passed in.
//!
//! Times called `now` are of the monotonic clock; windows are of the store's clock. The store's clock
//! is known from its last answer: the store read it after the question was sent and before the answer came,
//! so a window may end as early as the question plus its rest, and has surely ended at the answer plus
//! its rest. Units are spent until the first bound, refusals last until the second.
//!
//! A request of weight n spends n units or none. A request that asks for more than any limit can ever hold is
//! refused at once. Otherwise the refusal of a weight says nothing about smaller weights: a request is refused from
//! memory only while what is known to be left at the store, and what is held, do not pay for it.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::decision::{Charge, Decision, states};
use super::lease::{self, Demand};
use super::unreported::Unreported;
use super::weight::Weight;
use crate::base::clock::{Moment, UnixTime};
use crate::quota::{Limit, Standing};
use crate::store::{Adjustment, Grant};

/// How long a refusal is believed: other gateways may give back what they do not use.
const RECHECK: Duration = Duration::from_secs(1);

/// The account of a subject under a set of limits.
#[derive(Debug, Default)]
pub struct Account {
    /// Units granted by the store and not yet spent.
    held: u64,
    /// When `held` can no longer be spent.
    held_until: Moment,
    /// When `held` goes back if it still lies there.
    lease_until: Moment,
    /// The marks under which the store counts `held`, limit by limit.
    marks: SmallVec<[UnixTime; 2]>,
    /// Until this moment, a request that the store's last answer does not pay for is refused without asking.
    refused_until: Moment,
    /// The store's last answer.
    known: Known,
    /// Units that were spent and that the store has not counted.
    unreported: Option<Box<Unreported>>,
    demand: Demand,
}

/// A question to the store.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The fewest units that were of use.
    pub least: u64,
    /// The weight of the requests for which a lease was asked.
    pub weight: Weight,
    /// When the question was sent.
    pub sent_at: Moment,
}

/// The store's answer of a moment; without standings, no answer has come yet.
#[derive(Debug, Default)]
struct Known {
    /// What is left of each limit, and the microseconds until that changes.
    standings: SmallVec<[(u64, u64); 1]>,
    store_now: UnixTime,
    /// When the answer arrived.
    at: Moment,
}

impl Known {
    fn of(grant: &Grant, at: Moment) -> Self {
        let compact = |standing: &Standing| {
            let reset_us = standing.reset_after.as_micros();
            (standing.left, u64::try_from(reset_us).unwrap_or(u64::MAX))
        };
        Self { standings: grant.standings.iter().map(compact).collect(), store_now: grant.now, at }
    }

    fn is_nothing(&self) -> bool {
        self.standings.is_empty()
    }

    fn store_now(&self, now: Moment) -> UnixTime {
        self.store_now + (now - self.at)
    }

    /// How limit `at` stands at `store_now`, as far as this process knows.
    fn standing(&self, at: usize, limit: &Limit, store_now: UnixTime) -> Standing {
        let Some((left, reset_us)) = self.standings.get(at) else {
            return unused(limit, store_now);
        };
        let standing = Standing { left: *left, reset_after: Duration::from_micros(*reset_us) };
        standing.later(limit, self.store_now, store_now)
    }
}

/// The standing of an unused limit.
fn unused(limit: &Limit, store_now: UnixTime) -> Standing {
    Standing { left: limit.capacity(), reset_after: limit.window_end(store_now) - store_now }
}

impl Account {
    /// Notes a request.
    pub fn note_demand(&mut self, weight: Weight, now: Moment) {
        self.demand.note(weight, now);
    }

    /// A decision without the store, where there can be one.
    pub fn decide(
        &mut self,
        limits: &Arc<[Limit]>,
        weight: Weight,
        now: Moment,
    ) -> Option<Decision> {
        let units = weight.units();
        if !fits(limits, weight) {
            return Some(self.decision(limits, now, Charge::None));
        }
        if self.held >= units && now < self.held_until {
            return Some(self.spend(limits, weight, now));
        }
        let is_refused = self.held < units
            && now < self.refused_until
            && self.left(limits, now).saturating_add(self.held) < units;
        is_refused.then(|| self.decision(limits, now, Charge::None))
    }

    /// Takes out the units that can no longer be spent. They go back to the store, which may still count them.
    pub fn take_worthless(&mut self, now: Moment) -> Option<Adjustment> {
        (self.held > 0 && now >= self.held_until).then(|| self.give_back(self.held))
    }

    /// Takes out a lease that has lain unused for its life.
    pub fn take_idle(&mut self, now: Moment) -> Option<Adjustment> {
        let is_over = now >= self.lease_until.min(self.held_until);
        (self.held > 0 && is_over).then(|| self.give_back(self.held))
    }

    /// Takes out up to `most` units, which pay for no request that waits.
    pub(super) fn take_remainder(&mut self, most: u64) -> Option<Adjustment> {
        let units = self.held.min(most);
        (units > 0).then(|| self.give_back(units))
    }

    /// Takes out all units.
    pub fn take_all(&mut self) -> Option<Adjustment> {
        (self.held > 0).then(|| self.give_back(self.held))
    }

    fn give_back(&mut self, units: u64) -> Adjustment {
        self.held -= units;
        returned(&self.marks, units)
    }

    /// When held units should go back; `None` where no unit is held.
    pub fn idle_at(&self) -> Option<Moment> {
        (self.held > 0).then(|| self.lease_until.min(self.held_until))
    }

    /// How many units to take beyond what waiting requests need.
    pub fn lease(&self, limits: &[Limit], weight: Weight, now: Moment, gateways: u32) -> u64 {
        lease::size(&self.demand, weight, self.left(limits, now), gateways)
    }

    /// Whether the next lease should be fetched now, so that no request waits for it.
    pub fn runs_low(&self, limits: &[Limit], weight: Weight, now: Moment, gateways: u32) -> bool {
        let lease = self.lease(limits, weight, now, gateways);
        lease > 0 && self.held <= lease / 4 && now >= self.refused_until
    }

    /// Units left at the store, as far as this process knows.
    fn left(&self, limits: &[Limit], now: Moment) -> u64 {
        if self.known.is_nothing() {
            return 0;
        }
        let store_now = self.known.store_now(now);
        let left = |(at, limit): (usize, &Limit)| self.known.standing(at, limit, store_now).left;
        limits.iter().enumerate().map(left).min().unwrap_or(0)
    }

    /// Books a grant. Returns the units that were held under other marks, to be given back.
    pub fn receive(
        &mut self,
        limits: &[Limit],
        asked: &Asked,
        grant: &Grant,
        now: Moment,
    ) -> Option<Adjustment> {
        let marks: SmallVec<[UnixTime; 2]> =
            limits.iter().map(|limit| limit.mark(grant.now)).collect();
        let spendable = limits.iter().map(|limit| limit.spendable_for(grant.now)).min();
        let spendable = spendable.unwrap_or_default();
        // Units that expire soon would shorten the life of the whole balance.
        let lasts = self.marks == marks || self.held_until >= now + spendable / 2;
        let (marks, stale) = match merged(limits, &self.marks, &marks).filter(|_| lasts) {
            _ if self.held == 0 => (marks, None),
            Some(merged) => (merged, None),
            None => (marks, Some(self.give_back(self.held))),
        };
        if grant.granted > 0 {
            let until = asked.sent_at + spendable;
            self.held_until = if self.held > 0 { until.min(self.held_until) } else { until };
            self.lease_until = now + self.demand.life(asked.weight);
            self.held += grant.granted;
            self.refused_until = Moment::default();
        } else {
            let standings = limits.iter().zip(&grant.standings);
            let waits = standings.map(|(limit, standing)| standing.wait_for(limit, asked.least));
            self.refused_until = now + waits.max().unwrap_or_default().min(RECHECK);
        }
        self.marks = marks;
        self.known = Known::of(grant, now);
        if let Some(unreported) = &mut self.unreported {
            unreported.granted();
        }
        stale
    }

    /// Spends held units on a request, or refuses it.
    pub fn spend(&mut self, limits: &Arc<[Limit]>, weight: Weight, now: Moment) -> Decision {
        let units = weight.units();
        let charge = match self.held.checked_sub(units) {
            Some(rest) => {
                self.held = rest;
                Charge::Store { units, marks: self.marks.clone() }
            }
            None => Charge::None,
        };
        self.decision(limits, now, charge)
    }

    fn decision(&self, limits: &Arc<[Limit]>, now: Moment, charge: Charge) -> Decision {
        let states = if self.known.is_nothing() {
            SmallVec::new()
        } else {
            let store_now = self.known.store_now(now);
            let standings = limits.iter().enumerate();
            let standings = standings.map(|(at, limit)| self.known.standing(at, limit, store_now));
            states(limits, standings, self.held)
        };
        Decision {
            admitted: !matches!(charge, Charge::None),
            limits: Arc::clone(limits),
            states,
            charge,
        }
    }

    /// Takes back so many units of a charge, which were not used. Units that are counted under other marks by now are
    /// to be given back to the store.
    pub(super) fn take_back(&mut self, charge: &Charge, units: u64) -> Option<Adjustment> {
        match charge {
            Charge::Store { marks, .. } if *marks == self.marks => {
                self.held += units;
                None
            }
            Charge::Store { marks, .. } => Some(returned(marks, units)),
            Charge::Local { ends, .. } => {
                if let Some(unreported) = &mut self.unreported {
                    unreported.take_back(ends, units);
                }
                None
            }
            Charge::None => None,
        }
    }

    /// Books the cost of an answer beyond its charge. Held units pay for it. The rest is reported to the store before
    /// the next question.
    pub(super) fn owe(&mut self, limits: &[Limit], units: u64, now: Moment) {
        let paid = if now < self.held_until { self.held.min(units) } else { 0 };
        self.held -= paid;
        if units > paid {
            self.unreported.get_or_insert_default().owe(limits, units - paid, now);
        }
    }

    /// Whether a debt has yet to be reported to the store.
    pub(super) fn owes(&self) -> bool {
        self.unreported.as_ref().is_some_and(|unreported| unreported.owes())
    }

    /// Decides without the store, within this gateway's share of what was left. `wall` stands in for
    /// the store's clock where that was never seen.
    pub fn spend_locally(
        &mut self,
        limits: &Arc<[Limit]>,
        weight: Weight,
        now: Moment,
        wall: UnixTime,
        gateways: u32,
    ) -> Decision {
        let store_now = if self.known.is_nothing() { wall } else { self.known.store_now(now) };
        let allowance = |(at, limit): (usize, &Limit)| {
            let left = self.known.standing(at, limit, store_now).left.min(limit.quota);
            // Where anything is left, a share is at least a unit.
            (left / u64::from(gateways.max(1))).max(left.min(1))
        };
        let allowances: SmallVec<[u64; 2]> = limits.iter().enumerate().map(allowance).collect();
        let unreported = self.unreported.get_or_insert_default();
        let (charge, standings) = unreported.spend(limits, &allowances, weight, store_now, now);
        let states = states(limits, standings, 0);
        Decision {
            admitted: !matches!(charge, Charge::None),
            limits: Arc::clone(limits),
            states,
            charge,
        }
    }

    /// The next report of units that the store has not counted, with its id. A report may be sent any number of times
    /// under its id.
    pub(super) fn report(&mut self, limits: &[Limit]) -> Option<(u64, Adjustment)> {
        self.unreported.as_deref_mut()?.report(limits)
    }

    /// Notes that the store counts the report `id`.
    pub(super) fn reported(&mut self, id: u64, limits: &[Limit], now: Moment) {
        if let Some(unreported) = &mut self.unreported {
            unreported.reported(id, limits, now);
        }
    }

    /// Units held.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Units held that can be spent.
    pub(super) fn spendable(&self, now: Moment) -> u64 {
        if now < self.held_until { self.held } else { 0 }
    }

    /// Whether the account can be forgotten.
    pub fn is_idle(&self, now: Moment) -> bool {
        let is_open = || self.unreported.as_ref().is_some_and(|unreported| unreported.is_open(now));
        self.held == 0 && now >= self.refused_until && !is_open()
    }
}

/// Whether every limit can ever hold what a request of `weight` spends.
pub(super) fn fits(limits: &[Limit], weight: Weight) -> bool {
    weight == Weight::ONE || limits.iter().all(|limit| limit.capacity() >= weight.units())
}

/// The marks of two grants that are held together; `None` where the grants must stay apart.
fn merged(
    limits: &[Limit],
    held: &[UnixTime],
    more: &[UnixTime],
) -> Option<SmallVec<[UnixTime; 2]>> {
    let marks = limits.iter().zip(held.iter().zip(more));
    marks.map(|(limit, (held, more))| limit.merged_mark(*held, *more)).collect()
}

fn returned(marks: &[UnixTime], units: u64) -> Adjustment {
    let units = i64::try_from(units).unwrap_or(i64::MAX);
    Adjustment { changes: marks.iter().map(|mark| (*mark, -units)).collect() }
}
