//! What a limit is and how it counts: pure values and arithmetic, with time passed in.
//!
//! The stores and the ledger both build on this room; it knows neither.

pub mod counter;
pub mod rate;
pub mod rule;
pub mod standing;

pub use rate::{Algorithm, Limit, RateError};
pub use standing::Standing;
