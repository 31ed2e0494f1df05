//! Limits: of plans, of routes, and the default.

use std::sync::Arc;
use std::time::Duration;

use super::super::Limits;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::{need, or};
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::Algorithm;
use crate::quota::rule::{Details, LimitRule, rule_set};

/// The algorithm of limits that do not name one themselves.
pub(super) fn algorithm(written: &file::Limits) -> Algorithm {
    written.algorithm.as_ref().map_or(Algorithm::FixedWindow, |algorithm| algorithm.0)
}

pub(super) fn compile(written: file::Limits, report: &mut Report) -> Limits {
    let at = KeyPath::top("limits").key("default");
    let algorithm = algorithm(&written);
    let default = match written.default {
        None => LimitRule::per(100, Duration::from_secs(60)).into_iter().collect(),
        written => list(written, algorithm, false, &at, report).unwrap_or_default(),
    };
    Limits {
        default,
        algorithm,
        window: written.window.map_or(Duration::from_secs(60), |window| window.0.0),
        sync: or(written.sync, SyncMode::Leased),
        on_store_failure: or(written.on_store_failure, FailurePolicy::Local),
        headers: or(written.headers, RateHeaders::Both),
        max_in_flight: written.max_in_flight.map_or(Some(1_000), |most| most.0.0),
    }
}

pub(super) fn plan(
    written: file::Plan,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<[LimitRule]>> {
    let at = at.key("limits");
    if written.limits.is_none() {
        report.fault(
            &at,
            "is missing; write a list of limits such as [ 100/minute ], or [] for none",
        );
    }
    list(written.limits, algorithm, false, &at, report)
}

/// Limits that can be decided together.
pub(super) fn list(
    written: file::List<file::Limit>,
    algorithm: Algorithm,
    of_route: bool,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<[LimitRule]>> {
    let rules = each_rule(written, algorithm, of_route, at, report);
    rule_set(rules, of_route).map_err(|error| report.fault(at, error)).ok()
}

/// The valid limits of a list.
fn each_rule(
    written: file::List<file::Limit>,
    algorithm: Algorithm,
    of_route: bool,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<LimitRule> {
    let mut rules = Vec::new();
    for (i, limit) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(limit) = limit else {
            report.fault(&at, "is empty; write a limit such as 100/minute");
            continue;
        };
        let Some(rate) = need(limit.rate, &at.key("rate"), report) else { continue };
        let details = Details {
            burst: limit.burst.map(|burst| burst.0.0),
            algorithm: limit.algorithm.map(|algorithm| algorithm.0),
            by: limit.by.as_ref().map(file::OneOrMore::words),
            name: limit.name.as_ref().map(|name| name.0.as_str()),
        };
        // A stored limit that the configured algorithm cannot count falls back to fixed windows. A limit of
        // the file is refused instead.
        let rule = LimitRule::new(rate, details).and_then(|rule| {
            let fits = rule.limit(algorithm, of_route).map(drop);
            fits.map_err(|(_, error)| error).map(|()| rule)
        });
        match rule {
            Ok(rule) => rules.push(rule),
            Err(error) => report.fault(&at, error),
        }
    }
    rules
}
