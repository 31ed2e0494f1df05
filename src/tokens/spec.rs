//! The grants of a new token, and the record that states them.

use std::time::Duration;

use serde_json::{Map, Value};

use super::life::{expiry, rfc3339};
use crate::base::clock::UnixTime;
use crate::quota::RateError;
use crate::quota::rule::{LimitRule, rule_set};
use crate::record::field;

/// The grants of a new token.
#[derive(Clone, Debug)]
pub struct TokenSpec {
    /// Its own limits.
    pub limits: TokenLimits,
    /// The plan that gives the limits, where the token has none of its own.
    pub plan: Option<String>,
    /// The organization it belongs to.
    pub organization: Option<String>,
    /// A name for people to read.
    pub name: Option<String>,
    /// The only paths it may ask for, each [checked](crate::route::written::check_pattern); empty for all.
    pub routes: Vec<String>,
    /// How long it lives, [checked](super::life::check_life).
    pub life: Duration,
}

/// Limits of a new token.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenLimits {
    /// None of its own: those of its plan, or the default.
    Inherited,
    /// So many requests in each window of the length that the gateway is configured with.
    PerWindow(u64),
    /// Limits with windows of their own.
    Rules(Vec<LimitRule>),
}

impl TokenSpec {
    /// A token that lives for `life` and is as free as the gateway lets it be.
    pub fn living(life: Duration) -> Self {
        Self {
            limits: TokenLimits::Inherited,
            plan: None,
            organization: None,
            name: None,
            routes: Vec::new(),
            life,
        }
    }

    /// The record of a token with the public id `api_key`, made at `now`, as a JSON object.
    ///
    /// # Errors
    /// [`RateError`] when the limits do not go together.
    pub(super) fn record(
        &self,
        api_key: &str,
        now: UnixTime,
    ) -> Result<Map<String, Value>, RateError> {
        let (rate_limit, limits) = match &self.limits {
            TokenLimits::Inherited => (None, Vec::new()),
            TokenLimits::PerWindow(quota) => (Some(*quota), Vec::new()),
            TokenLimits::Rules(rules) => {
                let rules = rule_set(rules.clone(), false)?;
                (None, rules.iter().map(LimitRule::to_string).collect())
            }
        };
        let list = |values: &[String]| (!values.is_empty()).then(|| Value::from(values));
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        let fields = [
            (field::API_KEY, Some(api_key.into())),
            (field::RATE_LIMIT, rate_limit.map(Value::from)),
            (field::LIMITS, list(&limits)),
            (field::EXPIRES_AT, Some(rfc3339(expiry(now, self.life)).into())),
            (field::ALLOWED_ROUTES, list(&self.routes)),
            (field::PLAN, text(&self.plan)),
            (field::ORGANIZATION_ID, text(&self.organization)),
            (field::NAME, text(&self.name)),
        ];
        let present = |(name, value): (&str, Option<Value>)| Some((name.to_owned(), value?));
        Ok(fields.into_iter().filter_map(present).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::stored::texts;

    const NOW: UnixTime = UnixTime::from_millis(1_700_000_000_999);

    fn rules(rates: &[&str]) -> TokenLimits {
        TokenLimits::Rules(rates.iter().map(|rate| LimitRule::parse(rate).unwrap()).collect())
    }

    #[test]
    fn a_record_is_a_hash_of_texts() {
        let spec = TokenSpec {
            limits: rules(&["5/second", "100/day"]),
            routes: vec!["/a".into(), "/b/*".into()],
            plan: Some("basic".into()),
            name: Some("ci".into()),
            ..TokenSpec::living(Duration::from_secs(86_400))
        };
        assert_eq!(
            texts(&spec.record("k1", NOW).unwrap()),
            [
                ("allowed_routes", r#"["/a","/b/*"]"#),
                ("api_key", "k1"),
                ("expires_at", "2023-11-15T22:13:20Z"),
                ("limits", r#"["5/second","100/day"]"#),
                ("name", "ci"),
                ("plan", "basic"),
            ]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
        );
        let spec = TokenSpec {
            limits: TokenLimits::PerWindow(100),
            organization: Some("o".into()),
            ..TokenSpec::living(Duration::from_secs(1))
        };
        let bare = texts(&spec.record("k1", NOW).unwrap());
        assert!(bare.contains(&("rate_limit".into(), "100".into())));
        assert!(bare.contains(&("expires_at".into(), "2023-11-14T22:13:21Z".into())));
        assert!(bare.contains(&("organization_id".into(), "o".into())));
    }

    #[test]
    fn limits_that_do_not_go_together_are_refused() {
        let spec = |limits| TokenSpec { limits, ..TokenSpec::living(Duration::from_secs(1)) };
        assert!(spec(rules(&["5/second", "6/second"])).record("k", NOW).is_err());
        assert!(spec(rules(&["5/second", "6/minute"])).record("k", NOW).is_ok());
    }
}
