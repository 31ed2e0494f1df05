//! Keys whose values are one of a few words.

use log::LevelFilter;

use super::scalar::{Scalar, instead};
use super::{LimitSync, LogColor, LogFormat, OnStoreFailure, RateHeaders, RouteAuth};
use crate::auth::verification::Algorithm as JwtAlgorithm;
use crate::quota::Algorithm;

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
                    _ => Err(instead::<Self>("is not allowed here")),
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
words!(LogFormat: "json" => Self::Json, "console" => Self::Console);
words!(LogColor: "auto" => Self::Auto, "always" => Self::Always, "never" => Self::Never);
words!(JwtAlgorithm:
    "HS256" => Self::Hs256,
    "HS384" => Self::Hs384,
    "HS512" => Self::Hs512,
    "RS256" => Self::Rs256,
    "RS384" => Self::Rs384,
    "RS512" => Self::Rs512,
    "PS256" => Self::Ps256,
    "PS384" => Self::Ps384,
    "PS512" => Self::Ps512,
    "ES256" => Self::Es256,
    "ES384" => Self::Es384,
    "ES512" => Self::Es512,
    "EdDSA" => Self::EdDsa,
);
words!(OnStoreFailure: "local" => Self::Local, "allow" => Self::Allow, "deny" => Self::Deny);
words!(RateHeaders:
    "standard" => Self::Standard,
    "legacy" => Self::Legacy,
    "both" => Self::Both,
    "none" => Self::None,
);
words!(RouteAuth: "required" => Self::Required, "none" => Self::None);

words!(LimitSync: "leased" => Self::Leased, "exact" => Self::Exact);

words!(Algorithm:
    "fixed_window" => Self::FixedWindow,
    "sliding_window" => Self::SlidingWindow,
    "sliding_log" => Self::SlidingLog,
    // Whoever knows the rate fills the bucket's size in.
    "token_bucket" => Self::TokenBucket { burst: 0 },
);

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
        assert_eq!(LimitSync::allowed(), "leased or exact");
        assert_eq!(RateHeaders::allowed(), "standard, legacy, both or none");
        assert_eq!(
            LogFormat::read("xml").unwrap_err(),
            "is not allowed here; write json or console"
        );
    }
}
