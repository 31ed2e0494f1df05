//! Points in time, and pages on the web, as they are written.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use http::HeaderValue;
use url::Url;

use super::scalar::{Scalar, instead};

/// A point in time: a date means its beginning in UTC.
pub struct Moment(pub DateTime<Utc>);

impl Scalar for Moment {
    fn allowed() -> String {
        "a date such as 2026-06-01, or a time such as 2026-06-01T12:00:00Z".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| text.len() == 10);
        let time = match date {
            Some(date) => Some(date.and_time(NaiveTime::MIN).and_utc()),
            None => DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()),
        };
        match time {
            Some(time) if time.timestamp() >= 0 => Ok(Self(time)),
            Some(_) => Err(instead::<Self>("is before 1970")),
            None => Err(instead::<Self>("is not a time")),
        }
    }
}

/// A page that people read, as the target of a link (RFC 8288).
pub struct Page(pub HeaderValue);

impl Scalar for Page {
    fn allowed() -> String {
        "a URL such as https://example.com/migration".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        let url = url.filter(|url| url.username().is_empty() && url.password().is_none());
        // The text of a URL has no `>`, which would end the target.
        let link = url.map(|url| format!("<{url}>; rel=\"deprecation\""));
        let link = link.and_then(|link| HeaderValue::try_from(link).ok());
        link.map(Self).ok_or_else(|| instead::<Self>("is not a URL"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_read() {
        for (text, seconds) in [
            ("2026-06-01", 1_780_272_000),
            ("2026-06-01T12:00:00Z", 1_780_315_200),
            ("2026-06-01T12:00:00+02:00", 1_780_308_000),
        ] {
            assert_eq!(Moment::read(text).unwrap().0.timestamp(), seconds, "{text}");
        }
        for text in
            ["", "soon", "2026-6-1", "2026-13-01", "2026-06-01T12:00", "1969-12-31", "1780272000"]
        {
            assert!(Moment::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pages_become_links() {
        let link = Page::read("https://example.com/a>b?c>d#e>f").unwrap().0;
        let link = link.to_str().unwrap();
        assert_eq!(link.matches('>').count(), 1, "{link}");
        assert!(link.ends_with("; rel=\"deprecation\""), "{link}");
        for text in ["", "/page", "example.com", "ftp://a", "javascript:alert(1)", "https://u:p@a/"]
        {
            assert!(Page::read(text).is_err(), "{text}");
        }
    }
}
