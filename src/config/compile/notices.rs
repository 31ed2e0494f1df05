//! The notice of a deprecated route to its clients.

use chrono::{DateTime, Utc};
use http::HeaderValue;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::need;
use crate::route::headers::Deprecated;

pub(super) fn deprecated(
    written: file::Deprecated,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Deprecated> {
    let since = need(written.since, &at.key("since"), report)?.0;
    let sunset = written.sunset.map(|sunset| sunset.0.0);
    if sunset.is_some_and(|sunset| sunset < since) {
        // RFC 9745 section 4.
        report.fault(&at.key("sunset"), "is before since; write a time that is not");
    }
    Some(Deprecated {
        deprecation: HeaderValue::from_str(&format!("@{}", since.timestamp())).ok()?,
        sunset: sunset.and_then(|sunset| HeaderValue::from_str(&http_date(sunset)).ok()),
        link: written.link.map(|link| link.0.0),
    })
}

/// The form that a date has in a field (RFC 9110 section 5.6.7).
fn http_date(time: DateTime<Utc>) -> String {
    time.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
