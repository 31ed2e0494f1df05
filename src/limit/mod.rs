//! Counting requests against limits. The ledger decides; stores only hand quota out.

pub mod account;
pub mod decision;
pub mod headers;
pub mod lease;
pub mod ledger;
pub mod subject;
