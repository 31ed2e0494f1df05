//! The embedded store: records, counters and one gateway, all in this process.
//!
//! It keeps the promises of the store's traits for as long as the process lives, and its memory is bounded.

mod membership;
mod quota;
mod records;

pub use membership::SoleGateway;
pub use quota::MemoryQuota;
pub use records::MemoryRecords;
