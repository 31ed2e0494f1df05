//! The content of a token record: what its fields mean once they are read. It must not know how they are written.

use std::sync::Arc;

use http::HeaderValue;
use parking_lot::Mutex;

use crate::base::clock::UnixTime;
use crate::quota::Algorithm;
use crate::quota::rule::{Group, LimitRule, groups};
use crate::route::pattern::PathPatterns;

/// The memory of a limit and of the groups made of it, in bytes.
const RULE_BYTES: usize = 448;

/// The rights and limits that a record, or the claims of a JWT, give to a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// The token's own limits.
    pub rate: Option<RateRule>,
    /// When the token stops being valid.
    pub expires_at: Option<UnixTime>,
    /// The paths that the token may use; `None` for all.
    pub allowed_routes: Option<PathPatterns>,
    /// The plan whose limits apply when the token has no limits of its own.
    pub plan: Option<HeaderText>,
    /// The organization that the token belongs to.
    pub organization_id: Option<HeaderText>,
}

impl Grant {
    /// The size of the parts that differ from grant to grant, in bytes.
    pub fn bytes(&self) -> usize {
        let Self { rate, allowed_routes, plan, organization_id, .. } = self;
        let names = [plan, organization_id].into_iter().flatten().map(|name| name.as_str().len());
        let routes = allowed_routes.as_ref().map_or(0, PathPatterns::bytes);
        let rules = match rate {
            Some(RateRule::Limits(own)) => own.rules.len() * RULE_BYTES,
            Some(RateRule::Bare(_)) | None => 0,
        };
        names.sum::<usize>() + routes + rules
    }
}

/// Printable ASCII, ready to be sent in a header field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderText(HeaderValue);

impl HeaderText {
    /// Reads `text`; `None` where a header field cannot hold it.
    pub fn read(text: &str) -> Option<Self> {
        HeaderValue::from_str(text).ok().filter(|_| Self::can_hold(text)).map(Self)
    }

    /// Whether `text` is printable ASCII.
    pub fn can_hold(text: &str) -> bool {
        text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
    }

    /// Whether the text begins or ends with a space, which a header field does not keep.
    pub fn has_outer_space(&self) -> bool {
        has_outer_space(self.as_str())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Printable ASCII always is text.
        self.0.to_str().unwrap_or_default()
    }

    /// As the value of a header field.
    pub fn field(&self) -> &HeaderValue {
        &self.0
    }
}

pub(super) fn has_outer_space(text: &str) -> bool {
    text.starts_with(' ') || text.ends_with(' ')
}

/// Limits as a record or a claim states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateRule {
    /// `rate_limit: N`: N requests in each window of the configured length.
    Bare(u64),
    /// `rate_limit: N/unit` or `limits: [...]`.
    Limits(Arc<OwnLimits>),
}

impl RateRule {
    /// The rule that `rules` make together.
    pub(super) fn of(rules: Arc<[LimitRule]>) -> Self {
        Self::Limits(Arc::new(OwnLimits { rules, groups: Mutex::default() }))
    }
}

/// Limits of a record or a claim, with the groups made of them, which are kept for later requests.
#[derive(Debug)]
pub struct OwnLimits {
    rules: Arc<[LimitRule]>,
    groups: Mutex<Option<(Algorithm, Arc<[Group]>)>>,
}

impl OwnLimits {
    /// The limits, in the order in which they were written.
    pub fn rules(&self) -> &[LimitRule] {
        &self.rules
    }

    /// The groups, counted by `default` where the limits do not say how.
    pub fn groups(&self, default: Algorithm) -> Arc<[Group]> {
        let mut made = self.groups.lock();
        match &*made {
            Some((algorithm, groups)) if *algorithm == default => Arc::clone(groups),
            _ => {
                let groups = groups(&self.rules, default, false);
                *made = Some((default, Arc::clone(&groups)));
                groups
            }
        }
    }
}

impl PartialEq for OwnLimits {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl Eq for OwnLimits {}

/// The content of a record, before its token is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// Whether the token is refused.
    pub disabled: bool,
    /// The rights and limits of the token.
    pub grant: Grant,
    /// The `api_key` that the record names.
    pub(super) api_key: Option<String>,
    /// The id of the token whose counters the token uses.
    pub(super) counts_as: Option<String>,
}
