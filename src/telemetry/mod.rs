//! Signs of life: metrics, the log, and the access log. Any room may use this one.

pub mod access_log;
pub mod log_output;
pub mod metrics;
