//! `routes`: what matches, where it goes, and what changes on its way.

use ipnet::IpNet;
use serde::Deserialize;

use super::super::cross_origin::{Field, Origin};
use super::super::matching::{Method, Prefix, Replacement};
use super::super::moment::{Moment, Page};
use super::super::scalar::{DAY, Identifier, Leaf, Scalar, Size, Span, Whole, instead};
use super::super::words::RouteAuth;
use super::{Deadline, Limit, List, Map, MaxInFlight, Maybe};
use crate::route::coding::Coding;
use crate::route::host_pattern::HostPattern;
use crate::route::template::{FieldValue, TemplateError, Variable};

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
            TemplateError::Text => instead::<Self>("is not the value of a header field"),
            TemplateError::Open => "holds %{ without a name and }; write %%{ for a plain %{".into(),
            TemplateError::Name => {
                format!("holds %{{…}} with an unknown name; write one of {}", names())
            }
        })
    }
}
