//! What a limit is and how a window counts: pure values and arithmetic, with time passed in.
//!
//! The stores and the ledger both build on this room; it knows neither.

pub mod algorithm;
pub mod rate;

pub use rate::{Limit, RateError};
