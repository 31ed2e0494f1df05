//! Keys whose values are one of a few words.

use log::LevelFilter;

use super::UnknownPlan;
use super::scalar::{Scalar, instead};
use crate::auth::verification::Algorithm as JwtAlgorithm;
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::Algorithm;
use crate::route::coding::Coding;
use crate::telemetry::log_output::{LogColor, LogFormat};
use crate::tls::client::ClientAuth;
use crate::tls::server::Version as TlsVersion;
use crate::upstream::rules::Http2;

/// Whether a route needs a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RouteAuth {
    /// It needs a valid token.
    Required,
    /// It needs no token.
    None,
}

/// How an endpoint is chosen, without the key of `hash`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BalanceWord {
    /// In turn.
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastConnections,
    /// By a key of the request.
    Hash,
}

/// Why a word is refused.
const NOT_ALLOWED: &str = "is not allowed here";

/// Makes a type readable from one of its words.
macro_rules! words {
    ($type:ty: $($word:literal => $value:expr),+ $(,)?) => {
        impl Scalar for $type {
            const UNQUOTED: bool = true;

            fn allowed() -> String {
                either(&[$($word),+])
            }

            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(instead::<Self>(NOT_ALLOWED)),
                }
            }
        }
    };
}

words!(LevelFilter:
    "off" => Self::Off,
    "error" => Self::Error,
    "warn" => Self::Warn,
    "info" => Self::Info,
    "debug" => Self::Debug,
    "trace" => Self::Trace,
);
words!(ClientAuth: "none" => Self::None, "optional" => Self::Optional, "required" => Self::Required);
words!(TlsVersion: "1.2" => Self::Tls12, "1.3" => Self::Tls13);
words!(LogFormat: "json" => Self::Json, "console" => Self::Console);
words!(LogColor: "auto" => Self::Auto, "always" => Self::Always, "never" => Self::Never);
words!(FailurePolicy: "local" => Self::Local, "allow" => Self::Allow, "deny" => Self::Deny);
words!(RateHeaders:
    "standard" => Self::Standard,
    "legacy" => Self::Legacy,
    "both" => Self::Both,
    "none" => Self::None,
);
words!(UnknownPlan: "refuse" => Self::Refuse, "default" => Self::Default);
words!(RouteAuth: "required" => Self::Required, "none" => Self::None);

words!(BalanceWord:
    "round_robin" => Self::RoundRobin,
    "least_connections" => Self::LeastConnections,
    "hash" => Self::Hash,
);
words!(Http2: "auto" => Self::Auto, "always" => Self::Always, "never" => Self::Never);
words!(SyncMode: "leased" => Self::Leased, "exact" => Self::Exact);

impl Scalar for JwtAlgorithm {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        either(&Self::NAMES.map(|(name, _)| name))
    }

    fn read(text: &str) -> Result<Self, String> {
        Self::named(text).ok_or_else(|| instead::<Self>(NOT_ALLOWED))
    }
}

impl Scalar for Coding {
    fn allowed() -> String {
        either(&Self::NAMES.map(|(name, _)| name))
    }

    fn read(text: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, coding)| *coding).ok_or_else(|| instead::<Self>(NOT_ALLOWED))
    }
}

/// A bucket gets its size from the limit that names it.
impl Scalar for Algorithm {
    const UNQUOTED: bool = true;

    fn allowed() -> String {
        either(&Self::NAMES)
    }

    fn read(text: &str) -> Result<Self, String> {
        Self::named(text, 0).map_err(|_| instead::<Self>(NOT_ALLOWED))
    }
}

/// `a, b or c`.
fn either(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_said() {
        assert_eq!(LogFormat::allowed(), "json or console");
        assert_eq!(SyncMode::allowed(), "leased or exact");
        assert_eq!(RateHeaders::allowed(), "standard, legacy, both or none");
        assert_eq!(
            LogFormat::read("xml").unwrap_err(),
            "is not allowed here; write json or console"
        );
    }
}
