//! Where requests go: upstreams, their endpoints, and the choice between them.

pub mod pool;
pub mod resolve;
