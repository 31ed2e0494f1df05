//! Metrics, the log, and the access log. Any room may import this room.

pub mod access_log;
pub mod log_output;
pub mod metrics;
