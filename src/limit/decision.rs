//! The answer to one question: may this subject make a request now?

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::base::clock::UnixTime;
use crate::quota::{Limit, Standing};

/// How one limit stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState {
    /// Units left at present, as far as this process knows; at most the quota.
    pub remaining: u64,
    /// Time until that changes, as [`Standing::reset_after`] has it; never shorter than the truth.
    pub reset_after: Duration,
}

/// A decision, and how the limits stand after it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Whether the request was counted and may go on.
    pub admitted: bool,
    /// The limits of the decision.
    pub limits: Arc<[Limit]>,
    /// The state of each limit; empty where nothing is known (admitted during an outage).
    pub states: SmallVec<[LimitState; 2]>,
    /// What the request was charged.
    pub(super) charge: Charge,
}

/// What an admitted request was charged, so that it can be settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Charge {
    /// Nothing.
    #[default]
    None,
    /// Units that the store had granted.
    Store {
        /// How many.
        units: u64,
        /// The marks of the grant, limit by limit.
        marks: SmallVec<[UnixTime; 2]>,
    },
    /// Units that this process counted without the store.
    Local {
        /// How many.
        units: u64,
        /// The ends of the windows in which they were counted, limit by limit.
        ends: SmallVec<[UnixTime; 2]>,
    },
}

impl Charge {
    /// The units charged.
    pub(super) fn units(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Store { units, .. } | Self::Local { units, .. } => *units,
        }
    }
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
        // Parts per million of the quota that are left. Of used-up limits, the last to have units again comes first.
        let left = u128::from(state.remaining) * 1_000_000 / u128::from(quota);
        (left, std::cmp::Reverse(state.reset_after))
    }

    /// Admitted, with nothing known about the limits.
    pub fn unknown(limits: &Arc<[Limit]>) -> Self {
        Self {
            admitted: true,
            limits: Arc::clone(limits),
            states: SmallVec::new(),
            charge: Charge::None,
        }
    }
}

/// The states that a client sees of limits with these `standings`, while this process holds `held` units.
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
