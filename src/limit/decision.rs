//! The answer to one question: may this subject make a request now?

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::base::clock::UnixTime;
use crate::quota::{Limit, Standing};

/// How one limit stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState {
    /// Requests left at present, as far as this process knows; at most the quota.
    pub remaining: u64,
    /// Time until that changes, as [`Standing::reset_after`] has it; never shorter than the truth.
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
    pub states: SmallVec<[LimitState; 2]>,
    /// Where the request was counted.
    pub(super) counted: Counted,
}

/// Where an admitted request was counted, so that it can be put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Counted {
    /// Nowhere.
    #[default]
    Nowhere,
    /// At the store, under these marks.
    AtStore(SmallVec<[UnixTime; 2]>),
    /// In this process, in the windows with these ends.
    Here(SmallVec<[UnixTime; 2]>),
}

impl Decision {
    /// The limit that is nearest to refusing, or refuses the longest: its index.
    pub fn tightest(&self) -> Option<usize> {
        let tightness = |(at, state): &(usize, &LimitState)| self.tightness(*at, state);
        let tighter = |one, other| if tightness(&other) < tightness(&one) { other } else { one };
        self.states.iter().enumerate().reduce(tighter).map(|(at, _)| at)
    }

    /// Orders limits, of several decisions too: the smallest is nearest to refusing.
    pub fn tightness(&self, at: usize, state: &LimitState) -> (u128, std::cmp::Reverse<Duration>) {
        let quota = self.limits.get(at).map_or(1, |limit| limit.quota.max(1));
        // Parts per million of the quota that are left; what is used up longest comes first.
        let left = u128::from(state.remaining) * 1_000_000 / u128::from(quota);
        (left, std::cmp::Reverse(state.reset_after))
    }

    /// Admitted, with nothing known about the limits.
    pub fn unknown(limits: &Arc<[Limit]>) -> Self {
        Self {
            admitted: true,
            limits: Arc::clone(limits),
            states: SmallVec::new(),
            counted: Counted::Nowhere,
        }
    }
}

/// How limits that stand like this look to a client while `held` requests are paid for.
pub fn states(
    limits: &[Limit],
    standings: impl IntoIterator<Item = Standing>,
    held: u64,
) -> SmallVec<[LimitState; 2]> {
    let state = |(limit, standing): (&Limit, Standing)| LimitState {
        remaining: standing.left.saturating_add(held).min(limit.quota),
        reset_after: standing.reset_after,
    };
    limits.iter().zip(standings).map(state).collect()
}
