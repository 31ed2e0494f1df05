//! Counting requests against limits. The ledger decides; stores only hand quota out.

pub mod account;
pub mod decision;
mod entry;
mod exchange;
mod flight;
pub mod headers;
pub mod lease;
mod lease_list;
pub mod ledger;
pub mod subject;
mod subjects;
mod unreported;
pub mod weight;
