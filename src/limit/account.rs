//! What this process knows and holds of one subject: plain arithmetic, with time passed in.
//!
//! Times called `now` are of the monotonic clock; windows are of the store's clock. The store's clock
//! is known from its last answer: it was read after the question was sent and before the answer came,
//! so a window may end as early as the question plus its rest, and has surely ended at the answer plus
//! its rest. Tokens are spent by the first bound, refusals last until the second.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::decision::{Decision, states};
use super::lease::{self, Demand};
use crate::clock::UnixTime;
use crate::quota::Limit;
use crate::quota::algorithm::window_end;
use crate::store::{Adjustment, Grant};

/// The account of one subject under one set of limits.
#[derive(Debug, Default)]
pub struct Account {
    /// Requests paid for at the store and not yet admitted.
    held: u64,
    /// When `held` is worth nothing any more.
    held_until: Duration,
    /// When `held` goes back if it still lies there.
    lease_until: Duration,
    /// The windows in which `held` is counted, by their ends.
    ends: SmallVec<[UnixTime; 4]>,
    /// Refuse until then without asking.
    refused_until: Duration,
    /// The store's last answer.
    known: Option<Known>,
    /// What was admitted without the store, window by window.
    local: SmallVec<[LocalWindow; 2]>,
    demand: Demand,
}

#[derive(Debug)]
struct Known {
    used: SmallVec<[u64; 4]>,
    store_now: UnixTime,
    /// When the answer arrived.
    at: Duration,
}

impl Known {
    fn store_now(&self, now: Duration) -> UnixTime {
        self.store_now + now.saturating_sub(self.at)
    }

    /// What limit `at` has used in the window that holds `store_now`.
    fn used(&self, at: usize, limit: &Limit, store_now: UnixTime) -> u64 {
        let same = window_end(self.store_now, limit.window) == window_end(store_now, limit.window);
        if same { self.used.get(at).copied().unwrap_or(0) } else { 0 }
    }
}

/// Requests admitted without the store in one window of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalWindow {
    end: UnixTime,
    used: u64,
}

impl Account {
    /// Notes that a request asks.
    pub fn note_demand(&mut self, now: Duration) {
        self.demand.note(now);
    }

    /// A decision without the store, where there can be one.
    pub fn decide(&mut self, limits: &Arc<[Limit]>, now: Duration) -> Option<Decision> {
        if self.held > 0 && now < self.held_until {
            return Some(self.spend(limits, now));
        }
        let refused = now < self.refused_until;
        (self.held == 0 && refused).then(|| self.spend(limits, now))
    }

    /// Takes out what can no longer be spent, to be given back where its windows are still open.
    pub fn take_worthless(&mut self, now: Duration) -> Option<Adjustment> {
        (self.held > 0 && now >= self.held_until).then(|| self.give_back())
    }

    /// Takes out a lease that has lain unused for its life.
    pub fn take_idle(&mut self, now: Duration) -> Option<Adjustment> {
        let over = now >= self.lease_until.min(self.held_until);
        (self.held > 0 && over).then(|| self.give_back())
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Option<Adjustment> {
        (self.held > 0).then(|| self.give_back())
    }

    fn give_back(&mut self) -> Adjustment {
        let amount = i64::try_from(std::mem::take(&mut self.held)).unwrap_or(i64::MAX);
        Adjustment { windows: self.ends.iter().map(|end| (*end, -amount)).collect() }
    }

    /// How much to take beyond what is waiting.
    pub fn lease(&self, limits: &[Limit], now: Duration, gateways: u32) -> u64 {
        lease::size(&self.demand, self.left(limits, now), gateways)
    }

    /// Whether the next lease should be fetched now, so that no request waits for it.
    pub fn runs_low(&self, limits: &[Limit], now: Duration, gateways: u32) -> bool {
        let lease = self.lease(limits, now, gateways);
        lease > 0 && self.held <= lease / 4 && now >= self.refused_until
    }

    /// Requests left at the store, as far as is known.
    fn left(&self, limits: &[Limit], now: Duration) -> u64 {
        let Some(known) = &self.known else { return 0 };
        let store_now = known.store_now(now);
        let left = |(at, limit): (usize, &Limit)| {
            limit.quota.saturating_sub(known.used(at, limit, store_now))
        };
        limits.iter().enumerate().map(left).min().unwrap_or(0)
    }

    /// Books a grant that was asked for at `sent_at`. `recheck` bounds how long a refusal is believed.
    /// Gives back what was held in windows that have ended meanwhile.
    pub fn receive(
        &mut self,
        limits: &[Limit],
        grant: &Grant,
        sent_at: Duration,
        now: Duration,
        recheck: Duration,
    ) -> Option<Adjustment> {
        let ends: SmallVec<[UnixTime; 4]> =
            limits.iter().map(|limit| window_end(grant.now, limit.window)).collect();
        let stale = (self.held > 0 && self.ends != ends).then(|| self.give_back());
        if grant.granted > 0 {
            self.held += grant.granted;
            let first_end = ends.iter().map(|end| *end - grant.now).min().unwrap_or_default();
            self.held_until = sent_at + first_end;
            self.lease_until = now + lease::LIFE;
            self.refused_until = Duration::ZERO;
        } else {
            let used_up = limits.iter().zip(&grant.used).zip(&ends);
            let longest = used_up
                .filter(|((limit, used), _)| **used >= limit.quota)
                .map(|(_, end)| *end - grant.now)
                .max();
            self.refused_until = now + longest.unwrap_or_default().min(recheck);
        }
        self.ends = ends;
        self.known = Some(Known { used: grant.used.clone(), store_now: grant.now, at: now });
        stale
    }

    /// Spends one held request, or refuses.
    pub fn spend(&mut self, limits: &Arc<[Limit]>, now: Duration) -> Decision {
        let admitted = self.held > 0;
        self.held = self.held.saturating_sub(1);
        let states = match &self.known {
            Some(known) => {
                let store_now = known.store_now(now);
                let used = limits.iter().enumerate();
                let used = used.map(|(at, limit)| known.used(at, limit, store_now));
                states(limits, used, self.held, store_now)
            }
            None => SmallVec::new(),
        };
        Decision { admitted, limits: Arc::clone(limits), states }
    }

    /// Takes back one request that was counted and not made.
    pub fn put_back(&mut self) {
        self.held += 1;
    }

    /// Decides without the store, within this gateway's share of what was left. `wall` stands in for
    /// the store's clock where that was never seen.
    pub fn spend_locally(
        &mut self,
        limits: &Arc<[Limit]>,
        now: Duration,
        wall: UnixTime,
        gateways: u32,
    ) -> Decision {
        let store_now = self.known.as_ref().map_or(wall, |known| known.store_now(now));
        let ends = limits.iter().map(|limit| window_end(store_now, limit.window));
        if self.local.len() == limits.len() {
            for (local, end) in self.local.iter_mut().zip(ends) {
                if local.end != end {
                    *local = LocalWindow { end, used: 0 };
                }
            }
        } else {
            self.local = ends.map(|end| LocalWindow { end, used: 0 }).collect();
        }
        let allowance = |at: usize, limit: &Limit| {
            let used = self.known.as_ref().map_or(0, |known| known.used(at, limit, store_now));
            let left = limit.quota.saturating_sub(used);
            // Whoever has something left has at least one.
            (left / u64::from(gateways.max(1))).max(left.min(1))
        };
        let rooms: SmallVec<[u64; 4]> = limits
            .iter()
            .enumerate()
            .zip(&self.local)
            .map(|((at, limit), local)| allowance(at, limit).saturating_sub(local.used))
            .collect();
        let admitted = rooms.iter().all(|room| *room > 0);
        if admitted {
            self.local.iter_mut().for_each(|local| local.used += 1);
        }
        let used = limits.iter().zip(&rooms).map(|(limit, room)| {
            limit.quota.saturating_sub(room.saturating_sub(u64::from(admitted)))
        });
        let states = states(limits, used, 0, store_now);
        Decision { admitted, limits: Arc::clone(limits), states }
    }

    /// What was admitted without the store and has not been told to it.
    pub fn untold(&self) -> Option<Adjustment> {
        let windows = self
            .local
            .iter()
            .map(|local| (local.end, i64::try_from(local.used).unwrap_or(i64::MAX)));
        let adjustment = Adjustment { windows: windows.collect() };
        self.local.iter().any(|local| local.used > 0).then_some(adjustment)
    }

    /// Notes that the store was told of `told`; more may have been admitted meanwhile.
    pub fn told(&mut self, told: &Adjustment) {
        for (local, (end, by)) in self.local.iter_mut().zip(&told.windows) {
            if local.end == *end {
                local.used = local.used.saturating_sub(by.unsigned_abs());
            }
        }
    }

    /// Requests held.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Whether there is nothing here that would be missed.
    pub fn is_idle(&self, now: Duration) -> bool {
        let local_is_open = || {
            let Some(known) = &self.known else { return !self.local.is_empty() };
            let store_now = known.store_now(now);
            self.local.iter().any(|local| local.used > 0 && local.end > store_now)
        };
        self.held == 0 && now >= self.refused_until && !local_is_open()
    }
}
