//! The one schema of a token record: which fields there are, how each is read, checked and written.
//!
//! A record comes as a hash or a JSON object from a store, as the claims of a JWT, as a line of CSV or JSON that is
//! imported, and as an entry of `auth.tokens` in YAML. All of them are read by the table in [`field`]: a field is added by
//! adding it there. This room knows what limits and path patterns are. It knows neither stores, requests, the
//! command line nor the rest of the configuration.

pub mod error;
pub mod field;
pub mod grant;
pub mod identity;
pub mod key;
mod limits;
pub mod members;
pub mod row;
pub mod stored;
pub mod token;

pub use error::RecordError;
pub use grant::{Draft, Grant, HeaderText, OwnLimits, RateRule};
pub use stored::{NewRecord, StoredRecord};
pub use token::TokenRecord;
