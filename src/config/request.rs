//! The parts of a request that the gateway believes or lets pass: places of credentials, and fields.

use http::HeaderName;

use super::scalar::{Scalar, instead};
use crate::auth::sources::Source;
use crate::route::fields::is_removed_by_default;

/// The longest name of a parameter, cookie or protocol, in bytes.
const MAX_NAME: usize = 64;

impl Scalar for Source {
    fn allowed() -> String {
        "authorization, x-api-key, query:NAME, cookie:NAME or subprotocol:NAME".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        match text.split_once(':') {
            None if text == "authorization" => Ok(Self::Authorization),
            None if text == "x-api-key" => Ok(Self::ApiKey),
            Some((_, name))
                if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(allowed) =>
            {
                Err(format!(
                    "has no name of 1 to {MAX_NAME} letters, digits, `_`, `-` or `.` after the colon; write {}",
                    Self::allowed()
                ))
            }
            Some(("query", name)) => Ok(Self::Query(name.into())),
            Some(("cookie", name)) => Ok(Self::Cookie(name.into())),
            Some(("subprotocol", name)) => Ok(Self::Subprotocol(name.into())),
            _ => Err(instead::<Self>("is no place of a credential")),
        }
    }
}

/// A field that passes although the gateway would remove it.
pub struct PassedField(pub HeaderName);

impl Scalar for PassedField {
    fn allowed() -> String {
        "a field that the gateway removes, such as X-Original-URL or Authorization".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if is_removed_by_default(name.as_str()) => Ok(Self(name)),
            _ => Err(instead::<Self>("is not removed, or always removed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_credentials_are_read() {
        assert_eq!(Source::read("authorization"), Ok(Source::Authorization));
        assert_eq!(Source::read("x-api-key"), Ok(Source::ApiKey));
        assert_eq!(Source::read("query:access_token"), Ok(Source::Query("access_token".into())));
        assert_eq!(Source::read("cookie:s"), Ok(Source::Cookie("s".into())));
        assert_eq!(Source::read("subprotocol:bearer"), Ok(Source::Subprotocol("bearer".into())));
        for wrong in ["", "query", "query:", "query:a b", "header:x", "cookie:a=b", "Authorization"]
        {
            assert!(Source::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_removed_fields_can_be_let_pass() {
        for name in ["X-Original-URL", "x-forwarded-user", "Proxy", "Authorization", "X-API-Key"] {
            assert!(PassedField::read(name).is_ok(), "{name}");
        }
        for name in
            ["", "X-Token-ID", "X-Forwarded-For", "X-Custom", "X_Original_URL", "Connection", "a b"]
        {
            assert!(PassedField::read(name).is_err(), "{name}");
        }
    }
}
