//! The route that a request takes: one canonical path, matched against a table of prefixes.

pub mod coding;
pub mod cors;
pub mod fields;
pub mod headers;
pub mod host;
pub mod host_pattern;
pub mod matched;
pub mod mirror;
pub mod path;
pub mod pattern;
pub mod reserved;
pub mod split;
pub mod table;
pub mod template;
pub mod written;
