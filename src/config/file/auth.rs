//! `auth`: keys, issuers, records, and where credentials stand.

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use super::super::scalar::{DAY, Leaf, Scalar, Span, Whole, instead};
use super::{Deadline, List, Maybe};
use crate::auth::guard::FailureRate;
use crate::auth::sources::Source;
use crate::auth::verification::Algorithm as JwtAlgorithm;
use crate::base::secret::Secret;
use crate::quota::Limit as Rate;

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
            _ => Err(instead::<Self>("is not a rate in range")),
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
            _ => Err(instead::<Self>("is not an https URL")),
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
