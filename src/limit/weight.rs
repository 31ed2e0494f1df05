//! How much of its limits a request spends. It knows no limit.

use std::num::NonZeroU64;

/// The units of quota that a request spends of every limit it is counted by: at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(NonZeroU64);

impl Weight {
    /// The weight of a request whose limits count requests.
    pub const ONE: Self = Self(NonZeroU64::MIN);

    /// A weight of `units`; `None` when that is 0.
    pub const fn new(units: u64) -> Option<Self> {
        match NonZeroU64::new(units) {
            Some(units) => Some(Self(units)),
            None => None,
        }
    }

    /// The weight in units of quota.
    pub const fn units(self) -> u64 {
        self.0.get()
    }
}
