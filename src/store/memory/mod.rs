//! The embedded store: records, counters and one gateway, all in this process.
//!
//! The store keeps the promises of the traits for as long as the process lives, and its memory is bounded.

mod membership;
mod quota;
mod records;

pub use membership::SoleGateway;
pub use quota::MemoryQuota;
pub use records::MemoryRecords;
