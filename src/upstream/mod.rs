//! The servers behind the gateway: upstreams, their endpoints, the choice of an endpoint, and the attempts.

pub mod attempt;
pub mod pool;
pub mod resolve;
