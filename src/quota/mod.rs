//! What a limit is and how it counts: pure values and arithmetic, with time passed in.
//!
//! The stores and the ledger build on this room. The room knows neither of them.

pub mod counter;
pub mod rate;
pub mod rule;
pub mod standing;

pub use rate::{Algorithm, Limit, RateError};
pub use standing::Standing;
