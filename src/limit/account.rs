//! What this process knows and holds of one subject: plain arithmetic, with time passed in.
//!
//! Times called `now` are of the monotonic clock; windows are of the store's clock. The store's clock
//! is known from its last answer: it was read after the question was sent and before the answer came,
//! so a window may end as early as the question plus its rest, and has surely ended at the answer plus
//! its rest. Tokens are spent by the first bound, refusals last until the second.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::decision::{Counted, Decision, states};
use super::lease::{self, Demand};
use crate::base::clock::{Moment, UnixTime};
use crate::quota::{Limit, Standing};
use crate::store::{Adjustment, Grant};

/// The account of one subject under one set of limits.
#[derive(Debug, Default)]
pub struct Account {
    /// Requests paid for at the store and not yet admitted.
    held: u64,
    /// When `held` is worth nothing any more.
    held_until: Moment,
    /// When `held` goes back if it still lies there.
    lease_until: Moment,
    /// What `held` is counted under, limit by limit.
    marks: SmallVec<[UnixTime; 2]>,
    /// Refuse until then without asking.
    refused_until: Moment,
    /// The store's last answer.
    known: Known,
    /// What was admitted without the store.
    local: Option<Box<Local>>,
    demand: Demand,
}

/// The store's answer of a moment; without standings, that nothing was heard of it yet.
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

    /// How limit `at` stands at `store_now`, for all this process knows.
    fn standing(&self, at: usize, limit: &Limit, store_now: UnixTime) -> Standing {
        let Some((left, reset_us)) = self.standings.get(at) else {
            return unused(limit, store_now);
        };
        let standing = Standing { left: *left, reset_after: Duration::from_micros(*reset_us) };
        standing.later(limit, self.store_now, store_now)
    }
}

/// How a limit stands of which nothing is used.
fn unused(limit: &Limit, store_now: UnixTime) -> Standing {
    Standing { left: limit.capacity(), reset_after: limit.window_end(store_now) - store_now }
}

/// What was admitted without the store and has not been told to it.
#[derive(Debug)]
struct Local {
    /// Limit by limit.
    windows: SmallVec<[LocalWindow; 2]>,
    /// When all of these windows have ended.
    until: Moment,
    /// What the store is being told, and its id: the same until it has said that it knows.
    telling: Option<(u64, Adjustment)>,
}

/// Requests admitted without the store in one window of one limit. Without the store every limit is one
/// of fixed windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalWindow {
    end: UnixTime,
    used: u64,
}

impl Account {
    /// Notes that a request asks.
    pub fn note_demand(&mut self, now: Moment) {
        self.demand.note(now);
    }

    /// A decision without the store, where there can be one.
    pub fn decide(&mut self, limits: &Arc<[Limit]>, now: Moment) -> Option<Decision> {
        if self.held > 0 && now < self.held_until {
            return Some(self.spend(limits, now));
        }
        let refused = now < self.refused_until;
        (self.held == 0 && refused).then(|| self.spend(limits, now))
    }

    /// Takes out what can no longer be spent, to be given back where it is still counted.
    pub fn take_worthless(&mut self, now: Moment) -> Option<Adjustment> {
        (self.held > 0 && now >= self.held_until).then(|| self.give_back())
    }

    /// Takes out a lease that has lain unused for its life.
    pub fn take_idle(&mut self, now: Moment) -> Option<Adjustment> {
        let over = now >= self.lease_until.min(self.held_until);
        (self.held > 0 && over).then(|| self.give_back())
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Option<Adjustment> {
        (self.held > 0).then(|| self.give_back())
    }

    fn give_back(&mut self) -> Adjustment {
        let amount = i64::try_from(std::mem::take(&mut self.held)).unwrap_or(i64::MAX);
        returned(&self.marks, amount)
    }

    /// When what is held should go back, if anything is held.
    pub fn idle_at(&self) -> Option<Moment> {
        (self.held > 0).then(|| self.lease_until.min(self.held_until))
    }

    /// How much to take beyond what is waiting.
    pub fn lease(&self, limits: &[Limit], now: Moment, gateways: u32) -> u64 {
        lease::size(&self.demand, self.left(limits, now), gateways)
    }

    /// Whether the next lease should be fetched now, so that no request waits for it.
    pub fn runs_low(&self, limits: &[Limit], now: Moment, gateways: u32) -> bool {
        let lease = self.lease(limits, now, gateways);
        lease > 0 && self.held <= lease / 4 && now >= self.refused_until
    }

    /// Requests left at the store, as far as is known.
    fn left(&self, limits: &[Limit], now: Moment) -> u64 {
        if self.known.is_nothing() {
            return 0;
        }
        let store_now = self.known.store_now(now);
        let left = |(at, limit): (usize, &Limit)| self.known.standing(at, limit, store_now).left;
        limits.iter().enumerate().map(left).min().unwrap_or(0)
    }

    /// Books a grant that was asked for at `sent_at`. `recheck` bounds how long a refusal is believed.
    /// Gives back what was held under other marks.
    pub fn receive(
        &mut self,
        limits: &[Limit],
        grant: &Grant,
        sent_at: Moment,
        now: Moment,
        recheck: Duration,
    ) -> Option<Adjustment> {
        let marks: SmallVec<[UnixTime; 2]> =
            limits.iter().map(|limit| limit.mark(grant.now)).collect();
        let spendable = limits.iter().map(|limit| limit.spendable_for(grant.now)).min();
        let spendable = spendable.unwrap_or_default();
        // What is soon worth nothing would make all of it worth nothing.
        let lasts = self.marks == marks || self.held_until >= now + spendable / 2;
        let (marks, stale) = match merged(limits, &self.marks, &marks).filter(|_| lasts) {
            _ if self.held == 0 => (marks, None),
            Some(merged) => (merged, None),
            None => (marks, Some(self.give_back())),
        };
        if grant.granted > 0 {
            let until = sent_at + spendable;
            self.held_until = if self.held > 0 { until.min(self.held_until) } else { until };
            self.lease_until = now + self.demand.life();
            self.held += grant.granted;
            self.refused_until = Moment::default();
        } else {
            let used_up = grant.standings.iter().filter(|standing| standing.left == 0);
            let longest = used_up.map(|standing| standing.reset_after).max().unwrap_or_default();
            self.refused_until = now + longest.min(recheck);
        }
        self.marks = marks;
        self.known = Known::of(grant, now);
        stale
    }

    /// Spends one held request, or refuses.
    pub fn spend(&mut self, limits: &Arc<[Limit]>, now: Moment) -> Decision {
        let admitted = self.held > 0;
        self.held = self.held.saturating_sub(1);
        let states = if self.known.is_nothing() {
            SmallVec::new()
        } else {
            let store_now = self.known.store_now(now);
            let standings = limits.iter().enumerate();
            let standings = standings.map(|(at, limit)| self.known.standing(at, limit, store_now));
            states(limits, standings, self.held)
        };
        let counted = match admitted {
            true => Counted::AtStore(self.marks.clone()),
            false => Counted::Nowhere,
        };
        Decision { admitted, limits: Arc::clone(limits), states, counted }
    }

    /// Takes back one request that was counted and not made. What is counted under other marks by now
    /// is to be given back to the store.
    pub(super) fn put_back(&mut self, counted: &Counted) -> Option<Adjustment> {
        match counted {
            Counted::Nowhere => None,
            Counted::AtStore(marks) if *marks == self.marks => {
                self.held += 1;
                None
            }
            Counted::AtStore(marks) => Some(returned(marks, 1)),
            Counted::Here(ends) => {
                let windows = self.local.iter_mut().flat_map(|local| &mut local.windows);
                for (local, end) in windows.zip(ends) {
                    if local.end == *end {
                        local.used = local.used.saturating_sub(1);
                    }
                }
                None
            }
        }
    }

    /// Decides without the store, within this gateway's share of what was left. `wall` stands in for
    /// the store's clock where that was never seen.
    pub fn spend_locally(
        &mut self,
        limits: &Arc<[Limit]>,
        now: Moment,
        wall: UnixTime,
        gateways: u32,
    ) -> Decision {
        let store_now = if self.known.is_nothing() { wall } else { self.known.store_now(now) };
        let new = |limit: &Limit| LocalWindow { end: limit.window_end(store_now), used: 0 };
        let local = self.local.get_or_insert_with(|| {
            let windows = limits.iter().map(new).collect();
            Box::new(Local { windows, until: now, telling: None })
        });
        for (window, limit) in local.windows.iter_mut().zip(limits.iter()) {
            if window.end != limit.window_end(store_now) {
                *window = new(limit);
            }
        }
        let last_end = local.windows.iter().map(|window| window.end).max().unwrap_or(store_now);
        local.until = now + (last_end - store_now);
        let allowance = |at: usize, limit: &Limit| {
            let left = self.known.standing(at, limit, store_now).left.min(limit.quota);
            // Whoever has something left has at least one.
            (left / u64::from(gateways.max(1))).max(left.min(1))
        };
        let rooms: SmallVec<[u64; 2]> = limits
            .iter()
            .enumerate()
            .zip(&local.windows)
            .map(|((at, limit), window)| allowance(at, limit).saturating_sub(window.used))
            .collect();
        let admitted = rooms.iter().all(|room| *room > 0);
        if admitted {
            local.windows.iter_mut().for_each(|window| window.used += 1);
        }
        let standings = local.windows.iter().zip(&rooms).map(|(local, room)| Standing {
            left: room.saturating_sub(u64::from(admitted)),
            reset_after: local.end - store_now,
        });
        let states = states(limits, standings, 0);
        let counted = match admitted {
            true => Counted::Here(local.windows.iter().map(|window| window.end).collect()),
            false => Counted::Nowhere,
        };
        Decision { admitted, limits: Arc::clone(limits), states, counted }
    }

    /// What was admitted without the store and has not been told to it, and an id under which it may be
    /// told any number of times.
    pub fn untold(&mut self) -> Option<(u64, Adjustment)> {
        let local = self.local.as_deref_mut()?;
        if local.telling.is_none() && local.windows.iter().any(|window| window.used > 0) {
            let change =
                |window: &LocalWindow| (window.end, i64::try_from(window.used).unwrap_or(i64::MAX));
            let changes = local.windows.iter().map(change).collect();
            local.telling = Some((fastrand::u64(1..1 << 53), Adjustment { changes }));
        }
        local.telling.clone()
    }

    /// Notes that the store knows what it was being told; more may have been admitted meanwhile.
    pub fn told(&mut self) {
        let Some(local) = self.local.as_deref_mut() else { return };
        let Some((_, told)) = local.telling.take() else { return };
        for (window, (end, by)) in local.windows.iter_mut().zip(&told.changes) {
            if window.end == *end {
                window.used = window.used.saturating_sub(by.unsigned_abs());
            }
        }
    }

    /// Requests held.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Whether there is nothing here that would be missed.
    pub fn is_idle(&self, now: Moment) -> bool {
        let local_is_open = || {
            self.local.as_ref().is_some_and(|local| {
                let untold = local.telling.is_some() || local.windows.iter().any(|w| w.used > 0);
                untold && now < local.until
            })
        };
        self.held == 0 && now >= self.refused_until && !local_is_open()
    }
}

/// The marks of grants held together, if they may be.
fn merged(
    limits: &[Limit],
    held: &[UnixTime],
    more: &[UnixTime],
) -> Option<SmallVec<[UnixTime; 2]>> {
    let marks = limits.iter().zip(held.iter().zip(more));
    marks.map(|(limit, (held, more))| limit.merged_mark(*held, *more)).collect()
}

fn returned(marks: &[UnixTime], amount: i64) -> Adjustment {
    Adjustment { changes: marks.iter().map(|mark| (*mark, -amount)).collect() }
}
