//! The configuration as people write it: one struct a section, field by field like the YAML.
//!
//! Every key may be absent, and a list element or map entry may be empty: `compile` reports a key that is
//! missing, so that one fault does not hide the next.

use std::collections::BTreeMap;

use ipnet::IpNet;
use log::LevelFilter;
use serde::Deserialize;

use super::address::{KeyPrefix, MetricsAddress};
use super::request::PassedField;
use super::scalar::{DAY, Leaf, Size, SocketPath, Span, Whole};
use crate::store::StoreUrl;
use crate::telemetry::log_output::{LogColor, LogFormat};

mod auth;
mod limits;
mod listeners;
mod routes;
mod upstreams;

pub use auth::{Auth, Jwks, Jwt, JwtIssuer, JwtKey, Token};
pub use limits::{Limit, Limits, MaxInFlight, OneOrMore, Plan};
pub use listeners::{Certificate, ClientTimeouts, Listener, Tls};
pub use routes::{
    Cors, Deprecated, HeaderRules, Mirror, Networks, Rewrite, Route, RouteHeaders, Share,
};
pub use upstreams::{Breaker, Endpoint, Hash, Health, Upstream, UpstreamTls};

/// A scalar that may be absent.
pub type Maybe<T> = Option<Leaf<T>>;

/// A list that may be absent, of elements that may be empty.
pub type List<T> = Option<Vec<Option<T>>>;

/// A mapping that may be absent, of entries that may be empty.
pub type Map<T> = Option<BTreeMap<String, Option<T>>>;

/// A deadline: never zero, at most a day.
pub type Deadline = Span<1, DAY>;

/// The sections.
pub const TOP_KEYS: [&str; 17] = [
    "server",
    "listeners",
    "metrics",
    "log",
    "timeouts",
    "max_body",
    "max_connections",
    "max_connections_per_client",
    "trusted_proxies",
    "pass_fields",
    "fold_paths",
    "redis",
    "auth",
    "plans",
    "limits",
    "upstreams",
    "routes",
];

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub server: Option<Server>,
    pub listeners: List<Listener>,
    pub metrics: Option<Metrics>,
    pub log: Option<Log>,
    pub timeouts: Option<ClientTimeouts>,
    pub max_body: Maybe<Size>,
    pub max_connections: Maybe<Whole<1, 10_000_000>>,
    pub max_connections_per_client: Maybe<MaxInFlight>,
    pub trusted_proxies: List<Leaf<IpNet>>,
    pub pass_fields: List<Leaf<PassedField>>,
    pub fold_paths: Maybe<bool>,
    pub redis: Option<Redis>,
    pub auth: Option<Auth>,
    pub plans: Map<Plan>,
    pub limits: Option<Limits>,
    pub upstreams: Map<Upstream>,
    pub routes: List<Route>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub threads: Maybe<Whole<0, 1024>>,
    pub grace_period_seconds: Maybe<Whole<0, 86_400>>,
    pub graceful_shutdown_timeout_seconds: Maybe<Whole<0, 86_400>>,
    pub upstream_keepalive_pool_size: Maybe<Whole<1, 1_000_000>>,
    pub upgrade_sock: Maybe<SocketPath>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub address: Maybe<MetricsAddress>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: Maybe<LevelFilter>,
    pub format: Maybe<LogFormat>,
    pub color: Maybe<LogColor>,
    pub access: Maybe<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub url: Maybe<StoreUrl>,
    pub timeout: Maybe<Span<1, 60_000>>,
    pub prefix: Maybe<KeyPrefix>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_are_those_of_the_struct() {
        let error = serde_yaml::from_str::<File>("unknown: 1").err().unwrap().to_string();
        let known: Vec<_> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(known, TOP_KEYS);
    }
}
