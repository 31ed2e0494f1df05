//! HTTP/1 towards clients.

pub mod chunks;
pub mod head;
