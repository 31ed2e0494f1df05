//! Origins, and the names of fields that scripts use.

use http::HeaderName;

use super::scalar::{Scalar, instead};
use crate::route::cors::OriginPattern;

/// Origins whose scripts may use a route.
pub enum Origin {
    /// Every origin.
    Any,
    /// One, or all whose hosts are beneath a name.
    These(OriginPattern),
}

impl Origin {
    /// The pattern; `None` for every origin.
    pub fn pattern(self) -> Option<OriginPattern> {
        match self {
            Self::Any => None,
            Self::These(pattern) => Some(pattern),
        }
    }
}

impl Scalar for Origin {
    fn allowed() -> String {
        "https://app.example.com, https://*.example.com, or `*`".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        OriginPattern::parse(text)
            .map(Self::These)
            .ok_or_else(|| instead::<Self>("is not an origin"))
    }
}

/// The name of a header field.
pub struct Field(pub HeaderName);

impl Scalar for Field {
    fn allowed() -> String {
        "the name of a header field, such as authorization".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        // `*` is a name by its characters, and would be read as all fields.
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if text != "*" => Ok(Self(name)),
            _ => Err(instead::<Self>("is not the name of a header field")),
        }
    }
}
