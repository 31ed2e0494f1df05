//! Rules about header fields: which fields a rule may touch, and the values that it sets.

use std::collections::BTreeSet;

use http::header::{self, HeaderName};

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::need;
use crate::route::fields;
use crate::route::headers::HeaderRules;
use crate::route::host::Authority;
use crate::route::template::FieldValue;

/// Which way a header section goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Towards {
    /// From the client.
    Upstream,
    /// From the upstream.
    Client,
}

/// The fields of answers that other sections of a route are about.
#[derive(Clone, Copy)]
pub(super) struct Elsewhere {
    /// Whether the route has `cors`.
    pub cors: bool,
    /// Whether the route has `deprecated`.
    pub deprecated: bool,
}

impl Elsewhere {
    /// The section that sets the field of this name.
    fn section(self, name: &HeaderName) -> Option<&'static str> {
        let name = name.as_str();
        if self.cors && name.starts_with("access-control-") {
            Some("cors")
        } else {
            (self.deprecated && ["deprecation", "sunset"].contains(&name)).then_some("deprecated")
        }
    }
}

/// The rules of a route for one header section.
pub(super) fn rules(
    written: file::HeaderRules,
    towards: Towards,
    elsewhere: Elsewhere,
    at: &KeyPath,
    report: &mut Report,
) -> HeaderRules {
    let mut rules = HeaderRules::default();
    let mut seen = BTreeSet::new();
    for (text, value) in written.set.unwrap_or_default() {
        let at = at.key("set").key(&text);
        let name = field(&text, towards, elsewhere, &at, report);
        if let Some(name) = &name
            && !seen.insert(name.as_str().to_owned())
        {
            report.fault(&at, "is set twice, in different case; write each field once");
        }
        let value = need(value, &at, report);
        if let (Some(name), Some(FieldValue::Fixed(value))) = (&name, &value)
            && towards == Towards::Upstream
            && name == header::HOST
            && Authority::parse(value.as_bytes()).is_none()
        {
            report.fault(&at, "is not a host; write a host such as users.internal or 10.0.0.1:80");
        }
        match (name, value) {
            (Some(name), Some(FieldValue::Fixed(value))) => rules.set.push((name, value)),
            (Some(name), Some(FieldValue::Made(template))) => rules.made.push((name, template)),
            _ => {}
        }
    }
    let at = at.key("remove");
    for (i, text) in written.remove.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(text) = need(text, &at, report) else {
            continue;
        };
        let Some(name) = field(&text, towards, elsewhere, &at, report) else {
            continue;
        };
        if towards == Towards::Upstream && name == header::HOST {
            report
                .fault(&at, "is host, which every request needs; write it under set to change it");
        }
        rules.remove.push(name);
    }
    rules
}

/// The name of a field that a rule may touch.
fn field(
    text: &str,
    towards: Towards,
    elsewhere: Elsewhere,
    at: &KeyPath,
    report: &mut Report,
) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        report.fault(at, "is not the name of a header field; write letters, digits and `-`");
        return None;
    };
    if fields::belongs_to_connection(name.as_str()) {
        report
            .fault(at, "belongs to the connection, not to the message; write another header field");
    } else if towards == Towards::Upstream && fields::is_own(name.as_str()) {
        report.fault(at, "is a field the gateway writes itself; write another header field");
    } else if towards == Towards::Client
        && let Some(section) = elsewhere.section(&name)
    {
        let fault = format!("is a field that {section} of this route sets; write one of the two");
        report.fault(at, fault);
    }
    Some(name)
}
