//! How scripts of other origins may use a route.

use super::super::cross_origin::{Field, Origin};
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::{each, or};
use crate::route::cors::{Cors, Origins, Rules};

/// The methods where none are written.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

pub(super) fn compile(written: file::Cors, at: &KeyPath, report: &mut Report) -> Option<Cors> {
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
    let methods = each(written.methods, &at.key("methods"), report);
    let methods: Vec<String> = match methods.is_empty() {
        true => METHODS.map(str::to_owned).into(),
        false => methods.into_iter().map(|method| method.0).collect(),
    };
    let names = |fields: Vec<Field>| fields.into_iter().map(|field| field.0).collect();
    let max_age = written.max_age.map_or(600, |span| span.0.0.as_secs());
    let headers = each(written.headers, &at.key("headers"), report);
    let expose = each(written.expose, &at.key("expose"), report);
    Cors::new(Rules {
        origins,
        methods,
        headers: names(headers),
        expose: names(expose),
        credentials,
        max_age,
    })
}
