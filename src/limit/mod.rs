//! Counting requests against limits. The ledger decides; stores only hand quota out.
//!
//! The files, in reading order:
//!
//! - `weight`: how many units a request spends
//! - `subject`: the name of the counter that a request counts for
//! - `decision`: the answer, how the limits stand after it, and what was charged
//! - `lease`: how large a lease is, and how long it lives
//! - `unreported`: units that were spent and that the store has not counted
//! - `account`: what one subject holds. The lease itself is kept here, in `Account::held`: see [`account::Account`]
//! - `entry`: an account, and the requests that wait for it
//! - `subjects`: all entries in memory, up to a bound
//! - `lease_list`: when each lease is looked at again, so that unused units go back
//! - `exchange`: units that go back to the store, and reports to it
//! - `flight`: one question to the store for all requests that wait
//! - `ledger`: decides with all of these; begin here to follow a request
//! - `headers`: which rate fields an answer carries

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
