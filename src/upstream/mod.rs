//! Where requests go: upstreams, their endpoints, the choice between them, and how each attempt ended.

pub mod attempt;
pub mod pool;
pub mod resolve;
