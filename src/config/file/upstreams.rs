//! `upstreams`: endpoints, and how they are chosen, checked and waited for.

use std::fmt;

use http::HeaderName;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::super::address::{GrpcService, HealthPath, ServerName};
use super::super::scalar::{
    DAY, Leaf, Percent, Scalar, Span, SpanOrNone, StatusRange, Whole, instead,
};
use super::super::words::BalanceWord;
use super::{Deadline, List, MaxInFlight, Maybe};
use crate::upstream::rules::{EndpointUrl, HashKey, Http2};

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
                None => Err(instead::<Self>("is not allowed here")),
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
