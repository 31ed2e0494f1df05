//! Where the requests of a route go: one upstream, or several with their shares.

use std::sync::Arc;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::scalar::{Identifier, Scalar as _};
use super::{deadline, methods_of, need, unknown};
use crate::route::mirror::Mirror;
use crate::route::split::Split;
use crate::route::table::serves;
use crate::upstream::rules::UpstreamRules;

/// Upstreams in the order of their names; an upstream with a fault has no value.
type Named = [(String, Option<Arc<UpstreamRules>>)];

/// The upstreams of the route at `at`, of which `known` has all there are.
pub(super) fn upstreams(
    upstream: file::Maybe<Identifier>,
    split: file::List<file::Share>,
    known: &Named,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Split<Arc<UpstreamRules>>> {
    let at_upstream = at.key("upstream");
    match (upstream, split) {
        (None, None) if report.is_broken(&at.key("split")) => None,
        (None, None) => {
            let allowed = Identifier::allowed();
            report
                .fault(&at_upstream, format!("is missing; write {allowed}, or a split of several"));
            None
        }
        (Some(name), None) => named(&name.0.0, known, &at_upstream, report).map(Split::whole),
        (None, Some(split)) => shares(split, known, &at.key("split"), report),
        (Some(_), Some(_)) => {
            report.fault(&at.key("split"), "stands beside upstream; write one of the two");
            None
        }
    }
}

/// The methods of requests that are copied where none are written: those that change nothing (RFC 9110 section 9.2.1).
const SAFE: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

/// The copies of the requests that have the methods `served` and go to `of`, as they are written at `at`.
pub(super) fn mirror(
    written: file::Mirror,
    known: &Named,
    of: Option<&Split<Arc<UpstreamRules>>>,
    served: &[String],
    at: &KeyPath,
    report: &mut Report,
) -> Option<Mirror<Arc<UpstreamRules>>> {
    let at_upstream = at.key("upstream");
    let upstream = need(written.upstream, &at_upstream, report)
        .and_then(|name| named(&name.0, known, &at_upstream, report));
    let is_own = |rules: &Arc<UpstreamRules>| {
        of.is_some_and(|of| of.iter().any(|(own, _)| own.name == rules.name))
    };
    if upstream.as_ref().is_some_and(is_own) {
        report.fault(&at_upstream, "gets the requests themselves; write another upstream");
    }
    let at_methods = at.key("methods");
    if written.methods.is_none()
        && !SAFE.iter().any(|method| serves(served, method))
        && !report.has_fault_within(&at_methods)
    {
        let fault = format!("is missing, and the route serves none of {}", SAFE.join(", "));
        report.fault(&at_methods, format!("{fault}; write methods to copy"));
    }
    let methods = methods_of(written.methods, served, &at_methods, report);
    Some(Mirror {
        upstream: upstream?,
        percent: written.percent.map_or(100, |percent| percent.0.0),
        methods: methods.unwrap_or_else(|| SAFE.map(str::to_owned).into()),
        max_in_flight: written
            .max_in_flight
            .map_or(256, |most| isize::try_from(most.0.0).unwrap_or(isize::MAX)),
        timeout: deadline(written.timeout, 10),
    })
}

/// The rules of the upstream called `name`, which is written at `at`.
pub(super) fn named(
    name: &str,
    known: &Named,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<UpstreamRules>> {
    let found = known.binary_search_by(|(existing, _)| existing.as_str().cmp(name));
    let found = found.ok().and_then(|at| known.get(at));
    if found.is_none() && !report.is_broken(&KeyPath::top("upstreams").key(name)) {
        report.fault(at, unknown("upstream", name, known.iter().map(|(name, _)| name)));
    }
    found.and_then(|(_, rules)| rules.clone())
}

fn shares(
    written: Vec<Option<file::Share>>,
    known: &Named,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Split<Arc<UpstreamRules>>> {
    let mut shares: Vec<(String, u32, Option<Arc<UpstreamRules>>)> = Vec::new();
    for (i, share) in written.into_iter().enumerate() {
        let at = at.index(i);
        let (name, weight) = share.map_or((None, None), |share| (share.upstream, share.weight));
        let name = need(name, &at.key("upstream"), report);
        let weight = need(weight, &at.key("weight"), report);
        let (Some(name), Some(weight)) = (name, weight) else { continue };
        let rules = named(&name.0, known, &at.key("upstream"), report);
        if shares.iter().any(|(other, ..)| *other == name.0) {
            report.fault(&at.key("upstream"), "is named twice; write each upstream once");
        }
        shares.push((name.0, u32::try_from(weight.0).unwrap_or(u32::MAX), rules));
    }
    if !report.has_fault_within(at) && !shares.iter().any(|(_, weight, _)| *weight > 0) {
        let example = "[ { upstream: users, weight: 95 }, { upstream: users-next, weight: 5 } ]";
        report.fault(at, format!("has no weight above 0; write shares such as {example}"));
    }
    let shares = shares.iter().map(|(name, weight, rules)| (name.as_str(), *weight, rules.clone()));
    let shares: Option<Vec<_>> =
        shares.map(|(name, weight, rules)| Some((name, weight, rules?))).collect();
    shares.and_then(Split::new)
}
