//! A limit as a configuration or a record states it, with what it counts by, and how a set of them
//! becomes groups that are decided together.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::rate::MAX_LIMITS;
use super::{Algorithm, Limit, RateError};

/// Longest name of a limit, in bytes.
const MAX_NAME: usize = 32;

/// The parts of a request that a limit counts by. Each combination of their values has its own counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct By {
    /// The token.
    pub token: bool,
    /// The token's organization, or the token where it has none.
    pub organization: bool,
    /// The client's address, of IPv6 the first 64 bits.
    pub ip: bool,
    /// The route.
    pub route: bool,
}

impl By {
    /// The token alone.
    pub const TOKEN: Self = Self { token: true, organization: false, ip: false, route: false };

    /// Whether only a request with a token can be counted by this.
    pub fn needs_token(self) -> bool {
        self.token || self.organization
    }

    fn read(words: &[String]) -> Result<Self, RateError> {
        let mut by = Self::default();
        for word in words {
            let part = match word.as_str() {
                "token" => &mut by.token,
                "organization" => &mut by.organization,
                "ip" => &mut by.ip,
                "route" => &mut by.route,
                _ => return Err(RateError::By(word.clone())),
            };
            if std::mem::replace(part, true) {
                return Err(RateError::By(word.clone()));
            }
        }
        match by == Self::default() {
            true => Err(RateError::By("[]".into())),
            false => Ok(by),
        }
    }

    fn words(self) -> impl Iterator<Item = &'static str> {
        let words = [
            (self.token, "token"),
            (self.organization, "organization"),
            (self.ip, "ip"),
            (self.route, "route"),
        ];
        words.into_iter().filter_map(|(is, word)| is.then_some(word))
    }
}

/// A limit as it is written: `N/unit` alone, or with details.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// `N/unit`.
    pub rate: String,
    /// Most requests at once: makes it a token bucket.
    pub burst: Option<u64>,
    /// The algorithm's name; `None` for the configured one.
    pub algorithm: Option<String>,
    /// The parts of a request to count by; `None` for the token.
    pub by: Option<Vec<String>>,
    /// Its name; `None` for a name made of its other parts.
    pub name: Option<String>,
}

/// The parts of a limit besides its rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'a> {
    /// Most requests at once: makes it a token bucket.
    pub burst: Option<u64>,
    /// The algorithm; `None` for the configured one. The burst of a bucket is `burst`, or else the quota.
    pub algorithm: Option<Algorithm>,
    /// The parts of a request to count by; `None` for the token.
    pub by: Option<&'a [String]>,
    /// Its name; `None` for a name made of its other parts.
    pub name: Option<&'a str>,
}

/// A valid limit, before its route and the configured algorithm are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// The rate, as a fixed window.
    rate: Limit,
    /// `None` for the configured algorithm.
    algorithm: Option<Algorithm>,
    by: By,
    name: Option<Arc<str>>,
}

/// Limits that count by the same parts of a request, and are decided in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The parts of a request that they count by.
    pub by: By,
    /// The limits.
    pub limits: Arc<[Limit]>,
    /// The limits as `RateLimit-Policy` lists them: `"name";q=quota;w=seconds` (RFC 9651 section 3.1).
    pub policy: Bytes,
}

impl Group {
    fn new(by: By, limits: Vec<Limit>) -> Self {
        let item = |limit: &Limit| {
            format!("\"{}\";q={};w={}", limit.name, limit.quota, limit.window.as_secs())
        };
        let policy = limits.iter().map(item).collect::<Vec<_>>().join(", ");
        Self { by, limits: limits.into(), policy: policy.into() }
    }
}

impl LimitRule {
    /// Reads a limit.
    ///
    /// # Errors
    /// [`RateError`] says which part is wrong and what is allowed.
    pub fn read(written: &Written) -> Result<Self, RateError> {
        let rate = Limit::parse(&written.rate)?;
        let named = |name| Algorithm::named(name, rate.quota);
        let algorithm = written.algorithm.as_deref().map(named).transpose()?;
        let details = Details {
            burst: written.burst,
            algorithm,
            by: written.by.as_deref(),
            name: written.name.as_deref(),
        };
        Self::new(rate, details)
    }

    /// The limit of `rate`, a fixed window, with `details`.
    ///
    /// # Errors
    /// [`RateError`] says which part is wrong and what is allowed.
    pub fn new(rate: Limit, details: Details<'_>) -> Result<Self, RateError> {
        let algorithm = match (details.algorithm, details.burst) {
            (None, None) => None,
            (None, Some(burst)) => Some(Algorithm::TokenBucket { burst }),
            (Some(Algorithm::TokenBucket { .. }), burst) => {
                Some(Algorithm::TokenBucket { burst: burst.unwrap_or(rate.quota) })
            }
            (Some(_), Some(_)) => return Err(RateError::NoBucket),
            (Some(algorithm), None) => Some(algorithm),
        };
        if let Some(algorithm) = algorithm {
            rate.clone().counted_by(algorithm)?;
        }
        let by = details.by.map_or(Ok(By::TOKEN), By::read)?;
        let name = details.name.map(checked_name).transpose()?;
        Ok(Self { rate, algorithm, by, name })
    }

    /// Reads `N/unit`.
    ///
    /// # Errors
    /// [`RateError`] says which part is wrong and what is allowed.
    pub fn parse(rate: &str) -> Result<Self, RateError> {
        Self::read(&Written { rate: rate.into(), ..Written::default() })
    }

    /// `quota` requests in each `window` of whole seconds.
    ///
    /// # Errors
    /// [`RateError::Quota`].
    pub fn per(quota: u64, window: Duration) -> Result<Self, RateError> {
        let rate = Limit::per(quota, window)?;
        Ok(Self { rate, algorithm: None, by: By::TOKEN, name: None })
    }

    /// The parts of a request that the limit counts by.
    pub fn by(&self) -> By {
        self.by
    }

    /// The limit. When the rule names no algorithm, `default` counts it.
    ///
    /// # Errors
    /// When `default` cannot count so many requests: the limit in fixed windows, and the reason.
    pub fn limit(&self, default: Algorithm, of_route: bool) -> Result<Limit, (Limit, RateError)> {
        let rate = Limit { name: self.name(of_route), ..self.rate.clone() };
        let algorithm = self.algorithm.unwrap_or(match default {
            Algorithm::TokenBucket { .. } => Algorithm::TokenBucket { burst: rate.quota },
            other => other,
        });
        rate.clone().counted_by(algorithm).map_err(|error| (rate, error))
    }

    /// Its name: the written name, else the window's name and the words for what the limit counts by. A token's limit by
    /// token has no such word.
    fn name(&self, of_route: bool) -> Arc<str> {
        if let Some(name) = &self.name {
            return Arc::clone(name);
        }
        if self.by == By::TOKEN && !of_route {
            return Arc::clone(&self.rate.name);
        }
        let mut name = String::from(if of_route { "route-" } else { "" });
        name.push_str(&self.rate.name);
        // The prefix `route-` stands for the word `route`.
        for word in self.by.words().filter(|word| !(of_route && *word == "route")) {
            name.push('-');
            name.push_str(word);
        }
        name.into()
    }
}

/// As people write it: `100/minute`, then the details.
impl fmt::Display for LimitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.rate.quota, self.rate.name)?;
        match self.algorithm {
            Some(Algorithm::TokenBucket { burst }) => write!(f, " burst {burst}")?,
            Some(algorithm) => write!(f, " {}", algorithm.name())?,
            None => {}
        }
        if self.by != By::TOKEN {
            write!(f, " by {}", self.by.words().collect::<Vec<_>>().join(" and "))?;
        }
        Ok(())
    }
}

fn checked_name(name: &str) -> Result<Arc<str>, RateError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) {
        true => Ok(name.into()),
        false => Err(RateError::Name(name.chars().take(MAX_NAME).collect())),
    }
}

/// Checks that `rules` can be decided together, as those of a route or of a token.
///
/// # Errors
/// [`RateError::Duplicate`] or [`RateError::TooMany`].
pub fn rule_set(rules: Vec<LimitRule>, of_route: bool) -> Result<Arc<[LimitRule]>, RateError> {
    if rules.len() > MAX_LIMITS {
        return Err(RateError::TooMany(rules.len()));
    }
    for (i, rule) in rules.iter().enumerate() {
        let name = rule.name(of_route);
        if rules[..i].iter().any(|earlier| earlier.name(of_route) == name) {
            return Err(RateError::Duplicate(name.to_string()));
        }
    }
    Ok(rules.into())
}

/// Limits of a configuration: as they were written, and in the groups that are decided together.
#[derive(Clone, Debug, Default)]
pub struct LimitSet {
    rules: Arc<[LimitRule]>,
    groups: Arc<[Group]>,
}

impl LimitSet {
    /// The set of `rules`, each with the limit that is made of it.
    ///
    /// # Errors
    /// [`RateError::Duplicate`] or [`RateError::TooMany`].
    pub fn new(rules: Vec<(LimitRule, Limit)>, of_route: bool) -> Result<Self, RateError> {
        let (rules, limits): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        let rules = rule_set(rules, of_route)?;
        let groups = grouped(rules.iter().zip(limits));
        Ok(Self { rules, groups })
    }

    /// The limits, in the order in which they were written.
    pub fn rules(&self) -> &[LimitRule] {
        &self.rules
    }

    /// The groups, in the order in which they are first needed.
    pub fn groups(&self) -> &Arc<[Group]> {
        &self.groups
    }
}

/// The groups of `rules`, in the order in which they are first needed. A limit that `default` cannot count is counted
/// in fixed windows.
pub fn groups(rules: &[LimitRule], default: Algorithm, of_route: bool) -> Arc<[Group]> {
    grouped(
        rules
            .iter()
            .map(|rule| (rule, rule.limit(default, of_route).unwrap_or_else(|(limit, _)| limit))),
    )
}

fn grouped<'a>(limits: impl Iterator<Item = (&'a LimitRule, Limit)>) -> Arc<[Group]> {
    let mut groups: Vec<(By, Vec<Limit>)> = Vec::new();
    for (rule, limit) in limits {
        match groups.iter_mut().find(|(by, _)| *by == rule.by) {
            Some((_, limits)) => limits.push(limit),
            None => groups.push((rule.by, vec![limit])),
        }
    }
    groups.into_iter().map(|(by, limits)| Group::new(by, limits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(rate: &str) -> Written {
        Written { rate: rate.into(), ..Written::default() }
    }

    fn by(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_burst_makes_a_bucket_and_nothing_else_has_one() {
        let limit = |written: Written, default| {
            LimitRule::read(&written).unwrap().limit(default, false).unwrap().algorithm
        };
        let bucket = |burst| Algorithm::TokenBucket { burst };
        let burst = Written { burst: Some(50), ..written("100/minute") };
        assert_eq!(limit(burst.clone(), Algorithm::FixedWindow), bucket(50));
        let named = Written { algorithm: Some("token_bucket".into()), ..written("100/minute") };
        assert_eq!(limit(named, Algorithm::FixedWindow), bucket(100));
        assert_eq!(limit(written("9/minute"), bucket(0)), bucket(9));
        assert_eq!(limit(written("9/minute"), Algorithm::SlidingLog), Algorithm::SlidingLog);
        for name in ["fixed_window", "sliding_window", "sliding_log"] {
            let wrong = Written { algorithm: Some(name.into()), ..burst.clone() };
            assert_eq!(LimitRule::read(&wrong), Err(RateError::NoBucket), "{name}");
        }
        let large = LimitRule::parse("1000000/day").unwrap();
        let (limit, _) = large.limit(Algorithm::SlidingLog, false).unwrap_err();
        assert_eq!(limit.algorithm, Algorithm::FixedWindow);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |written: Written| LimitRule::read(&written).unwrap_err();
        assert_eq!(
            wrong(Written { by: by(&["planet"]), ..written("1/day") }),
            RateError::By("planet".into())
        );
        assert_eq!(
            wrong(Written { by: by(&["ip", "ip"]), ..written("1/day") }),
            RateError::By("ip".into())
        );
        assert!(matches!(wrong(Written { by: by(&[]), ..written("1/day") }), RateError::By(_)));
        for name in ["", "a b", "é", &"x".repeat(33), "a;b"] {
            let named = Written { name: Some(name.into()), ..written("1/day") };
            assert!(matches!(wrong(named), RateError::Name(_)), "{name}");
        }
        let named = Written { algorithm: Some("leaky".into()), ..written("1/day") };
        assert_eq!(wrong(named), RateError::Algorithm("leaky".into()));
        assert_eq!(
            wrong(Written { burst: Some(0), ..written("5/minute") }),
            RateError::Burst(1, 262_800_000)
        );
    }

    #[test]
    fn rules_are_grouped_by_what_they_count_by_and_named_after_it() {
        let rules = [
            written("100/minute"),
            Written { by: by(&["ip"]), ..written("10/second") },
            written("1000/day"),
            Written { by: by(&["token", "route"]), ..written("5/second") },
            Written { by: by(&["ip"]), name: Some("burst".into()), ..written("9/minute") },
        ];
        let rules: Vec<_> = rules.iter().map(|written| LimitRule::read(written).unwrap()).collect();
        let names = |of_route| {
            let rules = rule_set(rules.clone(), of_route).unwrap();
            let groups = groups(&rules, Algorithm::FixedWindow, of_route);
            let names = |group: &Group| {
                group.limits.iter().map(|limit| limit.name.to_string()).collect::<Vec<_>>()
            };
            groups.iter().map(names).collect::<Vec<_>>()
        };
        assert_eq!(
            names(false),
            [vec!["minute", "day"], vec!["second-ip", "burst"], vec!["second-token-route"]]
        );
        assert_eq!(
            names(true),
            [
                vec!["route-minute-token", "route-day-token"],
                vec!["route-second-ip", "burst"],
                vec!["route-second-token"]
            ]
        );
    }

    #[test]
    fn a_set_has_one_limit_of_a_name() {
        let minute = LimitRule::parse("1/minute").unwrap();
        let other = LimitRule::parse("2/minute").unwrap();
        assert_eq!(
            rule_set(vec![minute.clone(), other], false),
            Err(RateError::Duplicate("minute".into()))
        );
        assert_eq!(rule_set(vec![minute], false).unwrap().len(), 1);
    }
}
