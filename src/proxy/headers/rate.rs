//! The fields that tell a client how its limits stand.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use pingora_core::{ErrorType, OrErr, Result};

use super::{number, value};
use crate::admission::Findings;
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{Decision, LimitState};
use crate::quota::Limit;

static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Sets the rate fields: draft-ietf-httpapi-ratelimit-headers, one member a limit, and the legacy ones
/// for the tightest limit of all.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn set_rate_fields(
    headers: &mut HeaderMap,
    findings: &Findings,
    wanted: RateHeaders,
) -> Result<()> {
    let known = || {
        findings.decisions.iter().flat_map(|decided| {
            let decision = &decided.decision;
            let states = decision.limits.iter().zip(&decision.states);
            states.enumerate().map(move |(at, (limit, state))| (decision, at, limit, state))
        })
    };
    let tightness = |(decision, at, _, state): &(&Decision, usize, &Limit, &LimitState)| {
        (decision.admitted, decision.tightness(*at, state))
    };
    // Most requests have one limit, and nothing is compared.
    let tighter = |a, b| if tightness(&b) < tightness(&a) { b } else { a };
    let Some((_, _, tightest, left)) = known().reduce(tighter) else { return Ok(()) };
    if matches!(wanted, RateHeaders::Standard | RateHeaders::Both) {
        let mut members = String::with_capacity(48);
        for (_, _, limit, state) in known() {
            push_member(&mut members, limit, state);
        }
        headers.insert(&RATELIMIT_POLICY, policy(findings)?);
        headers.insert(&RATELIMIT, value(&members)?);
    }
    if matches!(wanted, RateHeaders::Legacy | RateHeaders::Both) {
        headers.insert(&X_RATELIMIT_LIMIT, number(tightest.quota)?);
        headers.insert(&X_RATELIMIT_REMAINING, number(left.remaining)?);
        headers.insert(&X_RATELIMIT_RESET, number(whole_seconds(left.reset_after))?);
    }
    Ok(())
}

/// The policies of the limits whose state is known.
fn policy(findings: &Findings) -> Result<HeaderValue> {
    let known = findings.decisions.iter().filter(|decided| !decided.decision.states.is_empty());
    let mut known = known.map(|decided| &decided.policy);
    // Most requests have one policy, whose bytes are shared.
    let first = known.next().cloned().unwrap_or_default();
    let all = known.fold(first, |all, policy| [&all[..], b", ", policy].concat().into());
    HeaderValue::from_maybe_shared(all)
        .or_err(ErrorType::InvalidHTTPHeader, "a value that the gateway made")
}

/// Appends `"name";r=remaining;t=seconds` to a list. This runs for every answer, and `write!` takes five times as long.
fn push_member(members: &mut String, limit: &Limit, state: &LimitState) {
    members.push_str(if members.is_empty() { "\"" } else { ", \"" });
    members.push_str(&limit.name);
    members.push_str("\";r=");
    members.push_str(itoa::Buffer::new().format(state.remaining));
    members.push_str(";t=");
    members.push_str(itoa::Buffer::new().format(whole_seconds(state.reset_after)));
}

/// Seconds, rounded up, so that a client that waits this long does not come too early.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
