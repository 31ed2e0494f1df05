//! The configuration as people write it: one struct a section, field by field like the YAML.
//!
//! Every key may be absent, and a list element or map entry may be empty: `compile` reports a key that is
//! missing, so that one fault does not hide the next.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use http::HeaderName;
use ipnet::IpNet;
use log::LevelFilter;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use url::Url;

use super::UnknownPlan;
use super::address::{GrpcService, HealthPath, KeyPrefix, MetricsAddress, ServerName};
use super::cross_origin::{Field, Origin};
use super::matching::{Method, Prefix, Replacement};
use super::moment::{Moment, Page};
use super::request::PassedField;
use super::scalar::{
    DAY, FilePath, Identifier, Leaf, Percent, Scalar, Size, SocketPath, Span, SpanOrNone,
    StatusRange, Whole, Window,
};
use super::words::{BalanceWord, RouteAuth};
use crate::auth::guard::FailureRate;
use crate::auth::sources::Source;
use crate::auth::verification::Algorithm as JwtAlgorithm;
use crate::base::secret::Secret;
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::Algorithm;
use crate::quota::Limit as Rate;
use crate::quota::rate::MAX_QUOTA;
use crate::route::coding::Coding;
use crate::route::host_pattern::HostPattern;
use crate::route::template::{FieldValue, TemplateError, Variable};
use crate::store::StoreUrl;
use crate::telemetry::log_output::{LogColor, LogFormat};
use crate::tls::client::ClientAuth;
use crate::tls::server::Version as TlsVersion;
use crate::upstream::rules::{EndpointUrl, HashKey, Http2};

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
pub struct Listener {
    pub address: Maybe<SocketAddr>,
    #[serde(default, deserialize_with = "not_empty")]
    pub tls: Option<Tls>,
    pub http2: Maybe<bool>,
    pub http3: Maybe<bool>,
    pub proxy_protocol: Maybe<bool>,
    pub redirect_https: Maybe<bool>,
}

/// A mapping that may be absent but not empty: what is empty must not mean that it is off.
fn not_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificates: List<Certificate>,
    pub minimum_version: Maybe<TlsVersion>,
    pub client_ca: Maybe<FilePath>,
    pub client_auth: Maybe<ClientAuth>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub certificate: Maybe<FilePath>,
    pub private_key: Maybe<FilePath>,
    pub ocsp: Maybe<FilePath>,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTimeouts {
    pub header: Maybe<Deadline>,
    pub read: Maybe<Deadline>,
    pub write: Maybe<Deadline>,
    pub idle: Maybe<Deadline>,
    pub tunnel: Maybe<Deadline>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    pub url: Maybe<StoreUrl>,
    pub timeout: Maybe<Span<1, 60_000>>,
    pub prefix: Maybe<KeyPrefix>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    pub jwt: Option<Jwt>,
    pub tokens: List<Token>,
    pub cache: Option<TokenCache>,
    pub max_failures: Maybe<Failures>,
    pub from: List<Leaf<Source>>,
}

/// `N/second`, `N/minute` or `N/hour`, or `none`.
pub struct Failures(pub Option<FailureRate>);

impl Scalar for Failures {
    fn allowed() -> String {
        "N/second, N/minute or N/hour with N from 1 to 1000000, or none".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let rate = Rate::parse(text).ok();
        let rate = rate.filter(|rate| rate.quota <= 1_000_000 && rate.window.as_secs() <= 3_600);
        match rate.map(|rate| (u32::try_from(rate.quota), rate.window)) {
            Some((Ok(failures), window)) => Ok(Self(Some(FailureRate { failures, window }))),
            _ => Err(super::scalar::instead::<Self>("is not a rate in range")),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    pub keys: List<JwtKey>,
    pub jwks: Option<Jwks>,
    pub issuer: Maybe<String>,
    pub audience: Maybe<String>,
    pub issuers: List<JwtIssuer>,
    pub leeway: Maybe<Span<0, 600_000>>,
    pub require_record: Maybe<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuer {
    pub issuer: Maybe<String>,
    pub audience: Maybe<String>,
    pub keys: List<JwtKey>,
    pub jwks: Option<Jwks>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    pub url: Maybe<HttpsUrl>,
    pub file: Maybe<String>,
    pub refresh: Maybe<Span<1_000, DAY>>,
    pub timeout: Maybe<Span<1, 60_000>>,
}

/// Where an issuer publishes its keys.
pub struct HttpsUrl(pub Url);

impl Scalar for HttpsUrl {
    fn allowed() -> String {
        "https://host[:port]/path, without user and password".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let bare = |url: &Url| url.username().is_empty() && url.password().is_none();
        match Url::parse(text) {
            Ok(url) if url.scheme() == "https" && bare(&url) => Ok(Self(url)),
            _ => Err(super::scalar::instead::<Self>("is not an https URL")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    pub algorithm: Maybe<JwtAlgorithm>,
    pub secret: Maybe<Secret>,
    pub secret_file: Maybe<String>,
    /// A public key is not secret, but a user may write the private key here.
    pub public_key: Maybe<Secret>,
    pub public_key_file: Maybe<String>,
    pub kid: Maybe<String>,
}

/// A record. The room `record` knows its fields and their values.
pub type Token = BTreeMap<String, serde_yaml::Value>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCache {
    pub ttl: Maybe<Deadline>,
    pub entries: Maybe<Whole<1, 10_000_000>>,
    pub max_stale: Maybe<Span<0, DAY>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub limits: List<Limit>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub default: List<Limit>,
    pub window: Maybe<Window>,
    pub on_store_failure: Maybe<FailurePolicy>,
    pub headers: Maybe<RateHeaders>,
    pub sync: Maybe<SyncMode>,
    pub algorithm: Maybe<Algorithm>,
    pub max_in_flight: Maybe<MaxInFlight>,
    pub unknown_plan: Maybe<UnknownPlan>,
}

/// How many at the same time, or `none` for any number.
pub struct MaxInFlight(pub Option<isize>);

impl Scalar for MaxInFlight {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        "a whole number from 1 to 1000000, or none".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if (1..=1_000_000).contains(&number) => Ok(Self(Some(number))),
            _ if text == "none" => Ok(Self(None)),
            _ => Err(super::scalar::instead::<Self>("is not a number in range")),
        }
    }
}

/// A limit: `N/unit`, or a mapping.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Limit {
    pub rate: Maybe<Rate>,
    pub burst: Maybe<Whole<1, MAX_QUOTA>>,
    pub algorithm: Maybe<Algorithm>,
    pub by: Option<OneOrMore>,
    pub name: Maybe<String>,
}

/// One word, or a list of words.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    /// All of them.
    pub fn words(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::More(words) => words,
        }
    }
}

/// `N/unit`.
impl Scalar for Rate {
    fn allowed() -> String {
        format!("N/second, N/minute, N/hour or N/day with N from 1 to {MAX_QUOTA}")
    }

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LimitVisitor;

        impl<'de> Visitor<'de> for LimitVisitor {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or {{ rate, burst, algorithm, by, name }}", Rate::allowed())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Limit, E> {
                let rate = Some(Leaf(Rate::read(text).map_err(E::custom)?));
                Ok(Limit { rate, burst: None, algorithm: None, by: None, name: None })
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Limit, M::Error> {
                Limit::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(LimitVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub endpoints: List<Endpoint>,
    pub balance: Maybe<BalanceWord>,
    pub hash: Option<Hash>,
    pub slow_start: Maybe<Span<0, 3_600_000>>,
    pub timeouts: Option<UpstreamTimeouts>,
    pub retries: Maybe<Whole<0, 15>>,
    pub retry_budget: Maybe<Percent>,
    pub resolve_every: Maybe<Span<1_000, DAY>>,
    pub breaker: Option<Breaker>,
    pub health: Option<Health>,
    pub tls: Option<UpstreamTls>,
    pub http2: Maybe<Http2>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub path: Maybe<HealthPath>,
    pub grpc: Maybe<GrpcService>,
    pub status: Maybe<StatusRange>,
    pub interval: Maybe<Span<100, DAY>>,
    pub timeout: Maybe<Deadline>,
    pub unhealthy_after: Maybe<Whole<1, 100>>,
    pub healthy_after: Maybe<Whole<1, 100>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    pub ca: Maybe<String>,
    pub certificate: Maybe<String>,
    pub private_key: Maybe<String>,
    pub server_name: Maybe<ServerName>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hash {
    pub by: Maybe<HashKey>,
}

impl Scalar for HashKey {
    fn allowed() -> String {
        "token, organization, ip or header:NAME".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).ok();
        match text {
            "token" => Ok(Self::Token),
            "organization" => Ok(Self::Organization),
            "ip" => Ok(Self::Ip),
            text => match text.strip_prefix("header:").and_then(name) {
                Some(name) => Ok(Self::Header(name)),
                None => Err(super::scalar::instead::<Self>("is not allowed here")),
            },
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    pub failures: Maybe<MaxInFlight>,
    pub open_for: Maybe<Deadline>,
    pub statuses: List<Leaf<StatusRange>>,
}

/// A URL, or a mapping.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Endpoint {
    pub url: Maybe<EndpointUrl>,
    pub weight: Maybe<Whole<1, 100>>,
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndpointVisitor;

        impl<'de> Visitor<'de> for EndpointVisitor {
            type Value = Endpoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or {{ url, weight }}", EndpointUrl::allowed())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Endpoint, E> {
                let url = EndpointUrl::read(text).map_err(E::custom)?;
                Ok(Endpoint { url: Some(Leaf(url)), weight: None })
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Endpoint, M::Error> {
                Endpoint::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(EndpointVisitor)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTimeouts {
    pub connect: Maybe<Deadline>,
    pub first_byte: Maybe<Deadline>,
    pub read: Maybe<Deadline>,
    pub write: Maybe<Deadline>,
    pub idle: Maybe<Deadline>,
    pub total: Maybe<SpanOrNone>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub prefix: Maybe<Prefix>,
    pub host: Maybe<HostPattern>,
    pub methods: List<Leaf<Method>>,
    pub upstream: Maybe<Identifier>,
    pub split: List<Share>,
    pub networks: Option<Networks>,
    pub auth: Maybe<RouteAuth>,
    pub limits: List<Limit>,
    pub max_in_flight: Maybe<MaxInFlight>,
    pub max_body: Maybe<Size>,
    pub strip_prefix: Maybe<bool>,
    pub forward_credential: Maybe<bool>,
    pub rewrite: Option<Rewrite>,
    pub timeouts: Option<RouteTimeouts>,
    pub headers: Option<RouteHeaders>,
    pub mirror: Option<Mirror>,
    pub cors: Option<Cors>,
    pub compress: List<Leaf<Coding>>,
    pub deprecated: Option<Deprecated>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Networks {
    pub allow: List<Leaf<IpNet>>,
    pub deny: List<Leaf<IpNet>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    pub origins: List<Leaf<Origin>>,
    pub methods: List<Leaf<Method>>,
    pub headers: List<Leaf<Field>>,
    pub credentials: Maybe<bool>,
    pub max_age: Maybe<Span<0, DAY>>,
    pub expose: List<Leaf<Field>>,
}

/// Copies of a route's requests.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    pub upstream: Maybe<Identifier>,
    pub percent: Maybe<Whole<1, 100>>,
    pub methods: List<Leaf<Method>>,
    pub max_in_flight: Maybe<Whole<1, 1_000_000>>,
    pub timeout: Maybe<Deadline>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deprecated {
    pub since: Maybe<Moment>,
    pub sunset: Maybe<Moment>,
    pub link: Maybe<Page>,
}

/// The share that an upstream has of a route's requests.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub upstream: Maybe<Identifier>,
    pub weight: Maybe<Whole<0, 1000>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    pub prefix: Maybe<Replacement>,
    pub answers: Maybe<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTimeouts {
    pub first_byte: Maybe<Deadline>,
    pub total: Maybe<Deadline>,
    pub idle: Maybe<Deadline>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteHeaders {
    pub request: Option<HeaderRules>,
    pub response: Option<HeaderRules>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderRules {
    pub set: Map<Leaf<FieldValue>>,
    pub remove: List<Leaf<String>>,
}

impl Scalar for FieldValue {
    fn allowed() -> String {
        "printable ASCII text (quote numbers)".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let names = || Variable::NAMES.map(|(name, _)| format!("%{{{name}}}")).join(", ");
        Self::parse(text).map_err(|error| match error {
            TemplateError::Text => {
                super::scalar::instead::<Self>("is not the value of a header field")
            }
            TemplateError::Open => "holds %{ without a name and }; write %%{ for a plain %{".into(),
            TemplateError::Name => {
                format!("holds %{{…}} with an unknown name; write one of {}", names())
            }
        })
    }
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
