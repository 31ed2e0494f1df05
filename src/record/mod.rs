//! Token records: what they say, however they are written.

pub mod key;
pub mod members;
pub mod token;
