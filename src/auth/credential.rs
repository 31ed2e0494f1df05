//! The credential of a request: `Authorization: Bearer X` (RFC 6750 section 2.1) or `X-API-Key: X`.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memchr_iter;

use crate::record::key::MAX_KEY;

/// The name of the field `X-API-Key`. A name given as text would be parsed at each look-up.
pub static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Longest credential that is looked at, in bytes.
pub const MAX_CREDENTIAL: usize = MAX_KEY;

/// A credential as it was sent, not yet verified. It cannot be printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// Three parts with dots between them.
    Jwt(&'a str),
    /// Anything else.
    Opaque(&'a str),
}

impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jwt(_) => "Jwt(***)",
            Self::Opaque(_) => "Opaque(***)",
        })
    }
}

/// Why the credential fields of a request cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Two fields hold different credentials.
    #[error("two different credentials")]
    Ambiguous,
    /// The credential is empty, too long, or holds bytes that no credential has.
    #[error("malformed credential")]
    Malformed,
}

impl<'a> Credential<'a> {
    /// The bytes of the only credential in `headers`, at most [`MAX_CREDENTIAL`], or `None`. Other
    /// authorization schemes are no credential here.
    ///
    /// # Errors
    /// [`CredentialError`] when there are several different credentials, or the credential is too long.
    pub fn sent(headers: &'a HeaderMap) -> Result<Option<&'a [u8]>, CredentialError> {
        let credential = |(name, value): (&HeaderName, &'a HeaderValue)| match name {
            _ if name == header::AUTHORIZATION => bearer(value),
            _ if name == X_API_KEY => Some(value.as_bytes()),
            _ => None,
        };
        let mut found: Option<&[u8]> = None;
        // Going over all fields costs less than looking for two.
        for credential in headers.iter().filter_map(credential) {
            if found.is_some_and(|earlier| earlier != credential) {
                return Err(CredentialError::Ambiguous);
            }
            found = Some(credential);
        }
        match found {
            Some(found) if found.len() > MAX_CREDENTIAL => Err(CredentialError::Malformed),
            found => Ok(found),
        }
    }

    /// Reads the credential itself.
    ///
    /// # Errors
    /// [`CredentialError::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CredentialError> {
        // A loop that does not stop at the first fault reads many bytes at a time.
        let visible =
            bytes.iter().fold(true, |visible, byte| visible & (0x21..=0x7e).contains(byte));
        if bytes.is_empty() || bytes.len() > MAX_CREDENTIAL || !visible {
            return Err(CredentialError::Malformed);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| CredentialError::Malformed)?;
        Ok(if memchr_iter(b'.', bytes).count() == 2 { Self::Jwt(text) } else { Self::Opaque(text) })
    }
}

/// What follows the scheme `Bearer`, in any case (RFC 9110 section 11.1).
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    match rest.first() {
        None => Some(rest),
        Some(b' ') => Some(rest.trim_ascii()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(fields: &[(&str, &str)]) -> Result<Option<String>, CredentialError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let sent = Credential::sent(&headers)?;
        Ok(sent.map(Credential::parse).transpose()?.map(|credential| match credential {
            Credential::Jwt(text) => format!("jwt {text}"),
            Credential::Opaque(text) => format!("opaque {text}"),
        }))
    }

    #[test]
    fn credentials_are_found_or_refused() {
        use CredentialError::*;
        let long = format!("Bearer {}", "x".repeat(MAX_CREDENTIAL + 1));
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[("authorization", "Bearer a.b.c")], Ok(Some("jwt a.b.c"))),
            (&[("authorization", "bEARER   a.b.c ")], Ok(Some("jwt a.b.c"))),
            (&[("authorization", "Bearer abc")], Ok(Some("opaque abc"))),
            (&[("x-api-key", "a.b.c")], Ok(Some("jwt a.b.c"))),
            (&[("authorization", "Basic dTpw")], Ok(None)),
            (&[("authorization", "Bearerabc")], Ok(None)),
            (&[("authorization", "Bearer")], Err(Malformed)),
            (&[("authorization", "Bearer ")], Err(Malformed)),
            (&[("authorization", "Bearer a b")], Err(Malformed)),
            (&[("authorization", &long)], Err(Malformed)),
            (&[("authorization", "Bearer a"), ("x-api-key", "a")], Ok(Some("opaque a"))),
            (&[("authorization", "Bearer a"), ("x-api-key", "b")], Err(Ambiguous)),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], Err(Ambiguous)),
            (&[("x-api-key", "a"), ("x-api-key", "b")], Err(Ambiguous)),
        ] {
            assert_eq!(
                credential(fields),
                expected.map(|text| text.map(String::from)),
                "{fields:?}"
            );
        }
    }
}
