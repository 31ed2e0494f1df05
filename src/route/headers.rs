//! The changes that a route makes to header fields, and the fields that tell of its end. The proxy applies them.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::template::Template;

/// Changes to header fields: first `remove`, then `set` and `made`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Fields that replace those of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// The same with values that are made of the request. Where the request lacks a value, the field is removed.
    pub made: Vec<(HeaderName, Template)>,
    /// Fields that are removed.
    pub remove: Vec<HeaderName>,
}

impl HeaderRules {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.made.is_empty() && self.remove.is_empty()
    }

    /// The fields that are set or removed.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        let set = self.set.iter().map(|(name, _)| name);
        set.chain(self.made.iter().map(|(name, _)| name)).chain(&self.remove)
    }
}

static DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
static SUNSET: HeaderName = HeaderName::from_static("sunset");

/// What a deprecated route tells its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecated {
    /// `Deprecation`: since when (RFC 9745 section 2.1).
    pub deprecation: HeaderValue,
    /// `Sunset`: when the route ends (RFC 8594 section 3).
    pub sunset: Option<HeaderValue>,
    /// `Link` to a page about it (RFC 9745 section 2.2).
    pub link: Option<HeaderValue>,
}

impl Deprecated {
    /// Sets the fields of an answer.
    pub fn set(&self, headers: &mut HeaderMap) {
        headers.insert(&DEPRECATION, self.deprecation.clone());
        if let Some(sunset) = &self.sunset {
            headers.insert(&SUNSET, sunset.clone());
        }
        if let Some(link) = &self.link {
            // The upstream may have links of its own.
            headers.append(header::LINK, link.clone());
        }
    }
}
