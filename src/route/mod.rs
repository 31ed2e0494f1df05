//! Which route a request takes: one canonical path, matched against a table of prefixes.

pub mod path;
pub mod pattern;
pub mod table;
pub mod written;
