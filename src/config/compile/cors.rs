//! How scripts of other origins may use a route.

use std::time::Duration;

use super::super::cross_origin::{Field, Origin};
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::{each, methods_of, or};
use crate::route::cors::{Cors, Origins, Rules};
use crate::route::table::serves;

/// The methods where none are written.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// The rules that are written at `at` for a route with the methods `served`.
pub(super) fn compile(
    written: file::Cors,
    served: &[String],
    at: &KeyPath,
    report: &mut Report,
) -> Option<Cors> {
    let at_origins = at.key("origins");
    let none = written.origins.as_ref().is_none_or(Vec::is_empty);
    if none && !report.has_fault_within(&at_origins) {
        let fault = "has no origin; write at least one, such as [ https://app.example.com ]";
        report.fault(&at_origins, fault);
    }
    let origins = each(written.origins, &at_origins, report);
    let any = origins.iter().any(|origin| matches!(origin, Origin::Any));
    if any && origins.len() > 1 {
        report.fault(&at_origins, "has `*` beside other origins; write `*` alone, or the origins");
    }
    let credentials = or(written.credentials, false);
    if any && credentials {
        report.fault(
            &at.key("credentials"),
            "is true for every origin, and would let any page act for a user; write the origins instead of `*`",
        );
    }
    let origins = match any {
        true => Origins::Any,
        false => Origins::These(origins.into_iter().filter_map(Origin::pattern).collect()),
    };
    let methods = match methods_of(written.methods, served, &at.key("methods"), report) {
        Some(methods) => methods.into_iter().filter(|method| serves(served, method)).collect(),
        None if served.is_empty() => METHODS.map(str::to_owned).into(),
        None => served.to_vec(),
    };
    let names = |fields: Vec<Field>| fields.into_iter().map(|field| field.0).collect();
    let max_age = written.max_age.map_or(Duration::from_secs(600), |span| span.0.0);
    if max_age.subsec_nanos() != 0 {
        report.fault(&at.key("max_age"), "is not a number of whole seconds; write one such as 10m");
    }
    let headers = each(written.headers, &at.key("headers"), report);
    let expose = each(written.expose, &at.key("expose"), report);
    Cors::new(Rules {
        origins,
        methods,
        headers: names(headers),
        expose: names(expose),
        credentials,
        max_age: max_age.as_secs(),
    })
}
