//! The servers behind the gateway: upstreams, their endpoints, the choice of an endpoint, and the attempts.

pub mod attempt;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod check;
pub mod endpoint;
pub mod health;
pub mod learning;
pub mod pool;
pub mod resolve;
pub mod rules;
pub mod tls;
