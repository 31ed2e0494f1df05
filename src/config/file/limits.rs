//! `plans` and `limits`, and a limit wherever one may stand.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::super::UnknownPlan;
use super::super::scalar::{Leaf, Scalar, Whole, Window, instead};
use super::{List, Maybe};
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::Algorithm;
use crate::quota::Limit as Rate;
use crate::quota::rate::MAX_QUOTA;

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
            _ => Err(instead::<Self>("is not a number in range")),
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
