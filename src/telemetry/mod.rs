//! Metrics, the log, and the access log. Every room after it in the list of `lib.rs` may use it.

pub mod access_log;
pub mod configured;
pub mod endpoint_metrics;
pub mod log_output;
mod log_writer;
pub mod metrics;
mod outcomes;
