//! Upstreams and their endpoints.

use std::sync::Arc;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::{deadline, each, need};
use crate::upstream::rules::{BreakerRules, EndpointRules, Statuses, Timeouts, UpstreamRules};

pub(super) fn upstream(
    written: file::Upstream,
    name: &str,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<UpstreamRules>> {
    let timeouts = written.timeouts.unwrap_or_default();
    Some(Arc::new(UpstreamRules {
        name: name.to_owned(),
        endpoints: endpoints(written.endpoints, &at.key("endpoints"), report),
        timeouts: Timeouts {
            connect: deadline(timeouts.connect, 1),
            read: deadline(timeouts.read, 30),
            write: deadline(timeouts.write, 30),
            idle: deadline(timeouts.idle, 60),
        },
        retries: super::count(written.retries.map(|n| n.0.0), 2),
        retry_budget: written.retry_budget.map_or(20, |share| share.0.0),
        breaker: breaker(written.breaker.unwrap_or_default(), &at.key("breaker"), report),
    }))
}

fn breaker(written: file::Breaker, at: &KeyPath, report: &mut Report) -> BreakerRules {
    let statuses = each(written.statuses, &at.key("statuses"), report);
    let failures = written.failures.map_or(Some(5), |most| most.0.0);
    BreakerRules {
        failures: failures.map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
        open_for: deadline(written.open_for, 10),
        statuses: Statuses(statuses.into_iter().map(|range| range.0).collect()),
    }
}

fn endpoints(
    written: file::List<file::Endpoint>,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<EndpointRules> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        report.fault(at, "has no endpoint; write at least one, such as [ http://127.0.0.1:3001 ]");
    }
    let mut endpoints: Vec<EndpointRules> = Vec::new();
    for (i, endpoint) in written.into_iter().enumerate() {
        let at = at.index(i);
        let (url, weight) =
            endpoint.map_or((None, None), |endpoint| (endpoint.url, endpoint.weight));
        let Some(url) = need(url, &at.key("url"), report) else {
            continue;
        };
        let weight = weight.map_or(1, |n| u32::try_from(n.0.0).unwrap_or(u32::MAX));
        if endpoints.iter().any(|other| other.url == url) {
            report.fault(
                &at,
                "is the URL of another endpoint; write each URL once, with a weight if it differs",
            );
        }
        endpoints.push(EndpointRules { url, weight });
    }
    endpoints
}
