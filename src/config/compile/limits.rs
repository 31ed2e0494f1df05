//! Limits: of plans, of routes, and the default.

use std::time::Duration;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::{Limits, UnknownPlan};
use super::{need, or};
use crate::limit::headers::RateHeaders;
use crate::limit::ledger::{FailurePolicy, SyncMode};
use crate::quota::rule::{Details, LimitRule, LimitSet};
use crate::quota::{Algorithm, Limit, RateError};

/// The algorithm of limits that do not name one themselves.
pub(super) fn algorithm(written: &file::Limits) -> Algorithm {
    written.algorithm.as_ref().map_or(Algorithm::FixedWindow, |algorithm| algorithm.0)
}

/// The section `limits`; `None` where its default limits have a fault.
pub(super) fn compile(written: file::Limits, report: &mut Report) -> Option<Limits> {
    let at = KeyPath::top("limits").key("default");
    let algorithm = algorithm(&written);
    let default = match written.default {
        None => LimitRule::per(100, Duration::from_secs(60))
            .and_then(|rule| LimitSet::new(vec![counted(rule, algorithm, false)?], false))
            .map_err(|error| report.fault(&at, error))
            .ok(),
        written => list(written, algorithm, false, &at, report),
    };
    Some(Limits {
        default: default?,
        algorithm,
        window: written.window.map_or(Duration::from_secs(60), |window| window.0.0),
        sync: or(written.sync, SyncMode::Leased),
        on_store_failure: or(written.on_store_failure, FailurePolicy::Local),
        headers: or(written.headers, RateHeaders::Both),
        max_in_flight: written.max_in_flight.map_or(Some(1_000), |most| most.0.0),
        unknown_plan: or(written.unknown_plan, UnknownPlan::Refuse),
    })
}

pub(super) fn plan(
    written: file::Plan,
    algorithm: Algorithm,
    at: &KeyPath,
    report: &mut Report,
) -> Option<LimitSet> {
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
) -> Option<LimitSet> {
    let rules = each_rule(written, algorithm, of_route, at, report);
    LimitSet::new(rules, of_route).map_err(|error| report.fault(at, error)).ok()
}

/// The valid limits of a list, each with the limit that requests are counted by.
fn each_rule(
    written: file::List<file::Limit>,
    algorithm: Algorithm,
    of_route: bool,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<(LimitRule, Limit)> {
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
        match LimitRule::new(rate, details).and_then(|rule| counted(rule, algorithm, of_route)) {
            Ok(rule) => rules.push(rule),
            Err(error) => report.fault(&at, error),
        }
    }
    rules
}

/// `rule` with the limit that requests are counted by. A stored limit that the configured algorithm cannot count falls
/// back to fixed windows; a limit of the file is refused instead.
fn counted(
    rule: LimitRule,
    algorithm: Algorithm,
    of_route: bool,
) -> Result<(LimitRule, Limit), RateError> {
    let limit = rule.limit(algorithm, of_route).map_err(|(_, error)| error)?;
    Ok((rule, limit))
}
