//! The answer to one question: may this subject make a request now?

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::UnixTime;
use crate::quota::Limit;
use crate::quota::algorithm::window_end;

/// How one limit stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState {
    /// Requests left in the present window, as far as this process knows; at most the quota.
    pub remaining: u64,
    /// Time until the window ends; never shorter than the truth.
    pub reset_after: Duration,
}

/// A decision, and how the limits stand after it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Whether the request was counted and may go on.
    pub admitted: bool,
    /// The limits it was decided under.
    pub limits: Arc<[Limit]>,
    /// How each of them stands; empty where nothing is known (admitted during an outage).
    pub states: SmallVec<[LimitState; 4]>,
}

impl Decision {
    /// The limit that is nearest to refusing, or refuses the longest: its index.
    pub fn tightest(&self) -> Option<usize> {
        let share = |(at, state): &(usize, &LimitState)| {
            let quota = self.limits.get(*at).map_or(1, |limit| limit.quota.max(1));
            // Parts per million of the quota that are left; what is used up longest comes first.
            let left = u128::from(state.remaining) * 1_000_000 / u128::from(quota);
            (left, std::cmp::Reverse(state.reset_after))
        };
        self.states.iter().enumerate().min_by_key(share).map(|(at, _)| at)
    }

    /// Admitted, with nothing known about the limits.
    pub fn unknown(limits: &Arc<[Limit]>) -> Self {
        Self { admitted: true, limits: Arc::clone(limits), states: SmallVec::new() }
    }
}

/// How the limits stand when `used` are counted, of which `held` are not yet admitted.
pub fn states(
    limits: &[Limit],
    used: impl IntoIterator<Item = u64>,
    held: u64,
    store_now: UnixTime,
) -> SmallVec<[LimitState; 4]> {
    limits
        .iter()
        .zip(used)
        .map(|(limit, used)| {
            let remaining = (limit.quota.saturating_sub(used) + held).min(limit.quota);
            let reset_after = window_end(store_now, limit.window) - store_now;
            LimitState { remaining, reset_after }
        })
        .collect()
}
