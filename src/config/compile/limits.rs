//! Limits: of plans, of routes, and the default.

use std::sync::Arc;
use std::time::Duration;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::{LimitSync, Limits, OnStoreFailure, RateHeaders};
use super::{need, or};
use crate::quota::Algorithm;
use crate::quota::rule::{LimitRule, Written, rule_set};

/// How limits count that do not say so themselves.
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
        sync: or(written.sync, LimitSync::Leased),
        on_store_failure: or(written.on_store_failure, OnStoreFailure::Local),
        headers: or(written.headers, RateHeaders::Both),
        max_in_flight: written.max_in_flight.map_or(Some(1_000), few),
    }
}

/// A number of requests at a time.
pub(super) fn few(written: super::Leaf<file::Few>) -> Option<isize> {
    written.0.0.and_then(|number| isize::try_from(number).ok())
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
        let Some(written) = self::written(limit, &at, report) else { continue };
        let rule = LimitRule::read(&written);
        let rule = rule.and_then(|rule| match rule.limit(algorithm, of_route) {
            Ok(_) => Ok(rule),
            Err((_, error)) => Err(error),
        });
        match rule {
            Ok(rule) => rules.push(rule),
            Err(error) => report.fault(&at, error),
        }
    }
    rules
}

/// One limit, without looking at what it says.
fn written(limit: file::Limit, at: &KeyPath, report: &mut Report) -> Option<Written> {
    Some(Written {
        rate: need(limit.rate, &at.key("rate"), report)?.0,
        burst: limit.burst.map(|burst| burst.0.0),
        algorithm: limit.algorithm.map(|algorithm| algorithm.0.name().to_owned()),
        by: limit.by.map(|by| match by {
            file::Words::One(word) => vec![word],
            file::Words::Several(words) => words,
        }),
        name: limit.name.map(|name| name.0),
    })
}
