//! A limit and how people write it: `100/minute`.

use std::sync::Arc;
use std::time::Duration;

/// The largest quota accepted: counts stay exact in Lua's doubles with room to spare.
pub const MAX_QUOTA: u64 = 1_000_000_000_000;

/// At most `quota` requests in every window of `window`, windows aligned to the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// How the limit is called in headers, keys and metrics.
    pub name: Arc<str>,
    /// Requests a window admits; at least 1.
    pub quota: u64,
    /// Length of a window, in whole seconds.
    pub window: Duration,
}

/// Why a text is not a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The text is not `N/unit`.
    #[error("`{0}` is not a rate: write N/second, N/minute, N/hour or N/day")]
    Form(String),
    /// N is not in range.
    #[error("`{0}` is not a quota: write a whole number from 1 to {MAX_QUOTA}")]
    Quota(String),
    /// The unit is not one of the four.
    #[error("`{0}` is not a unit: use second, minute, hour or day")]
    Unit(String),
    /// Two limits of one set have one name.
    #[error("two limits are called `{0}`: a set may hold one limit of each name")]
    Duplicate(String),
    /// A set with more limits than a decision may touch.
    #[error("{0} limits in one set: at most {MAX_LIMITS} are allowed")]
    TooMany(usize),
}

/// How many limits one set may hold.
pub const MAX_LIMITS: usize = 8;

impl Limit {
    /// `quota` requests in each `window` of whole seconds, named after the window.
    ///
    /// # Errors
    /// [`RateError::Quota`] when `quota` is 0 or above [`MAX_QUOTA`].
    pub fn per(quota: u64, window: Duration) -> Result<Self, RateError> {
        if quota == 0 || quota > MAX_QUOTA {
            return Err(RateError::Quota(quota.to_string()));
        }
        let name = match window.as_secs() {
            1 => "second".into(),
            60 => "minute".into(),
            3_600 => "hour".into(),
            86_400 => "day".into(),
            secs => format!("{secs}s").into(),
        };
        Ok(Self { name, quota, window })
    }

    /// Reads `N/second`, `N/minute`, `N/hour` or `N/day`.
    ///
    /// # Errors
    /// [`RateError`] says which part is wrong and what is allowed.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        let (quota, unit) = text.split_once('/').ok_or_else(|| RateError::Form(text.into()))?;
        let (quota, unit) = (quota.trim(), unit.trim());
        let quota: u64 = match quota.parse() {
            Ok(quota) if quota > 0 && quota <= MAX_QUOTA => quota,
            _ => return Err(RateError::Quota(quota.into())),
        };
        let window = match unit {
            "second" => 1,
            "minute" => 60,
            "hour" => 3_600,
            "day" => 86_400,
            other => return Err(RateError::Unit(other.into())),
        };
        Self::per(quota, Duration::from_secs(window))
    }
}

/// Checks that `limits` can be decided together.
///
/// # Errors
/// [`RateError::Duplicate`] or [`RateError::TooMany`].
pub fn limit_set(limits: Vec<Limit>) -> Result<Arc<[Limit]>, RateError> {
    if limits.len() > MAX_LIMITS {
        return Err(RateError::TooMany(limits.len()));
    }
    for (i, limit) in limits.iter().enumerate() {
        if limits[..i].iter().any(|earlier| earlier.name == limit.name) {
            return Err(RateError::Duplicate(limit.name.to_string()));
        }
    }
    Ok(limits.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_or_refused_with_a_reason() {
        let ok = |text: &str| {
            let limit = Limit::parse(text).unwrap();
            (limit.quota, limit.window.as_secs(), limit.name.to_string())
        };
        assert_eq!(ok("100/minute"), (100, 60, "minute".into()));
        assert_eq!(ok("1/second"), (1, 1, "second".into()));
        assert_eq!(ok("10000 / day"), (10_000, 86_400, "day".into()));
        for (text, error) in [
            ("100", RateError::Form("100".into())),
            ("0/minute", RateError::Quota("0".into())),
            ("-1/minute", RateError::Quota("-1".into())),
            ("1.5/minute", RateError::Quota("1.5".into())),
            ("1000000000000000000/second", RateError::Quota("1000000000000000000".into())),
            ("1/fortnight", RateError::Unit("fortnight".into())),
            ("/minute", RateError::Quota(String::new())),
        ] {
            assert_eq!(Limit::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_set_has_one_limit_of_a_name() {
        let minute = Limit::parse("1/minute").unwrap();
        assert!(matches!(
            limit_set(vec![minute.clone(), minute.clone()]),
            Err(RateError::Duplicate(_))
        ));
        assert_eq!(limit_set(vec![minute]).unwrap().len(), 1);
    }
}
